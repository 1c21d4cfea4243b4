"""The paper's tables with our numbers beside the published ones, where the data set and at least two arms match."""

from stages.report import html, published

ANCHOR, TITLE = "published", "Published"


def section(report):
    views = published.views(report.settings, report.metrics, report.num_train, published.read())
    if not views:
        return ""
    shown = [html.view(view) for view in views]
    if report.settings["score"].get("variants"):
        shown.insert(0, html.quiet("Our MQ is with score.variants, and so not that of the published protocol."))
    return html.section(ANCHOR, "Published numbers", "\n".join(shown))
