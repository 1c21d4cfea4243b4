"""The paper's tables as views of the arms of an experiment: published numbers beside ours. The numbers are in a data file only."""

from pathlib import Path

import yaml

from stages.report import columns
from stages.report.columns import FIDELITY
from stages.report.entries import WEIGHTS
from stages.report.html import DASH, View, interval_text, with_sd

PUBLISHED = Path(__file__).parents[2] / "workflow/published/tables.yaml"
SCHEMA = Path(__file__).parents[2] / "workflow/schemas/published.schema.yaml"
ARROWS = {"lower": "↓", "higher": "↑"}


def read(path=PUBLISHED):
    """The published tables.

    Returns   dict, as in the file
    Raises    ValueError: one sentence, where the file is no such data
    """
    import jsonschema

    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    try:
        published = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        jsonschema.validate(published, schema)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    except jsonschema.ValidationError as error:
        where = ".".join(str(part) for part in error.absolute_path) or "the file"
        raise ValueError(f"{path}: {where}: {error.message}, see workflow/schemas/{SCHEMA.name}") from None
    for table in published["tables"]:
        metrics = table.get("columns", published["columns"])
        for row in table["rows"]:
            where = f"{path}: the row of arm {row['arm']} in {table['title']}"
            if len(row.get("published", metrics)) != len(metrics):
                raise ValueError(
                    f"{where} has {len(row['published'])} published numbers, expected {len(metrics)}, one per column"
                )
            if list(row["label"]) != list(table["rows"][0]["label"]):
                raise ValueError(f"{where} has other labels than the first row, {', '.join(table['rows'][0]['label'])}")
            for name in [*table["notes"], *row.get("notes", [])]:
                if name not in published["notes"]:
                    raise ValueError(f"{where} names the note {name}, expected one of {', '.join(published['notes'])}")
    return published


def views(settings, metrics, num_train, published):
    """The tables that match the experiment: its data set, and at least two of its arms.

    settings    params.yaml
    metrics     as in summary.json; metrics[arm][weights] may hold fid, a dict by implementation, similarity and clip
    num_train   training images of our arms
    published   as from `read`
    Returns     list of View
    """
    return [
        _view(table, settings, metrics, num_train, published | _own(table))
        for table in published["tables"]
        if table["data"] == settings["data"]["name"]
        and len({row["arm"] for row in table["rows"]} & settings["arms"].keys()) > 1
    ]


def _own(table):
    """What a table sets for itself, in place of the settings of the whole file."""
    return {name: table[name] for name in ("columns", "num_images") if name in table}


def _view(table, settings, metrics, num_train, published):
    weights = [w for w in WEIGHTS if any(w in metrics[arm] for arm in settings["arms"])]
    shown = [row for row in table["rows"] if "published" in row or row["arm"] in metrics]
    notes = list(dict.fromkeys([*table["notes"], *(name for row in shown for name in row.get("notes", []))]))
    rows = []
    for row in shown:
        marks = [str(notes.index(name) + 1) for name in row.get("notes", [])]
        ours = metrics.get(row["arm"])
        rows.append(
            {
                "arm": row["arm"] + (f" [{', '.join(marks)}]" if marks else "") + ("" if ours else " (not run)"),
                **row["label"],
                **_numbers(row, ours, weights, published, settings["score"]["headline"]["threshold"]),
            }
        )
    return View(
        table["title"],
        _caption(table, settings, metrics, num_train, published),
        rows,
        [published["notes"][name] for name in notes],
    )


def _numbers(row, ours, weights, published, threshold):
    """Cells of a row by column: of each metric the published number and ours, then our excess and fidelity."""
    cells = {}
    for i, column in enumerate(published["columns"]):
        name = f"{column['name']}\u00a0{ARROWS[column['better']]}"
        cells[f"{name} published"] = _published(row["published"][i], column) if "published" in row else DASH
        for w in weights:
            cells[f"{name} {w}"] = _ours(ours, w, column, published["num_images"])
    protocol = next((column["protocol"] for column in published["columns"] if "protocol" in column), None)
    for w in weights if protocol else ():
        cell = _scaled(ours, w, protocol, threshold, published["num_images"])
        cells[f"excess at {threshold:g} [95 %] {w}"] = interval_text(cell) if cell else DASH
    for w in weights:
        found = columns.cells("score", ours[w] if ours and w in ours else {}, [FIDELITY])
        cells |= {f"{title} {w}": cell for title, cell in found.items()}
    return cells


def _published(value, column):
    """As the paper prints it: counts whole, distances with two decimals or as many as the column says."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{column.get('digits', 2)}f}"


def _ours(ours, weights, column, num_images):
    if "protocol" in column:
        cell = _scaled(ours, weights, column["protocol"], column["threshold"], num_images)
        return with_sd(cell, "count") if cell else DASH
    kind = next(kind for kind in ("fid", "similarity", "clip") if kind in column)
    found = (ours or {}).get(weights, {}).get(kind) or {}
    show = f"{{:.{column.get('digits', 2)}f}}".format
    return with_sd(found, column[kind], show) if found.get(column[kind]) is not None else DASH


def _scaled(ours, weights, protocol, threshold, num_images):
    """Counts of an arm as if it had generated num_images; None where it has none, or not at that threshold."""
    cell = (ours or {}).get(weights, {}).get(protocol, {}).get(f"{threshold:g}")
    if cell is None:
        return None
    factor = num_images / ours["num_images"]
    return {name: value if value is None or factor == 1 else value * factor for name, value in cell.items()}


def _caption(table, settings, metrics, num_train, published):
    parts = [f"Published: {published['source']}, {table['title'].split(',')[0]}."]
    generated = sorted({metrics[row["arm"]]["num_images"] for row in table["rows"] if row["arm"] in metrics})
    counted = any("protocol" in column for column in published["columns"])
    if generated != [published["num_images"]]:
        counts = " or ".join(f"{n:,}" for n in generated)
        scaled = "Our counts are scaled to" if counted else "The published numbers come from"
        parts.append(f"{scaled} the {published['num_images']:,} generated images of the paper; we generated {counts}.")
    if num_train != table["num_train"]:
        parts.append(
            f"Our arms are trained on {num_train:,} images, the paper's on {table['num_train']:,}: compare our numbers with "
            "each other only, not with the published ones."
        )
    if counted and (neighbours := settings["score"]["neighbours"]) != published["neighbours"]:
        parts.append(
            f"Our ratios are taken over {neighbours} nearest neighbours, the paper's over {published['neighbours']}."
        )
    if table["notes"]:
        parts.append(f"Notes up to number {len(table['notes'])} apply to every row.")
    parts.append(
        "Rows are matched to arms by name alone, whatever the arm's settings. ↓ lower is better, ↑ higher is better. A dash means not measured, or not published."
    )
    return " ".join(parts)
