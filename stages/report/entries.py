"""Entries of summary.json: how a number of several seeds becomes one, and how the page reads them.

metrics[arm]                                   num_seeds, num_images, training, and a dict for each kind of weights
metrics[arm][weights]                          columns of the score phase, a dict for each protocol and for each other phase
metrics[arm][weights]["against_training_less"] verdict, difference, low, high of the curves; see stages.report.trade_off
metrics[arm][weights]["rounds"]                steps of rounds that stand out
metrics[arm][weights][protocol][threshold]     count, distinct, excess, excess_low, excess_high, simplicity
"""

import math
from typing import NamedTuple

import numpy as np

WEIGHTS = ("raw", "ema")  # kinds of weights that images are generated with: as trained, and their running average
PROTOCOLS = ("code_sq", "l2_from_gen")  # those of summary.json and the page; results.parquet has all
ONE_SEED = (
    "One training run per arm: this holds for these models, not yet for the methods. The intervals leave out how much another run "
    "of the same training would differ, which can be more than they are wide; give several seeds for that."
)


class Headline(NamedTuple):
    """What the page shows first: the number of memorised images under one protocol and threshold, with one kind of weights."""

    weights: str
    protocol: str
    threshold: float


def headline(settings):
    """Headline of params.yaml."""
    return Headline(**{name: settings["score"]["headline"][name] for name in Headline._fields})


def weights_of(metrics_of_arm):
    """The kinds of weights that an arm has images of, raw ones first."""
    return [weights for weights in WEIGHTS if weights in metrics_of_arm]


def mean_and_sd(rows, names):
    """Means over seeds, with <name>_sd beside them where there are several (n - 1 in the denominator).

    rows      frame with one row per seed
    names     columns
    Returns   dict of numbers, None for what is not known of every seed
    """
    entry = {}
    for name in names:
        values = rows[name].tolist()
        entry[name] = rounded(values[0] if len(values) == 1 else np.mean(values))
        if len(values) > 1:
            entry[f"{name}_sd"] = rounded(np.std(values, ddof=1))
    return entry


def rounded(value):
    """Whole numbers as they are, others to 6 significant digits so that a diff can be read; None for NaN."""
    if isinstance(value, int):
        return value
    return None if math.isnan(value) else float(f"{value:.6g}")


def per_image(cell, metrics_of_arm):
    """Count and excess as shares of the arm's generated images, as arms may differ in how many they generate.

    cell      metrics[arm][weights][protocol][threshold]
    Returns   dict: count, excess, excess_low, excess_high; None for what the cell has none of
    """
    names = ("count", "excess", "excess_low", "excess_high")
    return {name: None if cell[name] is None else cell[name] / metrics_of_arm["num_images"] for name in names}
