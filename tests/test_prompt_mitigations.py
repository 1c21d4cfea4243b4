"""Mitigations at inference time: what they put into prompts, what of it the network sees, and the optimisation of Wen et al."""

import numpy as np
import pytest
import tiny_sd
import torch

from stages import randomness
from stages.text import prompt_mitigations as method

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = {name: {"name": name, "num_words": 4} for name in ("rt", "cwr", "rna")}
GNI = {"name": "gni", "sigma": 0.1, "target": "both"}
WEN = {
    "name": "wen",
    "target": {"kind": "rms", "value": 1e-6},
    "learning_rate": 0.05,
    "weight_decay": 0.01,
    "max_iterations": 8,
}
PROMPTS = ["a red square", "a blue circle of the cross"]


@pytest.fixture(scope="module")
def words():
    return tiny_sd.tokenizer()


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def pipeline(request, tmp_path_factory):
    from diffusers import StableDiffusionPipeline

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_sd.build(folder, "D", request.param)
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# Words.


def put_in(prompt, reworded):
    """The words of `reworded` that are not of the prompt, if the prompt's own still stand there in their order; else None."""
    left, added = prompt.split(), []
    for word in reworded.split(" "):
        if left and word == left[0]:
            left.pop(0)
        else:
            added.append(word)
    return None if left else added


@pytest.mark.parametrize("name", ["rt", "cwr", "rna"])
def test_words_are_put_in_at_all_places_and_the_prompt_stays(words, name):
    prompt, places = "one two three", set()
    for image in range(60):
        found = method.reworded(WORDS[name], prompt, words, 5, image)
        assert "" not in found.split(" ")
        added = put_in(prompt, found)
        if name == "cwr":  # a repeated word may stand before its original, which then counts as the added one
            assert sorted(set(found.split())) == ["one", "three", "two"] and len(found.split()) == 7
        elif name == "rna":
            assert len(added) == 4 and all(word.isdecimal() and int(word) < 100_000 for word in added)
        else:
            assert added is None or len(found.split()) >= 7  # a decoded token may hold a blank of its own
        places |= {i for i, word in enumerate(found.split()) if word not in prompt.split()}
    assert name == "cwr" or places == set(range(7))  # the first and the last place too


def test_repeated_words_are_those_of_the_original_prompt(words):
    """Half of 1,000 are "one", whatever was put in before; drawn from the growing prompt, the share would be anything from 0 to 1."""
    for image in range(5):
        found = method.reworded(WORDS["cwr"] | {"num_words": 1000}, "one two", words, 5, image).split()
        assert len(found) == 1002 and found.count("one") == pytest.approx(501, abs=60)


def test_random_words_are_tokens_of_the_model_and_never_special(words):
    drawn = set()
    for image in range(300):
        generator = randomness.numpy_generator("prompt_words", 1, image)
        drawn.add(method._random_word(words, generator))
    assert all(word.strip() == word != "" for word in drawn) and not drawn & set(words.all_special_tokens)
    assert drawn <= {words.decode([i]).strip() for i in range(len(words))} and len(drawn) > 80


def test_a_token_that_decodes_to_nothing_is_drawn_again():
    class Mostly:
        all_special_ids = (0, 1)
        tried = []

        def __len__(self):
            return 10

        def decode(self, ids):
            self.tried.append(ids[0])
            return " word " if ids == [7] else "  "

    stub = Mostly()
    assert method._random_word(stub, np.random.default_rng(0)) == "word"
    assert len(stub.tried) > 1 and not {0, 1} & set(stub.tried)


def test_draws_are_keyed_by_seed_and_image(words):
    found = {(s, i): method.reworded(WORDS["rt"], "a red square", words, s, i) for s in (0, 1) for i in (0, 1)}
    assert len(set(found.values())) == 4
    assert found[0, 1] == method.reworded(WORDS["rt"], "a red square", words, 0, 1)


def test_other_mitigations_leave_the_prompt_and_cwr_needs_one(words):
    assert method.reworded(GNI, "a  red\nsquare", words, 0, 0) == "a  red\nsquare"
    assert method.reworded(WORDS["rna"], "a  red\nsquare", words, 0, 0).split()[-1]
    with pytest.raises(ValueError, match="a prompt is empty: cwr has no word"):
        method.reworded(WORDS["cwr"], "  ", words, 0, 0)


# What the network sees.


def seen(pipeline, mitigation, steps=3, images=(0, 4)):
    """encoder_hidden_states of every pass, [steps,2,B,L,D]: those of the empty prompt, then of the prompts."""
    used = [method.reworded(mitigation, p, pipeline.tokenizer, 9, i) for p, i in zip(PROMPTS, images)]
    cond, uncond = pipeline.encode_prompt(used, "cpu", 1, True)
    x_T = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32))
    pipeline.scheduler.set_timesteps(steps)
    t = pipeline.scheduler.timesteps[0]
    with torch.no_grad():
        difference = method.first_difference(
            lambda e: pipeline.unet(x_T, t, e).sample,
            uncond,
            pipeline.scheduler.config.prediction_type,
            pipeline.scheduler.alphas_cumprod[t],
        )
        cond, uncond = method.embeddings(mitigation, cond, uncond, 9, images, difference)
        states = []
        hook = pipeline.unet.register_forward_pre_hook(
            lambda _, args, kwargs: states.append(kwargs["encoder_hidden_states"].clone()), with_kwargs=True
        )
        pipeline(
            prompt_embeds=cond,
            negative_prompt_embeds=uncond,
            latents=x_T,
            num_inference_steps=steps,
            guidance_scale=4.0,
            output_type="latent",
        )
        hook.remove()
    return torch.stack(states).unflatten(1, (2, len(PROMPTS)))


@pytest.mark.parametrize("mitigation", [*WORDS.values(), GNI, GNI | {"target": "cond"}, WEN], ids=str)
def test_the_network_sees_other_embeddings(pipeline, mitigation):
    plain, changed = seen(pipeline, {"name": "none"}), seen(pipeline, mitigation)
    assert all(torch.equal(step, changed[0]) for step in changed)  # the same at every step
    for half, changes in ((0, mitigation.get("target") == "both"), (1, True)):
        for image in range(len(PROMPTS)):
            assert torch.equal(changed[0, half, image], plain[0, half, image]) != changes


def test_noise_of_embeddings_is_drawn_for_each_image_and_half(pipeline):
    both = seen(pipeline, GNI)[0] - seen(pipeline, {"name": "none"})[0]
    assert both.std().item() == pytest.approx(0.1, rel=0.05) and abs(both.mean().item()) < 0.005
    flat = both.flatten(0, 1).flatten(1).numpy()
    assert np.abs(np.corrcoef(flat) - np.eye(4)).max() < 0.1  # no two of the four share a draw
    cond = seen(pipeline, GNI | {"target": "cond"})[0] - seen(pipeline, {"name": "none"})[0]
    assert torch.equal(cond[1], both[1])
    other = seen(pipeline, GNI, images=(7, 4))[0] - seen(pipeline, {"name": "none"}, images=(7, 4))[0]
    assert torch.equal(other[1, 1], both[1, 1]) and not torch.allclose(other[1, 0], both[1, 0])


# Wen et al.


def linear(scale):
    """A stand-in whose difference is known: the embedding's second token times the scale of the image."""
    return lambda cond: (scale.view(-1, 1, 1) * cond[:, 1:2, :]).unsqueeze(1)


def test_optimisation_is_adamw_of_each_image_alone():
    generator = torch.Generator().manual_seed(0)
    cond = torch.randn(3, 4, 5, generator=generator)
    scale = torch.tensor([1.0, 0.25, 0.01])
    settings = WEN | {"target": {"kind": "raw", "value": 0.1}, "learning_rate": 0.02, "max_iterations": 6}
    found, losses = method.optimised(settings, cond, linear(scale))
    assert len(losses) == 7 and (losses[-1][:2] < losses[0][:2]).all()
    assert torch.equal(found[2], cond[2]) and losses[0][2] < 0.1  # there before the first update: left as it is

    # The first image by Adam's formula, decoupled weight decay first.
    e, m, v = cond[0].double().clone(), torch.zeros(5).double(), torch.zeros(5).double()
    for k in range(1, 7):
        gradient = e[1] / e[1].norm()
        e = e * (1 - 0.02 * 0.01)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        e[1] -= 0.02 * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
    torch.testing.assert_close(found[0].double(), e, atol=1e-6, rtol=1e-5)

    alone, _ = method.optimised(settings, cond[1:2], linear(scale[1:2]))
    torch.testing.assert_close(found[1:2], alone)  # nobody else in the batch matters


def test_an_image_stops_where_it_first_reaches_the_target():
    cond = torch.full((2, 3, 4), 1.0)
    cond[1, 1] = 10.0
    settings = WEN | {"target": {"kind": "rms", "value": 0.9}, "max_iterations": 10, "weight_decay": 0.0}
    found, losses = method.optimised(settings, cond, linear(torch.ones(2)))
    # Updates of 0.05 take the first from 1 to 0.85 in three, to 0.9 in two; the second never gets there.
    reached = [i for i, loss in enumerate(losses) if loss[0] <= 0.9 + 1e-6]
    assert reached[0] in (2, 3) and all(torch.equal(losses[i][0], losses[reached[0]][0]) for i in reached)
    assert losses[-1][1] == pytest.approx(10 - 10 * 0.05, abs=0.01)
    assert torch.equal(found[0, 0], cond[0, 0])


def test_raw_and_rms_differ_by_the_root_of_the_number_of_values():
    cond = torch.ones(1, 2, 9)
    for kind, loss in (("raw", 3.0), ("rms", 1.0)):
        settings = WEN | {"target": {"kind": kind, "value": 2.0}, "max_iterations": 1}
        found, losses = method.optimised(settings, cond, linear(torch.ones(1)))
        assert losses[0].item() == pytest.approx(loss)
        assert torch.equal(found, cond) == (kind == "rms")


def test_optimisation_of_a_real_network_lowers_the_magnitude_and_keeps_the_first_token(pipeline):
    cond, uncond = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    x_T = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32))
    kind = pipeline.scheduler.config.prediction_type
    alpha_bar = pipeline.scheduler.alphas_cumprod[981]
    difference = method.first_difference(lambda e: pipeline.unet(x_T, 981, e).sample, uncond, kind, alpha_bar)
    with torch.no_grad():  # the sampler computes without gradients
        found, losses = method.optimised(WEN, cond, difference)
    assert (losses[-1] < 0.6 * losses[0]).all()
    decay = (1 - WEN["learning_rate"] * WEN["weight_decay"]) ** WEN["max_iterations"]
    torch.testing.assert_close(found[:, 0], cond[:, 0] * decay)
    assert (found[:, 1:] - cond[:, 1:] * decay).abs().max() > 0.05
    assert all(parameter.grad is None for parameter in pipeline.unet.parameters())
    raw = (
        (pipeline.unet(x_T, 981, cond).sample - pipeline.unet(x_T, 981, uncond).sample).detach().flatten(1).norm(dim=1)
    )
    factor = alpha_bar.sqrt() if kind == "v_prediction" else 1.0
    torch.testing.assert_close(losses[0], factor * raw / 16)  # 4 x 8 x 8 values
