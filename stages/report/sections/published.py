"""The paper's tables with our numbers beside the published ones, where the data set and at least two arms match."""

from stages.report import html, published

ANCHOR, TITLE = "published", "Published"


def section(report):
    views = published.views(report.settings, report.metrics, report.num_train, published.read())
    if not views:
        return ""
    return html.section(ANCHOR, "Published numbers", "\n".join(map(html.view, views)))
