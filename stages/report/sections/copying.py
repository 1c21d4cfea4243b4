"""The data-copying measures of the literature, a row for each arm between two that say what their values mean."""

from stages import phases
from stages.report import columns, html
from stages.report.entries import weights_of
from stages.report.sections import measures
from stages.run import files
from stages.run.instance import REFERENCE

ANCHOR, TITLE = "copying", "Data copying"
REFERENCES = {"heldout": "held-out images", "copycat": "copycat"}
SHOWN = {"pixels": "pixels", "inception": "features of Inception", "dinov2": "features of DINOv2"}


def summary(report, arm, weights):
    """{"copying": mean of each measure over the arm's seeds}; {} where nothing was measured."""
    if not phases.module("copying").wanted(report.settings):
        return {}
    return measures.Measure("copying").summary(report, arm, weights)


def section(report):
    if not phases.module("copying").wanted(report.settings):
        return ""
    reference = files.load_json(files.folder("results/copying", REFERENCE) / "scores.json")
    if "absent" in reference:
        return html.section(ANCHOR, TITLE, html.quiet(f"There are none, as {reference['absent']}."))
    rows = [
        {"images": arm, "weights": weights, **columns.cells("copying", entry)}
        for arm in report.arms
        for weights in weights_of(report.metrics[arm])
        if (entry := report.metrics[arm][weights].get("copying"))
    ]
    first, last = (
        {"images": name, "weights": html.DASH, **columns.cells("copying", reference[key])}
        for key, name in REFERENCES.items()
    )
    caption = (
        f"By {SHOWN[report.settings['copying']['features']]}, {reference['num_images']:,} images a row (or all that an arm has, where these are "
        f"fewer) beside {reference['num_test']:,} held-out images. Held-out images: what images that copy nothing have. Copycat: training images with a "
        "little noise. A row is to be read between these two. Values beyond those of held-out images are no merit: images that are blurred or poor are far "
        "from every training image, and reach them."
    )
    legend = html.legend(columns.meanings("copying"))
    return html.section(ANCHOR, TITLE, html.table([first, *rows, last], caption) + "\n" + legend)
