"""Report: what all arms came to, as metrics.json, plots/*.csv, artifacts/report/ and the page report.html.

    python -m stages.report            all of it
    python -m stages.report --page     report.html alone, from artifacts/report/body.html and logs/timing/
    python -m stages.report --table    the headline table as text, from metrics.json

Everything but report.html depends on the artifacts alone, so the same results give the same bytes. report.html adds when and
where the stages ran, and belongs to no hash. pandas and matplotlib are imported where they are used: --page and --table
start without them.
"""

import argparse
import datetime
import itertools
import json
import math
import subprocess
from pathlib import Path

import numpy as np

from stages import params, similarity
from stages.measures import intervals
from stages.report import leaks as leak_list
from stages.report import page, published, trade_off
from stages.report.sections import prompts as prompts_section
from stages.report.sections import quality as quality_section
from stages.report.sections import similarity as similarity_section
from stages.run import cli, files

BODY = files.REPORT / "body.html"
PAGE = Path("report.html")
TRAINING = ["skipped_share", "augmented_share", "moved", "optimizer_steps", "forward_images"]  # sums of `totals`
PROTOCOLS = ["code_sq", "l2_from_gen"]  # those of metrics.json and the page; results.parquet has all


def main(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m stages.report", description="Tables, figures and the page of all arms."
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--page", action="store_true", help="only renew report.html: wall time, machine, commit")
    only.add_argument("--table", action="store_true", help="only print the headline table from metrics.json")
    chosen = parser.parse_args(arguments)
    if chosen.table:
        print_table(params.load())
        return
    if not chosen.page:
        with cli.stage("report", parser.description, []) as job:
            build(job.params)
    render_page()


def print_table(settings):
    metrics = files.load_json(files.METRICS)
    try:
        text = page.text_table(settings, metrics)
    except KeyError as key:
        raise ValueError(
            f"{files.METRICS} has no {key}, which {params.PARAMS_FILE} names: run `snakemake` first"
        ) from None
    print(f"{text}\n\n{PAGE}")


def build(settings):
    """Reads the artifacts of every run in params.yaml and writes all that DVC tracks."""
    from stages.report import figures

    arms, headline = list(settings["arms"]), settings["score"]["headline"]
    weights, protocol, threshold = headline["weights"], headline["protocol"], headline["threshold"]
    results, training, epochs, histogram = read(settings)
    leaks = leak_list.read(settings)
    pictures = similarity.shows_pictures(settings) or not params.is_text(settings)
    shown = {arm: leak_list.of_run(leaks, arm, settings["seeds"][0], weights) for arm in arms}
    galleries = {
        arm: read_gallery(files.score_dir(files.run_name(arm, settings["seeds"][0])), weights, shown[arm], pictures)
        for arm in arms
    }
    analyses = []
    if "analyse" in settings and params.trained(settings):
        from stages.report.sections import analyses as analyses_section

        analyses = analyses_section.blocks(settings)
    metrics = summarise(settings, results, training)
    results = results.assign(excess_share=results.excess / results.num_images)
    curve = results[["arm", "seed", "weights", "protocol", "threshold", "share", "excess_share"]]
    results = results.merge(training, how="left", on=["arm", "seed"], validate="many_to_one")
    beside = next(other for other in PROTOCOLS if other != protocol)
    other_weights = "raw" if weights == "ema" else "ema"
    marks = settings["score"]["thresholds"]
    stopped = trade_off.controls(settings) if params.trained(settings) else []
    drawn = {
        "mq": figures.mq_curve(results, arms, weights, protocol, marks),
        "mq_beside": figures.mq_curve(results, arms, weights, beside, marks),
        "excess": figures.mq_curve(results, arms, weights, protocol, marks, "excess_share"),
        "fidelity": figures.excess_against_fidelity(results, arms, stopped, weights, protocol, threshold),
        "fidelity_beside": figures.excess_against_fidelity(results, arms, stopped, other_weights, protocol, threshold),
        "skips": figures.skip_histogram(histogram, arms),
        "loss": figures.over_epochs(epochs, arms, "loss", "training loss (mean squared error)", log=True),
        "skipped": figures.over_epochs(
            epochs.assign(percent=100 * epochs.skipped_share), arms, "percent", "skipped (% of the images visited)"
        ),
        "augmented": figures.over_epochs(
            epochs.assign(percent=100 * epochs.augmented_share), arms, "percent", "augmented (% of the images visited)"
        ),
    }
    against_fid = [
        figures.excess_against_fidelity(results, arms, stopped, w, protocol, threshold, f"fid_{fid}", f"FID ({fid})")
        for fid in quality_section.protocols(settings)[:1]
        for w in (weights, other_weights)
    ]
    per_seed = results[np.isclose(results.threshold, threshold) & (results.protocol == protocol)]
    body = page.body(
        settings,
        Path(params.PARAMS_FILE).read_text(encoding="utf-8"),
        metrics,
        per_seed.to_dict("records"),
        drawn,
        galleries,
        {arm: (len(copies), int(copies.sum())) for arm, copies in shown.items()},
        analyses,
        trade_off.view(settings, metrics),
        published.views(settings, metrics, int(results.num_train.iloc[0]), published.read()),
        quality_section.section(settings, metrics, against_fid),
        similarity_section.section(settings, metrics),
        prompts_section.section(settings, metrics),
    )
    with files.publish(files.REPORT) as folder:
        folder.mkdir()
        files.save_table(folder / "leaks.parquet", leaks)
        files.write_text(folder / "leaks.csv", leak_list.csv_text(leaks))
        files.save_table(folder / "results.parquet", results)
        files.write_text(folder / BODY.name, body)
    for name, frame in [("mq_curve", curve), ("training", epochs.drop(columns="round")), ("skip_histogram", histogram)]:
        files.write_text(
            files.PLOTS / f"{name}.csv", frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        )
    files.write_json(files.METRICS, metrics)


def read(settings):
    """All runs, in the order of params.yaml.

    Returns  results    frame, a row an arm, seed, weights, protocol and threshold
             training   frame, a row an arm and seed: skipped_share, augmented_share, moved, optimizer_steps, forward_images
             epochs     frame, a row an arm, seed and epoch
             histogram  frame, a row an arm, seed and number of skips
    Raises   ValueError: a file of a run is missing
    """
    import pandas as pd

    results, training, epochs, histogram = [], [], [], []
    for arm, recipe in settings["arms"].items():
        for seed in params.seeds_of(settings, arm):
            run = files.run_name(arm, seed)
            scores = read_scores(files.score_dir(run), settings["score"]["thresholds"])
            scores = similarity_section.with_columns(quality_section.with_columns(scores, settings, run), settings, run)
            results.append(scores.assign(arm=arm, seed=seed))
            if "generator" in recipe:  # trained elsewhere
                continue
            rounds = files.load_counts(recipe, run)
            training.append({"arm": arm, "seed": seed, **totals(rounds)})
            epochs.append(pd.DataFrame(epoch_means(rounds)).assign(arm=arm, seed=seed))
            skips, images = skip_counts(rounds)
            histogram.append(pd.DataFrame({"skips": skips, "images": images}).assign(arm=arm, seed=seed))
    first = ["arm", "seed"]
    training = pd.DataFrame(training, columns=None if training else [*first, *TRAINING])
    epochs = pd.concat(epochs) if epochs else pd.DataFrame(columns=[*first, *epoch_means([])])
    histogram = pd.concat(histogram) if histogram else pd.DataFrame(columns=[*first, "skips", "images"])
    frames = [pd.concat(results), training, epochs, histogram]
    return [f[first + [c for c in f.columns if c not in first]].reset_index(drop=True) for f in frames]


def read_scores(folder, thresholds):
    """curves.parquet of a run, with the numbers of scores.json that hold for all rows of the same weights."""
    scores = files.load_json(folder / "scores.json")
    curves = files.load_table(folder / "curves.parquet")
    for weights, protocol, threshold in itertools.product(curves.weights.unique(), PROTOCOLS, thresholds):
        of_protocol = curves[(curves.weights == weights) & (curves.protocol == protocol)]
        if np.isclose(of_protocol.threshold, threshold).sum() != 1:
            raise ValueError(
                f"{folder / 'curves.parquet'} has no single row for {weights} weights, {protocol} at {threshold}: run its score "
                "phase again"
            )
    for name in ("fd_pixels", "fd_pixels_heldout"):
        by_weights = {weights: scores[weights][name] for weights in curves.weights.unique()}
        curves[name] = curves.weights.map(by_weights).astype(float)
    return curves.assign(**{name: scores[name] for name in ("num_images", "num_train", "num_heldout")})


def read_gallery(folder, weights, copies, pictures):
    """The most memorised generated images of a run, each a dict: pictures as data addresses, ratio, key of the training image,
    and how many generated images count as copies of it.

    copies     as leak_list.of_run returns it
    pictures   False: None in their place
    """
    from stages.report.figures import png

    gallery = files.load_arrays(folder / "gallery.safetensors")
    images = files.load_table(folder / "images.parquet", ["weights", "image", "nearest_key"])
    key_of = images[images.weights == weights].set_index("image").nearest_key
    return [
        {
            "generated": png(gallery["generated"][g]) if pictures else None,
            "train": png(gallery["train"][g]) if pictures else None,
            "image": int(gallery["image"][g]),
            "ratio": float(gallery["ratio"][g]),
            "key": key_of[gallery["image"][g]],
            "copies": int(copies.get(gallery["nearest_train"][g], 0)),
        }
        for g in range(len(gallery["image"]))
    ]


# What happened in training. `rounds` is a list of rounds, each the list of its K shards, each the arrays of its counts file.


def totals(rounds):
    """Sums over all rounds and shards; of what a method spent and other numbers by name, the largest of the last round. An image has moved when it trains in another shard than in the round before."""
    shards = [shard for round_ in rounds for shard in round_]
    visits = sum(int(shard["visits"].sum()) for shard in shards)
    moved = 0
    for before, after in itertools.pairwise(rounds):
        stayed = sum(len(np.intersect1d(b["index"], a["index"])) for b, a in zip(before, after, strict=True))
        moved += sum(len(a["index"]) for a in after) - stayed
    last, names = rounds[-1], [name for name in rounds[-1][0] if name.startswith("spent.")]
    return {
        **{name: max(float(shard[name][0]) for shard in last) for name in names},
        "skipped_share": sum(int(shard["skips"].sum()) for shard in shards) / visits,
        "augmented_share": sum(int(shard["augmented"].sum()) for shard in shards) / visits,
        "moved": moved,
        "optimizer_steps": sum(int(shard["optimizer_steps"][0]) for shard in shards),
        "forward_images": sum(int(shard["forward_images"][0]) for shard in shards),
    }


def epoch_means(rounds):
    """Loss and shares of each epoch, counted on over the rounds: means over all images visited, so a larger shard weighs more."""
    columns = {"round": [], "epoch": [], "loss": [], "skipped_share": [], "augmented_share": []}
    for number, shards in enumerate(rounds, start=1):
        visited, loss, skipped, augmented = (
            np.stack([shard[name] for shard in shards])  # [K, E]
            for name in ("epoch_visited", "epoch_loss", "epoch_skipped", "epoch_augmented")
        )
        all_visited = visited.sum(0)
        columns["loss"] += list(np.where(visited > 0, loss * visited, 0).sum(0) / all_visited)
        columns["skipped_share"] += list(skipped.sum(0) / all_visited)
        columns["augmented_share"] += list(augmented.sum(0) / all_visited)
        columns["round"] += [number] * len(all_visited)
    columns["epoch"] = list(range(1, len(columns["loss"]) + 1))
    return columns


def skip_counts(rounds):
    """How many images were skipped how often over all rounds, each known by its index in the training set wherever it was.

    Returns  skips, images: two int arrays of one length
    """
    index, skips = (
        np.concatenate([shard[name] for round_ in rounds for shard in round_]) for name in ("index", "skips")
    )
    _, image = np.unique(index, return_inverse=True)
    per_image = np.bincount(image, weights=skips).astype(np.int64)
    return np.unique(per_image, return_counts=True)


# What goes into metrics.json.


def summarise(settings, results, training):
    """Per arm the mean over its seeds, with <name>_sd beside it (n - 1 in the denominator) where there are several.

    excess_low and excess_high: with one seed the paired interval of the score phase, over the generated images; with several
    the 95 % t-interval of the mean over seeds, which also holds what differs from one training to the next.
    """
    metrics = {}
    for arm in settings["arms"]:
        of_arm = results[results.arm == arm]
        entry = {"num_seeds": of_arm.seed.nunique(), "num_images": int(of_arm.num_images.iloc[0])}
        for weights in of_arm.weights.unique():
            rows = of_arm[of_arm.weights == weights]
            entry[weights] = _mean_and_sd(rows.drop_duplicates("seed"), ["fd_pixels", "fd_pixels_heldout"])
            entry[weights] |= quality_section.summary(settings, rows.drop_duplicates("seed"), _mean_and_sd)
            entry[weights] |= similarity_section.summary(settings, rows.drop_duplicates("seed"), _mean_and_sd, _rounded)
            entry[weights] |= prompts_section.summary(settings, arm, weights, _mean_and_sd)
            for protocol in PROTOCOLS:
                of_protocol = rows[rows.protocol == protocol]
                entry[weights][protocol] = {
                    f"{threshold:g}": _memorised(of_protocol[np.isclose(of_protocol.threshold, threshold)])
                    for threshold in settings["score"]["thresholds"]
                }
        metrics[arm] = entry
        of_arm = training[training.arm == arm]
        if of_arm.empty:
            continue
        entry["training"] = _mean_and_sd(of_arm, TRAINING)
        spent = [n for n in training.columns if n.startswith("spent.") and of_arm[n].notna().all()]
        if spent:
            entry["training"]["spent"] = {n.removeprefix("spent."): _rounded(of_arm[n].max()) for n in spent}
    return metrics


def _memorised(rows):
    """rows   one row a seed, at one threshold"""
    if len(rows) == 1:
        return _mean_and_sd(rows, ["count", "distinct", "excess", "excess_low", "excess_high", "simplicity"])
    entry = _mean_and_sd(rows, ["count", "distinct", "excess", "simplicity"])
    entry["excess_low"], entry["excess_high"] = map(_rounded, intervals.t_interval(rows.excess.tolist()))
    return entry


def _mean_and_sd(rows, names):
    entry = {}
    for name in names:
        values = rows[name].tolist()
        entry[name] = _rounded(values[0] if len(values) == 1 else np.mean(values))
        if len(values) > 1:
            entry[f"{name}_sd"] = _rounded(np.std(values, ddof=1))
    return entry


def _rounded(value):
    """Whole numbers as they are, others to 6 significant digits so that a diff can be read; None for what does not exist."""
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else float(f"{value:.6g}")


# The page that no hash covers.


def render_page(root="."):
    """Writes report.html: the tracked body, then wall time, machines, versions, date and commit as far as they are known."""
    root = Path(root)
    body = root / BODY
    if not body.exists():
        raise ValueError(f"{body} is missing: run `snakemake` or `dvc repro`, then this again")
    settings = params.load(root / params.PARAMS_FILE)
    records, unreadable = [], 0
    for path in sorted((root / files.LOGS / "timing").glob("*/*.json")):
        try:
            records.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            unreadable += 1  # a record cut short by a crash costs a number on the page, not the page
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    machines = page.machines(settings, records, unreadable, _commit(root), now)
    files.write_text(root / PAGE, page.page(body.read_text(encoding="utf-8"), machines))


def _commit(root):
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet
        return None
    return git.stdout.strip()
