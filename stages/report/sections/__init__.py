"""The sections of the page, a file each. Such a file has

    ANCHOR, TITLE        the section's id, and its name in the list of links at the top of the page; TITLE None: no link
    section(report)      its HTML, "" for none; report is a results.Report with its metrics

and, where the section brings numbers of a phase of its own,

    with_columns(scores, settings, place) the frame of the scores of a run and round with columns of its own, see Report.results
    summary(report, arm, weights)         what it adds to metrics[arm][weights]: a dict

Phases that declare columns and have no file here are shown by `measures`. in_short stands above the others, then the headline, which has neither
ANCHOR nor TITLE.
"""

from stages.report import columns
from stages.report.sections import (
    analyses,
    arms,
    blind_spots,
    copying,
    curves,
    duplicates,
    gallery,
    headline,
    in_short,
    measures,
    membership,
    prompts,
    published,
    quality,
    seeds,
    settings,
    similarity,
    trade_off,
    training,
)

__all__ = ["having", "headline", "in_short", "of_page"]


def of_page():
    """All sections below the headline, in the order of the page."""
    of_measures = [measures.Measure(phase) for phase in columns.generic()]
    first = [arms, quality, similarity, membership, copying, prompts, *of_measures, seeds, published, curves]
    return [*first, trade_off, gallery, blind_spots, duplicates, training, analyses, settings]


def having(name):
    """The sections that have a function of this name, such as summary, in the order of the page."""
    return [section for section in of_page() if hasattr(section, name)]
