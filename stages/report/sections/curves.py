"""Memorisation against the threshold, under both protocols, and the excess."""

from stages.report import excess, figures, html
from stages.report.entries import PROTOCOLS
from stages.run import files

ANCHOR, TITLE = "curves", "Memorisation"
NUMBERS = files.PLOTS / "mq_curve.csv"


def section(report):
    weights, protocol, _ = report.headline
    beside = next(other for other in PROTOCOLS if other != protocol)
    marks = report.settings["score"]["thresholds"]
    mean = " Lines are means over seeds." if len(report.settings["seeds"]) > 1 else ""

    def drawn(of_protocol, column, bands=None):
        return figures.mq_curve(report.results, report.arms, weights, of_protocol, marks, column, bands=bands)

    panels = [
        html.figure(
            drawn(protocol, "share"),
            f"MQ against the threshold, protocol {protocol}.{mean} Markers: the thresholds of the table.",
            numbers=NUMBERS,
        ),
        html.figure(
            drawn(beside, "share"),
            f"The same images under the other protocol, {beside}. Its ratios are on a different scale.",
            numbers=NUMBERS,
        ),
        html.figure(
            drawn(protocol, "excess_share", excess.bands(report.results, weights, protocol)),
            f"Excess against the threshold, protocol {protocol}.{mean} Bands: 95 % intervals.",
            "There is no held-out set, so there is no excess to draw.",
            NUMBERS,
        ),
    ]
    return html.section(ANCHOR, "Memorisation", html.panels(panels))
