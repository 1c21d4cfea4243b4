"""How well a score tells one group of images from the rest: the area under the ROC curve, and its interval.

Legend: n images, P of them positive (what the score should find), Q = n - P negative.
"""

from typing import NamedTuple

import numpy as np

from stages.measures.intervals import NORMAL_97_5


class Area(NamedTuple):
    """auc in [0, 1]; low and high: its 95 % interval, nan where there is none."""

    auc: float
    low: float
    high: float


def area(score, positive):
    """Area under the ROC curve with its 95 % interval by DeLong, DeLong and Clarke-Pearson (1988).

    The area is the share of pairs of a positive and a negative image in which the positive one has the higher score, equal
    scores counting half: the Mann-Whitney statistic over P Q. 0.5 is no better than chance. For a positive image i let
    v_i be the share of negative images below it, for a negative image j let w_j be the share of positive images above it.
    Then auc = mean v = mean w, and its variance is var(v) / P + var(w) / Q (var with n - 1), which holds with ties as well.

    score      [n] real numbers, finite
    positive   [n] bool
    Returns    Area. The interval is cut off at 0 and 1. It is nan with fewer than two images on a side, and where the
               groups do not overlap at all (auc 0 or 1): the estimated variance is then 0, which says nothing.
    Raises     ValueError: no positive image, or no other
    """
    score, positive = np.asarray(score, np.float64), np.asarray(positive, bool)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    if not num_positive or not num_negative:
        raise ValueError(f"{num_positive} of {len(positive)} images are positive, expected some but not all")
    v, w = placements(score, positive)
    auc = float(v.mean())
    if min(num_positive, num_negative) < 2 or auc in (0, 1):
        return Area(auc, np.nan, np.nan)
    half = NORMAL_97_5 * np.sqrt(v.var(ddof=1) / num_positive + w.var(ddof=1) / num_negative)
    return Area(auc, float(max(0, auc - half)), float(min(1, auc + half)))


def placements(score, positive):
    """Of each image the share of the other group that lies on the side where it should, equal scores counting half: v and w of `area`.

    score      [n] float64
    positive   [n] bool, both kinds there
    Returns    [P] float64: of each positive image the share of negative ones below it; [Q]: of each negative image that of positive
               ones above it. The mean of either is the area under the curve
    """
    ranks, num_positive = _midranks(score), int(positive.sum())
    v = (ranks[positive] - _midranks(score[positive])) / (len(score) - num_positive)
    w = 1 - (ranks[~positive] - _midranks(score[~positive])) / num_positive
    return v, w


def found_share(score, positive, false_share):
    """Share of the positive images found by the best threshold that takes at most so large a share of the others for positive:
    the true positive rate at a false positive rate. An image is found where its score is above the threshold.

    score         [n] real numbers, finite
    positive      [n] bool, both kinds there
    false_share   in [0, 1)
    Returns       float in [0, 1]
    """
    score, positive = np.asarray(score, np.float64), np.asarray(positive, bool)
    others = np.sort(score[~positive])[::-1]
    threshold = others[int(false_share * len(others))]  # so many of the others are above it at most
    return float((score[positive] > threshold).mean())


def _midranks(values):
    """Ranks from 1, equal values sharing the mean of theirs: [n] float64."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(times) - (times - 1) / 2)[place]
