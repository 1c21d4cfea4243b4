"""params.yaml as it stands, comments included."""

from html import escape

from stages.report import html

ANCHOR, TITLE = "settings", "Settings"


def section(report):
    text = f"\n<pre>{escape(report.params_text)}</pre>\n"
    return html.section(ANCHOR, "Settings", html.details("params.yaml", text))
