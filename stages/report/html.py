"""Pieces of the page: numbers as texts for people, and the few shapes of HTML that all sections are made of.

Texts that come from outside are passed in as they are, and escaped here. Only what is called HTML or SVG goes in unchanged.
Needs nothing beyond Python itself, so that `--page` and `--table` start quickly.
"""

import math
import re
from html import escape, unescape
from typing import NamedTuple

DASH = "–"


class View(NamedTuple):
    """A table of the page as plain text: rows are dicts of cells by column, notes are numbered from 1; all may be empty."""

    title: str
    caption: str
    rows: list = ()
    notes: list = ()


# Numbers for people.


def number(value):
    """1,234, 0.0123, or a dash for None and NaN."""
    if value is None or math.isnan(value):
        return DASH
    if float(value).is_integer() or abs(value) >= 10_000:
        text = f"{value:,.0f}"
    elif abs(value) >= 100:
        text = f"{value:,.1f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")


def tally(value):
    """A count, or a mean of counts: 1,234, 730, 56.3; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return DASH
    whole = float(value).is_integer() or abs(value) >= 100
    return f"{value:,.{0 if whole else 1}f}".replace("-", "−")


def percent(share):
    """A share as a number of percent, without the sign: 0.5 is 50.0; a dash for None and NaN."""
    if share is None or math.isnan(share):
        return DASH
    return f"{100 * share:.2f}" if 0 < share < 0.1 else f"{100 * share:.1f}"


def duration(seconds):
    """4.2 s, 17 min, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def with_sd(entry, name, show=tally):
    """A number of an entry of summary.json, with its standard deviation over seeds where there is one.

    entry   dict that holds name and perhaps <name>_sd
    show    function of a number that returns its text
    """
    sd = entry.get(f"{name}_sd")
    return show(entry[name]) + (f" ± {show(sd)}" if sd else "")


def interval_text(cell):
    """The excess with its 95 % interval; a dash where there are no held-out images.

    cell   dict with excess, excess_low and excess_high
    """
    if cell["excess"] is None or math.isnan(cell["excess"]):
        return DASH
    return f"{tally(cell['excess'])} [{tally(cell['excess_low'])}, {tally(cell['excess_high'])}]"


def at_most(num_images):
    """What no hit among some images leaves possible: the upper limit of 95 % for their number, 1 - 0.05^(1/n) of n, about 3."""
    limit = num_images * -math.expm1(math.log(0.05) / num_images)
    return f"at most about {limit:.2g} in {num_images:,} may still be copies (95 % limit)"


# Shapes of HTML.


def section(anchor, heading, content):
    """A section of the page; content is HTML."""
    return f'<section>\n<h2 id="{anchor}">{escape(heading)}</h2>\n{content}\n</section>'


def quiet(text):
    """A paragraph in small grey letters."""
    return f"<p class=quiet>{escape(text)}</p>"


def table(rows, caption=None):
    """A table, with its caption above.

    rows   at least one dict of plain texts by column, all with the same columns; the first column names the row and stays in
           view when the table scrolls
    """
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in rows[0])
    lines = []
    for first, *cells in (row.values() for row in rows):
        others = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><th scope=row>{escape(first)}</th>{others}</tr>")
    above = f"{quiet(caption)}\n" if caption else ""
    label = escape(caption or ", ".join(rows[0]))
    return (
        f'{above}<div class=scroll role=region tabindex=0 aria-label="{label}">\n<table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table></div>"
    )


def view(shown):
    """A View as HTML: its title, its table or, without rows, its caption alone, then its notes."""
    title = f"<h3>{escape(shown.title)}</h3>\n" if shown.title else ""
    body = table(shown.rows, shown.caption) if shown.rows else quiet(shown.caption)
    notes = "".join(f"<li>{escape(note)}</li>" for note in shown.notes)
    return title + body + (f"\n<ol class=quiet>{notes}</ol>" if notes else "")


def details(summary, content):
    """HTML that is folded away under a line of text."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def terms(meanings):
    """A list of terms and what they mean, both plain texts: dict term -> text."""
    return f"<dl>{''.join(f'<dt>{escape(term)}</dt><dd>{escape(text)}</dd>' for term, text in meanings.items())}</dl>"


def legend(meanings):
    """What the columns of a table mean, folded away: dict title -> text."""
    return details("What the columns mean", terms(meanings))


def figure(content, caption, absent="There is nothing to draw.", numbers=None):
    """A drawing or a pair of pictures with its caption.

    content   SVG or HTML; None where there is nothing to draw
    absent    what then stands in its place
    numbers   file with the numbers that are drawn, to which the caption has a link
    """
    if content is None:
        return quiet(absent)
    more = "" if numbers is None else f" {link(numbers, 'Its numbers.')}"
    return f"<figure>{content}<figcaption>{escape(caption)}{more}</figcaption></figure>"


def link(path, text):
    """A link to a file that lies where the page does, from the root of the project."""
    return f'<a class=file href="{escape(str(path))}">{escape(text)}</a>'


def without_links(page, but=None):
    """A page whose files do not come with it.

    but   dict: files that do, and their places beside it
    """

    def kept(found):
        path, text = map(unescape, found.groups())
        return f" {link(but[path], text)}" if but and path in but else ""

    return re.sub(r' ?<a class=file href="([^"]*)">([^<]*)</a>', kept, page)


def panels(figures):
    """Figures side by side, as many as the screen is wide."""
    return f"<div class=panels>{''.join(figures)}</div>"


def gallery(figures):
    """Small figures, many in a row."""
    return f"<div class=gallery>{''.join(figures) or 'No images.'}</div>"


def pair(generated, train, image, key):
    """A generated image and its training image side by side.

    generated, train   addresses of the pictures (data:image/png;base64,...)
    image, key         number of the generated image, key of the training image
    """
    return (
        f'<div class=pair><img src="{generated}" alt="generated image {image}">'
        f'<img src="{train}" alt="training image {escape(str(key))}"></div>'
    )
