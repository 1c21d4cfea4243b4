"""Dealing images to shards: a partition with even sizes and even classes, whatever the remainders."""

import numpy as np
import pytest

from stages.iet import sharding


def generator(seed=0):
    return np.random.default_rng(seed)


def labels_of(counts, seed=1):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def check_even(shards, labels):
    """Partition; sizes over the whole set, and counts of each class, differ by at most one."""
    assert np.array_equal(np.sort(np.concatenate(shards)), np.arange(len(labels)))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1, f"sizes {sizes}"
    for c in np.unique(labels):
        of_class = [int((labels[shard] == c).sum()) for shard in shards]
        assert max(of_class) - min(of_class) <= 1, f"class {c}: {of_class}"


def restarting(labels, num_shards, generator):
    """The plausible wrong version: each class is dealt out beginning with shard 0."""
    shards = [[] for _ in range(num_shards)]
    for c in np.unique(labels):
        for place, image in enumerate(generator.permutation(np.flatnonzero(labels == c))):
            shards[place % num_shards].append(image)
    return [np.sort(shard) for shard in shards]


def contiguous(labels, num_shards, generator):
    """Another: blocks of the data set, which hold whole classes."""
    return np.array_split(np.argsort(labels, kind="stable"), num_shards)


@pytest.mark.parametrize(
    ("counts", "num_shards"),
    [
        ([50] * 10, 10),
        ([50] * 10, 15),  # 33.3 a class, as CIFAR-10 with K = 15
        ([947 * 5 + 4], 5),  # AFHQ-DOG, 4,739 images of one class
        ([7, 1, 13, 2, 29], 4),
        ([5] * 100, 7),  # 100 classes with remainder 5
        ([2] * 30, 9),  # every class smaller than K
        ([3, 4], 7),  # as many shards as images
        ([6], 1),
    ],
)
def test_shards_are_even(counts, num_shards):
    labels = labels_of(counts)
    shards = sharding.stratified_shards(labels, num_shards, generator())
    assert len(shards) == num_shards
    check_even(shards, labels)


def test_shards_are_even_on_many_random_mixes():
    random = generator(5)
    for _ in range(200):
        labels = labels_of(random.integers(1, 12, random.integers(1, 20)), seed=random.integers(1000))
        check_even(
            sharding.stratified_shards(labels, int(random.integers(1, min(15, len(labels)) + 1)), random), labels
        )


@pytest.mark.parametrize("wrong", [restarting, contiguous])
def test_the_check_tells_wrong_versions_from_the_right_one(wrong):
    labels = labels_of([5] * 100)
    check_even(sharding.stratified_shards(labels, 7, generator()), labels)
    with pytest.raises(AssertionError, match="sizes|class"):
        check_even(wrong(labels, 7, generator()), labels)


def test_published_sizes():
    cifar = np.repeat(np.arange(10), 5000)
    sizes = [len(shard) for shard in sharding.stratified_shards(cifar, 15, generator())]
    assert sorted(sizes) == [3333] * 10 + [3334] * 5  # the authors' code drops 50 images here
    assert [len(shard) for shard in sharding.stratified_shards(cifar, 10, generator())] == [5000] * 10
    dogs = sharding.stratified_shards(np.zeros(4739, int), 5, generator())
    assert sorted(len(shard) for shard in dogs) == [947] + [948] * 4


def test_lists_are_sorted_int64_and_follow_from_the_generator():
    labels = labels_of([8, 5, 9])
    shards = sharding.stratified_shards(labels, 4, generator(3))
    again = sharding.stratified_shards(labels, 4, generator(3))
    other = sharding.stratified_shards(labels, 4, generator(4))
    assert all(shard.dtype == np.int64 and (np.diff(shard) > 0).all() for shard in shards)
    assert all(np.array_equal(s, a) for s, a in zip(shards, again))
    assert not all(np.array_equal(s, o) for s, o in zip(shards, other))


def test_every_image_is_equally_likely_in_every_shard():
    labels = labels_of([9, 4])
    times = np.zeros((3, 13))
    for seed in range(1500):
        for k, shard in enumerate(sharding.stratified_shards(labels, 3, generator(seed))):
            times[k, shard] += 1
    # Class 0 deals 3 to each shard; class 1 goes on with shard 0, which gets 2 of its 4.
    share = np.where(labels == 0, 1 / 3, np.array([[0.5], [0.25], [0.25]]))
    assert (np.abs(times / 1500 - share) < 5 * 0.5 / 1500**0.5).all()


@pytest.mark.parametrize("num_shards", [0, 8, 100])
def test_more_shards_than_images_is_refused(num_shards):
    with pytest.raises(ValueError, match=rf"^num_shards is {num_shards}, expected 1 to .* 7$"):
        sharding.stratified_shards(np.zeros(7, int), num_shards, generator())


def test_subset_has_the_class_mix():
    labels = labels_of([100, 60, 30, 10])
    for count in (20, 40, 100):
        subset = sharding.stratified_subset(labels, count, generator(count))
        assert np.bincount(labels[subset], minlength=4).tolist() == [
            count // 2,
            count * 3 // 10,
            count * 3 // 20,
            count // 20,
        ]


def test_subset_is_within_one_image_of_the_class_mix_for_every_count():
    labels = labels_of([178, 182, 177, 183, 181])  # as the digits: nearly equal classes
    shares = np.bincount(labels) / len(labels)
    for count in range(0, len(labels) + 1, 13):
        subset = sharding.stratified_subset(labels, count, generator(count))
        assert len(subset) == len(np.unique(subset)) == count
        assert (np.abs(np.bincount(labels[subset], minlength=5) - shares * count) < 1).all()


def test_subset_is_sorted_random_within_classes_and_repeats():
    labels = labels_of([20, 12])
    subset = sharding.stratified_subset(labels, 8, generator(2))
    assert subset.dtype == np.int64 and (np.diff(subset) > 0).all()
    assert np.array_equal(subset, sharding.stratified_subset(labels, 8, generator(2)))
    times = sum(
        np.bincount(sharding.stratified_subset(labels, 8, generator(seed)), minlength=32) for seed in range(1000)
    )
    assert (np.abs(times / 1000 - 0.25) < 5 * 0.5 / 1000**0.5).all()  # no image is favoured


def test_subset_ties_between_classes_are_random():
    # Classes of equal size have equal ranks: one of two images must not always come from the first class.
    first = [
        int(np.array([0, 1])[sharding.stratified_subset(np.array([0, 1]), 1, generator(seed))][0])
        for seed in range(200)
    ]
    assert 60 < sum(first) < 140


def test_subset_ends():
    labels = labels_of([3, 4])
    assert sharding.stratified_subset(labels, 0, generator()).tolist() == []
    assert sharding.stratified_subset(labels, 7, generator()).tolist() == list(range(7))


def test_a_class_of_one_image_is_taken_from_half_the_set_on():
    labels = labels_of([100, 1])
    for seed in range(20):
        taken = [sharding.stratified_subset(labels, count, generator(seed)) for count in (1, 50, 52)]
        assert [int((labels[subset] == 1).sum()) for subset in taken] == [0, 0, 1]


def test_contiguous_shards_follow_the_order_of_the_images():
    found = sharding.contiguous_shards(11, 3)
    assert [shard.tolist() for shard in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert all(shard.dtype == np.int64 for shard in found)
