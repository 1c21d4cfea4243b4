"""What the quality phase adds to the report: columns of results.parquet, entries of summary.json, a section of the page.

Where the phase is left out the columns are empty, there is no entry, and the section says how to turn the phase on.
"""

from stages import phases
from stages.report import columns, html
from stages.report.entries import WEIGHTS, mean_and_sd
from stages.report.html import DASH, number, with_sd
from stages.report.sections import trade_off
from stages.run import files

ANCHOR, TITLE = "quality", "Quality"
PROTOCOLS = ("pytorch_fid", "torch_fidelity", "clean", "dcr")
PROTOCOL = (
    "How images are resized and scaled for the network. pytorch_fid: as in the authors' code for unconditional models. dcr: as in "
    "their code for text-conditioned models. torch_fidelity: as in TensorFlow. clean: with a resize that filters. Values from "
    "different protocols cannot be compared. Precision and recall use Inception features; other work uses other networks."
)


def protocols(settings):
    """Protocols in the order of params.yaml; none where the phase is left out."""
    return settings["quality"]["protocols"] if phases.module("quality").wanted(settings) else []


def with_columns(scores, settings, place):
    """The rows of a run with a column <measure>_<protocol> for each, by the row's kind of weights; NaN where there is none."""
    found = files.load_json(files.folder("results/quality", place) / "scores.json") if protocols(settings) else {}
    for protocol in PROTOCOLS:
        for name in columns.of("quality"):
            by_weights = {weights: of_weights.get(protocol, {}).get(name) for weights, of_weights in found.items()}
            scores[f"{name}_{protocol}"] = scores.weights.map(by_weights).astype(float)
    return scores


def summary(report, arm, weights):
    """{measure: {protocol: mean over seeds}}, without a measure that no protocol has, such as fid_50k of fewer images."""
    results = report.results
    rows = results[(results.arm == arm) & (results.weights == weights)].drop_duplicates("seed")
    entry = {}
    for name in columns.of("quality"):
        of_measure = rows.rename(columns={f"{name}_{protocol}": protocol for protocol in PROTOCOLS})
        shown = [protocol for protocol in protocols(report.settings) if of_measure[protocol].notna().any()]
        if shown:
            entry[name] = mean_and_sd(of_measure, shown)
    return entry


def section(report):
    shown = protocols(report.settings)
    if not shown:
        sentence = phases.declared("quality")["left_out"]
        return html.section(ANCHOR, "Quality", html.quiet(f"{sentence[0].upper()}{sentence[1:]}."))
    tables = [
        html.table(
            _rows(report, protocol),
            f"Protocol {protocol}: generated against training images; FID held out against held-out ones.",
        )
        for protocol in shown
    ]
    legend = html.legend(columns.meanings("quality") | {"protocol": PROTOCOL})
    return html.section(ANCHOR, "Quality", "\n".join([*tables, legend, html.panels(_figures(report, shown[0]))]))


def _rows(report, protocol):
    """One row per arm, raw and EMA weights side by side under each measure; no column that is empty for all arms."""
    kinds = [weights for weights in WEIGHTS if any(weights in of_arm for of_arm in report.metrics.values())]

    def cell(arm, weights, name):
        entry = report.metrics[arm].get(weights, {}).get(name, {})
        return with_sd(entry, protocol, number) if protocol in entry else DASH

    heads = {
        f"{column['title']} {weights}": (weights, name)
        for name, column in columns.of("quality").items()
        for weights in kinds
    }
    rows = {arm: {head: cell(arm, *of_head) for head, of_head in heads.items()} for arm in report.arms}
    shown = [head for head in heads if any(row[head] != DASH for row in rows.values())]
    return [{"arm": arm} | {head: row[head] for head in shown} for arm, row in rows.items()]


def _figures(report, protocol):
    """Memorisation against FID, a figure for each kind of weights that has both."""
    caption = (
        "Memorisation against FID to {}, one line per arm and seed, one marker per round. Lower means less memorised, further left means "
        "closer to them."
    )
    headline = report.headline.weights
    drawn = [
        (trade_off.drawn(report, weights, f"{name}_{protocol}", f"{title} ({protocol})"), to)
        for name, title, to in (
            ("fid_heldout", "FID held out", "held-out images"),
            ("fid", "FID", "the training images"),
        )
        for weights in (headline, "raw" if headline == "ema" else "ema")
    ]
    return [html.figure(svg, caption.format(to)) for svg, to in drawn if svg]
