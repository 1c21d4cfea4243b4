"""What confidence intervals are made of."""

import math

import numpy as np

NORMAL_97_5 = 1.959963984540054  # 97.5 % quantile of the standard normal, for two-sided 95 % intervals


def t_interval(values):
    """95 % interval of the mean of n values by Student's t: mean +- t_{0.975, n - 1} s / sqrt(n).

    values    [n] float, n >= 2
    Returns   (low, high)
    """
    from scipy.special import stdtrit  # scipy.stats would take another second to import

    half = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half
