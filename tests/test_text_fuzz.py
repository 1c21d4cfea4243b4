"""Folders of a Stable Diffusion model with damaged files: used, or refused in one sentence, in little time and memory."""

import json
import random
import resource
import shutil
import time
import warnings

import pytest
import tiny_sd  # noqa: F401 (it imports all of diffusers, before a pixel network imports a part of it)
import torch
from test_fuzz import MIB, damaged

from stages.diffusion import weights
from stages.text import generation, model

FILES = [
    "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json",
    "tokenizer/tokenizer_config.json", "tokenizer/tokenizer.json", "unet/diffusion_pytorch_model.safetensors",
]  # fmt: skip
ODD = [
    None,
    True,
    -1,
    0,
    3,
    10**7,
    10**19,
    10**400,
    -(10**30),
    0.5,
    float("inf"),
    float("nan"),
    "",
    "x",
    "../..",
    [],
    {},
    [[1, "a"]],
    ["a"] * 9,
]


def other(value, rng):
    """A value of a JSON file with one thing in it changed: an entry left out, another in its place, a number that is far larger."""
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(sorted(value))
        changed = dict(value)
        if rng.random() < 0.2:
            del changed[key]
        else:
            changed[key] = other(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        place = rng.randrange(len(value))
        return [*value[:place], *([] if rng.random() < 0.3 else [other(value[place], rng)]), *value[place + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.3:
        return value * rng.choice([2, 1000, 10**9]) + rng.choice([0, 1])
    return rng.choice(ODD)


def use(folder):
    """All that the stages do with a model: an image of a prompt, from its weights."""
    model.has_safety_checker(folder)
    frozen = model.Frozen(folder, torch.device("cpu"))
    shape = frozen.latent_shape((3, 32, 32))
    network = model.unet(folder).eval()
    weights.load(network, model.unet_weights(folder), folder)
    cond, uncond = frozen.embeddings(["a red square"]), frozen.embeddings([""])
    with torch.no_grad():
        predict = generation.guided(network, cond, uncond, 3.0, frozen.alpha_bars, frozen.prediction_type)
        latents = predict(torch.ones(1, *shape), torch.tensor([500])).sample
    assert frozen.decoded(latents).shape == (1, 3, 32, 32)
    assert frozen.num_cut(["a " * 100]) == 1


def survives(tiny_model, folder, name, number, seed=0):
    """Returns how many were refused."""
    rng, refused = random.Random(f"{name}{seed}"), 0
    shutil.copytree(tiny_model, folder)
    use(folder)
    path = folder / name
    whole = path.read_bytes()
    content = json.loads(whole) if path.suffix == ".json" else None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(number):
        if content is None or i % 3 == 0:
            path.write_bytes(damaged(whole, rng))
        else:
            path.write_text(json.dumps(other(content, rng)))
        start = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                use(folder)
        except (ValueError, OSError) as error:
            told = str(error)
            assert str(folder) in told and "\n" not in told and len(told) < 900, (path.read_bytes()[:3000], error)
            refused += 1
        assert time.process_time() - start < 5, path.read_bytes()[:3000]
    path.write_bytes(whole)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * MIB
    return refused


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_used_or_refused(tiny_model, tmp_path, name):
    survives(tiny_model, tmp_path / "model", name, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_damaged_files_are_used_or_refused(tiny_model, tmp_path, name):
    refused = survives(tiny_model, tmp_path / "model", name, 150, seed=1)
    assert refused > (0 if name == "model_index.json" else 20)
