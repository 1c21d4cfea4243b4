"""What the similarity phase adds to the report: columns of results.parquet, entries of metrics.json, a section of the page (Fig. 6, 7).

Where the phase is left out there is neither column nor entry nor section. Training images are shown only where
similarity.show_images asks for it; the page has keys and prompts otherwise.
"""

from html import escape

import numpy as np

from stages import params, similarity
from stages.measures import intervals
from stages.report.page import html_table, number, with_sd
from stages.run import files

MEASURES = {
    "percentile_95": "Sim (95th percentile)",
    "mean": "mean",
    "percentile_75": "75th percentile",
    "percentile_90": "90th percentile",
    "share_above": "share above 0.5",
}
OWN = {"own_mean": "mean to own training image"}  # of images with prompts: the image whose caption was asked for
INTERVAL = ["low", "high"]
MOST_SIMILAR = 10  # rows of the list of near-copies of an arm


def _measures(settings):
    return MEASURES | (OWN if params.is_text(settings) else {})


def with_columns(results, settings, run):
    """The rows of a run with a column similarity_<measure> for each, by the row's kind of weights."""
    if similarity.wanted(settings):
        scores = files.load_json(files.similarity_dir(run) / "scores.json")
        for name in [*MEASURES, *INTERVAL]:
            of_weights = {weights: scores[weights][name] for weights in results.weights.unique()}
            results[f"similarity_{name}"] = results.weights.map(of_weights).astype(float)
        if params.is_text(settings):
            table = files.load_table(files.similarity_dir(run) / "nearest.parquet")
            own = table.groupby("weights").own_similarity.mean() if "own_similarity" in table else {}
            results["similarity_own_mean"] = results.weights.map(own).astype(float)
    return results


def summary(settings, rows, mean_and_sd, rounded):
    """Entry of metrics.json for an arm and kind of weights: the means over seeds. The interval is the bootstrap's of one seed, or the
    t-interval of the mean over several.

    rows   one row a seed
    """
    if not similarity.wanted(settings):
        return {}
    of_measure = rows.rename(columns=lambda name: name.removeprefix("similarity_"))
    entry = mean_and_sd(of_measure, list(_measures(settings)))
    if len(rows) == 1:
        entry |= mean_and_sd(of_measure, INTERVAL)
    else:
        found = intervals.t_interval(of_measure.percentile_95.tolist())
        entry |= {name: rounded(value) for name, value in zip(INTERVAL, found, strict=True)}
    return {"similarity": entry}


def section(settings, metrics):
    """The page's section, as HTML; "" where the phase is left out."""
    if not similarity.wanted(settings):
        return ""
    from stages.report import figures

    weights, seed = settings["score"]["headline"]["weights"], settings["seeds"][0]
    folder = files.similarity_dir(files.REFERENCE)
    used = files.load_json(folder / "scores.json")
    nearest = {
        arm: table[table.weights == weights]
        for arm in settings["arms"]
        for table in [files.load_table(files.similarity_dir(files.run_name(arm, seed)) / "nearest.parquet")]
    }
    train = files.load_table(folder / "nearest.parquet", ["similarity"]).similarity.to_numpy()
    figure = figures.similarity_histogram(
        {arm: table.similarity.to_numpy() for arm, table in nearest.items()}, list(settings["arms"]), train
    )
    told = (
        f"Similarity by SSCD of each generated image to the nearest training image: 1 is a copy. Weights {used['weights']}, sha256 "
        f"{used['sha256'][:16]}…, preprocessing {used['preprocess']}. The 95th percentile of the training images to each other, "
        f"without themselves, is {number(used['train']['percentile_95'])}."
    )
    caption = (
        f"Density of the similarities, {weights} weights, seed {seed}; each row has its own scale. Grey: training images, each to the "
        "most similar other one."
    )
    return (
        f'<section>\n<h2 id="similarity">Similarity</h2>\n{html_table(_rows(settings, metrics), told)}\n'
        f"<div class=panels><figure>{figure}<figcaption>{caption}</figcaption></figure></div>\n"
        f"{_near_copies(nearest)}\n{_pictures(settings, nearest, weights, seed)}\n</section>"
    )


def _rows(settings, metrics):
    rows = []
    for arm in settings["arms"]:
        for weights in ("raw", "ema"):
            if entry := metrics[arm].get(weights, {}).get("similarity"):
                interval = f" [{number(entry['low'])}, {number(entry['high'])}]"
                cells = {label: with_sd(entry, name, number) for name, label in _measures(settings).items()}
                cells[MEASURES["percentile_95"]] += interval
                rows.append({"arm": arm, "weights": weights} | cells)
    return rows


def _near_copies(nearest):
    """The most similar images of each arm by key, each training image once."""
    rows = []
    for arm, table in nearest.items():
        most = table.sort_values("similarity", ascending=False, kind="stable").drop_duplicates("nearest_train")
        rows += [
            {
                "arm": arm,
                "image": str(row.image),
                "similarity": f"{row.similarity:.3f}",
                "training image": str(row.nearest_key),
            }
            for row in most.head(MOST_SIMILAR).itertuples()
        ]
    return f"<details><summary>The most similar images, by key</summary>{html_table(rows)}</details>"


def _pictures(settings, nearest, weights, seed):
    """Near-copies beside their training images, and a grid of the same images of all arms (Fig. 7)."""
    if not similarity.shows_pictures(settings):
        return "<p class=quiet>Pictures are shown where similarity.show_images says how many.</p>"
    runs = {arm: files.similarity_dir(files.run_name(arm, seed)) / "pictures.safetensors" for arm in nearest}
    pictures = {
        arm: {
            name.removeprefix(f"{weights}."): array
            for name, array in files.load_arrays(path).items()
            if name.startswith(weights)
        }
        for arm, path in runs.items()
    }
    galleries = "".join(f"<h3>{escape(arm)}</h3>\n{_gallery(shown, nearest[arm])}" for arm, shown in pictures.items())
    return (
        f"{_grid(pictures, nearest)}\n<p class=quiet>Near-copies: left the generated image, right its training image.</p>\n"
        f"{galleries}"
    )


def _gallery(shown, table):
    from stages.report.figures import png

    keys = table.set_index("image").nearest_key
    figures = "".join(
        f'<figure><div class=pair><img src="{png(copy)}" alt="generated image {image}">'
        f'<img src="{png(original)}" alt="training image {escape(str(keys[image]))}"></div>'
        f"<figcaption>{similarity_:.3f} · {escape(str(keys[image]))}</figcaption></figure>"
        for copy, original, image, similarity_ in zip(
            shown["copies"], shown["originals"], shown["copy_image"], shown["copy_similarity"], strict=True
        )
    )
    return f"<div class=gallery>{figures}</div>"


def _grid(pictures, nearest):
    """One row an image: its training image, then what each arm made of the same prompt and seed."""
    from stages.report.figures import png

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
        f"<p class=quiet>{told}</p>\n<div class=scroll><table class=grid>\n<thead><tr>{head}</tr></thead>\n"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
