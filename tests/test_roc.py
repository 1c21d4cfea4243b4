"""Area under the ROC curve and DeLong's interval: numbers by hand, against every pair, and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from stages.measures import roc


def every_pair(score, positive):
    """Area and DeLong's variance from the definition: psi = 1 above, 1/2 equal, 0 below, over all pairs."""
    high, low = score[positive], score[~positive]
    psi = np.array([[1.0 if h > x else 0.5 if h == x else 0.0 for x in low] for h in high])
    variance = psi.mean(axis=1).var(ddof=1) / len(high) + psi.mean(axis=0).var(ddof=1) / len(low)
    return psi.mean(), variance


def check_area(area):
    """Few values, so that most are tied; groups of very unlike sizes; either sign."""
    random = np.random.default_rng(0)
    for case in range(200):
        num_positive, num_negative = random.integers(2, 8), random.integers(2, 60)
        positive = random.permutation(np.arange(num_positive + num_negative) < num_positive)
        score = random.integers(-3, 4, len(positive)) + random.integers(0, 2) * positive
        auc, variance = every_pair(score, positive)
        found = area(score, positive)
        assert found.auc == pytest.approx(auc, abs=1e-12), f"case {case}"
        assert found.auc == pytest.approx(roc_auc_score(positive, score), abs=1e-12), f"case {case}"
        if auc in (0, 1):
            assert math.isnan(found.low) and math.isnan(found.high)
            continue
        half = 1.959963984540054 * math.sqrt(variance)
        assert found.low == pytest.approx(max(0, auc - half), abs=1e-12), f"case {case}"
        assert found.high == pytest.approx(min(1, auc + half), abs=1e-12), f"case {case}"


def test_area_equals_every_pair_and_scikit_learn():
    check_area(roc.area)


def ties_lost(score, positive):
    """Equal scores count for nothing, as when ranks go by position."""
    high, low = score[positive], score[~positive]
    found = roc.area(score, positive)
    return found._replace(auc=float(np.mean([[h > x for x in low] for h in high])))


def ties_by_position(score, positive):
    return roc.area(np.argsort(np.argsort(score, kind="stable")), positive)


def groups_swapped(score, positive):
    return roc.area(score, ~positive)


def divided_by_all(score, positive):
    """The interval of a mean of n numbers, as if pairs were not shared."""
    found = roc.area(score, positive)
    half = 1.96 * math.sqrt(found.auc * (1 - found.auc) / len(score))
    return found._replace(low=max(0, found.auc - half), high=min(1, found.auc + half))


@pytest.mark.parametrize("wrong", [ties_lost, ties_by_position, groups_swapped, divided_by_all])
def test_the_check_tells_wrong_areas_from_the_right_one(wrong):
    with pytest.raises(AssertionError, match="case"):
        check_area(wrong)


def test_area_by_hand():
    # Positives 3 and 1, negatives 2, 1, 0. Of 6 pairs: 3 beats all three, 1 beats 0 and ties with 1: 4.5.
    found = roc.area([3, 1, 2, 1, 0], [True, True, False, False, False])
    assert found.auc == 4.5 / 6
    # v = 1, 1/2: variance 1/8 over 2. w = 1/2, 3/4, 1: variance 1/16 over 3.
    half = 1.959963984540054 * math.sqrt(1 / 16 + 1 / 48)
    assert found.low == pytest.approx(0.75 - half) and found.high == 1  # 1.32 is cut off


def test_interval_covers_the_true_area_as_often_as_it_says():
    """Two normal distributions a distance of 1 apart: the true area is Phi(1 / sqrt 2) = 0.7602."""
    random = np.random.default_rng(1)
    truth, positive = 0.5 * (1 + math.erf(0.5)), np.arange(160) < 40
    assert truth == pytest.approx(0.7602, abs=1e-4)
    found = [roc.area(random.standard_normal(160) + positive, positive) for _ in range(1000)]
    assert 0.92 < np.mean([low <= truth <= high for _, low, high in found]) < 0.97
    assert np.mean([f.auc for f in found]) == pytest.approx(truth, abs=0.005)


@pytest.mark.parametrize("positive", [[False, False], [True, True]])
def test_one_group_alone_has_no_area(positive):
    with pytest.raises(ValueError, match="of 2 images are positive, expected some but not all"):
        roc.area([1, 2], positive)


def test_one_image_alone_has_an_area_but_no_interval():
    found = roc.area([2, 1, 3, 2], [True, False, False, False])
    assert found.auc == 0.5 and math.isnan(found.low) and math.isnan(found.high)


def test_found_share_is_the_best_of_all_thresholds():
    generator = np.random.default_rng(5)
    for num_positive, num_negative, false_share in [(30, 50, 0.1), (7, 3, 0.01), (40, 200, 0.01), (5, 9, 0.5)]:
        score = np.concatenate([generator.normal(1, 1, num_positive), generator.normal(0, 1, num_negative)]).round(1)
        positive = np.arange(len(score)) < num_positive
        best = 0
        for threshold in [-np.inf, *score]:  # brute force
            if (score[~positive] > threshold).mean() <= false_share:
                best = max(best, (score[positive] > threshold).mean())
        assert roc.found_share(score, positive, false_share) == pytest.approx(best)
