"""Puts the page together: what all sections give, and the frame around them, page.html, page.css and page.js.

One file that loads nothing: it can be mailed, and read on a phone, in light or dark, or printed. Its script sorts tables and opens
figures large; without it nothing is missing.
"""

from html import escape
from pathlib import Path
from string import Template

from stages.report import machines

FOLDER = Path(__file__).parent


def page(body, wall_time):
    """The whole page.

    body        HTML, as from `body`
    wall_time   HTML, as from machines.section
    """
    return _filled("page.html", css=css(), script=_text("page.js"), body=body, machines=wall_time)


def body(report):
    """The part of the page that follows from the artifacts alone, as HTML.

    report   results.Report with its metrics
    """
    from stages.report import sections

    shown = [(section, section.section(report)) for section in sections.of_page()]
    links = [(section.ANCHOR, section.TITLE) for section, html in shown if html and section.TITLE]
    top = _header(report, [*links, (machines.ANCHOR, machines.TITLE)])
    first = [sections.in_short.section(report), sections.headline.section(report)]
    return "\n".join([top, *first, *(html for _, html in shown)])


def _header(report, links):
    """links   (anchor, title) of the sections shown"""
    weights, protocol, threshold = report.headline
    num_heldout = report.results.num_heldout.iloc[0]
    seeds = len(report.settings["seeds"])
    facts = (
        f"{len(report.arms)} arms, {seeds} seed{'s' * (seeds > 1)} each; {report.num_train:,} training images, "
        f"{f'{num_heldout:,}' if num_heldout else 'none'} held out. Headline: protocol {protocol}, threshold {threshold:g}, "
        f"{weights} weights."
    )
    nav = " · ".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title in links)
    return _filled("header.html", data=escape(report.settings["data"]["name"]), facts=escape(facts), links=nav).rstrip()


def css():
    """The page's style sheet."""
    return _text("page.css")


def _filled(name, **parts):
    return Template(_text(name)).substitute(parts)


def _text(name):
    return (FOLDER / name).read_text(encoding="utf-8")
