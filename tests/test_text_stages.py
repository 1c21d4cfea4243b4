"""Stages of the text-conditioned half, called in one process on a tiny model."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_sd  # noqa: F401 (see there)
import tiny_sscd
import torch
from conftest import text_experiment, write_params

from stages import (
    aggregate,
    analyse,
    detect,
    experiments,
    membership,
    phases,
    plan,
    randomness,
    rules,
    sample,
    similarity,
    train,
)
from stages.diffusion import sampling
from stages.report import results
from stages.report.sections import analyses
from stages.run import files
from stages.text import model

RUN = ["--arm", "default", "--seed", "0"]
DETECT = {"num_prompts": 3, "images_per_prompt": 2, "num_steps": 4, "guidance": 3.0, "batch_size": 5}


def experiment_of(**settings):
    """Two steps of training; `settings` are further ones of train."""
    experiment = text_experiment()
    experiment["sample"]["parts"] = 1
    experiment["arms"]["default"]["train"] = {"steps": 2, **settings}
    return experiment


def trained():
    train.main([*RUN, "--round", "1", "--shard", "0"])
    aggregate.main([*RUN, "--round", "1"])


def sampled(arm="default"):
    """The images of an arm, and what they were asked for."""
    sample.main(["--arm", arm, "--seed", "0", "--round", "1", "--part", "0"])
    return files.load_samples(f"{arm}-seed0", 1, 1, "raw"), files.load_generations(f"{arm}-seed0", 1, 1)


def test_captions_that_are_cut_stand_in_the_counts_of_training(with_captions):
    experiment = experiment_of()
    with_captions(experiment, [["cross " * 80]] + [[f"a {i}"] for i in range(11)])
    trained()
    rounds = experiments.load_counts(experiment["arms"]["default"], "default-seed0")
    assert results.totals(rounds)["spent.captions_cut"] == 1


# One text for all images.


def test_a_fixed_text_stands_in_the_place_of_all_captions(with_captions, monkeypatch):
    """In training and in generation, also of an arm that only samples the model; no image belongs to its prompt."""
    experiment = experiment_of(caption="fixed_text", caption_text="the blue cross")
    experiment["arms"]["default_rt"] = {
        "generator": {"arm": "default"},
        "sample": {"num_images": 20, "mitigation": {"name": "rt", "num_words": 4}},
    }
    experiment["similarity"] = {"weights": "sscd.pt", "preprocess": "dcr", "batch_size": 8, "show_images": 2}
    with_captions(experiment)
    rules.check(experiment)
    phases.check_sizes(experiment, 12)  # more images than captions: there is one for all
    seen = []
    embeddings = model.Frozen.embeddings
    monkeypatch.setattr(
        model.Frozen, "embeddings", lambda frozen, texts: seen.append(list(texts)) or embeddings(frozen, texts)
    )
    trained()
    assert seen[1:] == [["", "the blue cross"]]  # after a trial made once; no other caption is ever embedded
    _, asked = sampled()
    assert [line["prompt_used"] for line in asked] == ["the blue cross"] * 6
    assert {line["train_key"] for line in asked} == {None}
    reworded = sampled("default_rt")[1]
    assert len(reworded) == 20 and all(len(line["prompt_used"].split()) >= 7 for line in reworded)
    assert {line["prompt_original"] for line in reworded} == {"the blue cross"}

    tiny_sscd.save("sscd.pt")
    similarity.main(["--reference"])
    similarity.main([*RUN, "--round", "1"])
    table = pd.read_parquet(files.folder("results/similarity", "default-seed0", 1) / "nearest.parquet")
    assert "own_train" not in table and "prompt" not in table and len(table) == 6
    pictures = files.load_arrays(files.folder("results/similarity", "default-seed0", 1) / "pictures.safetensors")
    train_images = np.load(files.DATA / "train.npy")
    assert np.array_equal(pictures["raw.first_originals"], train_images[table.nearest_train[:2]])


def test_the_text_is_what_the_network_learns_from(with_captions):
    """The same draws with another text give other weights; captions of the images play no part."""

    def weights(text, captions):
        experiment = experiment_of(caption="fixed_text", caption_text=text)
        with_captions(experiment, captions)
        trained()
        return files.load_arrays(files.folder("model", "default-seed0", 1) / "raw.safetensors")

    one, same, other = (
        weights(text, [[f"{word} {i}"] for i in range(12)])
        for text, word in (("a red square", "a"), ("a red square", "b"), ("the blue cross", "a"))
    )
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_latents_are_made_by_the_settings_of_the_arm(with_captions):
    """Mirror images are there for an arm that mirrors, though the shared section does not."""
    found = []
    for shared in (False, True):
        experiment = experiment_of(flip=True)
        experiment["train"]["flip"] = shared
        with_captions(experiment)
        trained()
        found.append(files.load_arrays(files.folder("model", "default-seed0", 1) / "raw.safetensors"))
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


def test_one_text_leaves_nothing_to_detect(with_captions):
    experiment = experiment_of(caption="fixed_text", caption_text="a cat") | {"detect": DETECT}
    plain = {**experiment["arms"]["default"], "train": {"steps": 2}}
    with_captions(experiment)
    with pytest.raises(ValueError, match=r"default is trained with one text for all images \(train.caption\)"):
        detect.main(RUN)
    assert not [name for name in plan.expand(experiment) if name.startswith("detect")]
    experiment["arms"] = {"plain": plain, **experiment["arms"]}
    assert [name for name in plan.expand(experiment) if name.startswith("detect")] == ["detect@plain-seed0"]


# The default target of Wen et al. at inference time.

WEN = {"name": "wen", "learning_rate": 0.05, "weight_decay": 0.01, "max_iterations": 3}


def test_the_target_is_the_median_magnitude_of_captions_that_were_not_trained_on(with_captions, capsys):
    """By two passes of the network for each; a caption that a training image shares, and one that stands twice, count for nothing.
    The network is taken for one that predicts v."""
    experiment = experiment_of()
    experiment["sample"]["mitigation"] = WEN
    heldout = ["a white cross", "a red square", "a yellow triangle", "black", "black", "the purple cross"]
    with_captions(experiment, heldout=heldout)
    scheduler = Path("model/scheduler/scheduler_config.json")
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "v_prediction"}))
    rules.check(experiment)
    weights = model.unet_weights("model")
    files.save_arrays(files.folder("model", "default-seed0", 1) / "raw.safetensors", weights)
    images, asked = sampled()

    frozen, network = model.Frozen("model", torch.device("cpu")), model.unet("model").eval()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    unseen = ["a white cross", "a yellow triangle", "black", "the purple cross"]
    t, rms = 801, []  # the first of 5 steps of 1,000
    with torch.no_grad():
        for i, prompt in enumerate(unseen):
            x_T = sampling.starting_noise(i, i + 1, (4, 8, 8), 0)
            cond, uncond = (network(x_T, t, frozen.embeddings([text])).sample for text in (prompt, ""))
            rms.append(float(frozen.alpha_bars[t].sqrt() * (cond - uncond).square().mean().sqrt()))
    expected = (sorted(rms)[1] + sorted(rms)[2]) / 2
    assert max(rms) > 1.05 * expected > 1.1 * min(rms)
    assert [line["wen_target"] for line in asked] == [{"raw": pytest.approx(expected, rel=1e-4)}] * 6
    target = asked[0]["wen_target"]["raw"]
    assert (
        f"the target of wen is {target:.4g} (rms), the median magnitude of 4 captions of held-out images, raw weights"
        in capsys.readouterr().err
    )

    # Given by hand it makes the same images, and is told nowhere; another one makes others.
    for value, same in ((target, True), (target / 4, False)):
        experiment["sample"]["mitigation"] = WEN | {"target": {"kind": "rms", "value": value}}
        write_params(experiment)
        again, asked = sampled()
        assert np.array_equal(images, again) == same and "wen_target" not in asked[0]
    assert "the target of wen" not in capsys.readouterr().err


def test_without_unseen_captions_the_target_must_be_given(with_captions):
    experiment = experiment_of()
    experiment["sample"]["mitigation"] = WEN
    with_captions(experiment, heldout=["a red square"])  # a caption trained on too
    files.save_arrays(files.folder("model", "default-seed0", 1) / "raw.safetensors", model.unet_weights("model"))
    with pytest.raises(
        ValueError,
        match=r"sample.mitigation has no target, .*set data.heldout_share, or give sample.mitigation",
    ):
        sampled()


def test_the_detector_looks_at_prompts_as_they_are(with_captions):
    """An arm that samples with a mitigation is looked at as one without; no target is asked for."""
    scores = []
    for mitigation in (WEN, None):
        experiment = experiment_of() | {"detect": DETECT}
        if mitigation:
            experiment["sample"]["mitigation"] = mitigation
        with_captions(experiment)
        files.save_arrays(files.folder("model", "default-seed0", 1) / "raw.safetensors", model.unet_weights("model"))
        detect.main(RUN)
        scores.append((files.folder("results/detect", "default-seed0") / "scores.json").read_text())
    assert scores[0] == scores[1]


# Analyses.

ANALYSE = {
    "group_size": 4, "noise_draws": 2, "timestep_stride": 250, "batch_size": 3, "select": "ratio", "extreme_share": 0.25,
    "rare_skip_rate": 0.3,
}  # fmt: skip
HELDOUT = ["a white cross", "a yellow triangle", "black", "the purple cross", "a green cross"]
# Generated image g is the nearest to training image NEAREST[g]; above 0.5 it is a copy: images 4, 9 and 1 were given out.
NEAREST, SIMILARITY = [4, 4, 9, 1, 0, 7], [0.4, 0.8, 0.95, 0.51, 0.5, 0.3]
SKIPS = np.array([1, 0, 5, 2, 0, 3, 6, 4, 5, 1, 4, 6])  # of 10 visits


@pytest.fixture
def looked_into(with_captions):
    """looked_into(prediction_type, **changes of the section, sscd=True): summary and folder of the phase analyse on hand-made
    counts and similarities of the weights that come with the model."""

    def run(prediction_type="epsilon", sscd=True, **changes):
        experiment = experiment_of() | {"analyse": ANALYSE | changes}
        if sscd:
            experiment["similarity"] = {"weights": "sscd.pt", "preprocess": "dcr", "batch_size": 8}
        with_captions(experiment, heldout=HELDOUT)
        scheduler = Path("model/scheduler/scheduler_config.json")
        scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": prediction_type}))
        name = "default-seed0"
        files.save_arrays(files.folder("model", name, 1) / "raw.safetensors", model.unet_weights("model"))
        visits, tenth = np.full(12, 10, np.int32), np.full(10, 12)
        counts = {"index": np.arange(12), "skips": SKIPS.astype(np.int32), "visits": visits, "augmented": 0 * visits}
        files.save_arrays(files.counts_file(name, 1, 0), counts | {"t_skipped": np.arange(10), "t_visited": tenth})
        files.save_array(
            files.folder("samples", name, 1, part=0) / "raw.npy", 255 - np.load(files.DATA / "train.npy")[:6]
        )
        rows = {"image": range(6), "nearest_train": NEAREST}
        other = pd.DataFrame({"weights": "ema", "similarity": 0.99, "train_l2_from_gen": 0.01, **rows})
        rows = pd.DataFrame(
            {"weights": "raw", "similarity": np.float32(SIMILARITY), "train_l2_from_gen": [9, 9, 9, 9, 0.1, 9], **rows}
        )
        for folder, file in (
            ("results/similarity", "nearest"),
            ("results/score", "images"),
        ):
            files.folder(folder, name, 1).mkdir(parents=True, exist_ok=True)
            pd.concat([other, rows]).to_parquet(files.folder(folder, name, 1) / f"{file}.parquet")
        analyse.main(RUN)
        return files.load_json(files.folder("results/analyse", name) / "summary.json"), files.folder(
            "results/analyse", name
        )

    return run


def test_analyses_take_what_was_given_out_from_the_similarity(looked_into):
    summary, folder = looked_into()
    table = pd.read_parquet(folder / "train_images.parquet")
    assert table.skips.tolist() == SKIPS.tolist() and table.emitted[table.emitted > 0].to_dict() == {1: 1, 4: 1, 9: 1}
    assert table.lowest_ratio[[4, 9, 0]].tolist() == pytest.approx([-0.8, -0.95, -0.5])
    emitted = np.isin(np.arange(12), [1, 4, 9])
    area = np.mean([(a > b) + 0.5 * (a == b) for a in SKIPS[emitted] for b in SKIPS[~emitted]])
    assert summary["emission"]["skips"]["auc"] == pytest.approx(area) and summary["emission"]["emitted"] == 3
    assert summary["train_images"]["rarely_skipped_share"] == pytest.approx((SKIPS < 3).mean())
    assert summary["skip_by_timestep"]["rate"] == pytest.approx(list(np.arange(10) / 12))
    assert summary["extremes"]["images"] == 3 and summary["moves"] == {"absent": "no image moved"}
    blocks = analyses.blocks(rules.load())
    assert "(similarity by SSCD above 0.5, raw weights)" in blocks[3].text and blocks[3].rows[0]["leaked"] == "3 of 12"

    summary, folder = looked_into(sscd=False)  # without it from the ratio of distances
    table = pd.read_parquet(folder / "train_images.parquet")
    assert table.emitted[table.emitted > 0].to_dict() == {0: 1}
    assert "(l2_from_gen at 0.5, raw weights)" in analyses.blocks(rules.load())[3].text


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_against_timestep_is_that_of_the_noise_on_the_latent(looked_into, prediction_type):
    """By diffusers' own parts, each image with its caption; of a network that predicts v too."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    summary, folder = looked_into(prediction_type)
    groups = pd.read_parquet(folder / "loss_groups.parquet")
    assert groups[groups.group == "similar"]["index"].tolist() == [9, 4, 1, 0]  # the most similar first
    assert (
        set(groups.group) == {"similar", "other", "heldout"} and summary["loss_by_timestep"]["similar"]["emitted"] == 3
    )
    pipeline = StableDiffusionPipeline.from_pretrained("model", local_files_only=True, low_cpu_mem_usage=False)
    scheduler = DDPMScheduler.from_pretrained("model", subfolder="scheduler")
    captions = files.load_json(files.DATA / "captions.json")
    for row in (groups.iloc[1], groups.iloc[-1]):
        part, index = ("heldout" if row.group == "heldout" else "train"), row["index"]
        image = torch.from_numpy(np.load(files.DATA / f"{part}.npy")[index]).permute(2, 0, 1)[None]
        losses = []
        with torch.no_grad():
            z = pipeline.vae.encode(image / 127.5 - 1).latent_dist.mean * pipeline.vae.config.scaling_factor
            shown, _ = pipeline.encode_prompt(captions[part][index][0], "cpu", 1, False)
            for t in (0, 250, 500, 750):
                for draw in (0, 1):
                    noise = randomness.numpy_generator("loss_noise", 0, t, draw)
                    eps = torch.from_numpy(noise.standard_normal((1, 4, 8, 8), np.float32))
                    x_t = scheduler.add_noise(z, eps, torch.tensor([t]))
                    found = pipeline.unet(x_t, t, encoder_hidden_states=shown).sample
                    if prediction_type == "v_prediction":
                        signal = scheduler.alphas_cumprod[t]
                        found = signal.sqrt() * found + (1 - signal).sqrt() * x_t
                    losses.append(float((found - eps).square().mean()))
        assert row.mean_loss == pytest.approx(np.mean(losses), rel=1e-3)


def test_the_plan_of_analyses_names_what_they_read():
    experiment = experiment_of() | {"analyse": ANALYSE}
    experiment["arms"]["other"] = {"generator": {"arm": "default"}, "sample": {}}
    rules.check(experiment)
    (found,) = [instance for instance in plan.expand(experiment).values() if instance.block == "analyse"]
    assert (found.kind, found.architecture) == ("stages/text", experiment["model"]["pipeline"])
    assert found.nearest == "artifacts/results/score/default-seed0/round1"
    experiment["similarity"] = {"weights": "sscd.pt", "preprocess": "dcr", "batch_size": 8}
    assert (
        plan.expand(experiment)["analyse@default-seed0"].nearest == "artifacts/results/similarity/default-seed0/round1"
    )
    with pytest.raises(ValueError, match="analyse.group_size is 7, expected at most half of the 12 training images"):
        phases.check_sizes(experiment | {"analyse": ANALYSE | {"group_size": 7}}, 12)


# Membership.


@torch.no_grad()
def test_membership_looks_at_latents_with_the_first_caption_of_each_image(with_captions):
    """The noise that the model predicts for an image's latent, by its own caption; the untrained network is the model as it came."""
    heldout = ["a white cross", "a red square", "a yellow triangle", "black", "black", "the purple cross"]
    with_captions(experiment_of(), heldout=heldout)
    files.save_array(files.DATA / "heldout_labels.npy", np.zeros(6, np.int64))
    with torch.enable_grad():
        trained()
    membership.main([*RUN, "--round", "1"])
    membership.main(["--reference"])
    captions, frozen = files.load_json(files.DATA / "captions.json"), model.Frozen("model", torch.device("cpu"))
    unet = model.unet("model").eval()
    of_round = files.load_arrays(files.folder("model", "default-seed0", 1) / "raw.safetensors")
    for place, weights, arrays in (
        (files.folder("results/membership", "default-seed0", 1), "raw", of_round),
        (files.folder("results/membership", "reference"), "untrained", model.unet_weights("model")),
    ):
        for name, parameter in unet.named_parameters():
            parameter.copy_(torch.from_numpy(arrays[name]))
        table = pd.read_parquet(place / "images.parquet")
        assert len(table) == 12 and (table.weights == weights).all()  # six held-out images, so six of each
        for _, row in table.iloc[[0, 11]].iterrows():
            part = "train" if row.member else "heldout"
            pixels = np.load(files.DATA / f"{part}.npy")[row["index"]].transpose(2, 0, 1)[None]
            moments = frozen.moments(torch.from_numpy(pixels / 127.5 - 1).float())
            latent = frozen.vae.config.scaling_factor * moments.chunk(2, dim=1)[0]
            said = unet(latent, 50, encoder_hidden_states=frozen.embeddings(captions[part][row["index"]][:1])).sample
            expected = (said.double() ** 4).sum().item() ** 0.25
            assert row.sima_50 == pytest.approx(expected, rel=1e-4)
