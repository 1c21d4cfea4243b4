"""Memorisation at equal fidelity: does an arm memorise less than the baseline trained for less?

A model that is trained for less memorises less, and is less faithful. So plain training alone gives a curve of excess over
fidelity, and a method has achieved something only where its own curve lies below that one.

R rounds at which an arm is sampled, M generated images. Fidelity is a distance to held-out images, lower is more faithful. A
distance to the training images would reward copies.
"""

import math
from typing import NamedTuple

import numpy as np

from stages.measures import intervals

SHORTEST = 0.1  # of the baseline's range of fidelities: on less, no difference is told


class Curve(NamedTuple):
    """What one training run came to, round by round.

    fidelity     [R] float64
    influences   R arrays [M] float64: what each generated image pulls its round's fidelity (frechet.influences)
    excess       R arrays [M] float64: what each image contributes to its round's excess, which is their sum
    largest      (largest contribution that one image can have, the most negative one as a positive number)
    """

    fidelity: np.ndarray
    influences: list
    excess: list
    largest: tuple

    def frontier(self):
        """The rounds that are more faithful than every one before: [F] int64. Others cost memorisation and buy nothing."""
        best = np.minimum.accumulate(self.fidelity)
        return np.flatnonzero(np.r_[True, self.fidelity[1:] < best[:-1]])

    def at(self, rounds):
        """The curve of some of its rounds."""
        return Curve(
            self.fidelity[rounds],
            [self.influences[r] for r in rounds],
            [self.excess[r] for r in rounds],
            self.largest,
        )


class Difference(NamedTuple):
    """The excess of an arm less that of the baseline at the same fidelity, as a share of the generated images.

    value, low, high   with the 95 % interval; None where there is none
    best, worst        the range of fidelities that it is the mean of; None where the two have none in common
    reason             why there is no number; None where there is one
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    best: float | None = None
    worst: float | None = None
    reason: str | None = None


def difference(arm, baseline, groups=None):
    """The mean difference of excess over the fidelities that both curves reach.

    Each curve is that of its frontier, straight between neighbouring rounds, and none is drawn out beyond its ends. With x the fidelity
    and e the excess by image, the difference is the mean of e_arm(x) - e_baseline(x) over x from `best` to `worst`.

    Given the fidelities it is a sum over images, D = sum_i g_i with g_i = sum_r w_r d_ir, w_r being what round r weighs in the mean. The
    error of the fidelities adds h_i = sum_r dD/df_r psi_ir / M to each. Images of one number start from the same noise in all rounds and
    arms, so g_i and h_i take both arms together, and what they share cancels. The interval combines that of the sum of g
    (intervals.sum_of_differences, right for rare counts) and z sd(h) with their correlation.

    It is assumed that images (or groups of them) are independent draws, that the curves are nearly straight between rounds, and that
    errors of the fidelities are small beside the distance between rounds. The held-out images are taken as given: they are the same
    for both. It holds for these two models, not for other runs of their training: see `over_seeds`.

    arm, baseline   Curve
    groups          [M] integer, the same for images of one prompt; None: every image by itself
    Returns         Difference
    """
    arm, baseline, common = _at_frontiers(arm, baseline)
    if common.reason:
        return common
    best, worst = common.best, common.worst
    curves = ((arm, 1), (baseline, -1))
    num_images = max(len(values) for curve, _ in curves for values in curve.excess)
    g, h, gain, loss = np.zeros(num_images), np.zeros(num_images), 0.0, 0.0
    for curve, sign in curves:
        weights = sign * mean_weights(curve.fidelity, best, worst)
        for values, weight in zip(curve.excess, weights, strict=True):
            g[: len(values)] += weight * values / len(values)
        up, down = curve.largest if sign > 0 else curve.largest[::-1]
        total = np.abs(weights).sum() / min(map(len, curve.excess))
        gain, loss = gain + total * up, loss + total * down
    for which, (curve, _) in enumerate(curves):
        for r, psi in enumerate(curve.influences):
            h[: len(psi)] += _slope(arm, baseline, which, r) * psi / len(psi)
    return _with_interval(g, h, gain, loss, groups, best, worst)


def difference_of_auc(arms, baselines):
    """The same of the area under the ROC curve of membership inference, in the place of the excess, for all seeds together.

    In the place of contributions to the excess, those of the images attacked have the area as their mean (membership.Judged), and they are
    the same images for both arms. They are drawn apart from the generated images, so of one seed the two errors add:
    z sqrt(var(g) / N + var(h) M).

    All seeds are attacked with the same images, so the error of these does not show in the spread over seeds. With several seeds the
    interval is that of intervals.over_seeds, with the mean of g over seeds; the error of the fidelities is in the spread, as each seed
    generates images of its own.

    arms, baselines   lists of Curve, one a seed, with arrays [N] of the images attacked as excess; largest is not read
    Returns           Difference, of areas; without a number where a seed has none
    """
    each = [_of_auc(*of_seed) for of_seed in zip(arms, baselines, strict=True)]
    found = over_seeds([one for one, _ in each])
    if found.value is None or len(each) == 1:
        return found
    images = np.mean([g for _, g in each], axis=0)
    half = intervals.half_width_of_sum(images / len(images))
    low, high = intervals.over_seeds([one.value for one, _ in each], half, half)
    return found._replace(low=low, high=high)


def _of_auc(arm, baseline):
    """Difference of one seed, and what each image attacked contributes to it: [N] float64 with that as mean; None where there is none."""
    arm, baseline, common = _at_frontiers(arm, baseline)
    if common.reason:
        return common, None
    g, h = np.zeros(len(arm.excess[0])), np.zeros(max(len(psi) for psi in arm.influences + baseline.influences))
    for which, (curve, sign) in enumerate(((arm, 1), (baseline, -1))):
        for values, weight in zip(curve.excess, mean_weights(curve.fidelity, common.best, common.worst), strict=True):
            g += sign * weight * values
        for r, psi in enumerate(curve.influences):
            h[: len(psi)] += _slope(arm, baseline, which, r) * psi / len(psi)
    value = float(g.mean())
    half = math.hypot(intervals.half_width_of_sum(g / len(g)), intervals.half_width_of_sum(h))
    return Difference(value, value - half, value + half, common.best, common.worst), g


def _at_frontiers(arm, baseline):
    """Two curves at their frontiers, and the fidelities that both reach: a Difference with best and worst, or with the reason why they say
    nothing."""
    arm, baseline = arm.at(arm.frontier()), baseline.at(baseline.frontier())
    best = max(arm.fidelity.min(), baseline.fidelity.min())
    worst = min(arm.fidelity.max(), baseline.fidelity.max())
    common = Difference(best=float(best), worst=float(worst))
    if len(arm.fidelity) < 2 or len(baseline.fidelity) < 2:
        common = Difference(reason="a curve needs two rounds that are each more faithful than all before")
    elif worst <= best:
        more = "more" if arm.fidelity.max() <= baseline.fidelity.min() else "less"
        common = Difference(
            reason=f"it is {more} faithful than the baseline at every round, so there is nothing to compare"
        )
    elif worst - best < SHORTEST * np.ptp(baseline.fidelity):
        common = common._replace(reason="the range of fidelities that both reach is too short")
    return arm, baseline, common


def _with_interval(g, h, gain, loss, groups, best, worst):
    g[np.abs(g) < 1e-12 * np.abs(g).max()] = 0  # rounding of what cancels is no gain and no loss
    if groups is not None:
        _, place = np.unique(groups, return_inverse=True)
        g, h, most = np.bincount(place, g), np.bincount(place, h), np.bincount(place).max()
        gain, loss = most * gain, most * loss
    value, low, high = intervals.sum_of_differences(g, gain, loss)
    of_fidelity = intervals.half_width_of_sum(h)
    together = np.corrcoef(g, h)[0, 1] if g.std() > 0 and h.std() > 0 else 0.0
    below = math.sqrt(max(0.0, (value - low) ** 2 + of_fidelity**2 + 2 * together * (value - low) * of_fidelity))
    above = math.sqrt(max(0.0, (high - value) ** 2 + of_fidelity**2 + 2 * together * (high - value) * of_fidelity))
    return Difference(value, value - below, value + above, float(best), float(worst))


def mean_weights(fidelity, best, worst):
    """What each point of a curve weighs in the curve's mean over [best, worst].

    fidelity   [F] float64, strictly decreasing
    Returns    [F] float64 with sum 1: the means of the hat functions of the points, within best and worst
    """
    x = fidelity[::-1]
    knots = np.unique(np.r_[best, x[(x > best) & (x < worst)], worst])
    hats = np.array([np.interp(knots, x, unit) for unit in np.eye(len(x))])  # [F, knots], straight between knots
    return (np.trapezoid(hats, knots, axis=1) / (worst - best))[::-1]


def _slope(arm, baseline, which, r):
    """dD/df of round r of one of the two curves, over a step as long as the distance to the next round allows, to both sides."""
    fidelities = [arm.fidelity, baseline.fidelity]
    own = fidelities[which]
    step = 1e-3 * min(abs(own[r] - own[s]) for s in (r - 1, r + 1) if 0 <= s < len(own))

    def moved(by):
        changed = [values.copy() for values in fidelities]
        changed[which][r] += by
        best, worst = max(map(np.min, changed)), min(map(np.max, changed))
        means = [
            mean_weights(values, best, worst) @ [found.sum() / len(found) for found in curve.excess]
            for values, curve in zip(changed, (arm, baseline), strict=True)
        ]
        return means[0] - means[1]

    return (moved(step) - moved(-step)) / (2 * step)


def over_seeds(found):
    """The mean of the differences of several seeds, with the t-interval over seeds, which holds what differs between trainings as well.

    found     list of Difference, one a seed
    Returns   Difference: that of the one seed, or the mean; without a number where a seed has none
    """
    if len(found) == 1:
        return found[0]
    if without := [each for each in found if each.value is None]:
        return Difference(reason=f"{len(without)} of {len(found)} seeds have no difference: {without[0].reason}")
    values = [each.value for each in found]
    low, high = intervals.t_interval(values)
    best, worst = np.mean([each.best for each in found]), np.mean([each.worst for each in found])
    return Difference(float(np.mean(values)), float(low), float(high), float(best), float(worst))


def verdict(found):
    """In a word: "less", "more" or "not told apart", by the interval of a Difference; None where there is no number."""
    if found.value is None:
        return None
    return "less" if found.high < 0 else "more" if found.low > 0 else "not told apart"
