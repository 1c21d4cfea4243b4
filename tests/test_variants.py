"""Search in variants: against loops over every variant, transforms that are done by hand, and copies that are planted in one variant."""

import numpy as np
import pytest
from PIL import Image

from stages.measures import neighbours, variants

pytestmark = pytest.mark.usefixtures("one_thread")

RANDOM = np.random.default_rng(2)
SHAPE = (7, 9, 2)
TRAIN = RANDOM.integers(0, 256, (31, *SHAPE), dtype=np.uint8)
# Copies in four variants, and images that are of none.
SAMPLE = np.concatenate(
    [
        TRAIN[:2, :, ::-1],
        (0.5 * TRAIN[3:6] + 60).astype(np.uint8),
        np.pad(TRAIN[7:9, 1:, :-2], ((0, 0), (0, 1), (2, 0), (0, 0)), mode="edge"),
        TRAIN[9:11] ^ 4,
        RANDOM.integers(0, 256, (4, *SHAPE), dtype=np.uint8),
    ]
)


def moved(image, x, y):
    """To the right and down, pixel by pixel; what comes from outside is the nearest pixel inside."""
    height, width = image.shape[:2]
    out = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            out[row, column] = image[min(max(row - y, 0), height - 1), min(max(column - x, 0), width - 1)]
    return out


def fitted(sample, train):
    """Squared distance after the sample was given mean and deviation of the training image, the latter within a factor of 2."""
    x, t = sample.astype(float), train.astype(float)
    deviation = x.std()
    contrast = np.clip(t.std() / deviation, 0.5, 2) if deviation else 2.0
    return ((contrast * (x - x.mean()) + t.mean() - t) ** 2).sum()


def expected(samples, train, k):
    """By a loop over samples, training images and variants: distances, indices, and the variant of each nearest."""
    distances, indices, told = [], [], []
    for sample in samples:
        of_variants = []
        for name in variants.names(SHAPE):
            image = variants.undone(sample[None], name)[0].astype(float)
            of_variants.append(
                [
                    round(fitted(sample, t)) if name == "brightness" else round(((image - t.astype(float)) ** 2).sum())
                    for t in train
                ]
            )
        of_variants = np.array(of_variants)
        smallest = of_variants.min(axis=0)
        order = sorted(range(len(train)), key=lambda j: (smallest[j], j))[:k]
        first = order[0]
        name = variants.names(SHAPE)[int(of_variants[:, first].argmin())]
        if of_variants[0, first] <= 1.1 * smallest[first]:
            name = "as is"
        distances.append(smallest[order])
        indices.append(order)
        told.append(name)
    return np.array(distances), np.array(indices), told


def searched(samples, train, k):
    """By the search: distances, indices, and the variant of each nearest."""
    versions = variants.versions(train.shape[1:])
    ((distances, indices),) = neighbours.nearest_in_parts(
        samples, train, [(np.arange(len(train)), k)], versions=versions
    )
    return distances, indices, variants.found_in(samples, train, indices[:, 0])


def test_the_variants_of_a_shape():
    names = variants.names(SHAPE)
    assert (
        len(names) == len(set(names)) == 29 and names[0] == "as is" and names[-3:] == ["crop 1", "crop 2", "brightness"]
    )
    assert [name for name in variants.names((1, 3, 1)) if name.startswith("shift")] == [
        f"shift {x} +0" for x in ("-2", "-1", "+1", "+2")
    ]
    assert [name for name in variants.names((3, 30, 1)) if name.startswith("crop")] == ["crop 1"]


@pytest.mark.parametrize(("x", "y"), [(2, -1), (-2, 2), (0, 1), (1, 0)])
def test_a_shift_is_undone_by_moving_back(x, y):
    undone = variants.undone(SAMPLE, f"shift {x:+d} {y:+d}")
    for image, back in zip(SAMPLE, undone, strict=True):
        assert np.array_equal(back, moved(image, -x, -y))


def test_mirrored_is_undone_from_left_to_right_and_what_is_left_as_it_is():
    assert np.array_equal(variants.undone(SAMPLE, "mirrored")[3, 5, 0], SAMPLE[3, 5, 8])
    assert variants.undone(SAMPLE, "as is") is SAMPLE and variants.undone(SAMPLE, "brightness") is SAMPLE


@pytest.mark.parametrize("pixels", [1, 2])
def test_a_crop_is_undone_by_making_it_smaller_as_pillow_does(pixels):
    undone = variants.undone(SAMPLE, f"crop {pixels}")
    for image, back in zip(SAMPLE, undone, strict=True):
        for c in range(2):
            size = (SHAPE[1] - 2 * pixels, SHAPE[0] - 2 * pixels)
            small = np.asarray(Image.fromarray(image[..., c]).resize(size, Image.Resampling.BILINEAR)).astype(int)
            assert np.abs(back[pixels:-pixels, pixels:-pixels, c] - small).max() <= 1
            assert (back[:pixels, pixels, c] == back[pixels, pixels, c]).all() and back[-1, -1, c] == back[
                -1 - pixels, -1 - pixels, c
            ]


@pytest.mark.parametrize("k", [1, 6, 31])
def test_the_nearest_over_all_variants_are_those_of_a_loop(k, monkeypatch):
    monkeypatch.setattr(variants, "ROWS", 5)
    distances, indices, variant = searched(SAMPLE, TRAIN, k)
    by_loop = expected(SAMPLE, TRAIN, k)
    assert (
        np.array_equal(distances, by_loop[0]) and np.array_equal(indices, by_loop[1]) and variant.tolist() == by_loop[2]
    )
    assert len(set(variant)) > 3  # else the loop would show little


def test_ties_go_to_the_lowest_index_and_each_training_image_comes_once():
    twins = np.concatenate([TRAIN[:4], TRAIN[:4], TRAIN[4:9]])
    distances, indices, _ = searched(TRAIN[2:3, :, ::-1], twins, 13)
    assert indices[0, :2].tolist() == [2, 6] and distances[0, :2].tolist() == [0, 0]
    assert sorted(indices[0]) == list(range(13))


def noisy(image, strength=4):
    noise = np.random.default_rng(0).normal(0, strength, image.shape)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)


def cropped(image, pixels):
    """The middle of an image, brought to its size."""
    height, width = image.shape[:2]
    inner = image[pixels : height - pixels, pixels : width - pixels]
    return np.stack([np.asarray(Image.fromarray(inner[..., c]).resize((width, height), Image.Resampling.BILINEAR)) for c in range(2)], axis=2)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "altered"),
    [
        ("as is", noisy),
        ("mirrored", lambda image: image[:, ::-1]),
        ("shift +2 -1", lambda image: moved(image, 2, -1)),
        ("shift -1 +0", lambda image: moved(image, -1, 0)),
        ("crop 1", lambda image: cropped(image, 1)),
        ("crop 2", lambda image: cropped(image, 2)),
        ("brightness", lambda image: np.round(0.6 * image + 20).astype(np.uint8)),
        ("brightness", lambda image: np.round(image / 255 * 180 + 75).astype(np.uint8)),
    ],
)
def test_a_planted_copy_is_found_in_the_variant_that_it_was_made_by(name, altered):
    """Of smooth images, as a picture is: a crop of noise has nothing in common with it."""
    smooth = np.random.default_rng(1).integers(0, 256, (20, 4, 4, 2), dtype=np.uint8)
    train = np.stack([np.stack([np.asarray(Image.fromarray(image[..., c]).resize((16, 12), Image.Resampling.BICUBIC)) for c in range(2)], axis=2) for image in smooth])  # fmt: skip
    copies = np.stack([altered(image) for image in train[5:12]])
    _, indices, variant = searched(np.ascontiguousarray(copies), train, 5)
    assert indices[:, 0].tolist() == list(range(5, 12))
    assert set(variant) == {name}


def test_brightness_alone_is_the_distance_after_the_fit_and_no_flat_image_is_near_to_all():
    train = np.concatenate([TRAIN[:6], np.full((1, *SHAPE), 128, np.uint8)])
    samples = np.concatenate(
        [SAMPLE, np.full((1, *SHAPE), 3, np.uint8), (TRAIN[4:5] * 0.7 + 9).round().astype(np.uint8)]
    )
    brightness = [neighbours.Version(fitted=True)]
    distances, indices = neighbours.nearest(samples, train, 7, versions=brightness, block=4)
    for sample, d, i in zip(samples, distances, indices, strict=True):
        assert d.tolist() == [round(fitted(sample, train[j])) for j in i] and sorted(i) == list(range(7))
        assert neighbours.paired(np.stack([sample] * 7), train[i], fitted=True).tolist() == d.tolist()
    assert indices[-1, 0] == 4 and distances[-1, 0] < 100
    pale = neighbours.nearest(samples, train, 7, versions=brightness)[0]
    assert np.array_equal(pale, distances)
    assert distances[indices == 6][:-2].min() > 40_000  # a flat image is near to none
