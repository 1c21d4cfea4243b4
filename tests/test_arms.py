"""Arms beyond those of the tiny experiment, through snakemake: every method, one of one's own, generators from elsewhere."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, TINY, Project, run_stages
from PIL import Image
from safetensors.numpy import load_file

OWN_METHOD = '''"""Min-SNR weighting (Hang et al. 2023): losses weighed by min(SNR, gamma) / SNR."""

from stages.methods import base

SETTINGS = {
    "required": ["gamma"],
    "properties": {"gamma": {"description": "largest signal-to-noise ratio", "type": "number", "exclusiveMinimum": 0}},
}


class Method(base.Method):
    def losses(self, step):
        loss = step.sample_losses(self.images(step))
        snr = step.alpha_bar[step.t] / (1 - step.alpha_bar[step.t])
        return base.Losses((loss * snr.clamp(max=self.settings["gamma"]) / snr).mean(), loss.detach())
'''


@pytest.fixture(scope="module")
def extended(finished, tmp_path_factory):
    """The finished run with an arm of a new method, and with DDPM's own images as those of somebody else."""
    project = finished.copy(tmp_path_factory.mktemp("extended") / "project")
    (project.root / "stages/methods/min_snr.py").write_text(OWN_METHOD)
    samples = [np.load(project.root / f"artifacts/samples/ddpm-seed3/round1/part{p}/raw.npy") for p in range(2)]
    (project.root / "elsewhere").mkdir()
    for i, image in enumerate(np.concatenate(samples)):
        Image.fromarray(image[:, :, 0]).save(project.root / f"elsewhere/{i:04}.png")
    project.edit(score__thresholds=[0.4, 0.5, 0.6, 0.8])
    project.edit(
        score__headline={"protocol": "code_sq", "threshold": 0.8, "weights": "raw"}
    )  # so short a training leaks little
    arms = project.params()["arms"]
    arms["mine"] = {**arms["ddpm"], "method": {"name": "min_snr", "gamma": 2.0}, "train": {"epochs": 3}}
    arms["theirs"] = {"generator": {"folder": "elsewhere"}, "sample": {}}
    project.edit(arms=arms)
    project.planned = project.run("snakemake", "-n").text
    project.output = project.run("snakemake").text
    return project


def test_the_audit_of_a_folder_equals_the_scores_of_the_arm_that_made_it(extended):
    ours, theirs = (extended.root / f"artifacts/results/score/{run}" for run in ("ddpm-seed3/round1", "theirs-seed3"))
    for name in ("images", "curves"):
        expected, found = (pd.read_parquet(folder / f"{name}.parquet") for folder in (ours, theirs))
        expected = expected[expected.weights == "raw"].reset_index(drop=True)
        if name == "images":
            files_of_images = found.pop("generated").tolist()
            assert len(set(files_of_images)) == 50 and files_of_images == sorted(files_of_images)
        assert len(expected) == {"images": 50, "curves": 42}[name]
        pd.testing.assert_frame_equal(found, expected)
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (ours, theirs)]
    assert scores[0].pop("ema") and scores[0] == scores[1]
    metrics = json.loads((extended.root / "artifacts/report/summary.json").read_text())
    ours = {name: value for name, value in metrics["ddpm"]["raw"].items() if name != "rounds"}
    assert metrics["theirs"]["raw"] == ours and "training" not in metrics["theirs"]


def test_a_generator_from_elsewhere_is_not_trained_and_leaves_other_arms_alone(extended):
    assert "theirs" not in "".join(name for name in extended.lock() if name.startswith(("train", "shard", "aggregate")))
    assert "sample ddpm" not in extended.planned and "train iet_agc_plus" not in extended.planned
    assert extended.output.count("theirs") and "up to date" in extended.run("dvc", "status").text
    assert (extended.root / "report.html").read_text().count("theirs") > 3


def test_the_leaks_of_a_generator_from_elsewhere_are_listed(extended):
    leaks = pd.read_parquet(extended.root / "artifacts/report/leaks.parquet")
    columns = ["index", "key", "count", "best_ratio", "twin"]
    ours, theirs = (leaks[(leaks.arm == arm) & (leaks.weights == "raw")][columns] for arm in ("ddpm", "theirs"))
    assert len(ours) > 0
    pd.testing.assert_frame_equal(ours.reset_index(drop=True), theirs.reset_index(drop=True))


def test_a_method_in_a_new_file_is_an_arm_like_any_other(extended):
    metrics = json.loads((extended.root / "artifacts/report/summary.json").read_text())
    assert metrics["mine"]["training"]["optimizer_steps"] == 18 and metrics["mine"]["raw"]["fd_pixels"] > 0
    lock = extended.lock()["train@mine-seed3-round1-shard0"]
    assert "stages/methods/min_snr.py" in [dep["path"] for dep in lock["deps"]]
    extended.edit(arms__mine__method__gamma=-1)
    told = extended.run("snakemake", "-n", check=False)
    assert told.returncode != 0
    assert "arms.mine.method.gamma is -1, expected more than 0 (largest signal-to-noise ratio)" in told.text
    extended.edit(arms__mine__method__gamma=2.0)


def test_editing_one_method_retrains_its_arms_only(extended):
    file = extended.root / "stages/methods/agc/augmentation.py"
    text = file.read_text()
    file.write_text(text + "\n# edited\n")
    planned = extended.run("snakemake", "-n").text
    file.write_text(text)
    assert "train iet_agc_plus" in planned
    assert "train ddpm" not in planned and "train mine" not in planned and "sample theirs" not in planned


@pytest.mark.slow
def test_an_audit_alone_needs_no_training(extended, tmp_path):
    project = extended.copy(tmp_path / "project")
    arms = project.params()["arms"]
    project.edit(arms={"theirs": arms["theirs"]})
    project.run("snakemake")
    assert set(json.loads((project.root / "artifacts/report/summary.json").read_text())) == {"theirs"}
    assert "theirs" in (project.root / "report.html").read_text()
    assert "up to date" in project.run("dvc", "status").text


def test_a_generator_that_is_not_there_is_told_before_anything_runs(extended):
    extended.edit(arms__theirs__generator__folder="nowhere")
    told = extended.run("snakemake", "-n", check=False)
    extended.edit(arms__theirs__generator__folder="elsewhere")
    assert told.returncode != 0
    assert "nowhere, from which arms.theirs.generator takes its images, does not exist (params.yaml)" in told.text


@pytest.fixture(scope="module")
def every_method(tmp_path_factory, one_thread):
    """The arms of experiments/tiny/digits.yaml that the tiny experiment of conftest does not have, cut short, with classes.

    Stage by stage in this process, as 80 starts of torch take minutes; the slow test below runs all arms through snakemake.
    """
    experiment = yaml.safe_load((ROOT / "experiments/tiny/digits.yaml").read_text())
    experiment["model"]["class_conditional"] = True
    for arm in ("ddpm", "iet_agc_plus"):
        experiment["arms"].pop(arm)
    for arm in ("iet", "iet_agc", "iet_agc_taa"):
        experiment["arms"][arm]["rounds"] = 1
    for arm in (
        "timestep_focus",
        "timestep_focus_late",
        "told_augmentation",
        "ambient_high",
        "mean_of_predictions",
        "distill_md",
    ):
        experiment["arms"][arm]["train"]["epochs"] = 4
    away = {
        "name": "amg",
        "start": 1.99,
        "level": 2.0,
        "strength": 1.0,
        "neighbours": 20,
    }  # so short a training copies nothing
    experiment["arms"]["agc_amg"] = {"generator": {"arm": "agc"}, "sample": {"mitigation": away}}
    experiment["sample"] |= {"num_images": 30, "weights": ["raw"]}
    experiment["score"]["headline"]["weights"] = "raw"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("every"))
        run_stages(experiment)
        return SimpleNamespace(root=Path.cwd(), metrics=json.loads(Path("artifacts/report/summary.json").read_text()))


TWO_ROUNDS = ("iet_agc_plus_random", "iet_agc_plus_told", "mean_of_predictions")


def last_round(arm):
    return "round2" if arm in TWO_ROUNDS else "round1"


def test_every_method_trains_samples_and_scores(every_method):
    assert list(every_method.metrics) == [
        "added_noise", "dp_sgd", "ambient", "timestep_focus", "timestep_focus_late", "told_augmentation", "ambient_high", "agc", "iet", "iet_agc", "iet_agc_taa", "iet_agc_plus_random", "iet_agc_plus_told", "mean_of_predictions", "distill_md", "agc_amg",
    ]  # fmt: skip
    images = {}
    for arm, metrics in every_method.metrics.items():
        assert metrics["raw"]["fd_pixels"] > 0 and metrics["num_images"] == 30
        images[arm] = np.load(every_method.root / f"artifacts/samples/{arm}-seed12/{last_round(arm)}/part0/raw.npy")
        assert images[arm].std() > 1  # not one grey
    names = list(images)
    for i, one in enumerate(names):
        assert all(not np.array_equal(images[one], images[other]) for other in names[i + 1 :]), one


def test_every_method_is_told_the_classes(every_method):
    labels = {}
    for arm in every_method.metrics:
        labels[arm] = np.load(every_method.root / f"artifacts/samples/{arm}-seed12/{last_round(arm)}/part0/labels.npy")
        made_by = "agc" if arm == "agc_amg" else arm
        weights = load_file(every_method.root / f"artifacts/model/{made_by}-seed12/round1/raw.safetensors")
        of_told = "class_embedding.classes.weight"  # of a network that is told more than the class
        weights = {
            name.removeprefix("members.0."): array for name, array in weights.items()
        }  # of models that are trained apart
        embedding = weights[of_told if of_told in weights else "class_embedding.weight"]
        assert embedding.shape[0] == 10 and np.abs(embedding).max() > 0, arm
    assert set(labels["agc"]) <= set(range(10)) and len(set(labels["agc"])) > 6
    assert all(np.array_equal(found, labels["agc"]) for found in labels.values())  # two arms ask for the same


def test_arms_that_skip_augment_or_move_did_and_others_did_not(every_method):
    did = {
        name: {
            arm for arm, metrics in every_method.metrics.items() if arm != "agc_amg" and metrics["training"][key] > 0
        }
        for name, key in (("skip", "skipped_share"), ("augment", "augmented_share"), ("move", "moved"))
    }
    assert did["skip"] == {"agc", "iet_agc", "iet_agc_taa", "iet_agc_plus_random", "iet_agc_plus_told"}
    assert did["augment"] == {"iet_agc_taa", "iet_agc_plus_random", "iet_agc_plus_told"}
    assert did["move"] == {"iet_agc_plus_random", "iet_agc_plus_told"}


def test_the_epsilon_that_was_spent_is_reported(every_method):
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(0.0005, 10 / 60, 120)]
    with pytest.warns(UserWarning, match="alpha"):
        expected = accountant.get_epsilon(1e-5)
    trained = {arm: metrics for arm, metrics in every_method.metrics.items() if arm != "agc_amg"}
    spent = {arm: metrics["training"].get("spent") for arm, metrics in trained.items()}
    assert spent.pop("dp_sgd") == {"epsilon": pytest.approx(expected, rel=1e-5)}
    assert set(spent.values()) == {None}
    assert "epsilon" in (every_method.root / "report.html").read_text()


@pytest.mark.slow
def test_the_whole_tiny_experiment_of_every_arm(tmp_path):
    project = Project.create(tmp_path / "project", (ROOT / "experiments/tiny/digits.yaml").read_text())
    project.run("snakemake", timeout=3000)
    metrics = json.loads((project.root / "artifacts/report/summary.json").read_text())
    assert list(metrics) == list(project.params()["arms"])
    assert all(found["raw"]["fd_pixels"] > 0 for found in metrics.values())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_one_recipe_under_two_names_is_not_told_apart(tmp_path, monkeypatch, one_thread, seed):
    """The draws of training and sampling are keyed by seed, so the models are the same, and what they share cancels to nothing."""
    experiment = yaml.safe_load(TINY)
    recipe = experiment["arms"]["ddpm"] | {"rounds": 3, "train": {"epochs": 20}}
    experiment |= {"seeds": [seed], "arms": {"one": recipe, "two": recipe}, "sample_rounds": "all"}
    experiment["sample"] |= {"num_images": 60, "weights": ["ema"], "parts": 1}
    experiment["score"]["headline"] = {"protocol": "l2_from_gen", "threshold": 0.6, "weights": "ema"}
    monkeypatch.chdir(tmp_path)
    run_stages(experiment)
    found = json.loads(Path("artifacts/report/summary.json").read_text())["two"]["ema"]["against_training_less"]
    assert found["verdict"] == "not told apart", found
    assert (
        found["difference"] == 0 and found["low"] == -found["high"] < 0
    )  # what 60 images without a difference leave open
