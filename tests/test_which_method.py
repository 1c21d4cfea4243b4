"""The page that says which method to use: its table follows from the numbers of an experiment."""

import copy

import pytest
import which_method

from stages.report import trade_off

FOUND = {"verdict": "less", "difference": -0.0123, "low": -0.02, "high": -0.004, "best": 0.1, "worst": 0.2}
SETTINGS = {
    "seeds": [0, 1],
    "data": {"name": "digits", "num_train": 256},
    "score": {"headline": {"weights": "ema"}},
    "arms": {"plain": {}, "worse": {}, "better": {}, "short": {}, "theirs": {"generator": {"folder": "x"}}},
}


def entry(forward, **numbers):
    training = {"forward_images": forward}
    return {"num_images": 768, "training": training, "ema": {"fd_pixels_heldout": 0.15} | numbers}


@pytest.fixture
def metrics():
    worse = FOUND | {"verdict": "not told apart", "difference": 0.004, "low": -0.003, "high": 0.011}
    members = FOUND | {"difference": 0.05, "low": 0.01, "high": 0.09, "verdict": "more"}
    return {
        "plain": entry(1000),
        "worse": entry(1500, against_training_less=worse),
        "better": entry(2000, **{"against_training_less": FOUND, trade_off.OF_MEMBERSHIP: members}),
        "short": entry(1000, against_training_less={"verdict": None, "reason": "the curves do not meet"}),
        "theirs": {"num_images": 9, "ema": {}},
    }


def test_the_arm_with_the_least_excess_at_equal_fidelity_comes_first(metrics):
    lines = which_method.table(SETTINGS, metrics).splitlines()[2:]
    assert lines == [
        "| better | −1.2 [−2, −0.4] | less | +0.05 [+0.01, +0.09] | 0.15 | 2.00 |",
        "| plain | 0 | the baseline | 0 | 0.15 | 1.00 |",
        "| worse | +0.4 [−0.3, +1.1] | not told apart | – | 0.15 | 1.50 |",
        "| short | – | none: the curves do not meet | – | 0.15 | 1.00 |",
    ]


def test_one_seed_is_said_to_be_one(metrics):
    told = which_method.told(SETTINGS, metrics, "abcdef0123")
    assert told == "digits, 256 training images, 2 seeds, ema weights, 768 images a point; commit abcdef0."
    single = copy.deepcopy(SETTINGS) | {"seeds": [3]}
    assert "**One seed (3): the intervals hold for these models, and not for their methods.**" in which_method.told(
        single, metrics, None
    )


def test_the_page_has_a_place_for_the_table():
    text = which_method.PAGE.read_text(encoding="utf-8")
    assert text.index(which_method.START) < text.index(which_method.END)
