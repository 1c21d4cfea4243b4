"""What the CLIP score and the magnitude detector add to the report: entries of summary.json, one section of the page."""

import numpy as np

from stages import experiments, phases
from stages.report import columns, html
from stages.report.entries import weights_of
from stages.report.sections import measures
from stages.run import files

ANCHOR, TITLE = "prompts", "Prompts"
LEGEND = {  # terms used in the column heads, and the column whose meaning explains them
    "CLIP score": ("clip", "original"),
    "magnitude": ("detect", "trained"),
    "AUC": ("detect", "auc"),
    "found at 1 % false": ("detect", "found_at_1_percent"),
}


def summary(report, arm, weights):
    """{"clip": ..., "detect": ...}, means over seeds, for an arm and kind of weights; nothing of a phase that is left out."""
    settings, found = report.settings, {}
    # Images with prompts are those of all arms whose model is trained here. A model is looked at once, with the arm that trains it.
    if phases.module("clip").wanted(settings) and experiments.maker(settings, arm) is not None:
        folders = [files.folder("results/clip", place) for place in report.places(arm)]
        found["clip"] = measures.means([measures.read_scores("clip", folder, weights) for folder in folders])
    if phases.module("detect").wanted(settings) and arm in phases.module("detect").arms(settings):
        scores = [files.load_json(files.folder("results/detect", run) / "scores.json") for run in report.runs(arm)]
        found["detect"] = measures.means([_detected(of_run[weights]) for of_run in scores])
    return found


def _detected(scores):
    """The columns of the phase detect, from its scores of one kind of weights; NaN for what is not known."""
    by_mean, by_first = scores["rms_mean"], scores["rms_first_step"]
    values = {name: by_mean.get(name) for name in ("trained", "unseen", "auc", "found_at_1_percent")}
    values |= {"auc_first_step": by_first.get("auc")}
    return {name: np.nan if value is None else float(value) for name, value in values.items()}


def section(report):
    wanted = [name for name in ("clip", "detect") if phases.module(name).wanted(report.settings)]
    if not wanted:
        return ""
    rows = []
    for arm in report.arms:
        for weights in weights_of(report.metrics[arm]):
            rows.append({"arm": arm, "weights": weights})
            for phase in wanted:
                rows[-1] |= columns.cells(phase, report.metrics[arm][weights].get(phase, {}))
    meanings = {term: columns.of(phase)[name]["meaning"] for term, (phase, name) in LEGEND.items()}
    return html.section(ANCHOR, "Prompts", f"{html.table(rows, _used(report))}\n{html.legend(meanings)}")


def _used(report):
    """The model and settings that the numbers come from, as a caption."""
    settings, parts = report.settings, []
    if phases.module("clip").wanted(settings):
        arm = next(iter(experiments.trained(settings)))
        used = files.load_json(files.folder("results/clip", report.first_place(arm)) / "scores.json")
        sums = ", ".join(f"{name} sha256 {digest[:16]}…" for name, digest in used["sha256"].items())
        parts.append(f"CLIP model {used['model']} ({sums}), preprocessing {used['preprocess']}.")
    if phases.module("detect").wanted(settings):
        section = settings["detect"]
        parts.append(
            f"Magnitudes over {section['images_per_prompt']} images per caption, {section['num_steps']} steps, guidance "
            f"{section['guidance']:g}."
        )
    return " ".join(parts)
