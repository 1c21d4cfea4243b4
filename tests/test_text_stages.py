"""Stages of the text-conditioned half, called in one process on a tiny model."""

from conftest import text_experiment

from stages import aggregate, files, report, train

RUN = ["--arm", "default", "--seed", "0"]


def trained():
    train.main([*RUN, "--round", "1", "--shard", "0"])
    aggregate.main([*RUN, "--round", "1"])


def test_captions_that_are_cut_stand_in_the_counts_of_training(with_captions):
    experiment = text_experiment()
    experiment["arms"]["default"]["train"] = {"steps": 2}
    with_captions(experiment, [["cross " * 80]] + [[f"a {i}"] for i in range(11)])
    trained()
    rounds = files.load_counts(experiment["arms"]["default"], "default-seed0")
    assert report.totals(rounds)["spent.captions_cut"] == 1
