"""The text-conditioned model: what is loaded, what the network is shown and learns, and what is generated, against diffusers."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_sd
import torch
import yaml
from conftest import ROOT, TINY, text_experiment

from stages import methods, models, randomness, rules
from stages.diffusion import sampling, weights
from stages.iet import shard_state
from stages.methods import base, caption_noise, kinds, loop, wen
from stages.methods.agc import augmentation
from stages.run import declarations, files, kept
from stages.text import generation, latents, model, prediction, prompt_mitigations

SEED, SHARD = 5, 3
CAPTIONS = [["a red square", "a square of red"], ["a blue circle", "the circle"], ["a green cross", "x"], ["the white triangle", "y"],
            ["a yellow cross", "z"], ["a purple square", "w"]]  # fmt: skip


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / request.param
    tiny_sd.build(path, "D", request.param, seed=1)
    return path


@pytest.fixture(scope="module")
def epsilon(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "epsilon"
    tiny_sd.build(path, "D", seed=1)
    return path


@pytest.fixture(scope="module")
def pixels():
    return torch.from_numpy(np.stack([image for image, _ in tiny_sd.toy_images(6, 32)])).permute(0, 3, 1, 2)


@pytest.fixture
def learnt(folder, pixels, tmp_path, monkeypatch):
    return objective(folder, pixels, tmp_path, monkeypatch)


def objective(folder, pixels, tmp_path, monkeypatch, captions=CAPTIONS, any_caption=False):
    """The objective of a training set of its own, with mirror images."""
    monkeypatch.chdir(tmp_path)
    files.save_array(files.DATA / "train.npy", pixels.permute(0, 2, 3, 1).numpy())
    frozen = model.Frozen(folder, torch.device("cpu"))
    images = files.DATA / "train.npy"
    data = kinds.DataSet(
        captions={"train": captions, "heldout": []},
        keys=[],
        fixed_text=None,
        images=lambda: files.load_array(images),
        images_checksum=files.checksum(images),
    )
    settings = {"flip": True} | ({"caption": "random_of_all"} if any_caption else {})
    return latents.build(frozen, frozen.latent_shape((3, 32, 32)), settings, data, kept.keep)


def network_of(folder):
    network = model.unet(folder)
    weights.load(network, model.unet_weights(folder), "the model")
    return network


def step_of(learnt, network, pixels, ids, number=0, settings=None, carried=None):
    """A step on some of the images, the second of them mirrored."""
    random = torch.Generator().manual_seed(number)
    ids = torch.tensor(ids)
    flipped = torch.arange(len(ids)) == 1
    x = torch.where(flipped.view(-1, 1, 1, 1), pixels[ids].flip(-1), pixels[ids])
    key = (SEED, SHARD, number)
    settings = {"precision": "fp32", "grad_clip_norm": 1.0} | (settings or {})
    return base.Step(
        network, x, flipped, ids, None, torch.randint(1000, (len(ids),), generator=random),
        torch.randn(learnt.noise_shape(x), generator=random), learnt.frozen.alpha_bars.float(), carried or {}, settings, key, learnt,
        learnt.prompts(ids, settings, key),
    )  # fmt: skip


# The folder.


def test_a_folder_that_is_no_pipeline_is_told_what_is_missing(epsilon, tmp_path):
    with pytest.raises(ValueError, match="nowhere does not exist: put a Stable Diffusion"):
        model.check(tmp_path / "nowhere")
    broken = tmp_path / "broken"
    shutil.copytree(epsilon, broken)
    model.check(broken)
    (broken / "vae/diffusion_pytorch_model.safetensors").unlink()
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(ValueError, match=r"it lacks tokenizer/tokenizer_config.json, vae/\*.safetensors"):
        model.check(broken)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("unet/config.json", {"_class_name": "UNet2DModel"}, "unet is UNet2DModel, expected the UNet2DConditionModel"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "prediction_type sample, expected epsilon or v_pred",
        ),
    ],
)
def test_a_model_of_another_kind_is_refused(epsilon, tmp_path, file, change, told):
    other = tmp_path / "other"
    shutil.copytree(epsilon, other)
    (other / file).write_text(json.dumps(json.loads((other / file).read_text()) | change))
    with pytest.raises(ValueError, match=told):
        model.check(other)
    (other / file).write_text("{")
    with pytest.raises(ValueError, match=f"{file} cannot be read"):
        model.check(other)


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("unet/config.json", {"layers_per_block": 10**7}, "unet/config.json has layers_per_block 10000000, expected at most 20"),
        ("unet/config.json", {"layers_per_block": 2}, r"unet/config.json describes [\d,]+ parameters, but the weights beside it are"),
        ("vae/config.json", {"layers_per_block": "two"}, r"vae cannot be used \(TypeError: .*mend the folder model.pipeline"),
        ("vae/config.json", {"scaling_factor": -0.2}, "scaling_factor -0.2, expected a number above 0"),
        ("text_encoder/config.json", {"vocab_size": 100}, r"text_encoder cannot be used \(|of which the text encoder knows 100"),
        ("scheduler/scheduler_config.json", {"beta_end": 2.0}, r"scheduler cannot be used \(.*its noise schedule leaves \(0, 1\)"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_of_the_weights_is_refused(epsilon, tmp_path, file, change, told):
    """Before anything of the size that it describes is made."""
    other = tmp_path / "other"
    shutil.copytree(epsilon, other)
    (other / file).write_text(json.dumps(json.loads((other / file).read_text()) | change))
    with pytest.raises(ValueError, match=told):
        model.Frozen(other, torch.device("cpu"))


def test_a_model_for_inpainting_is_refused(epsilon, tmp_path):
    """Its network takes 9 channels: latent, masked latent and mask."""
    from diffusers import UNet2DConditionModel

    other = tmp_path / "other"
    shutil.copytree(epsilon, other)
    config = UNet2DConditionModel.load_config(other / "unet") | {"in_channels": 9}
    UNet2DConditionModel.from_config(config).save_pretrained(other / "unet")
    with pytest.raises(
        ValueError, match=r"^the network of .*other with the latents of its VAE .* cannot be used \(RuntimeError"
    ):
        model.Frozen(other, torch.device("cpu"))


def test_a_tokenizer_without_a_length_takes_that_of_the_text_encoder(epsilon, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(epsilon, other)
    path = other / "tokenizer/tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["model_max_length"]
    path.write_text(json.dumps(config))
    frozen, whole = (model.Frozen(folder, torch.device("cpu")) for folder in (other, epsilon))
    assert frozen.num_tokens == 77 and torch.equal(frozen.tokens(["cross " * 90]), whole.tokens(["cross " * 90]))


def test_a_safety_checker_is_noticed(epsilon, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(epsilon, other)
    assert not model.has_safety_checker(other)
    index = json.loads((other / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (other / "model_index.json").write_text(json.dumps(index))
    assert model.has_safety_checker(other)


def test_images_that_the_vae_cannot_take_are_refused(epsilon):
    frozen = model.Frozen(epsilon, torch.device("cpu"))
    assert frozen.latent_shape((3, 32, 16)) == (4, 8, 4)
    for shape in ((1, 32, 32), (3, 32, 30)):
        with pytest.raises(ValueError, match=r"expected 3 channels and multiples of 4 pixels .* set data.size"):
            frozen.latent_shape(shape)


def test_frozen_parts_do_what_the_pipeline_does(folder, pixels):
    """Prompts of several lengths, one of them too long; the sampled latent and the decoded image."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    frozen = model.Frozen(folder, torch.device("cpu"))
    texts = ["a red square", "", " ".join(["cross"] * 90)]
    assert frozen.num_cut([*texts, " ".join(["cross"] * 75), " ".join(["cross"] * 76)]) == 2  # 75 and two marks fit
    for text in texts[:2]:
        with torch.no_grad():
            expected, _ = pipeline.encode_prompt(text, "cpu", 1, False)
        assert torch.equal(frozen.embeddings([text]), expected)
    assert torch.equal(
        frozen.tokens(texts)[2], pipeline.tokenizer(texts[2], truncation=True, return_tensors="pt").input_ids[0]
    )
    x = pixels[:2].float() / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(x).latent_dist
        expected = posterior.sample(torch.Generator().manual_seed(3)) * pipeline.vae.config.scaling_factor
        noise = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
        found = frozen.latents(frozen.moments(x), noise)
        assert torch.allclose(found, expected, atol=1e-6)
        decoded = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor).sample
    assert torch.allclose(frozen.decoded(expected), decoded, atol=1e-6)
    assert torch.equal(frozen.alpha_bars.float(), pipeline.scheduler.alphas_cumprod)
    assert not any(p.requires_grad for module in (frozen.vae, frozen.text_encoder) for p in module.parameters())


# The objective.


def test_velocity_and_back():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    x_0, eps = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 501, 981])
    alpha_bar = scheduler.alphas_cumprod
    v = prediction.target("v_prediction", x_0, t, eps, alpha_bar)
    assert torch.allclose(v, scheduler.get_velocity(x_0, eps, t), atol=1e-6)
    assert prediction.target("epsilon", x_0, t, eps, alpha_bar) is eps
    x_t = scheduler.add_noise(x_0, eps, t)
    assert torch.allclose(prediction.as_noise("v_prediction", v, x_t, alpha_bar[t].view(-1, 1, 1, 1)), eps, atol=1e-5)
    # Published: sqrt(alpha_bar) is 0.076 at t = 981 and 0.52 at 501, by which differences in v and in noise differ.
    assert [round(float(alpha_bar[i].sqrt()), 3) for i in (981, 501)] == [0.076, 0.524]
    one, other = (prediction.as_noise("v_prediction", value, x_t[2:], alpha_bar[981]) for value in (v[2:], v[2:] + 2.0))
    assert torch.allclose(other - one, torch.full_like(one, 2 * 0.0764), atol=1e-3)


def test_the_loss_of_a_sample_is_that_of_diffusers_own_parts(folder, learnt, pixels):
    """Own t, noise, caption and posterior draw of each sample; the second is mirrored; some rows alone with other images."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    network, ids = network_of(folder), [4, 0, 3]
    step = step_of(learnt, network, pixels, ids, number=2)  # not the first: its posterior has a draw of its own
    assert step.prompts == ["a yellow cross", "a red square", "the white triangle"]
    losses = step.sample_losses()
    assert losses.shape == (3,) and losses.requires_grad
    draw = torch.randn(3, 4, 8, 8, generator=randomness.torch_generator("cpu", "posterior", *step.key))

    def expected(x, row):
        with torch.no_grad():
            dist = pipeline.vae.encode(x[None].float() / 127.5 - 1).latent_dist
            z = (dist.mean + dist.std * draw[row]) * pipeline.vae.config.scaling_factor
            noisy = scheduler.add_noise(z, step.eps[row : row + 1], step.t[row : row + 1])
            text, _ = pipeline.encode_prompt(step.prompts[row], "cpu", 1, False)
            said = pipeline.unet(noisy, step.t[row], encoder_hidden_states=text).sample
            wanted = (
                step.eps[row]
                if folder.name == "epsilon"
                else scheduler.get_velocity(z, step.eps[row : row + 1], step.t[row])
            )
            return float((said - wanted).square().mean())

    assert losses.tolist() == pytest.approx([expected(step.x[row], row) for row in range(3)], rel=1e-4)
    other = 255 - step.x[[2, 1]]
    rows = torch.tensor([2, 1])
    found = step.sample_losses(other.float() / 127.5 - 1, rows)
    assert found.tolist() == pytest.approx([expected(other[0], 2), expected(other[1], 1)], rel=1e-4)
    assert step.sample_losses(rows=slice(1, 3)).tolist() == pytest.approx(losses[1:].tolist(), rel=1e-4)


def test_what_is_kept_in_scratch_is_used_again_and_made_anew_for_other_images(
    learnt, folder, pixels, tmp_path, monkeypatch
):
    kept = sorted(path.name for path in tmp_path.glob("scratch/*/*.npy"))
    assert len(kept) == 2
    monkeypatch.setattr(model.Frozen, "moments", None)  # no image goes through the VAE
    again = objective(folder, pixels, tmp_path, monkeypatch)
    assert np.array_equal(again.kept_moments, learnt.kept_moments)
    monkeypatch.undo()
    objective(folder, pixels.flip(0), tmp_path, monkeypatch)
    assert len(list(tmp_path.glob("scratch/latents/*.npy"))) == 2
    assert len(list(tmp_path.glob("scratch/embeddings/*.npy"))) == 1


def test_captions_first_any_and_none(learnt, pixels):
    ids = torch.arange(6).repeat(100)
    first = learnt.prompts(ids, {}, (1, 2, 3))
    assert first == [texts[0] for texts in CAPTIONS] * 100
    drawn = learnt.prompts(ids, {"caption": "random_of_all"}, (1, 2, 3))
    assert (
        drawn
        == learnt.prompts(ids, {"caption": "random_of_all"}, (1, 2, 3))
        != learnt.prompts(ids, {"caption": "random_of_all"}, (1, 2, 4))
    )
    assert all(text in CAPTIONS[i] for text, i in zip(drawn, ids.tolist(), strict=True))
    assert 240 < sum(text == CAPTIONS[i][1] for text, i in zip(drawn, ids.tolist(), strict=True)) < 360
    dropped = learnt.prompts(ids, {"caption_dropout": 0.1}, (1, 2, 3))
    assert 35 < sum(text == "" for text in dropped) < 90
    assert {text for text in dropped if text} == set(first)


def test_any_caption_asks_for_two(epsilon, pixels, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"2 of 6 training images have a single caption"):
        objective(epsilon, pixels, tmp_path, monkeypatch, [["a"], ["b"], *CAPTIONS[2:]], any_caption=True)


def test_captions_that_are_cut_are_counted_and_told_once(epsilon, pixels, tmp_path, monkeypatch, capsys):
    """By the first of all stages; the number is for the captions that an arm shows."""
    long = "cross " * 80
    captions = [[long], [long, long * 2], ["a " * 99, "x"], *CAPTIONS[3:]]
    for any_caption, expected in ((False, 2), (False, 2), (True, 3)):
        if any_caption:
            captions = [[*texts, "y"] for texts in captions]
        learnt = objective(epsilon, pixels, tmp_path, monkeypatch, captions, any_caption)
        assert learnt.numbers() == {"captions_cut": expected}
    told = [line for line in capsys.readouterr().err.splitlines() if "tokens" in line]
    assert told == ["3 of 10 captions of training images have more than 77 tokens: the rest of them is cut off"]
    assert objective(epsilon, pixels, tmp_path, monkeypatch).numbers() == {}


# Methods.


def test_agc_judges_the_clean_loss_and_takes_that_of_augmented_images_with_the_same_noise(learnt, folder, pixels):
    """One skipped, one augmented, one on its threshold or above: by hand from the losses of the same step."""
    network = network_of(folder)
    ids = [4, 0, 3]
    plain = step_of(learnt, network, pixels, ids).sample_losses().detach()
    bank = torch.zeros(1000)
    t = step_of(learnt, network, pixels, ids).t
    bank[t] = plain / torch.tensor([0.5, 0.9, 2.0])
    taa = {"R": 1.5, "A": 5.0, "magnitude": 30, "num_ops": 2, "max_level": 30}
    method = methods.method({"name": "agc", "lambda": 0.8, "eta": 0.8, "taa": taa})
    step = step_of(learnt, network, pixels, ids, carried={"bank": bank.clone()})
    step.drawn = method.drawn(len(ids), step.key)
    calls = []
    monkey = learnt.sample_losses
    learnt.sample_losses = lambda step, images, rows: calls.append((images, rows)) or monkey(step, images, rows)
    losses = method.losses(step)
    minimised = float(losses.minimised.detach() + method.rest(step, losses, 3).detach())
    learnt.sample_losses = monkey
    assert losses.skipped.tolist() == [True, False, False] and losses.augmented.tolist() == [False, True, False]
    assert losses.original.tolist() == pytest.approx(plain.tolist(), rel=1e-5)
    assert step.carried["bank"][t].tolist() == pytest.approx((0.8 * bank[t] + 0.2 * plain).tolist(), rel=1e-5)
    assert len(calls) == 2 and calls[0][0] is None and set(calls[1][1].tolist()) == {1}
    augmented = step.sample_losses(calls[1][0][:1], torch.tensor([1])).detach()
    assert float(augmented) != pytest.approx(float(plain[1]), rel=1e-3)
    assert minimised == pytest.approx(float((augmented + plain[2]) / 2), rel=1e-4)


AUTHORS = {"name": "agc", "lambda": 0.8, "eta": 0.8,
           "taa": {"R": float("inf"), "A": 5.0, "magnitude": 5, "num_ops": 2, "max_level": 30, "authors": True}}  # fmt: skip


def test_the_authors_two_passes_by_hand(learnt, folder, pixels):
    """Two of three are kept: no step. Then all three: the first three of five are learnt, at one level, and two are dropped."""
    network, method = network_of(folder), methods.method(AUTHORS)
    shard = base.Images(pixels, torch.arange(6), objective=learnt)
    carried = method.initial_state(1000, "cpu")

    def batch(ids, number, ratios):
        step = step_of(learnt, network, pixels, ids, number, {"flip": False}, carried)
        step.shard = shard
        loss = step.sample_losses().detach()
        carried["bank"] = torch.zeros(1000)
        carried["bank"][step.t] = loss / torch.tensor(ratios)
        return step, method.losses(step), loss

    _, first, loss = batch([4, 0, 3], 0, [0.82, 0.5, 0.84])
    assert first.minimised is None and first.skipped.tolist() == [False, True, False]
    assert first.original.tolist() == pytest.approx(loss.tolist(), rel=1e-6)
    assert carried["queue"][:3].tolist() == [4, 3, -1]
    rho = [np.exp(-5 * abs(r / 0.8 - 1)) for r in (0.82, 0.84, 0.9)]
    assert carried["queue_rho"][:3].tolist() == pytest.approx([rho[0], rho[1], 0], rel=1e-4)

    step, second, _ = batch([5, 1, 2], 1, [0.9, 0.81, 0.81])
    assert int(5 * sum(rho) / 3) == 3  # rounding, or a level for each, would be others: 4.4, 3.9 and 2.7
    ids = torch.tensor([4, 3, 5])
    x = augmentation.rand_augment(
        pixels[ids], torch.full((3,), 3.0), randomness.torch_generator("cpu", "augment", *step.key)
    )
    noise = randomness.torch_generator("cpu", "second_noise", *step.key)
    t, eps = torch.randint(1000, (3,), generator=noise), torch.randn(3, 4, 8, 8, generator=noise)
    texts = [CAPTIONS[i][0] for i in ids]
    again = dataclasses.replace(step, ids=ids, x=x, t=t, eps=eps, prompts=texts, condition=None)
    expected = again.sample_losses(x.float() / 127.5 - 1).mean()
    assert float(second.minimised.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (carried["queue"] == -1).all() and not carried["queue_rho"].any()

    carried["queue"][:2] = torch.tensor([1, 2])
    shard.pixels, shard.ids = pixels[[0, 1, 3, 4, 5]], torch.tensor([0, 1, 3, 4, 5])  # image 2 has moved away
    batch([4, 0, 3], 2, [0.9, 0.1, 0.1])
    assert carried["queue"][:3].tolist() == [1, 4, -1]


def test_a_batch_that_only_waits_moves_no_weight(epsilon, pixels, tmp_path, monkeypatch):
    learnt = objective(epsilon, pixels, tmp_path, monkeypatch)
    before = network_of(epsilon)
    settings = settings_of(batch_size=3)
    experiment = text_experiment()
    experiment["arms"]["default"]["method"] = AUTHORS | {"taa": AUTHORS["taa"] | {"R": 2.0}}
    with pytest.raises(
        ValueError, match=r"arms.default.method.taa.R is 2.0, expected one of inf \(must be .inf with taa.authors"
    ):
        rules.check(experiment)  # before anything runs
    monkeypatch.setattr("stages.methods.agc.memory_bank.skip_mask", lambda loss, *_: loss > -1)
    network, state, record = trained(epsilon, learnt, pixels, AUTHORS, settings)
    assert state.step == 5 and record.skips.sum() == 15
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before.parameters(), strict=True))
    assert not any(value.any() for value in state.exp_avg)


def shown(method, learnt, pixels, number=0):
    """Prompts, and the embeddings that the network was shown."""
    seen = []

    def network(x, t, encoder_hidden_states):
        seen.append(encoder_hidden_states)
        return SimpleNamespace(sample=torch.zeros_like(x))

    step = step_of(learnt, network, pixels, [4, 0, 3, 1, 5, 2], number)
    methods.method(method).losses(step)
    return step.prompts, seen[0]


def test_caption_noise_changes_what_the_network_sees(learnt, pixels):
    clean, embedded = shown({"name": "ddpm"}, learnt, pixels)
    for kind, count in (("cwr", 2), ("rt", 2), ("rc", 4)):
        method = {"name": "caption_noise", "kind": kind, "p": 1.0, "num_words": count}
        texts, seen = shown(method, learnt, pixels)
        assert texts == shown(method, learnt, pixels)[0] != shown(method, learnt, pixels, number=1)[0]
        assert all(a != b for a, b in zip(texts, clean, strict=True))
        assert torch.equal(
            seen, learnt.frozen.embeddings(sorted(set(texts)))[[sorted(set(texts)).index(t) for t in texts]]
        )
        assert all((a != b).any() for a, b in zip(seen, embedded, strict=True))
        if kind == "cwr":
            for text, before in zip(texts, clean, strict=True):
                assert len(text.split()) == len(before.split()) + 2 and set(text.split()) == set(before.split())
        if kind == "rt":
            assert all(len(text.split()) >= len(before.split()) + 2 for text, before in zip(texts, clean, strict=True))
    sometimes = [
        shown({"name": "caption_noise", "kind": "rc", "p": 0.4, "num_words": 4}, learnt, pixels, n)[0]
        for n in range(20)
    ]
    changed = sum(text not in {texts[0] for texts in CAPTIONS} for drawn in sometimes for text in drawn)
    assert 30 < changed < 66  # of 120
    assert shown({"name": "caption_noise", "kind": "rt", "p": 0.0, "num_words": 2}, learnt, pixels)[0] == clean


@pytest.mark.parametrize("kind", ["rc", "cwr", "rt"])
def test_a_caption_that_was_dropped_stays_empty(kind, monkeypatch):
    class Tokenizer:
        all_special_ids = (0,)
        __len__ = lambda self: 50  # noqa: E731
        decode = lambda self, tokens: " ".join(f"word{token}" for token in tokens)  # noqa: E731

    frozen = SimpleNamespace(frozen=SimpleNamespace(tokenizer=Tokenizer()))
    step = SimpleNamespace(prompts=["", "a red cat", "", "a dog"], key=(3, 0, 1), objective=frozen)
    monkeypatch.setattr(base.Method, "losses", lambda self, step: None)
    caption_noise.Method({"name": "caption_noise", "kind": kind, "p": 1.0, "num_words": 2}).losses(step)
    assert [bool(text) for text in step.prompts] == [False, True, False, True]
    assert step.prompts[1] != "a red cat" and step.prompts[3] != "a dog"


def test_noise_on_the_embeddings(learnt, pixels):
    _, clean = shown({"name": "ddpm"}, learnt, pixels)
    _, noisy = shown({"name": "text_noise", "std": 0.25}, learnt, pixels)
    difference = noisy - clean
    assert float(difference.std()) == pytest.approx(0.25, rel=0.03)
    assert abs(float(difference.mean())) < 0.01
    assert not torch.equal(shown({"name": "text_noise", "std": 0.25}, learnt, pixels, 1)[1] - clean, difference)


def test_random_captions_are_of_tokens_of_the_model_and_never_empty():
    tokenizer, random = tiny_sd.tokenizer(), np.random.default_rng(0)
    texts = [caption_noise.random_caption(tokenizer, 4, random) for _ in range(200)]
    assert len(set(texts)) > 190 and all(text.strip() for text in texts) and not any("<|" in text for text in texts)
    ids = [len(tokenizer(text).input_ids) - 2 for text in texts if text.isascii()]
    assert max(ids) <= 12  # four tokens, or their parts


class Reacting:
    """A network whose prediction with a caption differs from that without by a given amount, in all values, for each sample."""

    def __init__(self, learnt, by):
        self.empty, self.by = learnt.embedded([""])[0], by

    def __call__(self, x, t, encoder_hidden_states):
        reacts = (encoder_hidden_states != self.empty).flatten(1).any(1).float()
        return SimpleNamespace(sample=(self.by[: len(x)] * reacts).view(-1, 1, 1, 1).expand_as(x))


def test_wen_leaves_out_what_reacts_to_its_caption(learnt, folder, pixels):
    """Thresholds on the noise: a difference of v counts sqrt(alpha_bar) times as much."""
    by = torch.tensor([0.5, 0.01, 2.0])
    probe = step_of(learnt, None, pixels, [4, 0, 3])
    factor = probe.alpha_bar[probe.t].sqrt() if folder.name == "v_prediction" else torch.ones(3)
    rms = by * factor
    for kind, scale in (("rms", 1.0), ("raw", 16.0)):  # 4 x 8 x 8 values: the norm is 16 times the root mean square
        limit = float(rms.sort().values[1:].mean()) * scale
        method = methods.method({"name": "wen", "threshold": {"kind": kind, "value": limit}})
        losses = method.losses(step_of(learnt, Reacting(learnt, by), pixels, [4, 0, 3]))
        expected = rms * scale >= limit
        assert losses.skipped.tolist() == expected.tolist() and expected.sum() == 1
        assert float(losses.minimised) == pytest.approx(float(losses.original[~expected].mean()), rel=1e-6)
        focused = step_of(learnt, Reacting(learnt, by), pixels, [4, 0, 3])
        focused.counts = torch.tensor([0.1, 1.0, 0.3])
        counted = (focused.counts * losses.original)[~expected].mean()
        assert float(method.losses(focused).minimised) == pytest.approx(float(counted), rel=1e-6)
    none = methods.method({"name": "wen", "threshold": {"kind": "rms", "value": 1e-6}})
    losses = none.losses(step_of(learnt, Reacting(learnt, by), pixels, [4, 0, 3]))
    assert losses.skipped.all() and float(losses.minimised) == 0
    assert none.remark(0.31).startswith("31% of the samples were left out, more than 30%") and none.remark(0.3) is None


def test_wen_quantile_of_what_a_bin_remembers():
    history, seen = torch.full((10, 8), torch.nan), torch.zeros(10)
    bins = torch.tensor([3, 3, 3, 7])
    value = torch.tensor([1.0, 2.0, 3.0, 9.0])
    assert not wen.left_out(value, bins, history, 0.25).any()  # nothing is known yet
    wen.remember(value, bins, history, seen)
    assert not wen.left_out(value, bins, history, 0.25).any()  # three are fewer than 1 / 0.25
    wen.remember(torch.tensor([4.0]), torch.tensor([3]), history, seen)
    # The 0.75-quantile of 1, 2, 3, 4 is 3.25; bin 7 knows one value only.
    assert wen.left_out(torch.tensor([3.2, 3.3, 100.0]), torch.tensor([3, 3, 7]), history, 0.25).tolist() == [
        False,
        True,
        False,
    ]
    wen.remember(torch.arange(10.0, 16.0), torch.full((6,), 3), history, seen)
    assert sorted(history[3].tolist()) == [3, 4, 10, 11, 12, 13, 14, 15]  # the two oldest of ten are forgotten
    assert seen.tolist() == [0, 0, 0, 10, 0, 0, 0, 1, 0, 0]


# The loop.


def settings_of(**more):
    return {"batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 2, "grad_clip_norm": 1.0, "ema_decay": 0.0, "flip": True,
            "precision": "fp32", "weight_decay": 0.1, "steps": 5} | more  # fmt: skip


def trained(folder, learnt, pixels, method, settings, stop=None):
    """Weights after a round of 5 steps; with `stop` the state is written and read back by then, as after a kill."""
    method = methods.method(method)
    network, images = network_of(folder), base.Images(pixels, torch.arange(len(pixels)), objective=learnt)
    state = shard_state.fresh_state(list(network.parameters()), method.initial_state(1000, "cpu"), keeps_ema=False)
    record = loop.Record.empty(len(pixels), loop.num_epochs(len(pixels), settings), "cpu")
    alpha_bar = learnt.frozen.alpha_bars.float()

    def after_step(done, total, loss):
        if done == stop:
            raise KeyboardInterrupt

    def go_on():
        training = loop.Training(network, state, record, images, method, settings, alpha_bar, SEED, SHARD)
        loop.train_round(training, after_step)

    if stop:
        with pytest.raises(KeyboardInterrupt):
            go_on()
        stop = None
        other = network_of(folder)
        other.load_state_dict({name: value.clone() for name, value in network.state_dict().items()})
        network, images = other, base.Images(pixels, torch.arange(len(pixels)), objective=learnt)
    go_on()
    return network, state, record


def test_adamw_is_that_of_torch(epsilon, pixels, tmp_path, monkeypatch):
    learnt = objective(epsilon, pixels, tmp_path, monkeypatch)
    settings = settings_of()
    found, state, record = trained(epsilon, learnt, pixels, {"name": "ddpm"}, settings)
    assert (
        state.step == 5 and state.ema == [] and record.epoch_visited.tolist() == [6, 4]
    )  # 3 steps an epoch of 6 images
    network, method = network_of(epsilon).train(), methods.method({"name": "ddpm"})
    optimizer = torch.optim.AdamW(network.parameters(), lr=1.0, weight_decay=0.1)
    for step in range(5):
        places = method.batch(6, 2, SEED, SHARD, step)
        key, ids = (SEED, SHARD, step), torch.from_numpy(places)
        flipped = torch.rand(2, generator=randomness.torch_generator("cpu", "flip", *key)) < 0.5
        noise = randomness.torch_generator("cpu", "noise", *key)
        t = torch.randint(1000, (2,), generator=noise)
        eps = torch.randn(2, 4, 8, 8, generator=noise)
        x = torch.where(flipped.view(-1, 1, 1, 1), pixels[ids].flip(-1), pixels[ids])
        texts = learnt.prompts(ids, settings, key)
        whole = base.Step(
            network, x, flipped, ids, None, t, eps, learnt.frozen.alpha_bars.float(), {}, settings, key, learnt, texts
        )
        whole.sample_losses().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 2)
        optimizer.step()
        optimizer.zero_grad()
    for (name, one), other in zip(found.named_parameters(), network.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=2e-6), name


@pytest.mark.parametrize("method", [AUTHORS, {"name": "agc", "lambda": 0.8, "eta": 0.8, "taa": {"R": float("inf"), "A": 5.0, "magnitude": 5, "num_ops": 2, "max_level": 30}},
                                    {"name": "wen", "threshold": {"kind": "quantile", "value": 0.4}},
                                    {"name": "caption_noise", "kind": "rc", "p": 0.5, "num_words": 4}])  # fmt: skip
def test_a_round_that_was_interrupted_ends_with_the_same_weights(epsilon, pixels, tmp_path, monkeypatch, method):
    learnt = objective(epsilon, pixels, tmp_path, monkeypatch)
    whole, *_ = trained(epsilon, learnt, pixels, method, settings_of())
    parts, *_ = trained(epsilon, learnt, pixels, method, settings_of(), stop=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    before = network_of(epsilon)
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), before.parameters(), strict=True))


# Images.


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_sampling_is_that_of_the_stock_pipeline(folder, guidance):
    """The same noise and prompts through StableDiffusionPipeline with the folder's own DDIM scheduler."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    frozen, network = model.Frozen(folder, torch.device("cpu")), network_of(folder).eval()
    texts = ["a red square", "the blue circle", "x"]
    x_T = sampling.starting_noise(4, 7, (4, 8, 8), SEED)
    expected = pipeline(
        texts, latents=x_T, num_inference_steps=10, guidance_scale=guidance, output_type="latent"
    ).images
    batches = []
    network.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    cond = frozen.embeddings(texts)
    own = SimpleNamespace(frozen=frozen, latent_shape=(4, 8, 8), alpha_bars=frozen.alpha_bars, network=network)
    data = SimpleNamespace(captions={"train": [[text] for text in texts], "heldout": []}, keys="abc", fixed_text=None)
    source = generation.Source(own, {"num_images": 3, "precision": "fp32"}, data, SEED, sampling)
    with torch.no_grad():
        found = source.sampled(x_T, cond, frozen.embeddings([""]).expand_as(cond), 10, guidance, "paper")
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    assert batches == [3 if guidance == 1 else 6] * 10


MITIGATIONS = {
    "rt": ({"num_words": 4}, [True, False]),
    "cwr": ({"num_words": 4}, [True, False]),
    "rna": ({"num_words": 4}, [True, False]),
    "gni": ({"sigma": 0.1, "target": "both"}, [True, True]),
    "wen": ({"target": {"kind": "rms", "value": 1e-6}, "learning_rate": 0.05, "weight_decay": 0.01, "max_iterations": 2}, [True, False]),
}  # fmt: skip


def test_every_mitigation_changes_what_the_network_sees_in_the_sample_phase(epsilon, pixels, tmp_path, monkeypatch):
    """On the halves on which it should, the same at every step, with the starting noise as it was."""
    objective(epsilon, pixels, tmp_path, monkeypatch)
    files.write_json(files.DATA / "captions.json", {"train": CAPTIONS, "heldout": []})
    files.write_json(files.DATA / "keys.json", {"train": [f"{i}.png" for i in range(6)], "heldout": []})
    files.save_arrays(files.folder("model", "a-seed5", 1) / "raw.safetensors", model.unet_weights(epsilon))
    recipe = {"rounds": 1, "method": {"name": "ddpm"}, "train": {}}
    params = {"model": {"pipeline": str(epsilon)}, "diffusion": {}, "train": {"flip": False}, "arms": {"a": recipe}}
    params["compute"] = {"precision": "fp32"}
    job = SimpleNamespace(arm="a", seed=5, run="a-seed5", recipe=recipe, params=params, device=torch.device("cpu"))
    settings = {
        "num_images": 4,
        "num_steps": 3,
        "protocol": "paper",
        "weights": ["raw"],
        "guidance": 3.0,
        "precision": "fp32",
    }

    def run(**mitigation):
        source, _ = models.source(job, "a", 1, settings | ({"mitigation": mitigation} if mitigation else {}), sampling)
        models.load(job, "a", 1, "raw", source)
        seen = []
        source.network.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args[0], kwargs["encoder_hidden_states"])), with_kwargs=True
        )
        images = source.generate(1, 3)
        assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
        assert not any(p.grad is not None for p in source.network.parameters())
        return images, seen[-3:], source.records(1, 3)

    plain, shown_plain, records = run()
    assert [record["train_key"] for record in records] == [f"{i}.png" for i in generation.prompted(4, 1, 6, 5)[1:3]]
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(epsilon, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_progress_bar_config(disable=True)
    texts, noise = [record["prompt_used"] for record in records], sampling.starting_noise(1, 3, (4, 8, 8), 5)
    stock = pipeline(texts, latents=noise, num_inference_steps=3, guidance_scale=3.0, output_type="np").images
    assert np.abs(plain - 255 * stock).max() < 1
    assert {*MITIGATIONS, "delayed_guidance"} == set(
        declarations.mitigations()["text"]
    )  # that one: test_delayed_guidance_by_hand
    for name, (more, (changes_cond, changes_uncond)) in MITIGATIONS.items():
        images, seen, changed = run(name=name, **more)
        assert torch.equal(seen[0][0], shown_plain[0][0])  # the noise
        for (_, one), (_, other) in zip(seen, shown_plain, strict=True):
            uncond, cond = (one != other).flatten(1).any(1).chunk(2)
            assert cond.tolist() == [changes_cond] * 2 and uncond.tolist() == [changes_uncond] * 2, name
        assert torch.equal(seen[0][1], seen[2][1])
        assert (images != plain).any() and np.array_equal(images, run(name=name, **more)[0])
        words = name in ("rt", "cwr", "rna")
        assert all((record["prompt_used"] != record["prompt_original"]) == words for record in changed)


@pytest.mark.parametrize("early", [0, -2])
def test_delayed_guidance_by_hand(early):
    """Ten steps of 1,000: t = 901, 801, 701 are early, and so is not 601; the network answers by what it is shown."""
    mitigation = {"name": "delayed_guidance", "until": 0.65, "guidance": early}
    times, alpha_bars = [], torch.linspace(0.99, 0.01, 1000, dtype=torch.float64)

    def network(x, t, encoder_hidden_states):
        times.append((int(t[0]), len(x)))
        return SimpleNamespace(sample=encoder_hidden_states.view(-1, 1, 1, 1) * torch.ones_like(x))

    cond, uncond = torch.tensor([[[3.0]], [[5.0]]]), torch.tensor([[[1.0]], [[1.0]]])
    predict = generation.guided(
        network, cond, uncond, lambda t: prompt_mitigations.guidance_at(mitigation, 4.0, t, 1000), alpha_bars, "epsilon"
    )
    for t in sampling.timesteps(1000, 10):
        scale = early if t > 650 else 4.0
        found = predict(torch.zeros(2, 1, 2, 2), torch.full((2,), t)).sample
        assert found.flatten(1)[:, 0].tolist() == [1 + scale * 2, 1 + scale * 4], t
    halves = 2 if early == 0 else 4  # without the prompt one half is enough
    assert times[:3] == [(901, halves), (801, halves), (701, halves)] and all(size == 4 for _, size in times[3:])
    assert prompt_mitigations.guidance_at(None, 4.0, 999, 1000) == 4.0
    assert prompt_mitigations.guidance_at({"name": "rt", "num_words": 1}, 4.0, 999, 1000) == 4.0
    assert prompt_mitigations.guidance_at(mitigation, 4.0, 650, 1000) == 4.0


def test_delayed_guidance_changes_the_images_of_the_sample_phase(epsilon, pixels, tmp_path, monkeypatch):
    """With opposite guidance they differ, and where it is over before the first step they are those without."""
    objective(epsilon, pixels, tmp_path, monkeypatch)
    files.write_json(files.DATA / "captions.json", {"train": CAPTIONS, "heldout": []})
    files.write_json(files.DATA / "keys.json", {"train": [f"{i}.png" for i in range(6)], "heldout": []})
    files.save_arrays(files.folder("model", "a-seed5", 1) / "raw.safetensors", model.unet_weights(epsilon))
    params = {"model": {"pipeline": str(epsilon)}, "diffusion": {}, "train": {"flip": False}, "arms": {"a": {"rounds": 1, "method": {"name": "ddpm"}, "train": {}}}}  # fmt: skip
    params["compute"] = {"precision": "fp32"}
    job = SimpleNamespace(arm="a", seed=5, params=params, device=torch.device("cpu"))
    settings = {"num_images": 4, "num_steps": 3, "protocol": "paper", "weights": ["raw"], "guidance": 3.0, "precision": "fp32"}  # fmt: skip

    def made(**mitigation):
        more = {"mitigation": {"name": "delayed_guidance"} | mitigation} if mitigation else {}
        source, _ = models.source(job, "a", 1, settings | more, sampling)
        models.load(job, "a", 1, "raw", source)
        return source.generate(1, 3)

    plain = made()
    assert np.array_equal(made(until=0.999, guidance=-2), plain)
    assert (made(until=0.5, guidance=-2) != plain).any() and (made(until=0.5, guidance=0) != plain).any()


def test_prompts_are_the_same_for_all_and_none_is_drawn_twice():
    found = generation.prompted(7, 3, 10, seed=2)
    assert len(found) == 7 and found[0] == found[1] == found[2] != found[3] == found[5] != found[6]
    assert len(set(generation.prompted(10, 1, 10, seed=2))) == 10
    assert list(generation.prompted(4, 1, 10, seed=2)) == list(
        generation.prompted(9, 1, 10, seed=2)[:4]
    )  # more images, same first ones
    assert list(generation.prompted(10, 1, 10, 2)) != list(generation.prompted(10, 1, 10, 3))
    drawn = generation.prompted(4000, 1, 10_000, 42, with_replacement=True)
    assert 3200 < len(set(drawn)) < 3400  # 10,000 (1 - (1 - 1/10,000)^4000) = 3,297


def test_each_image_is_asked_for_and_recorded_with_its_own_prompt(monkeypatch):
    """Two images a caption, of training images in the order of a draw; words put in by a mitigation are those of seed and image."""
    asked_for = []
    frozen = SimpleNamespace(
        device="cpu", tokenizer=None, embeddings=lambda texts: asked_for.append(texts) or torch.zeros(len(texts), 2, 3)
    )
    model = SimpleNamespace(
        frozen=frozen, latent_shape=(1, 2, 2), alpha_bars=torch.ones(4), network=torch.nn.Linear(1, 1)
    )
    captions = {"train": [[f"first {i}", f"second {i}"] for i in range(5)], "heldout": []}
    data = SimpleNamespace(captions=captions, keys=[f"{i}.png" for i in range(5)], fixed_text=None)
    settings = {"num_images": 7, "images_per_prompt": 2, "mitigation": {"name": "rna", "num_words": 2}}
    source = generation.Source(model, settings, data, 6, None)
    order = generation.prompted(7, 2, 5, 6).tolist()
    assert order[::2] != [0, 1, 2, 3] and len(set(order)) == 4
    found = source.records(3, 7)
    assert [record["index"] for record in found] == [3, 4, 5, 6] and {record["seed"] for record in found} == {6}
    assert [record["prompt_original"] for record in found] == [f"first {i}" for i in order[3:]]
    assert [record["train_key"] for record in found] == [f"{i}.png" for i in order[3:]]
    used = [
        prompt_mitigations.with_words(
            "rna", f"first {i}", 2, None, randomness.numpy_generator("prompt_words", 6, image)
        )
        for image, i in enumerate(order)
    ]
    assert [record["prompt_used"] for record in found] == used[3:] and len(set(used)) == 7
    source.embeddings(3, 7, None)
    assert asked_for == [used[3:], [""]]


# Settings.

UNAIMED = {"name": "wen", "learning_rate": 0.05, "weight_decay": 0.01, "max_iterations": 3}
MSR = {"share": 0.25, "select": "memory", "schedule": "alternating"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"diffusion": {"num_timesteps": 10}}, "diffusion is {'num_timesteps': 10}, expected {} (model.pipeline brings its own"),
        ({"model": {"pipeline": "x", "dropout": 0.1}}, "unknown key model.dropout: valid keys here are pipeline"),
        ({"data": {"name": "digits", "num_train": 60, "split_seed": 0}}, "data.name is digits, whose images have no captions"),
        ({"sample__guidance": 0.5}, "sample.guidance is 0.5, expected at least 1"),
        ({"arms__default__sample": {"weights": ["raw", "ema"]}}, "train.ema_decay of default is 0, so no averaged weights are kept"),
        ({"arms__default__sample": {"num_images": 33}}, "num_images of default asks for 33 captions, but there are 32 training images"),
        ({"arms__default_rt__sample": {"num_images": 33}}, "num_images of default_rt asks for 33 captions"),
        ({"arms__default__sample": {"mitigation": {"name": "rtt"}}}, "mitigation.name is 'rtt', expected one of amg, cwr, delayed_guidance, gni, rna, rt, wen"),
        ({"arms__default__sample": {"mitigation": {"name": "amg", "start": 1.5, "level": 1.9, "strength": 1, "neighbours": 5}}}, "sample.mitigation of default is amg, which does not go with a model with captions (model.pipeline): use rt, cwr,"),
        ({"arms__default__sample": {"mitigation": {"name": "rt"}}}, "the key arms.default.sample.mitigation.num_words is missing"),
        ({"arms__default__train": {"epochs": 1, "steps": 3}}, "both epochs and steps say how long a round of default is"),
        ({"arms__default__train": {}}, "the key arms.default.train.epochs is missing"),
        ({"train__caption": "fixed_text"}, "train.caption of default is fixed_text, but train.caption_text is missing or empty"),
        ({"train__caption": "fixed_text", "train__caption_text": " \n"}, "is fixed_text, but train.caption_text is ' \\n': give the text"),
        ({"arms__gn__train": {"epochs": 5, "caption": "fixed_text", "caption_text": ""}}, "caption of gn is fixed_text, but train.caption_text"),
        ({"train__caption": "fixed_text", "train__caption_text": 7}, "train.caption_text is 7, expected a text (text model: with caption"),
        ({"train__caption": "fixed"}, "train.caption is 'fixed', expected one of first, random_of_all, fixed_text"),
        ({"data": {"name": "captioned_folder", "root": "x", "split_seed": 0}, "arms__default__sample": {"mitigation": UNAIMED}},
         "sample.mitigation of default has no target, and no image is held out from whose captions it could be computed: set data.held"),
        ({"arms__default__sample": {"mitigation": UNAIMED | {"target": {"kind": "rms"}}}}, "mitigation.target.value is missing"),
        ({"train__caption_text": "a cat"}, "train.caption_text has no effect without caption: fixed_text: remove it"),
        ({"arms__gn__train": {"epochs": 5, "caption_text": "a cat"}}, "arms.gn.train.caption_text has no effect without caption"),
        ({"arms__default__method": {"name": "added_noise", "variance": 0.1}}, "which trains a model without captions: use one of agc, cap"),
        ({"arms__default_rt__generator": {"arm": "nobody"}}, "generator.arm is nobody, expected one of the arms that are trained here: default,"),
        ({"arms__iet_agc_plus__rounds": 3, "arms__iet_agc_plus__redistribute": MSR}, "rounds is 3, expected an even number"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(changes, told):
    experiment = yaml.safe_load((ROOT / "experiments/tiny/text.yaml").read_text())
    rules.check(experiment)
    for path, value in changes.items():
        section = experiment
        *folders, last = path.split("__")
        for folder in folders:
            section = section[folder]
        section[last] = value
    with pytest.raises(ValueError) as error:
        rules.check(experiment)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_keys_of_a_text_model_are_refused_without_one():
    for path, told in (
        ("train", {"caption": "first"}),
        ("sample", {"guidance": 2.0}),
    ):
        experiment = yaml.safe_load(TINY)
        rules.check(experiment)
        experiment[path] |= told
        with pytest.raises(
            ValueError, match=rf"{path}.{next(iter(told))} has no effect without model.pipeline: remove it"
        ):
            rules.check(experiment)
    experiment = yaml.safe_load(TINY)
    experiment["sample"]["mitigation"] = {"name": "rt", "num_words": 1}
    with pytest.raises(
        ValueError, match="is rt, which does not go with a model without captions: use amg, or remove it"
    ):
        rules.check(experiment)
