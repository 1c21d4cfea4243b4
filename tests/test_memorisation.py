"""The protocols by hand, at equality, and the counts' companions with unequal roles."""

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

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


def excess_of(memorised_train, memorised_heldout):
    """The excess where the whole training set is the one matched part."""
    return memorisation.excess(memorised_train.astype(float), memorised_heldout.astype(float), (1.0, 1.0))


def test_excess_by_hand():
    memorised_train = np.array([1, 1, 1, 1, 0, 0, 1, 0], bool)
    memorised_heldout = np.array([1, 0, 0, 1, 1, 0, 0, 0], bool)
    # d = 0 1 1 0 -1 0 1 0: gains 3, losses 1 of 8. Clopper and Pearson, by scipy's exact test of a share:
    gains, losses = (stats.binomtest(number, 8).proportion_ci(method="exact") for number in (3, 1))
    low_3, high_3, low_1, high_1 = (8 * limit for ends in (gains, losses) for limit in (ends.low, ends.high))
    r = -np.sqrt(3 / 8 * 1 / 8 / (5 / 8 * 7 / 8))
    below, above = 3 - low_3, high_1 - 1
    low = 2 - np.sqrt(below**2 + above**2 - 2 * r * below * above)
    below, above = 1 - low_1, high_3 - 3
    high = 2 + np.sqrt(below**2 + above**2 - 2 * r * below * above)
    assert excess_of(memorised_train, memorised_heldout) == pytest.approx((2, low, high))
    # Swapped roles: the sign turns, the interval with it.
    assert excess_of(memorised_heldout, memorised_train) == pytest.approx((-2, -high, -low))


def test_no_hit_is_not_certainty():
    """No hit among 128 images: as many as about 3 may still be expected, and not 0 [0, 0]."""
    nothing = np.zeros(128, bool)
    assert excess_of(nothing, nothing) == pytest.approx((0, -3.6, 3.6), abs=0.1)
    assert excess_of(~nothing, nothing) == pytest.approx(
        (128, 123.0, 128.0), abs=0.2
    )  # -ln 0.025 = 3.7 of 128, and 3.6


def test_excess_is_paired():
    """Counts that agree sample by sample are no evidence against each other, however large they are."""
    memorised_heldout = np.arange(100) < 40
    memorised_train = np.arange(100) < 46
    total, low, high = excess_of(memorised_train, memorised_heldout)
    unpaired = 1.96 * np.sqrt(100 * (0.46 * 0.54 + 0.40 * 0.60))
    assert total == 6 and low > 0 > total - unpaired  # the mutant sees nothing
    other_samples = memorised_train[::-1].copy()  # the same counts, other samples: now the interval is wide
    assert excess_of(other_samples, memorised_heldout)[0] == 6
    assert excess_of(other_samples, memorised_heldout)[1] < 0


def coverage(num_samples, copies, chance, num_draws, rng, num_parts=1):
    """Share of intervals that hold the true excess: `copies` hits expected as copies, `chance` for each of two like references.

    Half of the samples are simple and take all hits by chance. With several parts the training set has as many, each with its own
    hits by chance.
    """
    of_each = np.where(rng.random(num_samples) < 0.5, 2 * chance / num_samples, 0).clip(max=1)
    held = 0
    for _ in range(num_draws):
        copied = np.where(rng.random(num_samples) < copies / num_samples, rng.integers(num_parts, size=num_samples), -1)
        hits = [(rng.random(num_samples) < of_each) | (copied == part) for part in range(num_parts)]
        heldout = (rng.random(num_samples) < of_each) * float(num_parts)
        _, low, high = memorisation.excess(sum(hits).astype(float), heldout, (1.0, float(num_parts)))
        held += (
            low <= copies / num_samples * (1 - of_each).sum() <= high
        )  # a copy that counts by chance as well is none in excess
    return held / num_draws


CELLS = [  # samples, copies, hits by chance in a reference
    (128, 0.5, 0), (128, 2, 1), (1000, 0, 0.5), (1000, 1, 0), (1000, 1, 1), (1000, 2, 0), (1000, 5, 2), (1000, 30, 10),
    (1000, 300, 100), (4096, 0.5, 0.5), (4096, 2, 2), (4096, 60, 30), (4096, 1000, 0), (4096, 1000, 50), (4096, 300, 1000),
]  # fmt: skip


@pytest.mark.parametrize("num_parts", [1, 4])
def test_intervals_of_excess_hold_the_truth(num_parts):
    """Short form of the slow test below: 150 draws, of which at least 93 % less three standard errors must hold."""
    rng = np.random.default_rng(0)
    for num_samples, copies, chance in CELLS[::2]:
        found = coverage(num_samples, copies, chance, 150, rng, num_parts)
        assert found >= 0.93 - 3 * np.sqrt(0.93 * 0.07 / 150), (num_samples, copies, chance)


@pytest.mark.slow
@pytest.mark.parametrize("num_parts", [1, 4])
@pytest.mark.parametrize(("num_samples", "copies", "chance"), CELLS)
def test_intervals_of_excess_hold_the_truth_in_93_of_100_draws(num_samples, copies, chance, num_parts):
    rng = np.random.default_rng([num_samples, num_parts, round(10 * copies), round(10 * chance)])
    found = coverage(num_samples, copies, chance, 1000, rng, num_parts)
    print(f"{num_samples} samples, {copies} copies, {chance} by chance, {num_parts} parts: {found:.3f}")
    assert found >= 0.93


def test_prompts_are_what_is_drawn_not_images():
    """Eight images of one prompt are alike: the interval of 8 x 40 images is that of 40 prompts of weight 8, not of 320 images."""
    of_a_prompt = np.zeros(40)
    of_a_prompt[:6] = 1
    prompts = np.arange(320) % 40
    nothing = np.zeros(320)
    total, low, high = memorisation.excess(of_a_prompt[prompts], nothing, (1.0, 1.0), prompts)
    ends = stats.binomtest(6, 40).proportion_ci(method="exact")
    assert total == 48 and high == pytest.approx(320 * ends.high)
    assert low < 320 * ends.low  # wider by the losses that may be
    none = memorisation.excess(nothing, nothing, (1.0, 1.0), prompts)
    assert none[2] == pytest.approx(
        8 * 40 * (1 - 0.025 ** (1 / 40))
    )  # a prompt that was not drawn may have eight copies
    alone = memorisation.excess(of_a_prompt[prompts], nothing, (1.0, 1.0))
    assert alone[2] - alone[1] < 0.6 * (high - low)
    one_each = memorisation.excess(of_a_prompt, np.zeros(40), (1.0, 1.0), np.arange(40))
    assert one_each == memorisation.excess(of_a_prompt, np.zeros(40), (1.0, 1.0))


def planted(rng, num_train, num_heldout, num_copies, num_others):
    """Digits as training, held-out and generated images; the first `num_copies` of these are training images with noise."""
    images = (load_digits().images * 255 / 16).astype(np.uint8)[rng.permutation(1797), :, :, None]
    train, heldout = images[:num_train], images[num_train : num_train + num_heldout]
    others = images[num_train + num_heldout :][:num_others]
    copies = train[rng.integers(num_train, size=num_copies)] + rng.normal(0, 10, (num_copies, 8, 8, 1))
    return train, heldout, np.concatenate([copies.clip(0, 255).astype(np.uint8), others])


def excess_of_images(train, heldout, samples, k, rng, **wrong):
    """The excess under l2_from_gen at 0.4, as the score stage wires it up; `wrong` replaces fields of the matched parts."""
    matched = memorisation.matched_parts(np.zeros(len(train), int), np.zeros(len(heldout), int), rng)
    k_of_part = wrong.pop("k_of_part", matched.neighbours(k))
    matched = matched._replace(**wrong)

    def hits(reference, weight, positions):
        distances, indices = neighbours.nearest(samples, reference[positions], k_of_part)
        ratio = memorisation.ratios(distances, neighbours.distances_from_nearest(reference[positions], indices))
        return memorisation.is_memorised(ratio["l2_from_gen"], 0.4, False) * weight[positions[indices[:, 0]]]

    in_parts = sum(hits(train, matched.weight_train, part) for part in matched.parts)
    in_heldout = hits(heldout, matched.weight_heldout, matched.heldout)
    largest = matched.weight_train.max(), matched.weight_heldout.max()
    return np.array(memorisation.excess(in_parts, in_heldout, largest))


def test_excess_is_that_of_the_whole_training_set_however_small_the_held_out_set():
    """40 copies among 400 generated images; a held-out set of a fifth of the training images, not a divisor of them."""
    rng, found, one_part = np.random.default_rng(0), [], []
    for _ in range(8):
        train, heldout, samples = planted(rng, 800, 170, 40, 360)
        found.append(excess_of_images(train, heldout, samples, 20, rng))
        matched = memorisation.matched_parts(np.zeros(800, int), np.zeros(170, int), rng)
        first = {"parts": matched.parts[:1], "weight_train": np.ones(800), "weight_heldout": np.ones(170)}
        one_part.append(excess_of_images(train, heldout, samples, 20, rng, **first)[0])
    found = np.array(found)
    assert found[:, 0].mean() == pytest.approx(40, abs=3)
    assert ((found[:, 1] <= 40) & (found[:, 2] >= 40)).all()
    assert np.mean(one_part) < 15  # the mutant: one matched part alone has a fifth of the copies


def test_neighbours_in_proportion_keep_the_hits_by_chance_few():
    """The mutant: the neighbours of the whole training set, in a fifth of it, reach so far that many images count by chance."""
    rng, right, wrong = np.random.default_rng(0), [], []
    for _ in range(4):
        images = planted(rng, 800, 160, 0, 400)
        right.append(np.ptp(excess_of_images(*images, 20, rng)[1:]))
        wrong.append(np.ptp(excess_of_images(*images, 20, rng, k_of_part=20)[1:]))
    assert np.mean(wrong) > 2 * np.mean(right)


@pytest.mark.slow
def test_intervals_of_the_whole_training_set_hold_the_copies_in_93_of_100_draws():
    rng, held, widths = np.random.default_rng(1), [], []
    for _ in range(300):
        train, heldout, samples = planted(rng, 800, 170, 40, 360)
        _, low, high = excess_of_images(train, heldout, samples, 20, rng)
        held.append(low <= 40 <= high)
        widths.append(high - low)
    print(f"held {np.mean(held):.3f}, mean width {np.mean(widths):.1f}")
    assert np.mean(held) >= 0.93


def test_excess_refuses_other_samples():
    ones = np.ones(5)
    with pytest.raises(ValueError, match="one value per sample"):
        memorisation.excess(ones, np.ones(6), (1.0, 1.0))
    with pytest.raises(ValueError, match="at least one sample"):
        memorisation.excess(np.ones(0), np.ones(0), (1.0, 1.0))
    with pytest.raises(ValueError, match="one value per sample"):
        memorisation.excess(ones, ones, (1.0, 1.0), np.arange(4))
    with pytest.raises(ValueError, match="expected float64"):
        memorisation.excess(ones, np.ones(5, bool), (1.0, 1.0))


def test_simplicity_scales_to_the_samples():
    memorised = np.arange(10) < 3
    assert memorisation.simplicity(memorised, 65536) == pytest.approx(19660.8)
    assert memorisation.simplicity(memorised, 5) == 1.5
    with pytest.raises(ValueError, match="empty"):
        memorisation.simplicity(np.zeros(0, bool), 5)


def shuffled_labels(seed, *numbers):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(numbers)), numbers))


def test_parts_have_the_classes_of_the_held_out_images():
    """50, 30 and 20 training images, 10, 30 and 60 held-out images of three classes, and classes that only one side has."""
    train_labels, heldout_labels = shuffled_labels(0, 50, 30, 20, 7, 0), shuffled_labels(1, 10, 30, 60, 0, 4)
    matched = memorisation.matched_parts(train_labels, heldout_labels, np.random.default_rng(2))
    assert matched.parts.shape == (5, 60) and matched.heldout.shape == (60,)
    for indices in matched.parts:
        assert np.bincount(train_labels[indices]).tolist() == [10, 30, 20]
        assert (np.diff(indices) > 0).all()  # ascending, no image twice
    assert np.bincount(heldout_labels[matched.heldout]).tolist() == [10, 30, 20]
    assert (np.diff(matched.heldout) > 0).all()
    times = np.bincount(matched.parts.ravel(), minlength=len(train_labels))
    assert times[train_labels == 0].tolist() == [1] * 50  # in one of the five parts each
    assert times[train_labels == 1].tolist() == [5] * 30  # as many as held out: in each part
    assert times[train_labels == 3].tolist() == [0] * 7
    # All parts together count each training image once, and the held-out images as often.
    assert (matched.weight_train * times)[train_labels < 3].tolist() == [1] * 100
    assert matched.weight_train[train_labels == 3].tolist() == [0] * 7
    of_class = {
        label: set(matched.weight_heldout[matched.heldout][heldout_labels[matched.heldout] == label])
        for label in range(3)
    }
    assert of_class == {0: {5}, 1: {1}, 2: {1}}
    left_out = np.setdiff1d(np.arange(len(heldout_labels)), matched.heldout)
    assert not matched.weight_heldout[left_out].any() and len(left_out) == 44
    assert matched.num_train == 100
    assert [matched.neighbours(k) for k in (50, 5, 2)] == [30, 3, 2]  # 60 of 100 images; never fewer than 2


def test_parts_where_the_held_out_images_do_not_divide_the_training_images():
    """23 training and 5 held-out images: five parts of 5, two of the images in two of them."""
    matched = memorisation.matched_parts(np.zeros(23, int), np.zeros(5, int), np.random.default_rng(0))
    assert matched.parts.shape == (5, 5)
    assert sorted(np.bincount(matched.parts.ravel())) == [1] * 21 + [2] * 2
    assert set(matched.weight_train) == {23 / 25} and set(matched.weight_heldout) == {23 / 5}
    assert matched.neighbours(20) == 4


def test_one_part_where_there_are_as_many_held_out_images():
    train_labels, heldout_labels = shuffled_labels(3, 4, 9), shuffled_labels(4, 8, 9)
    matched = memorisation.matched_parts(train_labels, heldout_labels, np.random.default_rng(0))
    assert matched.parts.tolist() == [list(range(13))]
    assert len(matched.heldout) == 13 and np.bincount(heldout_labels[matched.heldout]).tolist() == [4, 9]
    assert set(matched.weight_train) == {1} and matched.neighbours(13) == 13


def test_parts_are_drawn_at_random_from_the_given_generator():
    draws = [
        memorisation.matched_parts(np.zeros(200, int), np.zeros(40, int), np.random.default_rng(seed)).parts
        for seed in (0, 0, 1)
    ]
    assert draws[0].tolist() == draws[1].tolist() != draws[2].tolist()
    assert draws[0][0].max() > 60  # the first forty would be a set of their own, sorted files for instance


def test_parts_of_one_image_or_of_no_class_are_refused():
    assert memorisation.matched_parts(np.array([1, 1, 2]), np.array([1, 3]), np.random.default_rng(0)) is None
    with pytest.raises(ValueError, match="at least one in common"):
        memorisation.matched_parts(np.array([1, 2]), np.array([3]), np.random.default_rng(0))
    with pytest.raises(ValueError, match="heldout labels are float64"):
        memorisation.matched_parts(np.array([1, 2]), np.array([1.0]), np.random.default_rng(0))
