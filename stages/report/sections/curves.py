"""Memorisation against the threshold, under both protocols, and the excess."""

from stages.report import figures, html
from stages.report.entries import PROTOCOLS

ANCHOR, TITLE = "curves", "Memorisation"


def section(report):
    weights, protocol, _ = report.headline
    beside = next(other for other in PROTOCOLS if other != protocol)
    marks = report.settings["score"]["thresholds"]
    mean = " Lines are means over seeds." if len(report.settings["seeds"]) > 1 else ""

    def drawn(of_protocol, column):
        return figures.mq_curve(report.results, report.arms, weights, of_protocol, marks, column)

    panels = [
        html.figure(
            drawn(protocol, "share"),
            f"MQ against the threshold, protocol {protocol}.{mean} Markers: the thresholds of the table.",
        ),
        html.figure(
            drawn(beside, "share"),
            f"The same images under the other protocol, {beside}. Its ratios are on a different scale.",
        ),
        html.figure(
            drawn(protocol, "excess_share"),
            f"Excess against the threshold, protocol {protocol}.{mean}",
            "There is no held-out set, so there is no excess to draw.",
        ),
    ]
    return html.section(ANCHOR, "Memorisation", html.panels(panels))
