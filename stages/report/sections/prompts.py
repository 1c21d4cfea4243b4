"""What the CLIP score and the magnitude detector add to the report: entries of metrics.json, a section of the page."""

import math
from html import escape

from stages import clip, detect, params
from stages.report.page import DASH, html_table, number, with_sd
from stages.run import files

CLIP = {"original": "CLIP score, original prompt", "used": "CLIP score, prompt used"}
DETECT = {
    "trained": "magnitude, captions trained on",
    "unseen": "magnitude, unseen captions",
    "auc": "AUC",
    "found_at_1_percent": "found at 1 % false",
    "auc_first_step": "AUC, first step",
}
MEANINGS = {
    "CLIP score": "100 times the mean cosine of CLIP's embeddings of image and prompt, higher fits better. The prompt used has the words "
    "that a mitigation put in.",
    "magnitude": "Root mean square of what a caption adds to the noise prediction, mean over steps and images. Captions that the model "
    "has learnt by heart have a large one.",
    "AUC": "How well the magnitude tells captions trained on from unseen ones: 0.5 is no better than chance, 1 tells all apart.",
    "found at 1 % false": "Share of the captions trained on that are told by a threshold which at most 1 % of the unseen ones exceed.",
}


def summary(settings, arm, weights, mean_and_sd):
    """Entries of metrics.json for an arm and kind of weights: clip and detect, means over seeds; none of a phase that is left out."""
    import pandas as pd

    found = {}
    for name, phase, folder, values in (
        ("clip", clip, files.clip_dir, lambda scores: scores[weights]),
        ("detect", detect, files.detect_dir, lambda scores: _detected(scores[weights])),
    ):
        # A model is looked at once, with the arm that trains it; images with prompts are those of all its arms.
        made_by = {"clip": params.maker(settings, arm), "detect": arm if arm in detect.arms(settings) else None}
        if not phase.wanted(settings) or made_by[name] is None:
            continue
        runs = [files.run_name(arm, seed) for seed in params.seeds_of(settings, arm)]
        rows = pd.DataFrame([values(files.load_json(folder(run) / "scores.json")) for run in runs])
        found[name] = mean_and_sd(rows.astype(float), list(rows))
    return found


def _detected(scores):
    by_mean, by_first = scores["rms_mean"], scores["rms_first_step"]
    values = {name: by_mean.get(name) for name in ("trained", "unseen", "auc", "found_at_1_percent")}
    values |= {"auc_first_step": by_first.get("auc")}
    return {name: math.nan if value is None else value for name, value in values.items()}


def section(settings, metrics):
    """The page's section, as HTML; \"\" where both phases are left out."""
    titles = {("clip", name): title for name, title in CLIP.items()} if clip.wanted(settings) else {}
    titles |= {("detect", name): title for name, title in DETECT.items()} if detect.wanted(settings) else {}
    if not titles:
        return ""
    rows = []
    for arm in settings["arms"]:
        for weights in (w for w in ("raw", "ema") if w in metrics[arm]):
            of_weights = metrics[arm][weights]
            cells = {title: _cell(of_weights.get(phase, {}), name) for (phase, name), title in titles.items()}
            rows.append({"arm": arm, "weights": weights} | cells)
    explained = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in MEANINGS.items())
    return (
        f'<section>\n<h2 id="prompts">Prompts</h2>\n{html_table(rows, _used(settings))}\n'
        f"<details><summary>What the columns mean</summary><dl>{explained}</dl></details>\n</section>"
    )


def _cell(entry, name):
    return with_sd(entry, name, number) if entry.get(name) is not None else DASH


def _used(settings):
    parts = []
    if clip.wanted(settings):
        arm = next(iter(params.trained(settings)))
        run = files.run_name(arm, settings["seeds"][0])
        used = files.load_json(files.clip_dir(run) / "scores.json")
        sums = ", ".join(f"{name} sha256 {digest[:16]}…" for name, digest in used["sha256"].items())
        parts.append(f"CLIP model {used['model']} ({sums}), preprocessing {used['preprocess']}.")
    if detect.wanted(settings):
        section = settings["detect"]
        parts.append(
            f"Magnitudes over {section['images_per_prompt']} images a caption, {section['num_steps']} steps, guidance "
            f"{section['guidance']:g}."
        )
    return " ".join(parts)
