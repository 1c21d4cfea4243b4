"""Effective model memorisation: the experiments that are run, what is read of their results, and the largest size, by hand."""

import copy
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import ROOT, TINY, Project

from stages import experiments, rules
from stages.run import files
from stages.run import params as parameters

sys.path.insert(0, str(ROOT / "workflow/scripts"))
import emm
import seeds


def tiny(**changes):
    found = parameters.filled(yaml.safe_load(TINY) | changes)
    found["arms"]["ddpm"] |= {"rounds": 3, "sample_rounds": "all"}
    return found


def test_a_smaller_experiment_has_the_same_recipe_with_batches_and_neighbours_that_fit():
    whole = tiny(membership={"num_images": 8})
    before = copy.deepcopy(whole)
    found = emm.sized(whole, 9)
    assert whole == before and "membership" not in found
    assert found["data"]["num_train"] == 9 and found["score"]["neighbours"] == 4
    assert found["arms"]["ddpm"]["train"] == {"epochs": 10, "batch_size": 9}
    assert found["arms"]["iet_agc_plus"]["train"] == {"epochs": 10, "batch_size": 4}  # of two shards of 4 and 5
    rules.check(found)
    same = emm.sized(whole, 60)
    assert same["arms"] == whole["arms"] and same["score"] == whole["score"]
    with pytest.raises(ValueError, match="1 training images are fewer than the 2 shards of iet_agc_plus"):
        emm.sized(whole, 1)
    without = tiny()
    del without["data"]["num_train"]
    with pytest.raises(ValueError, match=r"data.num_train is missing"):
        emm.sized(without, 9)


AWAY = {"name": "amg", "start": 1.5, "level": 1.9, "strength": 1.0, "neighbours": 50}


def test_an_arm_that_samples_from_another_is_sized_too_and_one_from_elsewhere_is_left_out():
    """The neighbours of amg fit as those of the score do, whether the arm has them or all arms share them."""
    own = tiny()
    own["arms"] |= {
        "away": {"generator": {"arm": "ddpm"}, "sample": {"mitigation": AWAY}},
        "near": {"generator": {"arm": "ddpm"}, "sample": {"mitigation": AWAY | {"neighbours": 3}}},
        "theirs": {"generator": {"folder": "somewhere"}, "sample": {}},
    }
    shared = tiny()
    shared["sample"]["mitigation"] = AWAY
    before = copy.deepcopy(own)
    for num_train, most in ((2, 2), (9, 4), (60, 30), (200, 100)):
        found = emm.sized(own, num_train)
        rules.check(found)
        assert list(found["arms"]) == ["ddpm", "iet_agc_plus", "away", "near"]
        for arm, neighbours in (("away", 50), ("near", 3)):
            assert found["arms"][arm]["sample"]["mitigation"] == AWAY | {"neighbours": min(neighbours, most)}
        found = emm.sized(shared, num_train)
        rules.check(found)
        for arm in shared["arms"]:
            assert experiments.section(found, "sample", arm)["mitigation"]["neighbours"] == min(50, most)
    assert own == before
    own["arms"] = {"theirs": own["arms"]["theirs"]}
    with pytest.raises(ValueError, match="no arm is trained here"):
        emm.sized(own, 9)


def write_curves(folder, run, round_, shares):
    """shares   by kind of weights, of the protocol third"""
    rows = [
        {
            "weights": weights,
            "protocol": protocol,
            "threshold": threshold,
            "share": share if protocol == "third" else 1.0,
        }
        for weights, share in shares.items()
        for protocol, threshold in (("third", 1 / 3), ("code_sq", 0.3), ("l2_from_gen", 0.3))
    ]
    files.save_table(folder / files.folder("results/score", run, round_) / "curves.parquet", pd.DataFrame(rows))


def test_the_share_is_the_highest_of_the_rounds_with_the_headlines_weights(tmp_path):
    settings = tiny(seeds=[3, 5])  # headline: raw
    for seed in (3, 5):
        for r, share in ((1, 0.2), (2, 0.7 + seed / 100), (3, 0.4)):
            write_curves(tmp_path, f"ddpm-seed{seed}", r, {"ema": 0.99, "raw": share})
        write_curves(tmp_path, f"iet_agc_plus-seed{seed}", 2, {"raw": 0.1 * seed, "ema": 1.0})
    found = emm.shares(settings, tmp_path)[["arm", "seed", "round", "share"]].to_numpy().tolist()
    assert found == [
        ["ddpm", 3, 2, 0.73],
        ["ddpm", 5, 2, 0.75],
        ["iet_agc_plus", 3, 2, pytest.approx(0.3)],
        ["iet_agc_plus", 5, 2, 0.5],
    ]


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([1, 0.95, 0.9, 0.3], "32 to 64"),
        ([1, 0.89, 0.95, 0.3], "8 to 16"),  # what comes after the first that is not memorised is chance
        ([0.899, 1, 1, 1], "less than 8"),
        ([1, 1, 1, 0.91], "at least 64"),
    ],
)
def test_the_largest_size_that_is_memorised(shares, told):
    assert emm.largest(pd.DataFrame({"num_train": [8, 16, 32, 64], "share": shares})) == told


def test_all_sizes_are_run_in_copies_and_told_of(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parameters, "at_root", lambda: None)
    Path("params.yaml").write_text(yaml.safe_dump(tiny(seeds=[3, 5])))
    made = []

    def make(folder, experiment):
        made.append((str(folder), experiment["data"]["num_train"], experiment["seeds"]))

    def run(folder):
        num = int(folder.name.removeprefix("n"))
        for seed in (3, 5):
            for r in (1, 2, 3):
                write_curves(folder, f"ddpm-seed{seed}", r, {"raw": 0.95 if num < 30 else 0.1 * r, "ema": 0})
            write_curves(folder, f"iet_agc_plus-seed{seed}", 2, {"raw": 0.85 + 0.01 * seed, "ema": 0})
        return 0

    monkeypatch.setattr(seeds, "make", make)
    monkeypatch.setattr(seeds, "run", run)
    emm.main(["40", "8", "20", "8"])
    assert made == [(f"scratch/emm/n{num}", num, [3, 5]) for num in (8, 20, 40)]
    told = capsys.readouterr().out
    assert (
        "ddpm: memorised 95.0 % at 8, 95.0 % at 20, 30.0 % at 40; memorises 90 % up to a training set of 20 to 40"
        in told
    )
    assert "iet_agc_plus: memorised 89.0 % at 8" in told and "a training set of less than 8" in told
    table = pd.read_csv("scratch/emm/emm.csv")
    assert list(table.columns) == ["arm", "seed", "num_train", "round", "share"] and len(table) == 12
    assert "<svg" in Path("scratch/emm/emm.svg").read_text()
    for words in ([], ["8", "x"], ["0"]):
        with pytest.raises(ValueError, match="expected numbers of training images, such as 8 16 32 64"):
            emm.main(words)


@pytest.mark.slow
def test_a_real_sweep_has_the_shares_of_its_score_tables(tmp_path):
    """Two sizes through all stages, counted anew from the squared distances of each image: an image is memorised where 9 D_1 < D_2."""
    experiment = yaml.safe_load(TINY)
    experiment["train"] |= {"dropout": 0.0, "learning_rate": 4.0e-3}
    experiment["sample"] |= {"num_images": 24, "parts": 1, "batch_size": 24, "num_steps": 10, "protocol": "clean"}
    experiment["arms"] = {
        "ddpm": experiment["arms"]["ddpm"] | {"rounds": 2, "sample_rounds": "all", "train": {"steps": 400}},
        "away": {"generator": {"arm": "ddpm"}, "sample": {"mitigation": AWAY | {"strength": 0.2}}},
    }
    project = Project.create(tmp_path, yaml.safe_dump(experiment, sort_keys=False))
    done = project.run("python", "workflow/scripts/emm.py", "12", "4", timeout=3600)
    expected = []
    for num in (4, 12):
        for arm, rounds in (("ddpm", (1, 2)), ("away", (2,))):
            shares = {}
            for r in rounds:
                folder = tmp_path / f"scratch/emm/n{num}" / files.folder("results/score", f"{arm}-seed3", r)
                images = files.load_table(folder / "images.parquet")
                images = images[images.weights == "raw"]
                assert len(images) == 24 and images.nearest_train.max() < num
                shares[r] = (9 * images.d1 < images.d2).mean()
            best = max(shares, key=shares.get)
            expected.append((arm, 3, num, best, pytest.approx(shares[best], abs=1e-5)))
    found = pd.read_csv(tmp_path / "scratch/emm/emm.csv")
    assert list(found.itertuples(index=False, name=None)) == expected
    ddpm_4, away_4, ddpm_12, away_12 = found.share
    assert ddpm_4 > ddpm_12 and ddpm_4 > away_4 > 0
    assert f"ddpm: memorised {100 * ddpm_4:.1f} % at 4, {100 * ddpm_12:.1f} % at 12; memorises 90 %" in done.text
    assert f"away: memorised {100 * away_4:.1f} % at 4, {100 * away_12:.1f} % at 12; memorises 90 %" in done.text
