"""Energy of images against Parseval and pure waves, distances against every pair."""

import numpy as np
import pytest

from stages.measures import image_complexity

RANDOM = np.random.default_rng(0)


def images(size, height, width, channels):
    return RANDOM.integers(0, 256, (size, height, width, channels), np.uint8)


def test_grey_by_hand():
    pixels = np.array([[[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]]], np.uint8)
    assert image_complexity.grey(pixels)[0] == pytest.approx(np.array([[0.299, 0.587], [0.114, 1.0]]))
    assert image_complexity.grey(np.full((1, 2, 2, 1), 51, np.uint8)).tolist() == [[[0.2, 0.2], [0.2, 0.2]]]


@pytest.mark.parametrize("shape", [(700, 8, 8, 1), (5, 6, 10, 3), (3, 7, 5, 1)])
def test_energy_without_dc_is_the_pixel_variance(shape):
    """Parseval, on odd and unequal sides as well, and on more images than one block."""
    batch = images(*shape)
    energy = image_complexity.energies(batch)
    grey = image_complexity.grey(batch)
    assert energy[:, 0] == pytest.approx(image_complexity.pixel_variance(batch), rel=1e-10)
    assert energy[:, 0] == pytest.approx(grey.var(axis=(1, 2)), rel=1e-10)
    assert energy[:, 1] == pytest.approx((grey**2).mean(axis=(1, 2)), rel=1e-10)
    assert ((energy[:, 2] >= 0) & (energy[:, 2] <= 1)).all()


def test_brightness_changes_the_energy_with_dc_only():
    dark = RANDOM.integers(0, 100, (4, 8, 8, 1), np.uint8)
    energy, brighter = image_complexity.energies(dark), image_complexity.energies(dark + 100)
    assert brighter[:, [0, 2]] == pytest.approx(energy[:, [0, 2]], rel=1e-9)
    assert (brighter[:, 1] > 2 * energy[:, 1]).all()


@pytest.mark.parametrize(
    ("cycles", "high"),
    [
        ((0, 1), False),  # 1 / 16 cycles per pixel
        ((2, 0), False),  # 1 / 8, a quarter of Nyquist itself: not above it
        ((2, 1), True),  # radius sqrt(5) / 16 = 0.14, though neither direction alone is above
        ((0, 3), True),
        ((8, 0), True),  # Nyquist
        ((-2, 0), False),  # negative frequencies count by their size
    ],
)
def test_a_single_wave_is_in_the_band_of_its_frequency(cycles, high):
    y, x = np.mgrid[:16, :16]
    wave = 127 + 100 * np.cos(2 * np.pi * (cycles[0] * y + cycles[1] * x) / 16)
    share = image_complexity.energies(wave.round().astype(np.uint8)[None, :, :, None])[0, 2]
    assert share == pytest.approx(float(high), abs=0.01)  # rounding to grey levels leaves a little elsewhere


def test_an_image_of_one_grey_level_has_no_energy_and_no_high_band():
    flat = np.full((2, 8, 8, 3), 200, np.uint8)
    energy = image_complexity.energies(flat)
    assert energy[:, 0].tolist() == [0, 0] and np.isnan(energy[:, 2]).all()
    assert energy[:, 1] == pytest.approx((200 / 255) ** 2)


def check_nearest_other(nearest_other):
    """Small images with few grey levels, some of them twice or three times in the set."""
    random = np.random.default_rng(2)
    for case in range(20):
        train = random.integers(0, 4, (30, 2, 2, 1)).astype(np.uint8)
        chosen = random.permutation(30)[:11]
        pixels = train.reshape(30, -1).astype(float)
        expected = [min(np.linalg.norm(pixels[i] - pixels[j]) / 255 for j in range(30) if j != i) for i in chosen]
        assert nearest_other(train, chosen) == pytest.approx(expected, abs=1e-12), f"case {case}"


def test_nearest_other_equals_every_pair():
    check_nearest_other(image_complexity.nearest_other)


def itself(train, chosen):
    return np.zeros(len(chosen))


def always_second(train, chosen):
    from stages.measures import neighbours

    return np.sqrt(neighbours.nearest(train[chosen], train, 3)[0][:, 2]) / 255


def without_copies(train, chosen):
    return image_complexity.nearest_other(np.unique(train, axis=0), np.arange(len(chosen)))


@pytest.mark.parametrize("wrong", [itself, always_second, without_copies])
def test_the_check_tells_wrong_distances_from_the_right_ones(wrong):
    with pytest.raises(AssertionError, match="case"):
        check_nearest_other(wrong)
