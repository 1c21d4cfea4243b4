"""What confidence intervals are made of."""

import math

import numpy as np

NORMAL_97_5 = 1.959963984540054  # 97.5 % quantile of the standard normal, for two-sided 95 % intervals


def sum_of_differences(differences, largest_gain, largest_loss):
    """Sum of independent differences with a 95 % interval that holds for rare counts as well as for frequent ones.

    The sum of the gains P (differences above 0) and that of the losses Q (below 0) get limits of their own, see `sum_limits`,
    and these are combined by the method of variance estimates recovery (Newcombe 1998, method 10; Zou and Donner 2008):

        low  = P - Q - sqrt((P - P_low)^2 + (Q_high - Q)^2 - 2 r (P - P_low) (Q_high - Q))
        high = P - Q + sqrt((P_high - P)^2 + (Q - Q_low)^2 - 2 r (P_high - P) (Q - Q_low))

    with r = -sqrt(p q / ((1 - p) (1 - q))), the correlation of two cells of a multinomial, p and q the shares of gains and losses.

    differences    [G] float64, independent of each other
    largest_gain   the largest gain that one of them could have, > 0; as there may be none among them, it must be said
    largest_loss   the same for a loss, as a positive number
    Returns        (sum, low, high)
    """
    gains, losses = np.maximum(differences, 0), np.maximum(-differences, 0)
    gained, gained_low, gained_high = sum_limits(gains, largest_gain)
    lost, lost_low, lost_high = sum_limits(losses, largest_loss)
    p, q = (gains > 0).mean(), (losses > 0).mean()
    r = -math.sqrt(p * q / ((1 - p) * (1 - q))) if p < 1 and q < 1 else 0.0

    def combined(a, b):
        return math.sqrt(a**2 + b**2 - 2 * r * a * b)

    total = gained - lost
    return (
        total,
        total - combined(gained - gained_low, lost_high - lost),
        total + combined(gained_high - gained, lost - lost_low),
    )


def sum_limits(values, largest):
    """Sum of G values, of which most may be 0, with 95 % limits for its expectation.

    Where all values are 0 or 1 these are the limits of Clopper and Pearson (1934) for a number of successes in G trials. Otherwise
    they are those of Fay and Feuer (1997) for a weighted sum of rare counts, with the binomial in the place of the Poisson
    distribution: the sum S counts as S / w successes of weight w = (sum of squares) / S.

    values    [G] float64, >= 0
    largest   the largest value that one may have, > 0
    Returns   (sum, low, high), 0 <= low <= sum <= high
    """
    from scipy.special import betaincinv

    num, total, squares = len(values), values.sum(), (values**2).sum()
    largest = max(largest, values.max())

    def limit(total, squares, probability):
        weight = squares / total
        successes = total / weight
        failures = num - successes + 1
        return weight * num * (betaincinv(successes, failures, probability) if failures > 0 else 1.0)

    low = limit(total, squares, 0.025) if total > 0 else 0.0
    high = limit(total + largest, squares + largest**2, 0.975)
    return float(total), float(low), float(max(high, total))


def of_quantile(values, p, scale, groups=None):
    """95 % interval of a quantile, from a sample whose values may come in groups that are alike.

    Its ends are two of the sorted values. Of n independent values, j or fewer lie below the quantile with the probability of a
    binomial distribution, so the j-th is a lower limit if P(B(n, p) <= j - 1) <= 0.025, and the k-th an upper limit if
    P(B(n, p) >= k) <= 0.025. Where no value is one (few values, high p), only the end of the scale bounds the quantile.
    Values in groups are worth fewer independent ones (Woodruff 1952; Korn and Graubard 1998):

        n_eff = p^ (1 - p^) / v,    v = G / (G - 1) sum_g (sum_{i in g} (y_i - p^))^2 / n^2,

    with y_i = 1 for values up to the sample's quantile, p^ their share, G groups.

    values    [n] float64
    p         share of the distribution below the quantile, in (0, 1)
    scale     (lowest, highest) value possible
    groups    [n] integer, the same for values of one group; None: every value is independent of the others
    Returns   (low, high)
    """
    from scipy.special import bdtrik

    values = np.asarray(values, np.float64)
    up_to = values <= np.quantile(values, p, method="inverted_cdf")
    share = up_to.mean()
    worth = num = len(values)
    if groups is not None:
        _, group = np.unique(groups, return_inverse=True)
        sums = np.bincount(group, up_to - share)
        variance = len(sums) / max(len(sums) - 1, 1) * (sums**2).sum() / num**2
        worth = min(num, share * (1 - share) / variance) if variance > 0 else len(sums)
    j, k = math.floor(bdtrik(0.025, worth, p)) + 1, math.ceil(bdtrik(0.975, worth, p)) + 1
    low, high = np.quantile(values, [j / worth, min(k / worth, 1)], method="inverted_cdf")
    return float(low) if (1 - p) ** worth <= 0.025 else scale[0], float(high) if k <= worth else scale[1]


def t_interval(values):
    """95 % interval of the mean of n values by Student's t: mean +- t_{0.975, n - 1} s / sqrt(n).

    values    [n] float, n >= 2
    Returns   (low, high)
    """
    from scipy.special import stdtrit  # scipy.stats would take another second to import

    half = stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half


def over_seeds(values, below, above):
    """95 % interval of the mean over seeds of what was measured with the same images for every seed.

    Their error is common to all seeds, so it neither shows in the spread over seeds nor gets smaller by averaging. The two errors add:
    to each side sqrt(e^2 + (t_{0.975, S - 1} s / sqrt(S))^2). What images and seeds do together is in both terms: the interval is rather too wide.

    values         [S] float, S >= 2, one a seed
    below, above   e to each side: how far the interval reaches that the draw of the images gives the mean, >= 0
    Returns        (low, high)
    """
    mean = float(np.mean(values))
    half = mean - t_interval(values)[0]
    return mean - math.hypot(below, half), mean + math.hypot(above, half)


def half_width_of_sum(values):
    """Half of the 95 % interval of a sum of independent draws, by the normal distribution: z sd sqrt(n).

    values    [n] float64
    Returns   float
    """
    return NORMAL_97_5 * math.sqrt(len(values) * np.var(values))
