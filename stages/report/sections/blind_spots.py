"""What the search for copies cannot see on this data set: copies that the score phase planted itself (stages.measures.self_test)."""

from stages.report import html
from stages.run import files
from stages.run.instance import REFERENCE

ANCHOR, TITLE = "blind_spots", "What this measure cannot see"
SEEN = 0.5  # share of the planted copies; below it the measure is called blind


def section(report):
    tried = _read()
    weights_apart = f"protocol {report.headline.protocol}, threshold {report.headline.threshold:g}"
    told = (
        f"Training images of this data set were altered and looked for like generated images ({weights_apart}). One is found if the "
        "image that it was made of is its nearest, and it counts as a copy. What is rarely found here would be missed among the "
        "generated images too: the counts on this page leave such copies out."
    )
    advice = (
        "Each image was also compared mirrored, shifted, cropped and with brightness and contrast fitted (score.variants); the last "
        "column is without that."
        if tried["variants"]
        else "With score.variants: true each image is also compared mirrored, shifted, cropped and with brightness and contrast fitted, which "
        "finds more of them and takes 29 times as many searches."
    )
    rows = [_row(found) for found in tried["alterations"]]
    return html.section(ANCHOR, TITLE, f"{html.table(rows, told)}\n{html.quiet(advice)}")


def sentence():
    """What the measure cannot see, in one sentence."""
    alterations = _read()["alterations"]
    unseen = [found for found in alterations if found["found"] < SEEN * found["planted"]]
    if not unseen:
        return f"Of planted copies of {len(alterations)} kinds at least half of each were found; other alterations may go unseen."
    listed = "; ".join(f"{found['alteration']}, {found['found']} of {found['planted']}" for found in unseen)
    return f"Of planted copies few or none were found that were {listed}: this measure cannot see such copies."


def _read():
    return files.load_json(files.folder("results/score", REFERENCE) / "self_test.json")


def _row(found):
    row = {"alteration": found["alteration"], "planted": f"{found['planted']:,}", "found": f"{found['found']:,}"}
    row["found %"] = html.percent(found["found"] / found["planted"])
    if "found_as_is" in found:
        row["without variants"] = f"{found['found_as_is']:,}"
    return row
