"""The first page: each answer in words, from numbers that are planted."""

import copy

import pytest

from stages.report.sections import in_short

SETTINGS = {
    "seeds": [0],
    "score": {"headline": {"protocol": "l2_from_gen", "threshold": 0.5, "weights": "ema"}},
    "arms": {"plain": {}, "ours": {}, "theirs": {"generator": {"folder": "x"}}},
}


NONE = dict.fromkeys(SETTINGS["arms"], 0)  # no image is leaked with confidence


def cell(count, excess, low, high, distinct=3):
    return {"count": count, "distinct": distinct, "excess": excess, "excess_low": low, "excess_high": high}


def entry(cell, fidelity=(0.3, 0.4), verdict=None, last=None):
    found = {"l2_from_gen": {"0.5": cell}, "fd_pixels": fidelity[0], "fd_pixels_heldout": fidelity[1]}
    if verdict:
        found["against_training_less"] = {"verdict": verdict}
    return found | {"rounds": {"last_without_copies": last}}


@pytest.fixture
def metrics():
    theirs = entry(cell(0, 0.0, -3.1, 3.1))
    del theirs["rounds"]
    return {
        "plain": {
            "num_images": 1024,
            "fd_mean_image": 5.0,
            "raw": entry(cell(90, 70.2, 50.4, 92.1), (0.2, 0.3), last=440),
            "ema": entry(cell(170, 111.0, 85.9, 136.2), (0.1, 0.3), last=880),
        },
        "ours": {
            "num_images": 512,
            "fd_mean_image": 5.0,
            "raw": entry(cell(20, 12.0, 3.2, 21.0), (0.2, 0.2), "more"),
            "ema": entry(cell(21, 6.0, -1.5, 14.5), (0.2, 0.2), "less", last=1760),
        },
        "theirs": {"num_images": 128, "fd_mean_image": 5.0, "ema": theirs},
    }


def test_the_answer_names_who_gives_images_out_and_of_whom_it_is_not_shown(metrics):
    told = in_short.answer(SETTINGS, metrics, NONE)
    assert told == (
        "Training images are given out by plain. Of ours and theirs it is not shown, which is no proof that they give out none."
    )
    metrics["theirs"]["ema"]["l2_from_gen"]["0.5"] |= {"excess": None, "excess_low": None, "excess_high": None}
    assert "is not known" in in_short.answer(SETTINGS, metrics, NONE)


@pytest.mark.parametrize(
    ("numbers", "num_images", "told"),
    [
        ((170, 111.0, 85.9, 136.2), 1024, "about 111 of 1,024 generated images (95 %: 85 to 137)"),
        (
            (0, 0.0, -3.1, 3.1),
            128,
            "none found in 128 generated images: at most about 3 in 128 may still be copies (95 % limit)",
        ),
        (
            (21, 6.0, -1.5, 14.5),
            512,
            "not shown: 21 of 512 look like copies, about 15 would by chance; up to about 15 is",
        ),
        ((7, None, None, None), 90, "7 of 90 look like copies; how many do so by chance is not known"),
        ((5, -4.0, -12.0, -1.0), 90, "not shown: 5 of 90 look like copies, about 9 would by chance; up to about 0 is"),
    ],
)
def test_how_many_are_given_out_in_words(numbers, num_images, told):
    assert in_short.given_out(cell(*numbers), num_images, 0).startswith(told)


def test_a_model_that_is_too_little_trained_is_no_evidence(metrics):
    assert in_short.too_little_trained(SETTINGS, metrics, NONE) == []
    metrics["ours"]["ema"]["fd_pixels_heldout"], metrics["theirs"]["ema"]["fd_pixels_heldout"] = 2.4, 2.6
    (told,) = in_short.too_little_trained(SETTINGS, metrics, NONE)
    assert told.startswith(
        "theirs is too little trained to conclude anything: fd_pixels_heldout is 2.6, and one average image over and over would have 5."
    )
    metrics["theirs"]["ema"]["l2_from_gen"]["0.5"] |= {
        "excess_low": 0.4
    }  # copies that are shown are an answer all the same
    assert in_short.too_little_trained(SETTINGS, metrics, NONE) == []
    metrics["ours"]["ema"] |= {"fd_pixels": 2.7, "fd_pixels_heldout": None}
    (told,) = in_short.too_little_trained(SETTINGS, metrics, NONE)
    assert "fd_pixels is 2.7" in told
    assert in_short.too_little_trained(SETTINGS, metrics, NONE | {"ours": 1}) == []


def test_images_that_are_made_to_lower_the_count_are_named():
    away, rt = {"mitigation": {"name": "amg"}}, {"mitigation": {"name": "rt"}}
    arms = {
        "plain": {"sample": {}},
        "away": {"sample": away},
        "other": {"sample": rt},
        "again": {"generator": {"arm": "plain"}, "sample": away},
        "theirs": {"generator": {"folder": "x"}, "sample": {}},
    }
    (told,) = in_short.guided_away(SETTINGS | {"arms": arms})
    assert told.startswith(
        "Images of away and again were moved away from the training images by the very ratio that copies are counted by"
    )
    shared = in_short.guided_away(SETTINGS | {"arms": arms, "sample": away})
    assert shared[0].startswith(
        "Images of plain, away and again were moved"
    )  # what others have made is not of this project
    assert in_short.guided_away(SETTINGS | {"arms": {"plain": {"sample": {}}}}) == []


def test_which_state_may_go_out(metrics):
    def told(arm, weights="ema", num_leaked=0):
        return in_short.may_go_out(SETTINGS, metrics, arm, weights, num_leaked)

    assert (told("plain"), told("plain", "raw"), told("ours"), told("ours", "raw")) == (
        "step 880",
        "step 440",
        "step 1,760",
        "none of those measured",
    )
    assert told("plain", num_leaked=1) == "step 880"
    assert told("theirs") == "nothing speaks against it" and told("theirs", num_leaked=1) == "no"
    metrics["theirs"]["ema"]["l2_from_gen"]["0.5"]["excess_low"] = 0.1
    assert told("theirs") == "no"


def test_opposite_answers_are_all_told(metrics):
    told = in_short.contradictions(SETTINGS, metrics)
    assert told == [
        "The two kinds of weights of ours disagree: with raw weights it gives out training images, with ema weights that is not shown.",
        "ours memorises less than training less with ema weights, and more with raw weights.",
        "plain comes closest to the training images, ours to images that no model has seen. The second counts: copies bring a model "
        "closer to its training images.",
    ]
    agreed = copy.deepcopy(metrics)
    agreed["ours"]["raw"] = agreed["ours"]["ema"]
    agreed["plain"]["ema"]["fd_pixels_heldout"] = 0.1
    assert in_short.contradictions(SETTINGS, agreed) == []


def test_what_to_do_next(metrics):
    stop, earlier, more = in_short.next_steps(SETTINGS, metrics, NONE)
    assert stop.startswith("Do not release plain as trained to the end.") and "leaks.csv" in stop
    assert earlier == "An earlier state may go out: make release ARM=plain"
    assert more.startswith(
        "Of ours and theirs, up to 2.8 % of the images could still be copies."
    )  # 14.5 of 512, not 3.1 of 128
    metrics["plain"]["ema"]["rounds"]["last_without_copies"] = None
    assert not any("make release" in step for step in in_short.next_steps(SETTINGS, metrics, NONE))


def test_images_that_surely_leaked_are_told_though_the_interval_of_their_number_holds_0(metrics):
    sure = NONE | {"theirs": 2}
    told = in_short.answer(SETTINGS, metrics, sure)
    assert told.startswith("Training images are given out by plain and theirs. Of ours it is not shown")
    assert in_short.next_steps(SETTINGS, metrics, sure)[0].startswith("Do not release plain and theirs")
    told = in_short.given_out(cell(20, 15.8, -1.2, 27.6), 200, 20)
    assert told.startswith(
        "20 training images for sure: 20 of 200 look like copies, about 4 would by chance; up to about 28"
    )
