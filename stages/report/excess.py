"""The interval of an excess over seeds, and at every threshold."""

import numpy as np
import pandas as pd

from stages.measures import intervals


def over_seeds(rows):
    """95 % interval of the mean excess. Where all seeds have the same one, as where nothing was found, the t-interval has no width,
    and that is no certainty: the intervals of the seeds are combined then, whose draws of images are independent of each other.

    rows      frame, one row per seed, with excess, excess_low and excess_high
    Returns   (low, high)
    """
    excess = rows.excess.to_numpy()
    if np.ptp(excess) != 0:  # NaN without held-out images
        return intervals.t_interval(excess.tolist())
    below, above = (np.sqrt(((rows[end] - excess) ** 2).sum()) / len(excess) for end in ("excess_low", "excess_high"))
    return excess.mean() - below, excess.mean() + above


def bands(results, weights, protocol):
    """The 95 % interval of the excess of each arm at each threshold, as shares of the generated images.

    results   as Report.results
    Returns   frame with arm, threshold, low, high
    """
    rows = results[(results.weights == weights) & (results.protocol == protocol)]
    found = []
    for (arm, threshold), of_seeds in rows.groupby(["arm", "threshold"], sort=False):
        ends = of_seeds[["excess_low", "excess_high"]].iloc[0] if len(of_seeds) == 1 else over_seeds(of_seeds)
        found.append((arm, threshold, *(end / of_seeds.num_images.iloc[0] for end in ends)))
    return pd.DataFrame(found, columns=["arm", "threshold", "low", "high"])
