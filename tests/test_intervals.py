"""Intervals against published formulas, scipy, and the truth of simulations. Those of the excess are in test_memorisation.py."""

import numpy as np
import pytest
from scipy import stats

from stages.measures import intervals


def test_weighted_limits_by_the_formula_of_fay_and_feuer():
    """Rare counts of weights 1 and 4 among many zeros: the published limits, by chi-squared quantiles."""
    values = np.zeros(200_000)
    values[[5, 70, 71, 900]] = 4
    values[[8, 1_000, 5_000]] = 1
    total, squares, largest = 19, 67, 5
    low = squares / (2 * total) * stats.chi2.ppf(0.025, 2 * total**2 / squares)
    degrees = 2 * (total + largest) ** 2 / (squares + largest**2)
    high = (squares + largest**2) / (2 * (total + largest)) * stats.chi2.ppf(0.975, degrees)
    assert intervals.sum_limits(values, largest) == pytest.approx((19, low, high), rel=1e-3)
    assert intervals.sum_limits(np.zeros(200_000), 4) == pytest.approx((0, 0, 4 * 3.689), rel=1e-3)  # 3.689 = -ln 0.025


def test_limits_of_zeros_and_ones_are_those_of_clopper_and_pearson():
    for successes, trials in ((0, 7), (1, 7), (7, 7), (30, 400)):
        exact = stats.binomtest(successes, trials).proportion_ci(method="exact")
        found = intervals.sum_limits((np.arange(trials) < successes).astype(float), 1.0)
        assert found == pytest.approx((successes, trials * exact.low, trials * exact.high))


def test_ends_of_a_quantile_are_those_that_the_binomial_distribution_allows():
    """The lower end is the highest of the sorted values that is a limit, and the upper end the lowest, by counting."""
    for num, p in ((100, 0.95), (250, 0.95), (80, 0.95), (40, 0.5)):
        below = stats.binom(num, p)
        j = max(j for j in range(1, num + 1) if below.cdf(j - 1) <= 0.025)
        k = min(k for k in range(1, num + 1) if below.sf(k - 1) <= 0.025)
        values = np.random.default_rng(num).permutation(num) + 1.0  # 1, 2, ..., num without order
        assert intervals.of_quantile(values, p, (0, 1000)) == (j, k)


def test_few_values_do_not_bound_a_high_quantile():
    assert (
        intervals.of_quantile(np.arange(50) / 50, 0.95, (-1.0, 1.0))[1] == 1.0
    )  # 0.95^50 = 0.08: all 50 may be below it
    assert intervals.of_quantile(np.array([0.5]), 0.95, (-1.0, 1.0)) == (-1.0, 1.0)
    assert intervals.of_quantile(np.full(30, 0.5), 0.95, (-1.0, 1.0), np.zeros(30, int)) == (-1.0, 1.0)  # of one prompt


def test_equal_values_of_a_group_are_worth_one():
    """Each value eight times: the interval of the values themselves, up to the estimate of the share; not that of 8 n values."""
    values = np.random.default_rng(0).random(400)
    alone = intervals.of_quantile(values, 0.95, (0, 1))
    repeated = intervals.of_quantile(np.repeat(values, 8), 0.95, (0, 1), np.repeat(np.arange(400), 8))
    order = np.sort(values)
    places = [np.searchsorted(order, end) for end in (*alone, *repeated)]
    assert np.abs(np.subtract(places[:2], places[2:])).max() <= 1
    narrow = intervals.of_quantile(np.repeat(values, 8), 0.95, (0, 1))  # the mutant
    assert narrow[1] - narrow[0] < 0.6 * (alone[1] - alone[0])


def coverage(num_prompts, images_per_prompt, within, num_draws, rng, by_prompt=True):
    """Share of intervals that hold the 95th percentile of normal values: one of each prompt, plus `within` times one of each image."""
    truth, held = stats.norm.ppf(0.95) * np.sqrt(1 + within**2), 0
    prompts = np.repeat(np.arange(num_prompts), images_per_prompt)
    for _ in range(num_draws):
        values = rng.normal(size=num_prompts)[prompts] + within * rng.normal(size=len(prompts))
        low, high = intervals.of_quantile(values, 0.95, (-np.inf, np.inf), prompts if by_prompt else None)
        held += low <= truth <= high
    return held / num_draws


CELLS = [(50, 1), (80, 1), (1000, 1), (50, 4), (250, 4), (100, 32)]  # prompts, images of each


@pytest.mark.parametrize(("num_prompts", "images_per_prompt"), CELLS)
def test_intervals_of_a_quantile_hold_the_truth(num_prompts, images_per_prompt):
    """Short form of the slow test below: 200 draws, of which at least 93 % less three standard errors must hold."""
    found = coverage(num_prompts, images_per_prompt, 0.5, 200, np.random.default_rng(0))
    assert found >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / 200)


def test_images_of_one_prompt_as_if_they_were_independent_would_be_noticed():
    rng = np.random.default_rng(0)
    assert coverage(100, 4, 0.5, 200, rng, by_prompt=False) < 0.87
    assert coverage(100, 32, 0.5, 200, rng, by_prompt=False) < 0.6


@pytest.mark.slow
@pytest.mark.parametrize(("num_prompts", "images_per_prompt"), CELLS)
def test_intervals_of_a_quantile_hold_the_truth_in_93_of_100_draws(num_prompts, images_per_prompt):
    found = coverage(num_prompts, images_per_prompt, 0.5, 1000, np.random.default_rng(1))
    print(f"{num_prompts} prompts of {images_per_prompt} images: {found:.3f}")
    assert found >= 0.93


def test_half_the_interval_of_a_sum_is_1_96_standard_deviations_of_sums_that_are_drawn():
    rng = np.random.default_rng(4)
    values = rng.exponential(3.0, 400) - 2
    sums = rng.choice(values, (4000, 400)).sum(1)
    assert intervals.half_width_of_sum(values) == pytest.approx(1.96 * sums.std(), rel=0.05)
