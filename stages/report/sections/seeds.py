"""The headline's numbers of each seed by itself, where there are several."""

import numpy as np

from stages.report import columns, html
from stages.report.html import interval_text, percent, tally

ANCHOR, TITLE = "seeds", None


def section(report):
    if len(report.settings["seeds"]) == 1:
        return ""
    _, protocol, threshold = report.headline
    results = report.results
    at_headline = results[np.isclose(results.threshold, threshold) & (results.protocol == protocol)]
    rows = [
        {
            "arm": row["arm"],
            "seed": str(row["seed"]),
            "weights": row["weights"],
            f"MQ\u00a0{threshold:g}": tally(row["count"]),
            f"excess at {threshold:g} [95 %]": interval_text(row),
            "distinct": tally(row["distinct"]),
            **columns.cells("score", row),
            "skipped\u00a0%": percent(row["skipped_share"]),
            "augmented\u00a0%": percent(row["augmented_share"]),
            "moved": tally(row["moved"]),
        }
        for row in at_headline.to_dict("records")
    ]
    caption = f"Protocol {protocol}. Each interval here is paired, over the generated images of its seed."
    return html.section(ANCHOR, "Seeds", html.table(rows, caption))
