"""The search against brute force in int64, with roles, sizes and image sides all different."""

import time

import numpy as np
import pytest
import torch

from stages.measures import neighbours


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_images(seed, number, shape=(5, 4, 3)):
    return np.random.default_rng(seed).integers(0, 256, (number, *shape), dtype=np.uint8)


def pixel_distances(sample, train):
    """All squared distances [M, N] in int64, one pair of images at a time."""
    sample, train = (x.reshape(len(x), -1).astype(np.int64) for x in (sample, train))
    return np.array([[((s - t) ** 2).sum() for t in train] for s in sample])


def brute_force(sample, train, k):
    every = pixel_distances(sample, train)
    order = np.argsort(every, axis=1, kind="stable")[:, :k]  # stable: equal distances stay in order of index
    return np.take_along_axis(every, order, axis=1), order


def repeated_images(seed, num_distinct, number, shape=(3, 3, 1)):
    """A training set of few distinct images in random order: almost every distance occurs many times."""
    rng = np.random.default_rng(seed)
    return random_images(seed, num_distinct, shape)[rng.integers(0, num_distinct, number)]


@pytest.mark.parametrize("k", [1, 7, 41])
def test_equals_brute_force(k):
    sample, train = random_images(0, 23), random_images(1, 41)
    distances, indices = neighbours.nearest(sample, train, k)
    expected_distances, expected_indices = brute_force(sample, train, k)
    assert distances.dtype == indices.dtype == np.int64
    np.testing.assert_array_equal(distances, expected_distances)
    np.testing.assert_array_equal(indices, expected_indices)
    # The roles swapped are another question with another answer, so the check above tells them apart.
    if k <= 23:
        assert neighbours.nearest(train, sample, k)[0].shape == (41, k)


def test_equals_faiss_on_photograph_sized_images():
    faiss = pytest.importorskip("faiss")
    train = random_images(2, 700, (32, 32, 3))
    sample = (random_images(3, 60, (32, 32, 3)) // 4 + train[:60] // 4 * 3).astype(np.uint8)  # near, not equal
    distances, indices = neighbours.nearest(sample, train, 5)
    flat = [x.reshape(len(x), -1).astype(np.float32) for x in (sample, train)]
    faiss_distances, faiss_indices = faiss.knn(*flat, 5)
    np.testing.assert_allclose(distances, faiss_distances, rtol=1e-5, atol=200)  # fp32 beside exact
    np.testing.assert_array_equal(indices[:, 0], faiss_indices[:, 0])


def test_copy_has_distance_zero_and_a_changed_pixel_one():
    train = random_images(4, 40, (32, 32, 3))
    train[:, 0, 0, 0] = 100
    sample = train[[31, 7, 19]].copy()
    sample[1, 0, 0, 0] = 101
    distances, indices = neighbours.nearest(sample, train, 2)
    assert distances[:, 0].tolist() == [0, 1, 0]
    assert indices[:, 0].tolist() == [31, 7, 19]
    # The plausible wrong version, the expansion in fp32, does not return these.
    s, t = (torch.from_numpy(x.reshape(len(x), -1)).float() / 255 for x in (sample, train))
    fp32 = ((s**2).sum(1)[:, None] + (t**2).sum(1) - 2 * s @ t.T).min(1).values * 255**2
    assert not torch.equal(fp32, torch.tensor([0.0, 1.0, 0.0]))


@pytest.mark.parametrize("k", [1, 5, 20, 64])
@pytest.mark.parametrize("block", [3, 16, 4096])
def test_ties_go_to_the_lowest_index(k, block):
    """k cuts through groups of equal distances, within a block and across blocks."""
    train = repeated_images(5, num_distinct=3, number=64)
    sample = random_images(6, 17, (3, 3, 1))
    distances, indices = neighbours.nearest(sample, train, k, block=block)
    expected_distances, expected_indices = brute_force(sample, train, k)
    np.testing.assert_array_equal(distances, expected_distances)
    np.testing.assert_array_equal(indices, expected_indices)


def test_topk_alone_would_pick_arbitrary_ties():
    """The mutant the tie rule is for: right distances, other indices."""
    train = repeated_images(7, num_distinct=4, number=3000)
    sample = random_images(8, 20, (3, 3, 1))
    every = torch.from_numpy(pixel_distances(sample, train).astype(np.int32))
    mutant = torch.topk(every, 50, dim=1, largest=False)
    distances, indices = neighbours.nearest(sample, train, 50)
    np.testing.assert_array_equal(mutant.values.numpy(), distances)
    assert (mutant.indices.numpy() != indices).any()
    np.testing.assert_array_equal(indices, brute_force(sample, train, 50)[1])


def test_ties_only_at_the_last_place():
    """Distances all different except two, which compete for place k: the case a check of the whole row would miss."""
    train = np.zeros((30, 2, 2, 1), np.uint8)
    train[:, 0, 0, 0] = np.arange(30, 0, -1)  # distance to the black sample: 900, 841, ..., 1
    train[4] = train[21]  # both 81, place 9
    sample = np.zeros((1, 2, 2, 1), np.uint8)
    distances, indices = neighbours.nearest(sample, train, 9)
    assert distances[0].tolist() == [1, 4, 9, 16, 25, 36, 49, 64, 81]
    assert indices[0].tolist() == [29, 28, 27, 26, 25, 24, 23, 22, 4]


def test_block_size_changes_nothing():
    train = np.concatenate([random_images(9, 30), random_images(9, 30), random_images(10, 29)])  # with repeats
    sample = np.concatenate([random_images(11, 18), train[40:45]])
    whole = neighbours.nearest(sample, train, 12)
    for block in (1, 2, 5, 12, 13, 24, 88, 89):
        for part, reference in zip(neighbours.nearest(sample, train, 12, block=block), whole, strict=True):
            np.testing.assert_array_equal(part, reference)


@pytest.mark.parametrize("shape", [(32, 32, 3), (33025, 1, 1), (33026, 1, 1), (181, 181, 4)])
def test_extremes_stay_in_range(shape):
    """Black against white, on both sides of the size at which a squared distance outgrows int32."""
    num_values = int(np.prod(shape))
    sample = np.zeros((1, *shape), np.uint8)
    train = np.stack([np.full(shape, value, np.uint8) for value in (255, 1, 128, 254, 0)])
    distances, indices = neighbours.nearest(sample, train, 5)
    assert distances[0].tolist() == [num_values * value**2 for value in (0, 1, 128, 254, 255)]
    assert indices[0].tolist() == [4, 1, 2, 3, 0]
    assert num_values != 3072 or distances[0, -1] == 199_756_800  # 2.0e8, the largest on CIFAR-10
    from_nearest = neighbours.distances_from_nearest(train, indices)
    assert from_nearest[0].tolist() == distances[0].tolist()  # the nearest is black as well


def test_fp32_slices_equal_the_int8_product():
    """Where the processor's 8-bit product is not exact the search falls back; both must be the same integers."""
    centred = torch.randint(-128, 128, (40, 3080), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    centred[:8] = -128
    expected = centred[:30].double() @ centred.double().T  # exact: below 2^53
    assert torch.equal(neighbours._product_fp32(centred[:30], neighbours._in_fp32_slices(centred)), expected.int())


def test_saturating_processor_is_noticed(monkeypatch):
    """A stand-in for x86 without VNNI: neighbouring products are added in 16 bits with saturation, s8 as u8 - 128."""

    def saturating(sample, train_columns):
        u8, s8 = sample.int() + 128, train_columns.T.int()
        pairs = (u8[:, None, :] * s8[None, :, :]).unflatten(2, (-1, 2)).sum(3)
        return (pairs.clamp(-(2**15), 2**15 - 1).sum(2) - 128 * s8.sum(1)).int()

    sample, train = random_images(12, 9) // 2 + 128, random_images(13, 15) // 2 + 128  # bright, which saturates
    expected = brute_force(sample, train, 4)
    centred_sample, centred_train = (
        torch.from_numpy(x.reshape(len(x), -1) ^ 128).view(torch.int8) for x in (sample, train)
    )
    assert not torch.equal(saturating(centred_sample, centred_train.T), centred_sample.int() @ centred_train.int().T)
    monkeypatch.setattr(torch, "_int_mm", saturating)
    uncached = neighbours._int8_product_is_exact.__wrapped__
    monkeypatch.setattr(neighbours, "_int8_product_is_exact", uncached)
    assert not neighbours._int8_product_is_exact(60, "cpu")
    monkeypatch.setattr(neighbours, "_int8_product_is_faster", lambda device: True)
    for found, wanted in zip(neighbours.nearest(sample, train, 4), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("slow", "expected"), [("_int_mm", "_product_fp32"), ("none", "_product_int8")])
def test_the_faster_product_is_taken(monkeypatch, slow, expected):
    """An 8-bit product that only answers after 50 ms, as on processors without 8-bit units, gives way; one that answers at once does not."""
    zeros = torch.zeros(256, 256, dtype=torch.int32)

    def product(sample, train_columns):
        time.sleep(0.05 if slow == "_int_mm" else 0)
        return zeros

    monkeypatch.setattr(torch, "_int_mm", product)
    monkeypatch.setattr(neighbours, "_int8_product_is_exact", lambda num_values, device: True)
    monkeypatch.setattr(neighbours, "_int8_product_is_faster", neighbours._int8_product_is_faster.__wrapped__)
    assert neighbours._product(3072, "cpu")[1].__name__ == expected


def test_memory_mapped_images(tmp_path):
    sample, train = random_images(14, 9), random_images(15, 31)
    np.save(tmp_path / "train.npy", train)
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    expected = neighbours.nearest(sample, train, 6, block=8)
    for found, wanted in zip(neighbours.nearest(sample, mapped, 6, block=8), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(
        neighbours.distances_from_nearest(mapped, expected[1]), neighbours.distances_from_nearest(train, expected[1])
    )


@pytest.mark.parametrize("block", [None, 3, 7])
def test_parts_are_searched_as_if_each_were_alone(block):
    """Parts of unequal sizes, with gaps, one inside another, and images that are in none; with ties."""
    train, sample = repeated_images(20, num_distinct=12, number=40), random_images(21, 11, (3, 3, 1))
    parts = [(np.arange(1, 40), 9), (np.array([2, 3, 7, 30]), 4), (np.array([5, 8, 9, 20, 21, 22, 39]), 2)]
    found = neighbours.nearest_in_parts(sample, train, parts, block=block)
    for (positions, k), (distances, indices) in zip(parts, found, strict=True):
        expected_distances, expected_places = brute_force(sample, train[positions], k)
        np.testing.assert_array_equal(distances, expected_distances)
        np.testing.assert_array_equal(indices, positions[expected_places])


def test_a_part_with_fewer_images_than_neighbours_is_refused():
    sample, train = random_images(0, 4), random_images(1, 6)
    with pytest.raises(ValueError, match="k is 3, expected 1 <= k <= 2"):
        neighbours.nearest_in_parts(sample, train, [(np.arange(6), 3), (np.array([1, 4]), 3)])


@pytest.mark.parametrize("block", [None, 4])
def test_the_distance_is_the_smallest_over_the_versions(block):
    train, sample = random_images(22, 13), random_images(23, 9)
    versions = [neighbours.Version(lambda images: images[:, ::-1]), neighbours.Version(lambda images: images ^ 255)]
    expected = np.minimum(pixel_distances(sample[:, ::-1], train), pixel_distances(sample ^ 255, train))
    ((distances, indices),) = neighbours.nearest_in_parts(
        sample, train, [(np.arange(13), 13)], block=block, versions=versions
    )
    np.testing.assert_array_equal(distances, np.take_along_axis(expected, indices, axis=1))
    np.testing.assert_array_equal(np.sort(indices, axis=1), np.tile(np.arange(13), (9, 1)))
    np.testing.assert_array_equal(distances, np.sort(expected, axis=1))


def test_no_samples():
    distances, indices = neighbours.nearest(random_images(0, 0), random_images(1, 9), 4)
    assert distances.shape == indices.shape == (0, 4)
    assert neighbours.distances_from_nearest(random_images(1, 9), indices).shape == (0, 4)


@pytest.mark.parametrize("block", [1, 7, 512])
def test_distances_from_nearest(block):
    """Around the nearest training image, not around the sample; pairs shared by samples in either order."""
    train, sample = random_images(16, 37), random_images(17, 22)
    _, indices = neighbours.nearest(sample, train, 6)
    indices = np.concatenate([indices, indices[:, ::-1], indices[:5]])  # the reverse: the same pairs and others
    every = pixel_distances(train, train)
    expected = every[indices[:, :1], indices]
    found = neighbours.distances_from_nearest(train, indices, block=block)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)
    assert (found[:, 0] == 0).all()
    assert (found[:22] != neighbours.nearest(sample, train, 6)[0]).any()


def test_progress_counts_up_to_the_end():
    sample, train, calls = random_images(18, 10), random_images(19, 12), []
    _, indices = neighbours.nearest(sample, train, 3, block=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, 10) for done in (1, 2, 4, 5, 6, 8, 8, 9, 10)]  # three blocks of four training images
    calls.clear()
    neighbours.distances_from_nearest(train, indices, block=4, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] <= indices.size
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_wrong_input_is_refused():
    sample, train = random_images(0, 4), random_images(1, 6)
    with pytest.raises(ValueError, match="k is 7, expected 1 <= k <= 6"):
        neighbours.nearest(sample, train, 7)
    with pytest.raises(ValueError, match="k is 0"):
        neighbours.nearest(sample, train, 0)
    with pytest.raises(ValueError, match="train images are float32"):
        neighbours.nearest(sample, train.astype(np.float32), 1)
    with pytest.raises(ValueError, match="sample images are uint8 .4, 60."):
        neighbours.nearest(sample.reshape(4, 60), train, 1)
    with pytest.raises(ValueError, match="expected one shape"):
        neighbours.nearest(sample.transpose(0, 2, 1, 3), train, 1)  # as many values, another image
    with pytest.raises(ValueError, match="block is 0"):
        neighbours.nearest(sample, train, 1, block=0)
    with pytest.raises(ValueError, match="expected 1 to 131071"):
        neighbours.nearest(np.zeros((1, 256, 256, 3), np.uint8), np.zeros((1, 256, 256, 3), np.uint8), 1)
    with pytest.raises(ValueError, match="indices run from 0 to 6, expected 0 to 5"):
        neighbours.distances_from_nearest(train, np.array([[0, 6]]))
    with pytest.raises(ValueError, match="expected integers"):
        neighbours.distances_from_nearest(train, np.array([[0.0, 1.0]]))
