"""The protocols by hand, at equality, and the counts' companions with unequal roles."""

import numpy as np
import pytest

from stages.measures import memorisation, neighbours


def test_every_ratio_by_hand():
    distances = np.array([[16, 100, 144, 256]])  # roots 4, 10, 12, 16
    from_nearest = np.array([[0, 9, 36, 225]])  # roots 0, 3, 6, 15
    found = memorisation.ratios(distances, from_nearest)
    expected = {
        "code_sq": 16 / 129,  # mean of 16, 100, 144, 256
        "printed_eq12": 4 / 6,  # mean of 0, 3, 6, 15
        "printed_eq12_excl": 4 / 8,  # mean of 3, 6, 15
        "l2_from_gen": 4 / 10.5,
        "carlini": 8 / 10.5,
        "third": 0.4,
    }
    assert list(found) == list(expected) == list(memorisation.PROTOCOLS)
    for name, value in expected.items():
        assert found[name].dtype == np.float64 and found[name].shape == (1,)
        np.testing.assert_allclose(found[name], [value], rtol=1e-15, err_msg=name)


def number_memorised(ratio, threshold, strict):
    return int(memorisation.is_memorised(ratio, threshold, strict).sum())


AT_THRESHOLD = {  # one sample on each of the thresholds, exactly
    "code_sq": ([[2, 8, 5]], [[0, 1, 1]], 0.4),  # 2 / 5
    "printed_eq12": ([[4, 900, 900]], [[0, 36, 36]], 0.5),  # 2 / mean(0, 6, 6)
    "printed_eq12_excl": ([[9, 900, 900]], [[0, 16, 64]], 0.5),  # 3 / mean(4, 8)
    "l2_from_gen": ([[4, 16, 36]], [[0, 1, 1]], 0.5),  # 2 / mean(2, 4, 6)
    "carlini": ([[4, 16, 36]], [[0, 1, 1]], 1.0),
    "third": ([[2, 18, 20]], [[0, 1, 1]], 1 / 3),  # sqrt 2 / sqrt 18
}
STRICT = {"code_sq": True, "third": True}


@pytest.mark.parametrize("name", memorisation.PROTOCOLS)
def test_equality_with_the_threshold(name):
    """The public code compares with <, Eq. 13 and Carlini with <=."""
    distances, from_nearest, threshold = AT_THRESHOLD[name]
    protocol = memorisation.PROTOCOLS[name]
    ratio = protocol.ratio(np.sort(distances), np.array(from_nearest))
    assert ratio == [threshold]
    assert threshold in protocol.thresholds
    assert number_memorised(ratio, threshold, protocol.strict) == (0 if STRICT.get(name, False) else 1)
    assert number_memorised(ratio, np.nextafter(threshold, 1e9), protocol.strict) == 1
    assert number_memorised(ratio, np.nextafter(threshold, -1e9), protocol.strict) == 0


def test_reported_thresholds():
    thresholds = {name: protocol.thresholds for name, protocol in memorisation.PROTOCOLS.items()}
    four = ("code_sq", "printed_eq12", "printed_eq12_excl", "l2_from_gen")
    assert thresholds == {**dict.fromkeys(four, (0.4, 0.5, 0.6)), "carlini": (1.0,), "third": (1 / 3,)}


def test_exact_thirds_and_fifths_never_fall_below_by_rounding():
    number = np.arange(1, 5000)
    thirds = np.stack([number, 9 * number], axis=1)
    assert number_memorised(memorisation.third(thirds, None), 1 / 3, strict=True) == 0
    assert number_memorised(np.sqrt(thirds[:, 0]) / np.sqrt(thirds[:, 1]), 1 / 3, strict=True) > 0  # the mutant
    fifths = np.stack([2 * number, 8 * number], axis=1)
    assert number_memorised(memorisation.code_sq(fifths, None), 0.4, strict=True) == 0


def test_squared_and_unsquared_disagree():
    """One sample that squared distances count at 0.4 and plain ones not even at 0.6."""
    distances = np.array([[30, 100, 100, 100]])
    squared, unsquared = memorisation.code_sq(distances, None), memorisation.l2_from_gen(distances, None)
    assert squared < 0.4 < 0.6 < unsquared
    equal_rest = np.array([[25] + [100] * 49])  # one near, all others alike: squared is about unsquared squared
    assert abs(memorisation.code_sq(equal_rest, None) - memorisation.l2_from_gen(equal_rest, None) ** 2) < 0.01


def test_copies_and_zero_scales():
    distances = np.array([[0, 50, 60], [0, 0, 0], [7, 7, 7], [0, 0, 90]])
    from_nearest = np.array([[0, 50, 60], [0, 0, 0], [0, 0, 0], [0, 0, 90]])
    with np.errstate(all="raise"):
        found = memorisation.ratios(distances, from_nearest)
    for name, ratio in found.items():
        assert ratio[[0, 1, 3]].tolist() == [0, 0, 0], name
    # The nearest image k times over: Eq. 12 has no scale there (0 by definition), the others see no copy.
    assert {name: ratio[2] for name, ratio in found.items()} == {
        "code_sq": 1,
        "printed_eq12": 0,
        "printed_eq12_excl": 0,
        "l2_from_gen": 1,
        "carlini": 2,
        "third": 1,
    }


def test_ratios_of_a_search():
    """From images to ratios, by loops over float64 images in [0, 1]: the unit must not matter. N < 50."""
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (12, 3, 4, 2), dtype=np.uint8)
    sample = np.concatenate([train[[5]], rng.integers(0, 256, (6, 3, 4, 2), dtype=np.uint8)])
    distances, indices = neighbours.nearest(sample, train, 12)
    found = memorisation.ratios(distances, neighbours.distances_from_nearest(train, indices))
    scaled = train.reshape(12, -1) / 255
    for i, query in enumerate(sample.reshape(7, -1) / 255):
        length = np.linalg.norm(scaled - query, axis=1)
        order = np.argsort(length)
        around = np.linalg.norm(scaled - scaled[order[0]], axis=1)
        assert found["code_sq"][i] == pytest.approx(length.min() ** 2 / np.mean(length**2))
        assert found["printed_eq12"][i] == pytest.approx(length.min() / np.mean(around))
        assert found["printed_eq12_excl"][i] == pytest.approx(length.min() / (np.sum(around) / 11))
        assert found["l2_from_gen"][i] == pytest.approx(length.min() / np.mean(length))
        assert found["third"][i] == pytest.approx(length[order[0]] / length[order[1]])
    assert found["carlini"].tolist() == (2 * found["l2_from_gen"]).tolist()
    assert not np.allclose(found["printed_eq12"][1:], found["l2_from_gen"][1:])


def test_ratios_refuse_what_is_not_a_search_result():
    ascending, around = np.array([[1, 2, 3]]), np.array([[0, 2, 3]])
    with pytest.raises(ValueError, match="k >= 2"):
        memorisation.ratios(ascending[:, :1], around[:, :1])
    with pytest.raises(ValueError, match="expected one shape"):
        memorisation.ratios(ascending, around[:, :2])
    with pytest.raises(ValueError, match="not ascending"):
        memorisation.ratios(ascending[:, ::-1], around)
    with pytest.raises(ValueError, match="column 0"):
        memorisation.ratios(ascending, ascending)  # the sample's distances in both places


@pytest.mark.parametrize("strict", [True, False])
def test_what_lies_on_the_threshold_counts_unless_strict(strict):
    ratio = np.array([0.7, 0.1, 0.4, 0.4, 0.0, 0.9])
    found = [number_memorised(ratio, threshold, strict) for threshold in (0.9, 0.4, 0.0, 0.41, 2.0, 0.1)]
    assert found == ([5, 2, 0, 4, 6, 1] if strict else [6, 4, 1, 4, 6, 2])


def test_distinct_counts_images_not_samples():
    nearest_indices = np.array([4, 4, 4, 9, 2, 2])
    memorised = np.array([True, True, False, True, False, False])
    assert memorisation.distinct(nearest_indices, memorised) == 2  # 4 and 9; of all samples it would be 3
    assert memorisation.distinct(nearest_indices, np.zeros(6, bool)) == 0
    with pytest.raises(ValueError, match="expected a one-dimensional bool"):
        memorisation.distinct(nearest_indices, memorised.astype(np.int64))  # would index, not select
    with pytest.raises(ValueError, match="expected one each"):
        memorisation.distinct(nearest_indices[:5], memorised)


def test_excess_by_hand():
    memorised_train = np.array([1, 1, 1, 1, 0, 0, 1, 0], bool)
    memorised_heldout = np.array([1, 0, 0, 1, 1, 0, 0, 0], bool)
    # d = 0 1 1 0 -1 0 1 0: sum 2, mean 1/4, squares 4, s^2 = (4 - 8/16) / 7 = 1/2, half width 1.96 sqrt(8 / 2) = 3.92
    total, low, high = memorisation.excess(memorised_train, memorised_heldout)
    assert total == 2 and isinstance(total, int)
    assert (low, high) == pytest.approx((2 - 3.919928, 2 + 3.919928), abs=1e-6)
    # Swapped roles: the sign turns, the interval with it.
    assert memorisation.excess(memorised_heldout, memorised_train) == pytest.approx((-2, -high, -low))


def test_excess_is_paired():
    """Counts that agree sample by sample are no evidence against each other, however large they are."""
    memorised_heldout = np.arange(100) < 40
    memorised_train = np.arange(100) < 44
    total, low, high = memorisation.excess(memorised_train, memorised_heldout)
    unpaired = 1.96 * np.sqrt(100 * (0.44 * 0.56 + 0.40 * 0.60))
    assert total == 4 and low > 0 > total - unpaired  # the mutant sees nothing
    other_samples = memorised_train[::-1].copy()  # the same counts, other samples: now the interval is wide
    assert memorisation.excess(other_samples, memorised_heldout)[0] == 4
    assert memorisation.excess(other_samples, memorised_heldout)[1] < 0


def test_excess_interval_covers():
    """95 % of intervals contain the true excess, drawn from correlated masks."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(1000):
        uniform = rng.random(400)
        extra = rng.random(400) < 0.1
        memorised_heldout = uniform < 0.3
        _, low, high = memorisation.excess(memorised_heldout | extra, memorised_heldout)
        hits += low <= 400 * 0.7 * 0.1 <= high
    assert 925 <= hits <= 970


def test_excess_refuses_other_samples():
    with pytest.raises(ValueError, match="the same samples"):
        memorisation.excess(np.zeros(5, bool), np.zeros(6, bool))
    with pytest.raises(ValueError, match="at least 2"):
        memorisation.excess(np.zeros(1, bool), np.zeros(1, bool))
    with pytest.raises(ValueError, match="memorised_heldout is int64"):
        memorisation.excess(np.zeros(5, bool), np.zeros(5, np.int64))


def test_simplicity_scales_to_the_samples():
    memorised = np.arange(10) < 3
    assert memorisation.simplicity(memorised, 65536) == pytest.approx(19660.8)
    assert memorisation.simplicity(memorised, 5) == 1.5
    with pytest.raises(ValueError, match="empty"):
        memorisation.simplicity(np.zeros(0, bool), 5)


def shuffled_labels(seed, *numbers):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(numbers)), numbers))


def test_class_matched_takes_the_smaller_side_of_each_class():
    """The trap: training set and held-out set of the same size, but of another mix."""
    train_labels, heldout_labels = shuffled_labels(0, 50, 30, 20), shuffled_labels(1, 10, 30, 60)
    train_indices, heldout_indices = memorisation.class_matched(train_labels, heldout_labels, np.random.default_rng(2))
    for labels, indices in ((train_labels, train_indices), (heldout_labels, heldout_indices)):
        assert np.bincount(labels[indices]).tolist() == [10, 30, 20]
        assert (np.diff(indices) > 0).all()  # ascending, no image twice
    # Not stratified, both sides would be taken whole: as many images, another mix.
    assert len(train_labels) == len(heldout_labels) and len(train_indices) < len(train_labels)


def test_class_matched_keeps_a_side_that_is_smaller_in_each_class():
    train_labels, heldout_labels = shuffled_labels(3, 4, 9), shuffled_labels(4, 8, 9)
    train_indices, heldout_indices = memorisation.class_matched(train_labels, heldout_labels, np.random.default_rng(0))
    assert train_indices.tolist() == list(range(13))
    assert len(heldout_indices) == 13 and np.bincount(heldout_labels[heldout_indices]).tolist() == [4, 9]


def test_class_matched_draws_at_random_from_the_given_generator():
    train_labels, heldout_labels = np.zeros(200, np.int64), np.zeros(40, np.int64)  # no classes
    draws = [
        memorisation.class_matched(train_labels, heldout_labels, np.random.default_rng(seed))[0] for seed in (0, 0, 1)
    ]
    assert [len(draw) for draw in draws] == [40, 40, 40]
    assert draws[0].tolist() == draws[1].tolist() != draws[2].tolist()
    assert draws[0].max() > 60  # the first forty would be a set of their own, sorted files for instance


def test_class_matched_leaves_out_classes_of_one_side():
    indices = memorisation.class_matched(np.array([7, 3, 7, 5]), np.array([5, 7, 9]), np.random.default_rng(0))
    assert indices[0].tolist() in ([0, 3], [2, 3]) and indices[1].tolist() == [0, 1]
    with pytest.raises(ValueError, match="at least one in common"):
        memorisation.class_matched(np.array([1, 2]), np.array([3]), np.random.default_rng(0))
    with pytest.raises(ValueError, match="heldout labels are float64"):
        memorisation.class_matched(np.array([1, 2]), np.array([1.0]), np.random.default_rng(0))
