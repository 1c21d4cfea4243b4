"""Reads what all runs came to, into the frames that tables and figures are made of."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from stages import experiments
from stages.report import columns, entries, leaks, sections, trade_off
from stages.run import files, params

RUN = ["arm", "seed"]  # the first columns of every frame
FOR_ALL_ROWS = ("num_images", "num_train", "num_heldout", "num_compared", "fd_mean_image")  # of scores.json
TRAINING = ["skipped_share", "augmented_share", "moved", "optimizer_steps", "forward_images"]  # sums of `totals`


@dataclass
class Report:
    """All that the sections of the page are made of.

    settings      params.yaml, checked
    params_text   its text, comments included
    results       frame, one row per arm, seed, kind of weights, protocol and threshold: curves.parquet of the run, fd_pixels and numbers
                  of images, what sections add (with_columns), of the last round that is sampled; excess_share = excess / num_images, then the columns of `training`
    rounds        frame, one row per arm, seed, kind of weights and round that is sampled, at the headline's protocol and
                  threshold: columns as in results, with round; steps, the optimiser steps of all shards up to then (NaN for a
                  generator from elsewhere); fd_pixels_heldout_error, half of the 95 % interval (NaN without held-out images); leaked,
                  training images that are leaked with confidence
    training      frame, one row per arm and seed that is trained here: columns TRAINING, and spent.<name> of what methods spent
    epochs        frame, one row per arm, seed and epoch: round, loss, skipped_share, augmented_share
    histogram     frame, one row per arm, seed and number of skips: images that were skipped so often
    leaks         frame, see stages.report.leaks
    metrics       what summary.json holds, see stages.report.entries; empty until metrics.summarise has filled it
    """

    settings: dict
    params_text: str
    results: pd.DataFrame
    rounds: pd.DataFrame
    training: pd.DataFrame
    epochs: pd.DataFrame
    histogram: pd.DataFrame
    leaks: pd.DataFrame
    metrics: dict = field(default_factory=dict)

    @property
    def arms(self):
        """Names of the arms in the order of params.yaml; the first is the baseline."""
        return list(self.settings["arms"])

    @property
    def headline(self):
        """Headline: weights, protocol and threshold that the page shows first."""
        return entries.headline(self.settings)

    @property
    def first_seed(self):
        """The seed that pictures and histograms are of."""
        return self.settings["seeds"][0]

    @property
    def num_train(self):
        """Training images of an arm."""
        return int(self.results.num_train.iloc[0])

    def runs(self, arm):
        """Names of the arm's runs, one per seed."""
        return [files.run_name(arm, seed) for seed in experiments.seeds_of(self.settings, arm)]

    def places(self, arm):
        """Where the results of the arm's last sampled round lie below artifacts/results/<phase>, one per seed."""
        return [files.place(run, experiments.last_sampled(self.settings, arm)) for run in self.runs(arm)]

    def first_place(self, arm):
        """That of the run that pictures and histograms of an arm are of."""
        return self.places(arm)[0]


def read(settings):
    """Report of all runs, in the order of params.yaml, without its metrics.

    Raises   ValueError: a file of a run is missing
    """
    results, rounds, training, epochs, histogram = [], [], [], [], []
    for arm, recipe in settings["arms"].items():
        for seed in experiments.seeds_of(settings, arm):
            run = files.run_name(arm, seed)
            for r in experiments.sampled_rounds(settings, arm):
                folder = files.folder("results/score", run, r)
                scores = read_scores(folder, settings["score"]["thresholds"])
                for section in sections.having("with_columns"):
                    scores = section.with_columns(scores, settings, files.place(run, r))
                at = scores[_at_headline(scores, settings)]
                at = at.assign(fd_pixels_heldout_error=at.weights.map(trade_off.fidelity_errors(folder)))
                at = at.assign(leaked=at.weights.map(leaks.num_leaked(folder, entries.headline(settings))))
                rounds.append(at.assign(arm=arm, seed=seed, round=r, steps=trade_off.steps_until(recipe, run, r)))
            results.append(scores.assign(arm=arm, seed=seed))
            if "generator" in recipe:  # trained elsewhere
                continue
            counted = experiments.load_counts(recipe, run)
            training.append({"arm": arm, "seed": seed, **totals(counted)})
            epochs.append(pd.DataFrame(epoch_means(counted)).assign(arm=arm, seed=seed))
            skips, images = skip_counts(counted)
            histogram.append(pd.DataFrame({"skips": skips, "images": images}).assign(arm=arm, seed=seed))
    training = pd.DataFrame(training, columns=None if training else [*RUN, *TRAINING])
    epochs = pd.concat(epochs) if epochs else pd.DataFrame(columns=[*RUN, *epoch_means([])])
    histogram = pd.concat(histogram) if histogram else pd.DataFrame(columns=[*RUN, "skips", "images"])
    results, rounds = pd.concat(results), pd.concat(rounds)
    results, rounds, training, epochs, histogram = map(_run_first, (results, rounds, training, epochs, histogram))
    results = results.assign(excess_share=results.excess / results.num_images)
    return Report(
        settings=settings,
        params_text=Path(params.PARAMS_FILE).read_text(encoding="utf-8"),
        results=results.merge(training, how="left", on=RUN, validate="many_to_one"),
        rounds=rounds,
        training=training,
        epochs=epochs,
        histogram=histogram,
        leaks=leaks.read(settings),
    )


def _at_headline(scores, settings):
    """The rows of a run's scores that are of the headline's protocol and threshold, with any weights."""
    _, protocol, threshold = entries.headline(settings)
    return (scores.protocol == protocol) & np.isclose(scores.threshold, threshold)


def _run_first(frame):
    return frame[RUN + [column for column in frame.columns if column not in RUN]].reset_index(drop=True)


def read_scores(folder, thresholds):
    """curves.parquet of a run, with the numbers of scores.json that hold for all rows of the same weights.

    thresholds   those of params.yaml: each must have one row for every kind of weights and protocol of the page
    Raises       ValueError: a file is missing, or has no such row
    """
    scores = files.load_json(folder / "scores.json")
    curves = files.load_table(folder / "curves.parquet")
    for weights, protocol, threshold in itertools.product(curves.weights.unique(), entries.PROTOCOLS, thresholds):
        of_protocol = curves[(curves.weights == weights) & (curves.protocol == protocol)]
        if np.isclose(of_protocol.threshold, threshold).sum() != 1:
            raise ValueError(
                f"{folder / 'curves.parquet'} has no single row for {weights} weights, {protocol} at {threshold}: run its score "
                "phase again"
            )
    for name in columns.of("score"):
        by_weights = {weights: scores[weights][name] for weights in curves.weights.unique()}
        curves[name] = curves.weights.map(by_weights).astype(float)
    return curves.assign(**{name: scores[name] for name in FOR_ALL_ROWS})


# What happened in training. `rounds` is a list of rounds, each the list of its K shards, each the arrays of its counts file.


def totals(rounds):
    """What a run's training came to over all rounds and shards.

    Returns   dict: skipped_share, augmented_share (of the images visited), moved, optimizer_steps, forward_images;
              spent.<name>: numbers by name that the method gives, of the shards of the last round the largest
    An image has moved when it trains in another shard than in the round before; each time counts.
    """
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
    """Loss and shares of each epoch, counted on over the rounds: means over all images visited, so a larger shard weighs more.

    Returns   dict of lists of one length: round and epoch (both from 1), loss, skipped_share, augmented_share
    """
    means = {"round": [], "epoch": [], "loss": [], "skipped_share": [], "augmented_share": []}
    for number, shards in enumerate(rounds, start=1):
        visited, loss, skipped, augmented = (
            np.stack([shard[name] for shard in shards])  # [K, E]
            for name in ("epoch_visited", "epoch_loss", "epoch_skipped", "epoch_augmented")
        )
        all_visited = visited.sum(0)
        means["loss"] += list(np.where(visited > 0, loss * visited, 0).sum(0) / all_visited)
        means["skipped_share"] += list(skipped.sum(0) / all_visited)
        means["augmented_share"] += list(augmented.sum(0) / all_visited)
        means["round"] += [number] * len(all_visited)
    means["epoch"] = list(range(1, len(means["loss"]) + 1))
    return means


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
