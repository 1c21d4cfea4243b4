"""The distance against closed forms and scipy's matrix square root, the pixels against plain averages."""

import numpy as np
import pytest
import scipy.linalg

from stages.measures import frechet


def random_moments(seed, size, rank):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, rank))
    return rng.normal(size=size), root @ root.T


def test_one_dimension_by_hand():
    """(m_s - m_t)^2 + (sd_s - sd_t)^2 = 3^2 + (5 - 2)^2."""
    assert frechet.frechet_distance([4.0], [[25.0]], [1.0], [[4.0]]) == pytest.approx(18)


def test_equals_scipy_at_full_rank():
    sample, train = random_moments(0, 12, 15), random_moments(1, 12, 40)
    root = scipy.linalg.sqrtm(sample[1] @ train[1]).real
    expected = ((sample[0] - train[0]) ** 2).sum() + np.trace(sample[1] + train[1] - 2 * root)
    assert frechet.frechet_distance(*sample, *train) == pytest.approx(expected, rel=1e-10)
    assert frechet.frechet_distance(*train, *sample) == pytest.approx(expected, rel=1e-10)
    # The plausible wrong version, sum of the roots instead of the root of the product, is another number.
    wrong = ((sample[0] - train[0]) ** 2).sum() + (
        (scipy.linalg.sqrtm(sample[1]) - scipy.linalg.sqrtm(train[1])) ** 2
    ).sum()
    assert abs(wrong - expected) > 0.01 * expected


def test_shift_alone_is_its_squared_length():
    mean, cov = random_moments(2, 9, 20)
    assert frechet.frechet_distance(mean + 0.5, cov, mean, cov) == pytest.approx(9 * 0.25, rel=1e-10)


def test_scale_alone_by_hand():
    """Standard deviations 2 and 1 times the same: tr C (2 - 1)^2."""
    mean, cov = random_moments(3, 7, 12)
    assert frechet.frechet_distance(mean, 4 * cov, mean, cov) == pytest.approx(np.trace(cov))


@pytest.mark.parametrize("rank", [1, 5, 30])
def test_same_distribution_is_zero_at_any_rank(rank):
    mean, cov = random_moments(4, 60, rank)
    assert frechet.frechet_distance(mean, cov, mean, cov) == pytest.approx(0, abs=1e-9 * np.trace(cov))


def test_rank_deficient_on_different_subspaces():
    """Fewer images than values, each side varying in its own directions: no overlap, so the last trace is 0."""
    mean = np.zeros(40)
    cov_sample, cov_train = np.zeros((40, 40)), np.zeros((40, 40))
    cov_sample[:10, :10] = random_moments(5, 10, 3)[1]
    cov_train[10:, 10:] = random_moments(6, 30, 4)[1]
    rotation = np.linalg.qr(np.random.default_rng(7).normal(size=(40, 40)))[0]  # so that no zero is exact
    cov_sample, cov_train = rotation @ cov_sample @ rotation.T, rotation @ cov_train @ rotation.T
    expected = np.trace(cov_sample) + np.trace(cov_train)
    found = frechet.frechet_distance(mean, cov_sample, mean, cov_train)
    assert found == pytest.approx(expected, rel=1e-12)
    assert frechet.frechet_distance(mean, np.zeros((40, 40)), mean, cov_train) == pytest.approx(np.trace(cov_train))


def test_wrong_moments_are_refused():
    mean, cov = random_moments(8, 4, 6)
    with pytest.raises(ValueError, match="sample mean is .3,."):
        frechet.frechet_distance(mean[:3], cov[:3, :3], mean, cov)
    with pytest.raises(ValueError, match="train mean or cov has values that are not finite"):
        frechet.frechet_distance(mean, cov, mean, cov * np.nan)


def test_moments_of_small_images_are_those_of_their_pixels(monkeypatch):
    images = np.random.default_rng(9).integers(0, 256, (37, 3, 5, 2), dtype=np.uint8)
    pixels = images.reshape(37, -1) / 255
    mean, cov = frechet.pixel_moments(images)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(pixels.T), rtol=1e-10, atol=1e-14)
    monkeypatch.setattr(frechet, "IMAGES_AT_ONCE", 8)  # 37 is no multiple
    np.testing.assert_allclose(frechet.pixel_moments(images)[1], cov, rtol=1e-10, atol=1e-14)


def test_sides_that_32_divides_average_whole_pixels():
    images = np.random.default_rng(10).integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)
    blocks = images.reshape(4, 32, 2, 32, 3, 3).mean(axis=(2, 4)) / 255
    mean, _ = frechet.pixel_moments(images)
    np.testing.assert_allclose(mean, blocks.reshape(4, -1).mean(axis=0), rtol=1e-12)


def test_other_sides_average_by_area():
    """48 to 32: new pixels cover 1.5 old ones; by repeating each pixel twice and averaging threes. 20 stays 20."""
    images = np.random.default_rng(11).integers(0, 256, (3, 48, 20, 1), dtype=np.uint8)
    blocks = images.repeat(2, axis=1).reshape(3, 32, 3, 20, 1).mean(axis=2) / 255
    mean, cov = frechet.pixel_moments(images)
    assert mean.shape == (32 * 20,) and cov.shape == (640, 640)
    np.testing.assert_allclose(mean, blocks.reshape(3, -1).mean(axis=0), rtol=1e-12)
    weights = frechet._area_weights(33)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(weights.sum(axis=0), 32 / 33)  # every old pixel counts the same


def test_fd_pixels_of_constant_shift_and_of_itself():
    images = np.random.default_rng(12).integers(0, 200, (50, 4, 4, 3), dtype=np.uint8)
    assert frechet.fd_pixels(images + np.uint8(51), images) == pytest.approx(48 * 0.2**2)  # 51 / 255 = 0.2
    assert frechet.fd_pixels(images[:30], images) > 0.01
    assert frechet.fd_pixels(images[::-1], images) == pytest.approx(0, abs=1e-9)


def test_wrong_images_are_refused():
    images = np.zeros((5, 4, 6, 3), np.uint8)
    with pytest.raises(ValueError, match="expected one shape"):
        frechet.fd_pixels(images.transpose(0, 2, 1, 3), images)
    with pytest.raises(ValueError, match="images are float64"):
        frechet.pixel_moments(images / 255)
    with pytest.raises(ValueError, match="N >= 2"):
        frechet.pixel_moments(images[:1])


def test_influences_are_what_leaving_an_image_out_changes():
    """The jackknife: without image i the distance changes by -psi_i / (M - 1), to first order. Unequal sizes and roles."""
    rng = np.random.default_rng(5)
    sample = (rng.random((300, 2, 3, 1)) ** 2 * 255).astype(np.uint8)
    train = (rng.random((180, 2, 3, 1)) * 200).astype(np.uint8)
    whole, psi = frechet.fd_pixels(sample, train), frechet.influences(sample, train)
    left_out = np.array([frechet.fd_pixels(np.delete(sample, i, axis=0), train) for i in range(300)])
    assert abs(psi.mean()) < 1e-12
    by_jackknife = 299 * (whole - left_out)
    assert np.corrcoef(psi, by_jackknife)[0, 1] > 0.998
    assert psi.std() == pytest.approx(by_jackknife.std(), rel=0.03)
    swapped = frechet.influences(train, sample)
    assert len(swapped) == 180 and abs(swapped.std() - psi.std()) > 0.05 * psi.std()


def test_influences_give_the_error_of_the_distance():
    """sd of the distance over draws of the sample, against sd(psi) / sqrt(M). A constant pixel has no direction of its own."""
    rng = np.random.default_rng(6)
    train = (rng.random((400, 2, 2, 1)) * 255).astype(np.uint8)
    train[:, 0, 0] = 7

    def draw():
        sample = (rng.random((250, 2, 2, 1)) ** 1.5 * 255).astype(np.uint8)
        sample[:, 0, 0] = 9
        return sample

    found = [frechet.fd_pixels(draw(), train) for _ in range(300)]
    expected = np.mean([frechet.influences(draw(), train).std() / np.sqrt(250) for _ in range(5)])
    assert np.std(found) == pytest.approx(expected, rel=0.15)


def test_what_is_chance_in_a_distance_follows_from_halves():
    """Images of one distribution: the distance of 150 from 600 in the mean of many draws, and what the halves of 500 say of it."""
    rng = np.random.default_rng(3)
    mixed = rng.normal(size=(12, 12))

    def drawn(num):
        return (128 + 12 * rng.normal(size=(num, 12)) @ mixed).clip(0, 255).astype(np.uint8).reshape(num, 3, 4, 1)

    truth = np.mean([frechet.fd_pixels(drawn(150), drawn(600)) for _ in range(40)])
    told = [frechet.by_chance(*frechet.distance_of_halves(drawn(501), rng), 150, 600) for _ in range(10)]
    assert np.mean(told) == pytest.approx(truth, rel=0.1)
    assert frechet.distance_of_halves(drawn(501), rng)[0] == 250
    assert frechet.by_chance(250, 0.02, 250, 250) == pytest.approx(0.02)


@pytest.mark.parametrize("sizes", [(9, 14), (9, 130), (130, 14)])
def test_fewer_images_than_values_give_the_distance_and_influences_of_their_moments(sizes, monkeypatch):
    """96 values; their covariances are never made where there are fewer images."""
    rng = np.random.default_rng(13)
    sample, train = (rng.integers(0, 256, (size, 4, 8, 3), dtype=np.uint8) for size in sizes)
    expected = frechet.frechet_distance(*frechet.pixel_moments(sample), *frechet.pixel_moments(train))
    assert frechet.fd_pixels(sample, train) == pytest.approx(expected, rel=1e-9)
    influences = frechet.influences(sample, train)
    monkeypatch.setattr(frechet, "_pixel_spread", lambda images: frechet._spread(*frechet.pixel_moments(images)))
    np.testing.assert_allclose(influences, frechet.influences(sample, train), rtol=1e-6, atol=1e-9)
