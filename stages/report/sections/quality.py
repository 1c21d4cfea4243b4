"""What the quality phase adds to the report: columns of results.parquet, entries of metrics.json, a section of the page.

Where the phase is left out the columns are empty, there is no entry, and the section says how to turn the phase on.
"""

from html import escape

from stages import inception_weights
from stages.report.page import DASH, html_table, number, with_sd
from stages.run import files

PROTOCOLS = ("pytorch_fid", "torch_fidelity", "clean", "dcr")
MEASURES = {
    "fid": "FID",
    "fid_50k": "FID of 50,000",
    "kid": "KID",
    "is": "Inception score",
    "precision": "precision",
    "recall": "recall",
}
MEANINGS = {
    "FID": "Fréchet distance between the Inception features of generated and training images, lower is closer. It falls as the "
    "number of images grows: compare equal numbers. With fewer than 2,049 images on a side it says little.",
    "FID of 50,000": "The same for the first 50,000 generated images, as most published values are.",
    "KID": "Kernel distance of the same features, without FID's bias for few images. It can come out slightly below 0.",
    "Inception score": "How surely and how variously the network sorts the images into ImageNet's classes, higher is more. Of "
    "little meaning for images of other things.",
    "precision": "Share of the generated images that lie among the training images; memorised ones do.",
    "recall": "Share of the training images that lie among the generated ones.",
    "protocol": "How images reach the network: pytorch_fid as in the authors' code of the unconditional half, dcr "
    "as in that of the text-conditioned half, torch_fidelity as in TensorFlow, clean with a resize that filters. Values of "
    "two protocols cannot be compared. Precision and recall are of Inception features; other work uses other networks.",
}


def protocols(settings):
    """Protocols in the order of params.yaml; none where the phase is left out."""
    return settings["quality"]["protocols"] if inception_weights.wanted(settings) else []


def with_columns(results, settings, run):
    """The rows of a run with a column <measure>_<protocol> for each, by the row's kind of weights; NaN where there is none."""
    found = files.load_json(files.quality_dir(run) / "scores.json") if protocols(settings) else {}
    for protocol in PROTOCOLS:
        for name in MEASURES:
            of_weights = {weights: scores.get(protocol, {}).get(name) for weights, scores in found.items()}
            results[f"{name}_{protocol}"] = results.weights.map(of_weights).astype(float)
    return results


def summary(settings, rows, mean_and_sd):
    """Entry of metrics.json for an arm and kind of weights: measure -> protocol -> mean over seeds.

    rows          one row a seed
    mean_and_sd   function (rows, names of columns) -> dict with <name> and, for several seeds, <name>_sd
    Returns       dict; without a measure that no protocol has, such as fid_50k of fewer images
    """
    entry = {}
    for name in MEASURES:
        of_measure = rows.rename(columns={f"{name}_{protocol}": protocol for protocol in PROTOCOLS})
        shown = [protocol for protocol in protocols(settings) if of_measure[protocol].notna().any()]
        if shown:
            entry[name] = mean_and_sd(of_measure, shown)
    return entry


def section(settings, metrics, figures):
    """The page's section, as HTML.

    figures   SVGs of excess against FID, one a kind of weights, None where there is nothing to draw
    """
    head = '<section>\n<h2 id="quality">Quality</h2>\n'
    if not protocols(settings):
        sentence = inception_weights.LEFT_OUT
        return f"{head}<p class=quiet>{escape(sentence[0].upper() + sentence[1:])}.</p>\n</section>"
    tables = "\n".join(
        html_table(_rows(settings, metrics, protocol), f"Protocol {protocol}: generated against training images.")
        for protocol in protocols(settings)
    )
    explained = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in MEANINGS.items())
    caption = (
        "Memorisation against FID, a point an arm and seed. Further down is less memorised, further left is closer to the "
        "training images. Dashed: what the baseline comes to when it is stopped early."
    )
    drawn = "".join(f"<figure>{svg}<figcaption>{caption}</figcaption></figure>" for svg in figures if svg)
    return (
        f"{head}{tables}\n<details><summary>What the columns mean</summary><dl>{explained}</dl></details>\n"
        f"<div class=panels>{drawn}</div>\n</section>"
    )


def _rows(settings, metrics, protocol):
    """A row an arm, raw and EMA weights side by side under each measure."""
    arms = list(settings["arms"])
    kinds = [weights for weights in ("raw", "ema") if any(weights in metrics[arm] for arm in arms)]

    def cell(arm, weights, name):
        found = metrics[arm].get(weights, {}).get(name, {})
        return with_sd(found, protocol, number) if protocol in found else DASH

    columns = {f"{label} {weights}": (weights, name) for name, label in MEASURES.items() for weights in kinds}
    rows = {arm: {title: cell(arm, *column) for title, column in columns.items()} for arm in arms}
    shown = [title for title in columns if any(row[title] != DASH for row in rows.values())]
    return [{"arm": arm} | {title: rows[arm][title] for title in shown} for arm in arms]
