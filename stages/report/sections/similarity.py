"""What the similarity phase adds to the report: columns of results.parquet, entries of summary.json, a section of the page (Fig. 6, 7).

Where the phase is left out there is neither column nor entry nor section. Training images are shown only where
similarity.show_images asks for it; the page has keys and prompts otherwise.
"""

from html import escape

import numpy as np

from stages import experiments, phases
from stages.measures import intervals
from stages.report import columns, figures, html, privacy
from stages.report.entries import WEIGHTS, mean_and_sd, rounded
from stages.report.figures import png
from stages.report.html import number
from stages.run import files
from stages.run.instance import REFERENCE

ANCHOR, TITLE = "similarity", "Similarity"
OWN = "own_mean"  # only where images have prompts: similarity to the training image whose caption was the prompt
INTERVAL = ["low", "high"]
MOST_SIMILAR = 10  # rows of the list of near-copies of an arm


def _measures(settings):
    """Names of the columns that an experiment has."""
    return [name for name in columns.of("similarity") if name != OWN or experiments.is_text(settings)]


def with_columns(scores, settings, place):
    """The rows of a run with a column similarity_<measure> for each, by the row's kind of weights."""
    if phases.module("similarity").wanted(settings):
        found = files.load_json(files.folder("results/similarity", place) / "scores.json")
        for name in [name for name in columns.of("similarity") if name != OWN] + INTERVAL:
            by_weights = {weights: found[weights][name] for weights in scores.weights.unique()}
            scores[f"similarity_{name}"] = scores.weights.map(by_weights).astype(float)
        if experiments.is_text(settings):
            table = files.load_table(files.folder("results/similarity", place) / "nearest.parquet")
            own = table.groupby("weights").own_similarity.mean() if "own_similarity" in table else {}
            scores[f"similarity_{OWN}"] = scores.weights.map(own).astype(float)
    return scores


def summary(report, arm, weights):
    """{"similarity": means over seeds, low, high}. The interval is that of the one seed, or the t-interval of the mean over
    several. {} where the phase is left out."""
    if not phases.module("similarity").wanted(report.settings):
        return {}
    results = report.results
    rows = results[(results.arm == arm) & (results.weights == weights)].drop_duplicates("seed")
    of_measure = rows.rename(columns=lambda name: name.removeprefix("similarity_"))
    entry = mean_and_sd(of_measure, _measures(report.settings))
    if len(rows) == 1:
        entry |= mean_and_sd(of_measure, INTERVAL)
    else:
        found = intervals.t_interval(of_measure.percentile_95.tolist())
        entry |= {name: rounded(value) for name, value in zip(INTERVAL, found, strict=True)}
    return {"similarity": entry}


def section(report):
    if not phases.module("similarity").wanted(report.settings):
        return ""
    weights = report.headline.weights
    nearest = {
        arm: table[table.weights == weights]
        for arm in report.arms
        for table in [files.load_table(files.folder("results/similarity", report.first_place(arm)) / "nearest.parquet")]
    }
    used = files.load_json(files.folder("results/similarity", REFERENCE) / "scores.json")
    told = (
        f"SSCD similarity of each generated image to its nearest training image: 1 is a copy. Weights {used['weights']}, sha256 "
        f"{used['sha256'][:16]}…, preprocessing {used['preprocess']}. For comparison: between each training image and its nearest other "
        f"training image, the 95th percentile is {number(used['train']['percentile_95'])}."
    )
    parts = [
        html.table(_rows(report), told),
        html.panels([_histogram(report, nearest)]),
        _near_copies(report.settings, nearest),
        _pictures(report, nearest),
    ]
    return html.section(ANCHOR, "Similarity", "\n".join(parts))


def _histogram(report, nearest):
    """Fig. 6."""
    reference = files.folder("results/similarity", REFERENCE) / "nearest.parquet"
    train = files.load_table(reference, ["similarity"]).similarity.to_numpy()
    values = {arm: table.similarity.to_numpy() for arm, table in nearest.items()}
    caption = (
        f"Density of the similarities, {report.headline.weights} weights, seed {report.first_seed}; each row has its own scale. "
        "Grey: each training image against the most similar other training image."
    )
    return html.figure(figures.similarity_histogram(values, report.arms, train), caption)


def _rows(report):
    rows = []
    for arm in report.arms:
        for weights in WEIGHTS:
            if entry := report.metrics[arm].get(weights, {}).get("similarity"):
                cells = columns.cells("similarity", entry, _measures(report.settings))
                title = columns.of("similarity")["percentile_95"]["title"]
                cells[title] += f" [{number(entry['low'])}, {number(entry['high'])}]"
                rows.append({"arm": arm, "weights": weights} | cells)
    return rows


def _near_copies(settings, nearest):
    """The most similar images of each arm by key, each training image once."""
    rows = []
    for arm, table in nearest.items():
        most = table.sort_values("similarity", ascending=False, kind="stable").drop_duplicates("nearest_train")
        rows += [
            {
                "arm": arm,
                "image": str(row.image),
                "similarity": f"{row.similarity:.3f}",
                "training image": privacy.name(settings, row.nearest_key, row.nearest_train),
            }
            for row in most.head(MOST_SIMILAR).itertuples()
        ]
    return html.details("The most similar images, by key", html.table(rows))


def _pictures(report, nearest):
    """Near-copies beside their training images, and a grid of the same images of all arms (Fig. 7)."""
    if not phases.module("similarity").shows_pictures(report.settings):
        return html.quiet("No pictures are shown: similarity.show_images sets how many.")
    pictures = {arm: _pictures_of(report, arm) for arm in nearest}
    galleries = [
        f"<h3>{escape(arm)}</h3>\n{_gallery(report.settings, shown, nearest[arm])}" for arm, shown in pictures.items()
    ]
    told = html.quiet("Near-copies. Left: the generated image. Right: its nearest training image.")
    return f"{_grid(pictures, nearest)}\n{told}\n{''.join(galleries)}"


def _pictures_of(report, arm):
    """The arrays of pictures.safetensors of one arm that are of the headline's weights, by name."""
    weights = report.headline.weights
    arrays = files.load_arrays(files.folder("results/similarity", report.first_place(arm)) / "pictures.safetensors")
    return {name.removeprefix(f"{weights}."): array for name, array in arrays.items() if name.startswith(weights)}


def _gallery(settings, shown, table):
    """shown   arrays of one arm, see stages.similarity; table: its nearest.parquet"""
    rows = table.set_index("image")
    keys = {i: privacy.name(settings, row.nearest_key, row.nearest_train) for i, row in rows.iterrows()}
    found = zip(shown["copies"], shown["originals"], shown["copy_image"], shown["copy_similarity"], strict=True)
    return html.gallery(
        html.figure(html.pair(png(copy), png(original), image, keys[image]), f"{value:.3f} · {keys[image]}")
        for copy, original, image, value in found
    )


def _grid(pictures, nearest):
    """One row per image: its training image, then what each arm made of the same prompt and seed."""
    first = next(iter(pictures.values()))
    table = next(iter(nearest.values())).set_index("image")
    asked = "prompt" in table
    heads = ["", "training image" if asked else f"nearest to {next(iter(pictures))}", *pictures]
    rows = []
    for i, image in enumerate(first["first_image"]):
        prompt = table.prompt[image] if asked else f"image {image}"
        shown = [
            first["first_originals"][i],
            *(of_arm["first"][i] for of_arm in pictures.values() if i < len(of_arm["first"])),
        ]
        cells = "".join(f'<td><img src="{png(np.asarray(picture))}" alt=""></td>' for picture in shown)
        rows.append(f"<tr><th scope=row>{escape(prompt)}</th>{cells}</tr>")
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in heads)
    told = "The same prompt and seed in every arm." if asked else "The same starting noise in every arm."
    return (
        f"{html.quiet(told)}\n<div class=scroll><table class=grid>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
