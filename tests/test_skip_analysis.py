"""Skip counts by image, by timestep and around a move: hand-made counts of unequal shards."""

import numpy as np
import pytest
import scipy.stats

from stages.measures import skip_analysis


def counts(index, skips, visits, **more):
    index = np.array(index, np.int64)
    arrays = {"index": index, "skips": np.array(skips, np.int32), "visits": np.array(visits, np.int32)}
    arrays |= {"augmented": np.zeros(len(index), np.int32), "t_skipped": np.zeros(10, np.int64)}
    return arrays | {"t_visited": np.zeros(10, np.int64)} | {name: np.array(value) for name, value in more.items()}


# Six images in shards of 4 and 2; after round 1 images 5 and 1 change places.
ROUNDS = [
    [counts([0, 2, 4, 5], [1, 0, 3, 3], [4, 4, 4, 3], augmented=[0, 2, 0, 1]), counts([1, 3], [2, 2], [5, 4])],
    [counts([0, 1, 2, 4], [0, 1, 1, 2], [4, 4, 4, 4]), counts([3, 5], [1, 0], [5, 5])],
]


def test_history_by_hand():
    found = skip_analysis.history(ROUNDS, 6)
    assert found.shard.tolist() == [[0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 1]]
    assert found.skips.tolist() == [[1, 2, 0, 2, 3, 3], [0, 1, 1, 1, 2, 0]]
    assert found.visits.tolist() == [[4, 5, 4, 4, 4, 3], [4, 4, 4, 5, 4, 5]]
    assert found.augmented.tolist() == [[0, 0, 2, 0, 0, 1], [0] * 6]


def test_counts_of_images_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="round 1, shard 0 are of image 5, but there are 5 training images: rerun its"):
        skip_analysis.history(ROUNDS, 5)


def test_rate_by_hand():
    found = skip_analysis.rate(np.array([1, 0, 0]), np.array([4, 3, 0]))
    assert found[:2].tolist() == [0.25, 0] and np.isnan(found[2])


def test_tenths_are_summed_over_shards_of_unequal_size():
    rounds = [
        [
            counts([0], [0], [0], t_skipped=np.arange(10), t_visited=np.full(10, 30)),
            counts([1], [0], [0], t_skipped=np.full(10, 2), t_visited=np.full(10, 10)),
        ],
        [
            counts([0], [0], [0], t_skipped=np.zeros(10, int), t_visited=np.full(10, 30)),
            counts([1], [0], [0], t_skipped=np.full(10, 5), t_visited=np.full(10, 10)),
        ],
    ]
    skipped, visited = skip_analysis.by_tenth(rounds)
    assert skipped.tolist() == [[2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [5] * 10]
    assert visited.tolist() == [[40] * 10, [40] * 10]
    # Last tenth: (9 + 2 + 0 + 5) / 80. The mean of the shards' shares would be (9/60 + 7/20) / 2 = 0.25.
    assert skip_analysis.rate(skipped.sum(0), visited.sum(0))[9] == 0.2


def test_extremes_by_hand_and_ties_by_chance():
    skips = np.array([5, 0, 9, 2, 2, 2, 7, 1, 2, 2])
    draws = [skip_analysis.extremes(skips, 0.3, np.random.default_rng(s)) for s in range(200)]
    assert {tuple(most) for most, _ in draws} == {(0, 2, 6)}
    least = [tuple(least) for _, least in draws]
    assert all({1, 7} < set(found) and len(found) == 3 for found in least)
    third = np.bincount([(set(found) - {1, 7}).pop() for found in least], minlength=10)
    assert third[[3, 4, 5, 8, 9]].min() > 20 and third.sum() == 200  # by index it would always be image 3
    most, least = skip_analysis.extremes(np.zeros(7, int), 0.5, np.random.default_rng(0))
    assert len(most) == len(least) == 3 and not np.intersect1d(most, least).size


def test_share_of_extremes_is_rounded_down_but_not_by_the_floats():
    assert len(skip_analysis.extremes(np.arange(100), 0.29, np.random.default_rng(0))[0]) == 29
    assert len(skip_analysis.extremes(np.arange(99), 0.29, np.random.default_rng(0))[0]) == 28


def test_a_move_by_hand():
    """Images 1 and 5 moved. Of 5's shard, 4 stayed with as many skips (3); of 1's shard, 3 stayed with as many (2)."""
    found = skip_analysis.move(skip_analysis.history(ROUNDS, 6), 0, np.random.default_rng(0))
    assert sorted(found.before) == [0.4, 1] and sorted(found.after) == [0, 0.25]
    order = np.argsort(found.pair_before[:, 0])
    assert found.pair_before[order].tolist() == [[0.4, 0.5], [1, 0.75]]  # (1, 3) and (5, 4)
    assert found.pair_after[order].tolist() == [[0.25, 0.2], [0, 0.5]]
    told = skip_analysis.premise([found])
    assert told["moved"] == told["pairs"] == 2 and told["before"] == 0.7 and told["after"] == 0.125
    # (0.25 - 0.4) - (0.2 - 0.5) = 0.15 and (0 - 1) - (0.5 - 0.75) = -0.75
    assert told["difference"] == pytest.approx(-0.3)
    interval = scipy.stats.t.interval(0.95, 1, loc=-0.3, scale=scipy.stats.sem([0.15, -0.75]))
    assert (told["low"], told["high"]) == pytest.approx(interval)
    assert told["pair_after_stayed"] == pytest.approx(0.35) and told["pair_after_moved"] == 0.125


def test_images_that_were_not_visited_are_left_out():
    rounds = [
        [counts([0, 1, 2], [1, 1, 1], [2, 2, 2]), counts([3, 4, 5], [1, 1, 1], [2, 2, 2])],
        [counts([1, 2, 3], [0, 1, 1], [0, 2, 2]), counts([0, 4, 5], [1, 0, 0], [2, 0, 0])],
    ]
    found = skip_analysis.move(skip_analysis.history(rounds, 6), 0, np.random.default_rng(0))
    # 0 and 3 moved. 2 stayed beside 0; 4 and 5 stayed beside 3, but were not visited afterwards.
    assert len(found.before) == 2 and found.pair_before.tolist() == [[0.5, 0.5]]


def test_without_a_move_there_is_nothing_to_say():
    found = skip_analysis.move(skip_analysis.history([ROUNDS[0], ROUNDS[0]], 6), 0, np.random.default_rng(0))
    told = skip_analysis.premise([found])
    assert told["moved"] == told["pairs"] == 0
    assert np.isnan([told[name] for name in ("before", "after", "difference", "low", "high")]).all()


NUM_IMAGES, VISITS = 4000, 60


def simulated(effect, select="memory", num_shards=4, share=0.25, seed=0):
    """Two rounds of skips drawn with a rate of each image's own, which is `effect` lower for images that moved."""
    random = np.random.default_rng(seed)
    own = random.beta(4, 12, NUM_IMAGES)
    shard = np.arange(NUM_IMAGES) % num_shards
    skips = random.binomial(VISITS, own)
    moved = np.zeros(NUM_IMAGES, bool)
    for k in range(num_shards):
        members = random.permutation(np.flatnonzero(shard == k))
        if select == "memory":
            members = members[np.argsort(-skips[members], kind="stable")]
        moved[members[: int(share * len(members))]] = True
    later = random.binomial(VISITS, np.clip(own + effect * moved, 0, 1))
    new_shard = np.where(moved, (shard + 1) % num_shards, shard)
    return [
        [counts(np.flatnonzero(of == k), s[of == k], np.full((of == k).sum(), VISITS)) for k in range(num_shards)]
        for of, s in ((shard, skips), (new_shard, later))
    ]


def premise_of(rounds):
    move = skip_analysis.move(skip_analysis.history(rounds, NUM_IMAGES), 0, np.random.default_rng(1))
    return skip_analysis.premise([move])


def check_premise(premise):
    """No effect is found where there is none, though moved images always fall; an effect is found where there is one."""
    for seed in range(4):
        none, real = premise(simulated(0.0, seed=seed)), premise(simulated(-0.05, seed=seed))
        assert none["after"] < none["before"] - 0.02  # regression to the mean
        assert none["low"] < 0.02 and none["high"] > -0.02 and abs(none["difference"]) < 0.025, (
            "found what is not there"
        )
        assert -0.08 < real["difference"] < -0.02 and real["high"] < 0, "missed what is there"


def test_regression_to_the_mean_is_not_taken_for_an_effect():
    check_premise(premise_of)


def before_and_after(rounds):
    """The plausible wrong way: how far the moved images fell."""
    told = premise_of(rounds)
    fall = told["after"] - told["before"]
    return told | {"difference": fall, "low": fall - 0.005, "high": fall + 0.005}


def against_all_that_stayed(rounds):
    """Another: the fall of the moved images less that of all the others, of whatever count."""
    found = skip_analysis.history(rounds, NUM_IMAGES)
    moved = found.shard[0] != found.shard[1]
    change = found.skips[1] / VISITS - found.skips[0] / VISITS
    fall = change[moved].mean() - change[~moved].mean()
    return premise_of(rounds) | {"difference": fall, "low": fall - 0.005, "high": fall + 0.005}


@pytest.mark.parametrize("wrong", [before_and_after, against_all_that_stayed])
def test_the_check_tells_wrong_controls_from_the_right_one(wrong):
    with pytest.raises(AssertionError, match="found what is not there"):
        check_premise(wrong)


def test_pairs_have_the_same_shard_and_count_and_no_image_twice():
    rounds = simulated(0.0, select="random", num_shards=3, share=0.4)
    found = skip_analysis.history(rounds, NUM_IMAGES)
    moved = found.shard[0] != found.shard[1]
    stratum = found.shard[0] * 1000 + found.skips[0]
    pairs = skip_analysis._pairs(stratum, moved, ~moved, np.random.default_rng(0))
    assert moved[pairs[:, 0]].all() and not moved[pairs[:, 1]].any()
    assert (stratum[pairs[:, 0]] == stratum[pairs[:, 1]]).all()
    assert len(np.unique(pairs)) == pairs.size
    most = sum(min((stratum[moved] == s).sum(), (stratum[~moved] == s).sum()) for s in np.unique(stratum))
    assert len(pairs) == most > 1000
    again = skip_analysis._pairs(stratum, moved, ~moved, np.random.default_rng(0))
    assert np.array_equal(again, pairs)


def test_several_moves_are_taken_together():
    moves = [skip_analysis.Move(*(np.array(part) for part in parts)) for parts in (
        ([0.5], [0.3], [[0.5, 0.5]], [[0.3, 0.4]]),
        ([0.7, 0.6], [0.1, 0.2], [[0.7, 0.7], [0.6, 0.6]], [[0.1, 0.6], [0.2, 0.5]]),
    )]  # fmt: skip
    told = skip_analysis.premise(moves)
    assert told["moved"] == told["pairs"] == 3
    assert told["before"] == pytest.approx(0.6) and told["after"] == pytest.approx(0.2)
    assert told["difference"] == pytest.approx(
        (-0.1 - 0.5 - 0.3) / 3
    )  # the mean of the two moves' means would be -0.25
