"""plots/: the page's main figures as files, which `dvc plots show` and `dvc plots diff` put side by side, and the numbers in them.

The drawings are SVG, as DVC's own charts of the CSV files would join all arms to one line, and load their code from the web.
"""

import re
from html import escape

from stages.report import figures
from stages.report.columns import FIDELITY, FIDELITY_HELDOUT
from stages.report.page import css

CURVE = ["arm", "seed", "weights", "protocol", "threshold", "share", "excess_share"]
ROUNDS = ["arm", "seed", "weights", "round", "steps", FIDELITY, FIDELITY_HELDOUT, f"{FIDELITY_HELDOUT}_error"]
ROUNDS += ["num_images", "count", "excess", "excess_low", "excess_high"]


def tables(report):
    """The numbers of the figures: dict of frames by name of the file."""
    return {
        "mq_curve": report.results[CURVE],
        "trade_off": report.rounds[ROUNDS],
        "training": report.epochs.drop(columns="round"),
        "skip_histogram": report.histogram,
    }


def drawings(report):
    """The figures: dict of texts, SVG files, by name of the file. One with nothing to draw says so, as DVC expects each file."""
    from stages.report.sections import trade_off

    weights, protocol, _ = report.headline
    marks = report.settings["score"]["thresholds"]
    fidelity = FIDELITY_HELDOUT if report.rounds.excess.notna().all() else FIDELITY
    drawn = {
        "trade_off": trade_off.drawn(report, weights, fidelity),
        "mq_curve": figures.mq_curve(report.results, report.arms, weights, protocol, marks),
        "training": figures.over_epochs(
            report.epochs, report.arms, "loss", "training loss (mean squared error)", log=True
        ),
        "skip_histogram": figures.skip_histogram(report.histogram, report.arms),
    }
    nothing = {
        "trade_off": "There are no fidelities to draw.",
        "mq_curve": "There is no memorisation to draw.",
        "training": "No arm is trained here.",
        "skip_histogram": "No arm skipped an image.",
    }
    return {name: standalone(svg or _sentence(nothing[name])) for name, svg in drawn.items()}


def standalone(svg):
    """A drawing of the page as a file of its own: the colours of the light page in the place of their names, on its paper."""
    colours = {}
    for name, colour in re.findall(r"--([\w-]+): (#\w+)", css()):
        colours.setdefault(name, colour)  # the light ones come first
    svg = re.sub(r"var\(--([\w-]+)\)", lambda found: colours[found[1]], svg).replace("currentColor", colours["ink"])
    width, height = re.search(r'viewBox="[\d.-]+ [\d.-]+ ([\d.]+) ([\d.]+)"', svg).groups()
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'font-family="sans-serif" style="background: {colours["paper"]}" '
    )
    return head + svg.removeprefix("<svg ")


def _sentence(text):
    return f'<svg viewBox="0 0 345.6 60" role="img"><text x="10" y="35" style="font-size: 12px">{escape(text)}</text></svg>'
