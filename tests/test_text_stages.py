"""Stages of the text-conditioned half, called in one process on a tiny model and data that are made here."""

import numpy as np
import pytest
import test_text_metrics
import tiny_sd

from stages import aggregate, files, report, train

RUN = test_text_metrics.RUN
ROUND = [*RUN, "--round", "1"]
COLOURS = ["red", "blue", "green", "white", "yellow", "purple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    tiny_sd.build(path, "D")
    return path


@pytest.fixture
def prepared(folder, tmp_path, monkeypatch):
    """The working folder with 12 training images, their captions and one shard; returns prepare(experiment, captions)."""
    monkeypatch.chdir(tmp_path)

    def prepare(experiment, captions=None, heldout=()):
        experiment["model"]["pipeline"] = str(folder)
        experiment["arms"]["default"]["train"] |= {"steps": 2}
        experiment["arms"]["default"]["train"].pop("epochs", None)
        test_text_metrics.write(experiment)
        toys = [image for image, _ in tiny_sd.toy_images(12, 32)]
        files.save_array(files.DATA / "train.npy", np.stack(toys))
        files.save_array(
            files.DATA / "heldout.npy",
            np.stack([255 - image for image in toys[: len(heldout)]] or [toys[0]])[: len(heldout)],
        )
        files.save_array(files.DATA / "train_labels.npy", np.zeros(12, np.int64))
        files.write_json(files.DATA / "keys.json", {"train": [f"{i}.png" for i in range(12)], "heldout": []})
        captions = captions or [[f"a {COLOURS[i % 6]} {'square' if i < 6 else 'circle'}"] for i in range(12)]
        files.write_json(files.DATA / "captions.json", {"train": captions, "heldout": [[text] for text in heldout]})
        files.save_array(files.shards_dir("default-seed0", 1) / "shard0.npy", np.arange(12))

    return prepare


def trained():
    train.main([*ROUND, "--shard", "0"])
    aggregate.main(ROUND)


def test_captions_that_are_cut_stand_in_the_counts_of_training(prepared):
    experiment = test_text_metrics.text_experiment()
    prepared(experiment, [["cross " * 80]] + [[f"a {i}"] for i in range(11)])
    trained()
    rounds = files.load_counts(experiment["arms"]["default"], "default-seed0")
    assert report.totals(rounds)["spent.captions_cut"] == 1
