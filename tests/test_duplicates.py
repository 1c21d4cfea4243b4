"""Sets of duplicates, against images whose duplicates are planted, and against all pairs compared one by one."""

import itertools

import numpy as np
import pytest

from stages.iet import sharding
from stages.measures import duplicates


def found_in(images):
    thumbnails = np.stack([duplicates.thumbnail(image) for image in images])
    return duplicates.find([duplicates.digest(image) for image in images], thumbnails)


def smooth(number, size, channels, seed=0):
    """Images with large shapes, as photographs have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (number, 4, 4, channels))
    return coarse.repeat(size // 4, 1).repeat(size // 4, 2).astype(np.uint8)


def noisy(image, sigma, seed=0):
    noise = np.random.default_rng(seed).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_exact_and_near_duplicates_are_found_and_nothing_else():
    images = smooth(60, 48, 3)
    images[41] = images[7]
    images[50] = images[7]
    images[3] = noisy(images[22], 6)
    images[9] = noisy(images[22], 6, seed=1)
    images[33] = noisy(images[41], 6)  # near an exact duplicate
    found = found_in(images)
    assert [group.tolist() for group in duplicates.members(found.exact)] == [[7, 41, 50]]
    assert [group.tolist() for group in duplicates.members(found.sets)] == [[3, 9, 22], [7, 33, 41, 50]]
    assert found.sets[41] == 7 and found.sets[22] == 3 and found.sets[5] == 5


def test_near_duplicates_are_those_of_all_pairs():
    images = np.random.default_rng(3).integers(0, 256, (80, 5, 7, 1)).astype(np.uint8)
    for i in range(0, 30, 2):
        images[i + 1] = noisy(images[i], 4 + 2 * i, seed=i)  # from near to far
    found = found_in(images)
    values = images.reshape(80, -1).astype(float)
    apart = np.sqrt(((values[:, None] - values) ** 2).mean(2))
    nearest = np.where(np.eye(80, dtype=bool), np.inf, apart).min(1)
    assert found.distance == pytest.approx(np.median(nearest) / 3, rel=1e-6)
    linked = {(i, j) for i, j in itertools.combinations(range(80), 2) if apart[i, j] <= found.distance}
    together = {pair for group in duplicates.members(found.sets) for pair in itertools.combinations(group.tolist(), 2)}
    assert 3 < len(linked) < 15 and together == linked


def test_a_set_of_identical_images_is_one_set():
    images = np.full((240, 8, 8, 1), 9, np.uint8)
    found = found_in(images)
    assert len(duplicates.members(found.sets)) == 1 and np.isnan(found.distance) and set(found.exact) == {0}


def test_images_of_equal_thumbnails_are_near_and_not_exact():
    images = smooth(20, 64, 1)
    images[5] = images[4]
    images[5, 0, :2, 0] = images[5, 0, :2, 0] // 2 + [0, 1]
    found = found_in(images)
    assert duplicates.members(found.exact) == [] and [m.tolist() for m in duplicates.members(found.sets)] == [[4, 5]]


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 3), (48, 48, 3), (100, 3, 1), (33, 47, 3)])
def test_thumbnails_are_small_and_keep_the_mean(shape):
    image = smooth(1, 100, shape[2])[0, : shape[0], : shape[1]]
    small = duplicates.thumbnail(image)
    assert max(small.shape[:2]) <= duplicates.SIDE and small.shape[2] == shape[2] and small.dtype == np.uint8
    if max(shape[:2]) <= duplicates.SIDE:
        assert np.array_equal(small, image)


def test_a_group_lies_on_one_side_and_the_number_is_met():
    rng = np.random.default_rng(1)
    labels, groups = rng.integers(0, 3, 97), rng.integers(0, 30, 97)
    groups[40:] = np.arange(100, 157)
    for count in (1, 20, 50, 96, 97):
        part = sharding.stratified_subset(labels, count, np.random.default_rng(2), groups)
        assert len(part) == count and np.all(np.diff(part) > 0)
        assert not set(groups[part]) & set(np.delete(groups, part))


def test_without_groups_of_two_the_part_is_what_it_is_without_groups():
    labels = np.random.default_rng(1).integers(0, 3, 97)
    parts = [sharding.stratified_subset(labels, 31, np.random.default_rng(2), g) for g in (None, np.arange(97)[::-1])]
    assert np.array_equal(*parts)


def test_groups_that_do_not_fit_leave_the_part_short():
    groups = np.repeat(np.arange(5), 4)
    part = sharding.stratified_subset(np.zeros(20, int), 10, np.random.default_rng(0), groups)
    assert len(part) == 8 and len(set(groups[part])) == 2
