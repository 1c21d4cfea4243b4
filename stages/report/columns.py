"""Columns that a phase declares in plain data, PHASE["columns"] of its file, and all that the report derives from them.

    name of the column in scores.json and summary.json: {
        "title":    its head on the page
        "meaning":  a sentence or two for "What the columns mean"
        "show":     "number", "tally" (a count) or "percent" (a share in [0, 1])
        "short":    its head in the text table of `--table`; left out, it is not there
        "digits":   decimals in the text table, where these should be fixed; left out, as on the page
    }

A phase that declares columns and has no section made by hand is shown by stages.report.sections.measures.
"""

from pathlib import Path

from stages import phases
from stages.report.html import DASH, number, percent, tally, with_sd

SHOW = {"number": number, "tally": tally, "percent": percent}
SECTIONS = Path(__file__).parent / "sections"
SHOWN_BY = {"score": "arms", "clip": "prompts", "detect": "prompts"}  # sections of another name than their phase
FIDELITY = "fd_pixels"  # column of the score phase: how far an arm's images are from the training images, lower is more faithful
FIDELITY_HELDOUT = "fd_pixels_heldout"  # the same to held-out images


def of(phase):
    """The columns of a phase: dict by name, {} where it declares none."""
    return phases.declared(phase).get("columns", {})


def generic():
    """The phases that declare columns and have no section made by hand, in the order of the pipeline."""
    by_hand = {path.stem for path in SECTIONS.glob("*.py")} | SHOWN_BY.keys()
    return [phase for phase in phases.names() if of(phase) and phase not in by_hand]


def cells(phase, entry, names=None):
    """Texts of an entry by title, with the standard deviation over seeds where there is one.

    entry     dict of numbers by name of the column; a column that it lacks gets a dash
    names     the columns wanted; None: all of the phase
    Returns   dict title -> text
    """
    return {
        column["title"]: with_sd(entry, name, SHOW[column["show"]]) if name in entry else DASH
        for name, column in of(phase).items()
        if names is None or name in names
    }


def meanings(phase, names=None):
    """What the columns of a phase mean: dict title -> text, for the legend under a table."""
    return {c["title"]: c["meaning"] for name, c in of(phase).items() if names is None or name in names}


def short():
    """The columns that stand in the text table too, in the order of the pipeline: list of (phase, name)."""
    return [(phase, name) for phase in phases.names() for name, column in of(phase).items() if "short" in column]


def short_cell(phase, name, value):
    """Head and text of a number in the text table; value None is a dash."""
    column = of(phase)[name]
    if value is not None and "digits" in column:
        return column["short"], f"{value:.{column['digits']}f}"
    return column["short"], SHOW[column["show"]](value)
