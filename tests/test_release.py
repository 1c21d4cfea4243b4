"""Exporting a model: what diffusers loads makes the same images as the sample phase, and the card says what was measured."""

import json
from pathlib import Path
from types import SimpleNamespace

import diffusers.models.unets.unet_2d_condition  # noqa: F401  before the UNet of pixels, see stages.diffusion.unet
import numpy as np
import pytest
import release
import torch
import yaml
from conftest import TINY, Project, text_experiment

from stages import models, randomness
from stages.run import files


def test_the_released_model_makes_the_images_that_were_measured(finished, tmp_path):
    """The second part of the images of iet_agc_plus, 20 of 50 from image 20 on, from their own noise, by diffusers alone."""
    from diffusers import DDIMPipeline

    project = finished.copy(tmp_path / "project")
    said = project.run("python", "workflow/scripts/release.py", "iet_agc_plus", "--round", "2", "--weights", "ema").text
    folder = project.root / "release/iet_agc_plus-seed3-round2-ema"
    assert said.startswith("release/iet_agc_plus-seed3-round2-ema: excess ")
    pipeline = DDIMPipeline.from_pretrained(folder)
    pipeline.scheduler.set_timesteps(5)
    noise = [randomness.numpy_generator("sample", 3, i).standard_normal((1, 8, 8), np.float32) for i in range(20, 24)]
    x = torch.from_numpy(np.stack(noise))
    with torch.no_grad():
        for t in pipeline.scheduler.timesteps:
            x = pipeline.scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    made = (127.5 * (x.clamp(-1, 1) + 1)).round().permute(0, 2, 3, 1).numpy()
    parts = [
        np.load(project.root / f"artifacts/samples/iet_agc_plus-seed3/round2/part{p}/ema.npy").astype(int)
        for p in (0, 1)
    ]
    measured = np.concatenate(parts)[20:24]
    assert np.abs(made - measured).max() <= 1
    assert np.abs(made - measured[::-1]).max() > 5  # the images differ, so the check can fail

    card = (folder / "README.md").read_text()
    scores = json.loads((project.root / "artifacts/results/score/iet_agc_plus-seed3/round2/scores.json").read_text())
    assert "# iet_agc_plus, round 2, seed 3, ema weights" in card and "digits: 60 images, 1,737 held out" in card
    assert f"{scores['ema']['fd_pixels']:.4g} to the training images" in card
    assert f"{scores['ema']['fd_pixels_heldout']:.4g} to held-out images" in card
    assert "agc, 2 shard(s), round 2 of 2, 120 optimiser steps" in card
    assert "What this does not promise" in card and "[" in card[card.index("excess") :]
    again = project.run("python", "workflow/scripts/release.py", "iet_agc_plus", "--round", "2", check=False)
    assert again.returncode == 0  # of raw weights, the headline's: another folder
    again = project.run("python", "workflow/scripts/release.py", "iet_agc_plus", "--round", "2", check=False)
    assert again.returncode and "release/iet_agc_plus-seed3-round2-raw exists already" in again.text


def test_without_a_round_it_is_the_last_one_that_shows_no_copies(tmp_path, monkeypatch):
    """Rounds of 10, 25 and 45 steps in all shards and the mean of two seeds: the second is the one that the report names."""
    monkeypatch.chdir(tmp_path)
    arm = {"rounds": 3, "shard": {"num_shards": 2}, "redistribute": {}, "sample": {}}
    experiment = {"seeds": [3, 4], "sample_rounds": "all", "arms": {"a": arm}}
    for seed, steps in ((3, [[4, 5], [7, 7], [10, 10]]), (4, [[5, 6], [8, 8], [10, 10]])):
        for r, shards in enumerate(steps, start=1):
            for k, number in enumerate(shards):
                path = files.counts_file(f"a-seed{seed}", r, k)
                files.save_arrays(path, {"optimizer_steps": np.array([number])})
    for steps, expected in ((10, 1), (25, 2), (45, 3)):
        metrics = {"a": {"ema": {"rounds": {"last_without_copies": steps}}}}
        assert release._round(experiment, metrics, "a", "ema") == expected
    with pytest.raises(ValueError, match=r"every round of a shows copies .*\(ROUND=, one of 1, 2, 3\)"):
        release._round(experiment, {"a": {"ema": {}}}, "a", "ema")


def test_a_model_with_captions_is_a_pipeline_with_the_trained_unet(with_captions):
    """All parts but the UNet are those of model.pipeline."""
    from diffusers import StableDiffusionPipeline

    from stages.diffusion import weights

    experiment = text_experiment()
    with_captions(experiment)
    job = SimpleNamespace(phase="sample", params=experiment, arm="default", seed=0, device="cpu")
    network = models.build(job, "default").network
    random = np.random.default_rng(1)
    trained = {n: random.standard_normal(p.shape).astype(np.float32) for n, p in network.named_parameters()}
    files.save_arrays(files.folder("model", "default-seed0", 1) / "raw.safetensors", trained)
    release._save(job, 1, "raw", Path("made"))
    pipeline = StableDiffusionPipeline.from_pretrained("made", safety_checker=None)
    weights.load(network, trained, "the trained weights")
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    before = StableDiffusionPipeline.from_pretrained("model", safety_checker=None)
    assert all(torch.equal(a, b) for a, b in zip(pipeline.vae.parameters(), before.vae.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(pipeline.unet.parameters(), before.unet.parameters(), strict=True))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["dppm"], "ARM is dppm, expected one of the arms that are trained here: ddpm, iet_agc_plus"),
        (["ddpm", "--seed", "0"], "SEED is 0, expected one of 3"),
        (
            ["iet_agc_plus", "--round", "1"],
            "ROUND is 1, expected one of 2 (sample_rounds): only what was measured is released",
        ),
    ],
)
def test_what_was_not_measured_is_not_released(finished, tmp_path, words, told):
    project = finished.copy(tmp_path / "project")
    done = project.run("python", "workflow/scripts/release.py", *words, check=False)
    assert done.returncode and done.text == f"error: {told}\n" and not (project.root / "release").exists()


@pytest.mark.parametrize(
    ("rounds", "told"),
    [
        ([1, 3], "sample_rounds of iet_agc_plus names round 3, but the arm has 2 (arms.iet_agc_plus.rounds)"),
        ("every", "arms.iet_agc_plus.sample_rounds is 'every', expected one of all"),
        ([], "arms.iet_agc_plus.sample_rounds is empty, expected at least one entry"),
        ([2, 2], "arms.iet_agc_plus.sample_rounds is [2, 2], expected no value twice"),
        ([0], "arms.iet_agc_plus.sample_rounds.0 is 0, expected at least 1"),
    ],
)
def test_rounds_that_cannot_be_sampled_are_refused_before_anything_runs(tmp_path, rounds, told):
    tiny = yaml.safe_load(TINY)
    tiny["arms"]["iet_agc_plus"]["sample_rounds"] = rounds
    project = Project.create(tmp_path / "project", yaml.safe_dump(tiny, sort_keys=False))
    done = project.run("snakemake", "-n", check=False)
    assert done.returncode and told in done.text, done.text


@pytest.mark.parametrize("generator", [{"arm": "ddpm"}, {"folder": "theirs"}])
def test_an_arm_that_is_not_trained_here_has_no_rounds(tmp_path, generator):
    tiny = yaml.safe_load(TINY)
    tiny["arms"]["theirs"] = {"generator": generator, "sample": {}, "sample_rounds": "all"}
    project = Project.create(tmp_path / "project", yaml.safe_dump(tiny, sort_keys=False))
    done = project.run("snakemake", "-n", check=False)
    assert done.returncode and "unknown key arms.theirs.sample_rounds" in done.text, done.text
