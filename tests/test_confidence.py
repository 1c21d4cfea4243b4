"""The confidence that an image is a copy: by hand, and on planted copies, among which a share c of those with confidence c must be."""

import numpy as np
import pytest

from stages.measures import confidence, memorisation, neighbours


def of(ratios, heldout, weight=1.0):
    ratios, heldout = np.atleast_2d(np.array(ratios, float)), np.array(heldout, float)
    return confidence.of_copies(ratios, np.full(ratios.shape, weight), heldout, np.full(heldout.shape, weight))


def test_by_hand_where_held_out_ratios_are_many():
    """Twelve held-out ratios: from the tenth on, which is 0.45, they count themselves."""
    heldout = [0.1, 0.2, 0.3, 0.4, 0.41, 0.42, 0.43, 0.44, 0.445, 0.45, 0.6, 0.8]
    values = np.array([0.45, 0.5, 0.6, 0.7, 0.9])
    assert confidence.expected_by_chance(values, np.array(heldout), np.ones(12)).tolist() == [10, 10, 11, 11, 12]
    assert confidence.expected_by_chance(values, np.array(heldout), np.full(12, 2.5)).tolist() == [
        25,
        25,
        27.5,
        27.5,
        30,
    ]
    assert of([0.45] * 12, heldout).tolist() == pytest.approx([1 - 10 / 12] * 12)


def test_the_rate_rises_with_the_ratio_and_equal_ratios_share_it():
    """Ten zeros on both sides are as many as chance gives. Then by chance 0, 0, 1, 2 among 2, 2, 1, 1: sloping 0, 0, 1, and 2 is cut."""
    heldout = [0.0] * 10 + [0.7, 0.8, 0.81, 1.0, 1.0, 1.0]
    ratios = [0.0] * 10 + [0.5, 0.5, 0.6, 0.6, 0.75, 0.9]
    found = of(ratios, heldout)
    # The zeros alone would have a rate of 1; what follows is less likely chance, so these 14 have one rate: 10 / 14.
    assert found.tolist() == pytest.approx([4 / 14] * 14 + [0, 0])


def test_below_the_lowest_held_out_ratios_chance_falls_off_as_a_power():
    """Ratios u^(1/6) of uniform numbers have 6 dimensions. Nine of them say so with an error, which goes to the side of chance."""
    rng, values = np.random.default_rng(0), np.array([0.2, 0.35, 0.8])
    drawn = [rng.random(400) ** (1 / 6) for _ in range(1000)]
    found = [confidence.expected_by_chance(values, ratios, np.full(400, 3.0)) for ratios in drawn]
    truth = 1200 * values**6
    assert truth[0] < np.median(found, axis=0)[0] < 2.5 * truth[0]
    assert truth[1] < np.mean(found, axis=0)[1] < 2 * truth[1]
    assert np.mean(found, axis=0)[2] == pytest.approx(truth[2], rel=0.02)


def test_what_was_seen_counts_where_it_is_more_than_the_power_says():
    """With a held-out twin at ratio 0.001 a copy at 0.002 is none for sure."""
    rest = np.linspace(0.6, 0.99, 99)
    assert confidence.expected_by_chance(np.array([0.002]), np.array([0.001, *rest]), np.ones(100))[0] >= 1
    assert of([0.002, *rest], [0.6, *rest])[0] > 0.99
    assert of([0.002, *rest], [0.001, *rest])[0] == pytest.approx(0, abs=0.01)


def test_the_lowest_ratio_of_all_parts_speaks_for_an_image():
    heldout = np.linspace(0.5, 1, 20)
    ratios = np.stack([np.linspace(0.5, 1, 20), np.linspace(0.5, 1, 20)[::-1]])
    ratios[1, 7] = 0.01
    found = of(ratios, heldout)
    assert np.argmax(found) == 7 and found[7] > 0.9 and np.delete(found, 7).max() < 0.6


def test_shapes_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"expected \[F,M\] twice"):
        confidence.of_copies(np.ones((2, 3)), np.ones((2, 3)), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="F and M at least 1"):
        confidence.of_copies(np.ones((1, 0)), np.ones((1, 0)), np.ones(0), np.ones(0))


def planted(seed, num_train, num_heldout, num_samples, num_copies, dimensions):
    """Images in a space of a few dimensions, with copies from clear to hopeless: confidence, and whether it is a copy."""
    rng = np.random.default_rng(seed)
    basis = 25 * rng.normal(size=(dimensions, 64))

    def draw(number):
        return 128 + rng.normal(size=(number, dimensions)) @ basis + 5 * rng.normal(size=(number, 64))

    train, heldout, samples = draw(num_train), draw(num_heldout), draw(num_samples)
    amount = rng.uniform(0.05, 0.6, (num_copies, 1))
    samples[:num_copies] = train[rng.integers(num_train, size=num_copies)] + amount * (draw(num_copies) - 128)
    train, heldout, samples = (
        np.clip(np.round(images), 0, 255).astype(np.uint8).reshape(-1, 8, 8, 1) for images in (train, heldout, samples)
    )
    matched = memorisation.matched_parts(np.zeros(num_train, int), np.zeros(num_heldout, int), rng)
    k = matched.neighbours(20)

    def ratios(reference):
        distances, indices = neighbours.nearest(samples, reference, k)
        around = neighbours.distances_from_nearest(reference, indices)
        return memorisation.ratios(distances, around)["l2_from_gen"], indices[:, 0]

    found = [ratios(train[part]) for part in matched.parts]
    weights = [matched.weight_train[part[nearest]] for part, (_, nearest) in zip(matched.parts, found, strict=True)]
    ratio, nearest = ratios(heldout[matched.heldout])
    sure = confidence.of_copies(
        np.array([r for r, _ in found]), np.array(weights), ratio, matched.weight_heldout[matched.heldout[nearest]]
    )
    return sure, np.arange(num_samples) < num_copies


def check_calibrated(measured):
    """Of the images with a confidence around c about a share c are copies."""
    sure, copy = (np.concatenate(column) for column in zip(*measured, strict=True))
    for low, high in ((0.3, 0.5), (0.5, 0.7), (0.7, 0.85), (0.85, 0.95), (0.95, 0.99), (0.99, 1.01)):
        chosen = (sure >= low) & (sure < high)
        assert chosen.sum() > 60
        assert copy[chosen].mean() == pytest.approx(sure[chosen].mean(), abs=0.09), (low, high)


@pytest.fixture(scope="module")
def measured(one_thread):
    return [planted(seed, 200, 200, 700, 150, 7) for seed in range(14)]


def test_the_confidence_is_the_share_of_copies(measured):
    check_calibrated(measured)


@pytest.mark.parametrize("wrong", [np.sqrt, lambda sure: sure**2, lambda sure: (sure > 0.5) * 0.98])
def test_the_check_tells_wrong_confidences(measured, wrong):
    with pytest.raises(AssertionError):
        check_calibrated([(wrong(sure), copy) for sure, copy in measured])


def test_with_few_held_out_images_leaked_means_leaked(one_thread):
    """24 held out of 118, as README's share of 0.2 gives: of those called leaked at least 95 % are, and most of the clear ones are found;
    without any copy next to none is called so."""
    sure, copy = (np.concatenate(c) for c in zip(*[planted(s, 94, 24, 200, 40, 10) for s in range(25)], strict=True))
    leaked = sure >= confidence.LEAKED
    assert copy[leaked].mean() >= 0.95 and leaked[copy].mean() > 0.5
    none = np.concatenate([planted(seed, 94, 24, 200, 0, 10)[0] for seed in range(25)])
    assert (none >= confidence.LEAKED).mean() < 0.001
