"""The comparison at equal fidelity: numbers worked out by hand, and which arms are controls."""

import copy
import math

import pytest

from stages.measures.trade_off import Comparison, Point, compare, curve_at
from stages.report import trade_off

# Trained for 1, 2 and 4 units: from (8, 2) over (4, 10) to (2, 30).
CURVE = [Point(8.0, 2.0, 3.0), Point(4.0, 10.0, 4.0), Point(2.0, 30.0, 8.0)]


def test_the_curve_is_straight_between_its_points():
    # a quarter of the way from (4, 10) to (2, 30); the half widths 3/4 of 4 and 1/4 of 8 add up in squares: sqrt(9 + 4)
    assert curve_at(CURVE, 3.5) == pytest.approx((3.5, 15.0, math.sqrt(13)))
    # 1/8 of the way from (8, 2) to (4, 10)
    assert curve_at(CURVE, 7.5) == pytest.approx((7.5, 3.0, math.hypot(7 / 8 * 3, 1 / 8 * 4)))
    for point in CURVE:
        assert curve_at(CURVE, point.fidelity) == point
    assert curve_at(CURVE, 1.999) is None and curve_at(CURVE, 8.001) is None


def test_where_the_curve_turns_back_its_lowest_point_counts():
    # The longest training is less faithful again, so fidelity 5 is passed twice: at excess 8 and, half way back, at 25.
    turning = [Point(8.0, 2.0, 0.0), Point(4.0, 10.0, 1.0), Point(6.0, 40.0, 2.0)]
    assert curve_at(turning, 5.0) == pytest.approx((5.0, 8.0, 0.75))
    assert curve_at(turning[::-1], 5.0) == pytest.approx((5.0, 8.0, 0.75))
    upright = [Point(4.0, 10.0, 1.0), Point(4.0, 6.0, 2.0)]
    assert curve_at(upright, 4.0) == Point(4.0, 6.0, 2.0)


@pytest.mark.parametrize(
    ("excess", "half_width", "verdict"),
    [
        # The line is at 15 +- sqrt(13) = 3.606 there. With 6 of the arm's own the difference has +- 7: sqrt(36 + 13).
        (7.9, 6.0, "below"),
        (
            8.1,
            6.0,
            "not told apart",
        ),  # lower than the line by 6.9; its interval, up to 14.1, does not reach the line's 15
        (21.9, 6.0, "not told apart"),
        (22.1, 6.0, "above"),
        (15.0, 0.0, "not told apart"),
    ],
)
def test_an_arm_is_told_from_the_line_by_the_interval_of_the_difference(excess, half_width, verdict):
    found = compare(Point(3.5, excess, half_width), CURVE)
    assert found.verdict == verdict
    assert found[1:] == pytest.approx((15.0, excess - 15.0, math.hypot(half_width, math.sqrt(13))))


def test_outside_the_range_nothing_is_compared():
    assert compare(Point(1.9, 0.0, 0.0), CURVE) == Comparison("more faithful")
    assert compare(Point(8.1, 0.0, 0.0), CURVE) == Comparison("less faithful")


def arm(**changes):
    recipe = {"rounds": 1, "method": {"name": "ddpm"}, "shard": {"num_shards": 1}, "train": {"epochs": 12}}
    return {**recipe, "redistribute": {}, "sample": {}, **changes}


ARMS = {
    "plain": arm(),
    "half": arm(train={"epochs": 6}),
    "longer": arm(train={"epochs": 24}),
    "same_length": arm(rounds=2, train={"epochs": 6}),
    "third": arm(rounds=2, train={"epochs": 2, "batch_size": 5}),  # the shared batch size, written out
    "other_batch": arm(train={"epochs": 6, "batch_size": 7}),
    "other_method": arm(train={"epochs": 6}, method={"name": "agc"}),
    "other_shards": arm(train={"epochs": 6}, shard={"num_shards": 2}),
    "theirs": {"generator": {"folder": "x"}, "sample": {}},
}


def test_controls_are_the_baseline_trained_for_less_and_nothing_else():
    settings = {"train": {"batch_size": 5}, "arms": ARMS}
    assert trade_off.controls(settings) == ["third", "half"]  # the shortest first, not in their order
    audit = {"train": {}, "arms": {"theirs": ARMS["theirs"], "plain": ARMS["plain"]}}
    assert trade_off.controls(audit) == []


HEADLINE = {
    "seeds": [0],
    "score": {"headline": {"protocol": "code_sq", "threshold": 0.5, "weights": "ema"}},
    "train": {"batch_size": 5},
}


def measured(fidelity, excess, num_images, half_width=4.0):
    cell = {"excess": excess, "excess_low": excess - half_width, "excess_high": excess + half_width}
    return {"num_images": num_images, "ema": {"fd_pixels": fidelity, "code_sq": {"0.5": cell}}}


@pytest.fixture
def experiment():
    """Percent of the images: half 4, plain 20, third 1. At fidelity 3 the line is at 12."""
    settings = copy.deepcopy(HEADLINE) | {
        "arms": {n: ARMS[n] for n in ("plain", "half", "third", "longer", "other_method")}
    }
    metrics = {
        "plain": measured(2.0, 20.0, 100),
        "half": measured(4.0, 8.0, 200),
        "third": measured(9.0, 1.0, 100),
        "longer": measured(1.0, 30.0, 100),
        "other_method": measured(3.0, 6.0, 300),
    }
    return settings, metrics


def test_the_page_says_where_each_arm_lies(experiment):
    settings, metrics = experiment
    view = trade_off.view(settings, metrics)
    assert "stopped early (third, half) by" in view.caption
    assert (
        "With ema weights, at equal fidelity, below the line: other_method; outside: more faithful than the baseline at any "
        "training length: longer." in view.caption
    )
    rows = {row["arm"]: row for row in view.rows}
    assert list(rows) == ["longer", "other_method"]
    # 2 % of its 300 images less 12 %; half widths 4/3 of the arm, and of the line half of 4 % and half of 2 %
    half_width = math.sqrt((4 / 3) ** 2 + 2**2 + 1**2)
    assert rows["other_method"] == {
        "arm": "other_method",
        "weights": "ema",
        "fd_pixels": "3",
        "excess %": "2",
        "line %": "12",
        "difference [95 %]": f"−10 [−{10 + half_width:.3g}, −{10 - half_width:.3g}]",
        "verdict": "below the line",
    }
    assert rows["longer"]["line %"] == rows["longer"]["difference [95 %]"] == "–"
    assert "this holds for these models, not yet for the methods" in view.caption  # one seed
    assert "not yet" not in trade_off.view(settings | {"seeds": [0, 1]}, metrics).caption


def test_both_kinds_of_weights_are_compared_the_headline_first(experiment):
    settings, metrics = experiment
    for arm_metrics in metrics.values():
        arm_metrics["raw"] = copy.deepcopy(arm_metrics["ema"])
    metrics["other_method"]["raw"]["fd_pixels"] = 100.0
    view = trade_off.view(settings, metrics)
    assert [row["weights"] for row in view.rows] == ["ema", "ema", "raw", "raw"]
    assert view.caption.index("With ema") < view.caption.index("With raw")
    assert (
        "less faithful than the baseline at any training length: other_method" in view.caption.partition("With raw")[2]
    )


def test_without_controls_or_held_out_images_the_page_says_so(experiment):
    settings, metrics = experiment
    cell = metrics["other_method"]["ema"]["code_sq"]["0.5"]
    cell.update(excess=None, excess_low=None, excess_high=None)
    assert trade_off.view(settings, metrics)[1:3] == (
        "There is no held-out set, so there is no excess to compare.",
        (),
    )
    del settings["arms"]["half"], settings["arms"]["third"]
    view = trade_off.view(settings, metrics)
    assert "No arm is the baseline plain trained for less" in view.caption and not view.rows
