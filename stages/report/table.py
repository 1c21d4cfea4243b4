"""The text table of `--table`: the headline of all arms, from summary.json alone."""

import textwrap

from stages.report import columns, entries, trade_off
from stages.report.html import DASH, interval_text, percent, tally

GIVE_WAY = ("simplic.", "distinct")  # columns that are left out where the table is too wide: the page has them
SHORTEST_NAME = 8


def text_table(settings, metrics, width=120):
    """The headline table as plain text, at most `width` columns: where it is wider, without what the page shows too, then with
    names cut. Below it whether each arm memorises less than training less.

    metrics   as in summary.json
    Raises    KeyError: metrics lack an arm of params.yaml, or its headline
    """
    weights, protocol, threshold = entries.headline(settings)
    rows = _fitted(_rows(settings, metrics), width)
    heads = list(rows[0])
    first = f"{protocol}, {weights} weights; excess{' and distinct' if 'distinct' in heads else ''} at {threshold:g}"
    if fid_protocol := _fid_protocol(settings, metrics):
        first += f"; FID by {fid_protocol}"
    if "Sim" in heads:
        first += "; Sim: 95th percentile"
    lines = [line[:width].rstrip() for line in [first, *_lines(rows, width)]]
    for arm in settings["arms"]:
        lines += textwrap.wrap(trade_off.sentence(settings, metrics, arm, weights) or "", width)
    return "\n".join(lines)


def _rows(settings, metrics):
    """A dict of texts by head for each arm."""
    weights, protocol, threshold = entries.headline(settings)
    fid_protocol = _fid_protocol(settings, metrics)
    measured = {arm: _measured(metrics[arm][weights], fid_protocol) for arm in settings["arms"]}
    shown = [column for column in columns.short() if any(column in of_arm for of_arm in measured.values())]
    rows = []
    for arm, of_arm in measured.items():
        by_threshold, training = metrics[arm][weights][protocol], metrics[arm].get("training")
        at = by_threshold[f"{threshold:g}"]
        rows.append(
            {
                "arm": arm,
                **{f"MQ {t}": tally(cell["count"]) for t, cell in by_threshold.items()},
                "excess [95 %]": interval_text(at),
                "simplic.": tally(at["simplicity"]),
                "distinct": tally(at["distinct"]),
                **dict(columns.short_cell(*column, of_arm.get(column)) for column in shown),
                "skip %": percent(training["skipped_share"]) if training else DASH,
                "augm %": percent(training["augmented_share"]) if training else DASH,
                "moved": tally(training["moved"]) if training else DASH,
                "seeds": str(metrics[arm]["num_seeds"]),
            }
        )
    return rows


def _fid_protocol(settings, metrics):
    """The protocol whose FID stands in the table: the first of params.yaml; None without the phase quality."""
    first_arm = next(iter(settings["arms"]))
    return next(iter(metrics[first_arm][entries.headline(settings).weights].get("fid", {})), None)


def _measured(of_weights, fid_protocol):
    """The numbers that an arm has for the table, by phase and column.

    of_weights   metrics[arm][weights]
    """
    found = {}
    for phase, name in columns.short():
        entry = of_weights if phase == "score" else of_weights.get(phase, {})
        key = name
        if phase == "quality":  # laid out by column first, then by protocol
            entry, key = of_weights.get(name, {}), fid_protocol
        if key in entry:
            found[phase, name] = entry[key]
    return found


def _fitted(rows, width):
    """The rows without as many of GIVE_WAY as it takes to stay within the width, or without all of them."""
    for left_out in GIVE_WAY:
        if sum(2 + max(map(len, [head, *(row[head] for row in rows)])) for head in rows[0]) - 2 > width:
            rows = [{head: cell for head, cell in row.items() if head != left_out} for row in rows]
    return rows


def _lines(rows, width):
    """Heads, a rule and the rows, names on the left and cut where the table is still too wide."""
    heads, rows = list(rows[0]), [list(row.values()) for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    widths[0] = max(SHORTEST_NAME, min(widths[0], width - sum(w + 2 for w in widths[1:])))
    lines = []
    for row in [heads, ["-" * w for w in widths], *rows]:
        name = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 1] + "…"
        cells = [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells]))
    return lines
