"""Images that are in the set more than once: what models copy first, and what blurs the split into training and held-out images."""

from stages.report import html, leaks, privacy
from stages.report.duplicates import found

ANCHOR, TITLE = "duplicates", "Duplicates"
SHOWN = 20  # sets


def section(report):
    sets = found()["sets"]
    if not sets:
        told = "No image of the set, training or held out, is there twice, or nearly so."
        return html.section(ANCHOR, TITLE, html.quiet(told))
    within = [one for one in sets if len(one["train"]) > 1]
    across = [one for one in sets if one["train"] and one["heldout"]]
    told = (
        f"{len(sets):,} sets of images that are the same or nearly so: {len(within):,} with several training images, {len(across):,} with images on "
        "both sides of the split. Models copy duplicated training images first. A held-out image that is a training image as well makes copies look like "
        "chance, so the excess is then too low."
    )
    of_leaks = report.leaks[report.leaks.weights == report.headline.weights]
    rows = [
        {
            "duplicates": "exact" if one["exact"] else "near",
            "training images": _names(report.settings, one, "train"),
            "held out": _names(report.settings, one, "heldout"),
            "given out by": ", ".join(of_leaks[of_leaks["index"].isin(one["train"])].arm.unique()) or html.DASH,
        }
        for one in sorted(sets, key=lambda one: -len(one["train"]) - len(one["heldout"]))[:SHOWN]
    ]
    more = f" The {SHOWN} largest:" if len(sets) > SHOWN else ""
    advice = (
        "All are in artifacts/results/data/duplicates.json. The search works on different images: of equal ones the first. data.deduplicate drops "
        "all but the first of a set. In folders of your own, the images of a set lie on one side of the split; a published split stays as it is. "
        f"In the leak list the column `duplicates` says how many other training images a {leaks.LEAKED} one has in its set."
    )
    return html.section(ANCHOR, TITLE, f"{html.table(rows, told + more)}\n{html.quiet(advice)}")


def _names(settings, one, side):
    numbers = one[side]
    shown = [privacy.name(settings, one["keys"][side][n], index) for n, index in enumerate(numbers[:4])]
    return ", ".join(shown) + (f" and {len(numbers) - 4:,} more" if len(numbers) > 4 else "") or html.DASH
