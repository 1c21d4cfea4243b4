"""The alterations of the self-test, each against what it is called, and what counts as found."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from stages.measures import self_test

IMAGES = np.random.default_rng(3).integers(30, 226, (5, 9, 11, 3), dtype=np.uint8)


def altered(images=IMAGES, seed=0):
    return dict(self_test.alterations(images, np.random.default_rng(seed)))


def test_every_alteration_is_what_it_is_called():
    found, grey = altered(), IMAGES.astype(int)
    assert list(found) == [
        "unchanged", "noise of 8 grey levels", "noise of 24 grey levels", "darker by 40 grey levels", "brighter by 40 grey levels",
        "60 % of the contrast", "shifted by 1 pixel", "shifted by 2 pixels", "shifted by 4 pixels", "mirrored",
        "cropped by 2 pixels a side, resized back", "JPEG of quality 50", "blurred, sigma 1 pixel", "rotated by 5 degrees",
    ]  # fmt: skip
    assert all(images.shape == IMAGES.shape and images.dtype == np.uint8 for images in found.values())
    assert len({images.tobytes() for images in found.values()}) == len(found)
    assert np.array_equal(found["unchanged"], IMAGES) and np.array_equal(found["mirrored"], IMAGES[:, :, ::-1])
    weak, strong = (found[f"noise of {n} grey levels"].astype(int) - grey for n in (8, 24))
    assert weak.std() == pytest.approx(8, rel=0.1) and strong.std() == pytest.approx(24, rel=0.1)
    assert np.array_equal(found["darker by 40 grey levels"], np.maximum(grey - 40, 0))
    assert np.array_equal(found["brighter by 40 grey levels"], np.minimum(grey + 40, 255))
    for image, pale in zip(grey, found["60 % of the contrast"], strict=True):
        assert pale.mean() == pytest.approx(image.mean(), abs=0.5) and pale.std() == pytest.approx(
            0.6 * image.std(), rel=0.01
        )
    for n in (1, 2, 4):
        shifted = found[f"shifted by {n} pixel{'s' * (n > 1)}"]
        assert np.array_equal(shifted[:, :, n:], IMAGES[:, :, :-n])
        assert (shifted[:, :, :n] == IMAGES[:, :, :1]).all()
    middle = Image.fromarray(IMAGES[2]).crop((2, 2, 9, 7)).resize((11, 9), Image.Resampling.BILINEAR)
    assert np.abs(found["cropped by 2 pixels a side, resized back"][2].astype(int) - np.asarray(middle)).max() <= 1
    stream = io.BytesIO()
    Image.fromarray(IMAGES[4]).save(stream, "JPEG", quality=50)
    assert np.array_equal(found["JPEG of quality 50"][4], np.asarray(Image.open(stream)))


def test_a_blur_and_a_rotation_by_one_bright_pixel():
    """Pixel 8 to the right of the middle of 21 moves 8 sin 5 degrees = 0.70 rows; a blur spreads as exp(-1/2) to the next pixel."""
    image = np.zeros((1, 21, 21, 1), np.uint8)
    image[0, 10, 18] = 255
    found = altered(image)
    rows = (
        (found["rotated by 5 degrees"][0, :, :, 0].astype(float) @ np.ones(21))
        @ np.arange(21)
        / found["rotated by 5 degrees"].sum()
    )
    assert abs(rows - 10) == pytest.approx(8 * np.sin(np.radians(5)), abs=0.1)
    blurred = found["blurred, sigma 1 pixel"][0, :, :, 0].astype(float)
    assert blurred[10, 17] / blurred[10, 18] == pytest.approx(np.exp(-0.5), abs=0.03) and blurred[10, 18] < 50


@pytest.mark.parametrize(("shape", "left_out"), [((3, 3, 2), 2), ((1, 4, 1), 4), ((8, 8, 1), 0)])
def test_small_images_and_other_numbers_of_channels(shape, left_out):
    found = altered(np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8))
    assert len(found) == 14 - left_out and all(images.shape == (2, *shape) for images in found.values())


def test_the_noise_is_that_of_the_generator():
    assert np.array_equal(altered(seed=1)["noise of 8 grey levels"], altered(seed=1)["noise of 8 grey levels"])
    assert not np.array_equal(altered(seed=1)["noise of 8 grey levels"], altered(seed=2)["noise of 8 grey levels"])


def test_found_is_the_right_image_or_its_twin_and_counted():
    train = (16 * load_digits().images[:6, :, :, None]).astype(np.uint8).copy()
    train[5] = train[1]  # a twin
    planted, nearest = np.array([1, 1, 2, 3, 0]), np.array([1, 5, 2, 4, 0])
    memorised = np.array([True, True, False, True, True])
    assert self_test.found(train, planted, nearest, memorised).tolist() == [True, True, False, False, True]
