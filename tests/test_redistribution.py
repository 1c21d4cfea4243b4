"""MSR: who leaves a shard, and the move itself: an exchange in a ring that keeps a partition a partition."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TINY

from stages import randomness, redistribute
from stages.iet import redistribution, sharding
from stages.run import files


def generator(seed=0):
    return np.random.default_rng(seed)


SIZES = {1: [53], 2: [22, 31], 3: [11, 25, 17], 4: [9, 14, 7, 23], 5: [7, 13, 6, 16, 11]}


def ring(num_shards):
    """Unequal shards of 53 images, whose ids are not their places."""
    return [np.sort(s) for s in np.split(generator(1).permutation(53), np.cumsum(SIZES[num_shards])[:-1])]


def check_move(moved_on, shards, leaving):
    """Every invariant of a move."""
    after = moved_on(shards, leaving)
    num_shards = len(shards)
    assert np.array_equal(np.sort(np.concatenate(after)), np.sort(np.concatenate(shards))), "not a partition any more"
    assert [len(shard) for shard in after] == [len(shard) for shard in shards]
    for k in range(num_shards):
        assert set(after[k]) == set(shards[k]) - set(leaving[k]) | set(leaving[k - 1]), f"shard {k}"
        assert after[k].dtype == np.int64 and (np.diff(after[k]) > 0).all()


def copied_on(shards, leaving):
    """Eq. 11 to the letter: a union, and nothing removed."""
    return [np.union1d(shard, leaving[k - 1]) for k, shard in enumerate(shards)]


def moved_back(shards, leaving):
    """The ring the wrong way round."""
    turned = leaving[1:] + leaving[:1]
    return [np.sort(np.concatenate([np.setdiff1d(s, out), new])) for s, out, new in zip(shards, leaving, turned)]


def moved_in_turn(shards, leaving):
    """One shard after the other, choosing again from what has just arrived."""
    shards = [list(shard) for shard in shards]
    for k, easy in enumerate(leaving):
        easy = sorted(shards[k])[: len(easy)]
        shards[k] = [image for image in shards[k] if image not in easy]
        shards[(k + 1) % len(shards)] += easy
    return [np.sort(np.array(shard)) for shard in shards]


def smallest(shards, count):
    return [shard[:count] for shard in shards]


@pytest.mark.parametrize("num_shards", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_move_is_an_exchange(num_shards, count):
    shards = ring(num_shards)
    check_move(redistribution.moved_on, shards, [generator(k).permutation(s)[:count] for k, s in enumerate(shards)])


@pytest.mark.parametrize("wrong", [copied_on, moved_back, moved_in_turn])
def test_the_check_tells_wrong_moves_from_the_right_one(wrong):
    shards = ring(4)
    check_move(redistribution.moved_on, shards, smallest(shards, 5))
    with pytest.raises(AssertionError):
        check_move(wrong, shards, smallest(shards, 5))


def test_move_by_hand():
    shards = [np.array([1, 4, 8]), np.array([0, 2, 6, 7]), np.array([3, 5, 9])]
    after = redistribution.moved_on(shards, [np.array([4]), np.array([0]), np.array([9])])
    assert [shard.tolist() for shard in after] == [[1, 8, 9], [2, 4, 6, 7], [0, 3, 5]]
    assert [shard.tolist() for shard in shards] == [[1, 4, 8], [0, 2, 6, 7], [3, 5, 9]]


@pytest.mark.parametrize("num_shards", [2, 3, 5])
def test_a_fixed_set_is_home_after_one_round_of_the_ring(num_shards):
    home = ring(num_shards)
    travelling = [generator(k).permutation(shard)[:4] for k, shard in enumerate(home)]
    shards = home
    for step in range(num_shards):
        leaving = [travelling[(k - step) % num_shards] for k in range(num_shards)]
        assert all(np.isin(easy, shard).all() for easy, shard in zip(leaving, shards))
        shards = redistribution.moved_on(shards, leaving)
        assert all(np.array_equal(s, h) for s, h in zip(shards, home)) == (step == num_shards - 1)


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [
        ([5000] * 10, 0.25, 1250),  # CIFAR, K = 10
        ([947] + [948] * 4, 0.25, 236),  # AFHQ-DOG, K = 5: of the smallest shard
        ([9, 7, 12], 0.5, 3),
        ([100, 101], 0.29, 29),  # 0.29 * 100 is 28.999999999999996
        ([3, 900], 0.25, 0),
        ([6, 8], 1.0, 6),
        ([10_000], 0.07, 700),
    ],
)
def test_number_moved_is_a_share_of_the_smallest_shard(sizes, share, expected):
    assert redistribution.num_moved([np.arange(size) for size in sizes], share) == expected


def check_ids_leave(most_skipped):
    """The counts file maps ids to counts; the ids of the most skipped images are what leaves."""
    shard = np.array([3, 10, 11, 25, 40, 41])
    skips = np.array([0, 7, 2, 9, 1, 7], np.int32)
    for count, expected in [(0, []), (1, [25]), (3, [10, 25, 41]), (5, [10, 11, 25, 40, 41]), (6, shard.tolist())]:
        leaving = most_skipped(shard, skips, count, generator(count))
        assert leaving.tolist() == expected
        assert leaving.dtype == np.int64


def test_the_most_skipped_leave():
    check_ids_leave(redistribution.most_skipped)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda shard, skips, count, generator: np.sort(
            np.argsort(-skips, kind="stable")[:count]
        ),  # places in the shard
        lambda shard, skips, count, generator: np.sort(shard[np.argsort(skips, kind="stable")[:count]]),  # the least
    ],
)
def test_places_in_the_shard_or_the_least_skipped_would_be_noticed(wrong):
    with pytest.raises(AssertionError):
        check_ids_leave(wrong)


def test_unsigned_counts_are_ranked_too():
    shard = np.array([2, 5, 9])
    assert redistribution.most_skipped(shard, np.array([0, 3, 1], np.uint8), 1, generator()).tolist() == [5]


def test_ties_are_random_seeded_and_never_win_over_a_higher_count():
    shard = np.arange(100, 120)
    skips = np.array([4, 4] + [2] * 10 + [0] * 8)
    times = np.zeros(20)
    for seed in range(1000):
        leaving = redistribution.most_skipped(shard, skips, 7, generator(seed))
        assert np.array_equal(leaving, redistribution.most_skipped(shard, skips, 7, generator(seed)))
        times[leaving - 100] += 1
    assert (times[:2] == 1000).all()
    assert (times[12:] == 0).all()
    assert (np.abs(times[2:12] / 1000 - 0.5) < 5 * 0.5 / 1000**0.5).all()  # 5 of the 10 that were skipped twice


def test_no_skips_at_all_still_fill_the_share():
    leaving = redistribution.most_skipped(np.arange(8), np.zeros(8, np.int32), 3, generator(1))
    assert len(set(leaving.tolist())) == 3


def test_random_images_are_a_uniform_choice_without_repeats():
    shard = np.array([5, 8, 13, 21, 34, 55, 89])
    times = dict.fromkeys(shard, 0)
    for seed in range(1000):
        chosen = redistribution.random_images(shard, 3, generator(seed))
        assert len(set(chosen)) == 3 and (np.diff(chosen) > 0).all()
        assert np.array_equal(chosen, redistribution.random_images(shard, 3, generator(seed)))
        for image in chosen:
            times[image] += 1
    assert all(abs(count / 1000 - 3 / 7) < 5 * 0.5 / 1000**0.5 for count in times.values())


def test_many_rounds_keep_the_partition_and_mix_the_shards():
    labels = generator(3).integers(0, 7, 103)
    shards = home = sharding.stratified_shards(labels, 5, generator(4))
    for round_ in range(1, 20):
        count = redistribution.num_moved(shards, 0.25)
        assert count == 5
        leaving = [
            redistribution.most_skipped(
                shard,
                generator(round_).integers(0, 4, len(shard)),
                count,
                randomness.numpy_generator("ties", 0, k, round_),
            )
            for k, shard in enumerate(shards)
        ]
        check_move(redistribution.moved_on, shards, leaving)
        shards = redistribution.moved_on(shards, leaving)
    assert all(not np.array_equal(s, h) for s, h in zip(shards, home))


# The stage: which counts it reads, of which rounds, and where it writes.

LISTS = [[0, 3, 5, 9, 14], [1, 2, 7, 8], [4, 6, 10, 11, 12, 13]]  # unequal shards of 15 images


def run_stage(tmp_path, monkeypatch, schedule, round_, skips, select="memory"):
    """The index lists that the stage writes after a round.

    skips   by round, for each shard the skips of its images in the order of its list
    """
    monkeypatch.chdir(tmp_path)
    experiment = yaml.safe_load(TINY)
    arm = experiment["arms"]["iet_agc_plus"]
    arm |= {
        "rounds": 4,
        "shard": {"num_shards": 3},
        "redistribute": {"share": 0.5, "select": select, "schedule": schedule},
    }
    Path("params.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    held_since = round_ if schedule == "joint" or round_ == 1 else round_ - 1
    run = "iet_agc_plus-seed3"
    for k, indices in enumerate(LISTS):
        files.save_array(f"artifacts/shards/{run}/round{held_since}/shard{k}.npy", np.array(indices))
        for r, of_round in skips.items():
            counts = {"index": np.array(indices), "skips": np.array(of_round[k], np.int32)}
            files.save_arrays(f"artifacts/results/counts/{run}/round{r}/shard{k}/counts.safetensors", counts)
    redistribute.main(["--arm", "iet_agc_plus", "--seed", "3", "--round", str(round_)])
    folder = Path(f"artifacts/shards/{run}/round{round_ + 1}")
    return [np.load(folder / f"shard{k}.npy").tolist() for k in range(3)]


THIS = [[1, 9, 2, 8, 0], [5, 1, 6, 2], [9, 1, 8, 2, 0, 3]]
# In sum with THIS, others are the most skipped: images 0 and 14, 2 and 8, 11 and 13.
BEFORE = [[20, 0, 0, 0, 30], [0, 20, 0, 30], [0, 0, 0, 20, 0, 30]]
MOVED_BY_THIS = [[0, 4, 5, 10, 14], [2, 3, 8, 9], [1, 6, 7, 11, 12, 13]]
MOVED_BY_BOTH = [[3, 5, 9, 11, 13], [0, 1, 7, 14], [2, 4, 6, 8, 10, 12]]


@pytest.mark.parametrize(
    ("schedule", "round_", "expected"),
    [
        ("joint", 1, MOVED_BY_THIS),
        ("joint", 3, MOVED_BY_THIS),  # what was skipped before the last move does not count
        ("alternating", 1, MOVED_BY_THIS),
        ("alternating", 3, MOVED_BY_BOTH),  # nothing moved after round 2
    ],
)
def test_the_stage_counts_the_rounds_since_the_last_move(tmp_path, monkeypatch, schedule, round_, expected):
    """Two images leave each shard, half of the smallest one, by counts that were planted."""
    skips = {round_: THIS} | ({round_ - 1: BEFORE} if round_ > 1 else {})
    assert run_stage(tmp_path, monkeypatch, schedule, round_, skips) == expected


@pytest.mark.parametrize("select", ["memory", "random"])
def test_the_stage_draws_by_seed_shard_and_round(tmp_path, monkeypatch, select):
    """Ties among images that were all skipped alike, and the random images of the control, which needs no counts."""
    alike = {3: [[4] * len(indices) for indices in LISTS]} if select == "memory" else {}
    leaving = []
    for k, indices in enumerate(LISTS):
        words = np.random.SeedSequence([9, 3, k, 3]).generate_state(2, np.uint32)
        order = np.random.default_rng(int(words[0]) | int(words[1]) << 32).permutation(indices)
        leaving.append(set(order[:2].tolist()))
    expected = [sorted(set(LISTS[k]) - leaving[k] | leaving[k - 1]) for k in range(3)]
    assert run_stage(tmp_path, monkeypatch, "joint", 3, alike, select) == expected


def test_counts_of_other_images_are_refused(tmp_path, monkeypatch):
    wrong = [indices[::-1] for indices in THIS]
    assert run_stage(tmp_path, monkeypatch, "joint", 2, {2: THIS}) == MOVED_BY_THIS
    counts = {"index": np.array([0, 3, 5, 9, 13]), "skips": np.array(wrong[0], np.int32)}
    files.save_arrays("artifacts/results/counts/iet_agc_plus-seed3/round2/shard0/counts.safetensors", counts)
    with pytest.raises(ValueError, match="counts other images than shard 0 of round 2 holds: rerun its train stage"):
        redistribute.main(["--arm", "iet_agc_plus", "--seed", "3", "--round", "2"])
