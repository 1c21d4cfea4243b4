"""Curves of memorisation over fidelity, and whether each arm memorises less than training less does."""

from stages.report import figures, html, trade_off
from stages.report.columns import FIDELITY, FIDELITY_HELDOUT
from stages.run import files

ANCHOR, TITLE = "trade_off", "Trade-off"
NUMBERS = files.PLOTS / "trade_off.csv"
WHY = (
    "Fidelity is a distance to held-out images. A distance to the training images, which the literature uses, rewards copies: a model that "
    "learns them by heart comes closer to them, while it moves away from images that it has not seen."
)


def section(report):
    if len(report.rounds) == report.rounds.weights.nunique():  # a point is no curve
        return ""
    headline, caption = (
        report.headline.weights,
        (
            "Memorisation against fidelity, {} weights: one line per arm and seed, one marker per round, with 95 % intervals of the excess and of the fidelity to held-out images. Lower means less "
            "memorised, further left more faithful. Rings: no other point is better in both. Shaded: as high as there are points whose excess is "
            "not distinguishable from 0."
        ),
    )
    held_out = report.rounds.excess.notna().all()
    panels, paper = [], []
    for weights in (headline, "raw" if headline == "ema" else "ema"):
        if svg := drawn(report, weights, FIDELITY_HELDOUT if held_out else FIDELITY):
            panels.append(html.figure(svg, caption.format(weights), numbers=NUMBERS))
        if held_out and (svg := drawn(report, weights, FIDELITY)):
            told = f"The same against the distance to the training images, {weights} weights."
            paper.append(html.figure(svg, told, numbers=NUMBERS))
    parts = [html.panels(panels), html.view(trade_off.view(report.settings, report.metrics))]
    if paper:
        parts += [html.quiet(WHY), html.details("Against fidelity to the training images", html.panels(paper))]
    return html.section(ANCHOR, "Trade-off", "\n".join(parts))


def drawn(report, weights, fidelity, label=None):
    """SVG of memorisation against fidelity with one kind of weights, None where there is nothing to draw.

    fidelity, label   the column to draw it against, and its name at the axis
    """
    label = label or f"{fidelity} (squared [0, 1] pixel range)"
    _, protocol, threshold = report.headline
    return figures.excess_against_fidelity(report.rounds, report.arms, weights, threshold, protocol, fidelity, label)
