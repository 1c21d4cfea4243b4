"""Memorisation against fidelity, and how each arm compares with the baseline stopped early."""

from stages import experiments
from stages.report import figures, html, trade_off

ANCHOR, TITLE = "trade_off", "Trade-off"


def section(report):
    weights, _, threshold = report.headline
    caption = (
        f"Memorisation against fidelity at threshold {threshold:g}, {{}} weights, one point per arm and seed, 95 % paired intervals. "
        "Lower means less memorised, further left means closer to the training images. Dashed: the baseline stopped early."
    )
    other_weights = "raw" if weights == "ema" else "ema"
    panels = [html.figure(drawn(report, weights), caption.format(weights))]
    if beside := drawn(report, other_weights):
        panels.append(html.figure(beside, caption.format(other_weights)))
    compared = html.view(trade_off.view(report.settings, report.metrics))
    return html.section(ANCHOR, "Trade-off", f"{html.panels(panels)}\n{compared}")


def drawn(report, weights, **fidelity):
    """SVG of memorisation against fidelity with one kind of weights, None where there is nothing to draw.

    fidelity   the column to draw it against and its label, as figures.excess_against_fidelity takes them; fd_pixels without
    """
    settings = report.settings
    stopped = trade_off.controls(settings) if experiments.trained(settings) else []
    _, protocol, threshold = report.headline
    return figures.excess_against_fidelity(
        report.results, report.arms, stopped, weights, protocol, threshold, **fidelity
    )
