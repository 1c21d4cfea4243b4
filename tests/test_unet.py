"""The network: published sizes, its start, and that the short cut to diffusers leaves nothing behind."""

import json
import os
import pathlib
import subprocess
import sys

import diffusers  # before the first `build`, so that in this process there is no short cut to compare with
import numpy as np
import pytest
import torch

from stages.diffusion import unet, weights
from stages.pixels import initial_weights

ROOT = pathlib.Path(__file__).parents[1]
PAPER = {"attention_levels": [1], "layers_per_block": 2, "dropout": 0.1, "norm_groups": 32}
SMALL = {"block_channels": [8, 16], "attention_levels": [1], "layers_per_block": 1, "dropout": 0.1, "norm_groups": 4}


@pytest.mark.parametrize(
    ("block_channels", "image_shape", "num_parameters", "num_second_convolutions"),
    [([128, 256, 256, 256], (3, 32, 32), 35_746_307, 22), ([128, 256, 256, 256, 512], (3, 64, 64), 78_700_803, 27)],
)
def test_published_sizes(block_channels, image_shape, num_parameters, num_second_convolutions):
    with torch.device("meta"):  # shapes without memory
        network = unet.build(PAPER | {"block_channels": block_channels}, image_shape)
    assert sum(p.numel() for p in network.parameters()) == num_parameters
    names = [name for name, _ in network.named_modules()]
    assert sum(name.endswith("conv2") for name in names) == num_second_convolutions
    with_attention = {name.rsplit(".attentions", 1)[0] for name in names if ".attentions." in name}
    levels = len(block_channels)
    assert with_attention == {"down_blocks.1", f"up_blocks.{levels - 2}", "mid_block"}
    assert all(module.heads == 1 for name, module in network.named_modules() if name.endswith("attentions.0"))
    assert not list(network.buffers())
    assert network.training


def test_answer_has_the_shape_of_the_images_and_takes_rectangles():
    network = unet.build(SMALL | {"block_channels": [8, 8, 16], "attention_levels": [0, 2]}, (3, 12, 8))
    assert network(torch.zeros(2, 3, 12, 8), torch.tensor([0, 999])).sample.shape == (2, 3, 12, 8)


@pytest.mark.parametrize("image_shape", [(1, 12, 8), (1, 8, 12), (3, 31, 31)])
def test_images_that_cannot_be_halved_are_refused(image_shape):
    shape = f"{image_shape[2]}x{image_shape[1]}"
    with pytest.raises(
        ValueError, match=rf"has 4 levels, so images must be multiples of 8 pixels, but they are {shape}"
    ):
        unet.build(SMALL | {"block_channels": [8, 8, 8, 8]}, image_shape)


def test_weights_of_round_0_are_xavier_by_name():
    network = unet.build(SMALL | {"block_channels": [16, 32], "layers_per_block": 2}, (3, 8, 8))
    values = initial_weights.initial_weights(network, seed=3)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert {name: value.shape for name, value in values.items()} == shapes
    drawn, seen = [], set()
    for name, module in network.named_modules():
        if not hasattr(module, "weight"):
            continue
        weight, bias = values[f"{name}.weight"], values[f"{name}.bias"]
        assert weight.dtype == bias.dtype == np.float32
        assert (bias == 0).all()
        if isinstance(module, torch.nn.GroupNorm):
            assert (weight == 1).all()
            continue
        gain = 1e-5 if name.endswith("conv2") or name == "conv_out" else 1.0
        # torch's own rule for the fans; a uniform sample of hundreds comes near its bound but not over it.
        fan_in, fan_out = torch.nn.init._calculate_fan_in_and_fan_out(module.weight)
        bound = gain * (6 / (fan_in + fan_out)) ** 0.5
        assert 0.9 * bound < np.abs(weight).max() <= bound * (1 + 1e-6), name
        assert abs(weight.mean()) < 5 * bound / 3**0.5 / weight.size**0.5, name
        drawn.append(weight.ravel()[:4] / np.float32(bound))
        seen.add(gain)
    assert seen == {1.0, 1e-5}
    assert len({d.tobytes() for d in drawn}) == len(drawn)  # no two layers share their numbers


def test_weights_of_round_0_follow_from_the_seed_alone():
    networks = [unet.build(SMALL, (1, 8, 8)) for _ in range(2)]  # each with random values of its own
    before = torch.get_rng_state()
    values, again, other = (
        initial_weights.initial_weights(network, seed) for network, seed in zip([*networks, networks[0]], [0, 0, 1])
    )
    assert torch.equal(before, torch.get_rng_state())
    assert all(np.array_equal(values[name], again[name]) for name in values)
    assert not np.array_equal(values["conv_in.weight"], other["conv_in.weight"])


def test_network_starts_at_an_answer_of_about_zero():
    torch.manual_seed(0)
    network = unet.build(SMALL | {"block_channels": [16, 32]}, (3, 8, 8)).eval()
    x, t = torch.randn(16, 3, 8, 8), torch.arange(0, 800, 50)
    with torch.no_grad():
        assert network(x, t).sample.std() > 0.05  # PyTorch's own start
        weights.load(network, initial_weights.initial_weights(network, 0), "the initialisation")
        assert 0 < network(x, t).sample.std() < 1e-4


def test_load_puts_every_weight_in_its_place():
    network = unet.build(SMALL, (1, 8, 8))
    values = initial_weights.initial_weights(network, 0)
    parameters = dict(network.named_parameters())
    weights.load(network, values, "here")
    assert all(np.array_equal(parameters[name].detach().numpy(), value) for name, value in values.items())
    assert all(parameters[name] is p and p.requires_grad for name, p in network.named_parameters())
    back = weights.as_arrays(network)
    assert list(back) == list(parameters) and all(np.array_equal(back[name], value) for name, value in values.items())


def test_load_refuses_another_architecture_and_names_the_weight():
    network = unet.build(SMALL, (1, 8, 8))
    values = initial_weights.initial_weights(network, 0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    less = {name: value for name, value in values.items() if name != "conv_out.bias"}
    with pytest.raises(ValueError, match=r"x/raw.safetensors .*: conv_out.bias is nothing, expected \(1,\)"):
        weights.load(network, less, "x/raw.safetensors")
    with pytest.raises(ValueError, match=r"conv_more.bias is \(2,\), expected nothing"):
        weights.load(network, values | {"conv_more.bias": np.zeros(2, np.float32)}, "x")
    wider = initial_weights.initial_weights(unet.build(SMALL | {"block_channels": [16, 16]}, (1, 8, 8)), 1)
    with pytest.raises(ValueError, match=r"conv_in.bias is \(16,\), expected \(8,\)"):
        weights.load(network, wider, "x")
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())  # nothing was half loaded


# The short cut in `_import_unet`: one fresh process, which builds, trains, answers, and only then imports diffusers for real.

BUILT = """
import sys
import numpy as np, torch
from stages.diffusion import unet, weights
model = {"block_channels": [8, 16], "attention_levels": [1], "layers_per_block": 1, "dropout": 0.1, "norm_groups": 4}
network = unet.build(model, (1, 8, 8))
def values():
    random, shapes = np.random.default_rng(0), {name: p.shape for name, p in network.named_parameters()}
    return {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in sorted(shapes.items())}
def answer(network):
    x = torch.from_numpy(np.random.default_rng(1).normal(0, 1, (5, 1, 8, 8)).astype(np.float32))
    with torch.no_grad():
        return network.eval()(x, torch.arange(0, 500, 100)).sample
weights.load(network, values(), "here")
"""

SHORT_CUT = """
found = {"built": list(sys.modules)}
from stages import methods
from stages.diffusion import ddpm
from stages.iet import shard_state
from stages.methods import base, loop
images = base.Images(torch.randint(256, (9, 1, 8, 8), dtype=torch.uint8), torch.arange(9))
settings = {"batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 2, "grad_clip_norm": 1.0, "ema_decay": 0.9, "flip": True,
            "precision": "bf16"}
method = methods.method({"name": "agc", "lambda": 0.5, "eta": 0.8,
                          "taa": {"R": 1e9, "A": 5.0, "magnitude": 3, "num_ops": 2, "max_level": 30}})
state = shard_state.fresh_state(list(network.parameters()), method.initial_state(20, "cpu"))
state.carried["bank"] += 1e-3
record = loop.Record.empty(9, 2, "cpu")
alpha_bar = ddpm.alpha_bars(20, 1e-4, 0.02).float()
training = loop.Training(network, state, record, images, method, settings, alpha_bar, seed=0, shard=0)
loop.train_round(training, lambda *_: None)
found |= {"trained": list(sys.modules), "steps": state.step, "augmented": int(record.augmented.sum())}

weights.load(network, values(), "here")
np.save(sys.argv[1], answer(network).numpy())
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
import diffusers.models.transformers.transformer_2d as transformer_2d, diffusers.models.unets, torch._dynamo
modules = (diffusers.models.unets, diffusers.models.transformers, transformer_2d, torch._dynamo)
found["real"] = [bool(getattr(module, "__file__", None)) for module in modules]
found["transformer is a class"] = isinstance(transformer_2d.Transformer2DModel, type)
found["one class"] = UNet2DModel is type(network)
copy = UNet2DModel.from_config(network.config)
copy.load_state_dict(network.state_dict())
found["same answer"] = torch.equal(answer(copy), answer(network))
pipeline = DDIMPipeline(network, DDIMScheduler())
pipeline.set_progress_bar_config(disable=True)
found["images"] = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images.shape
import json
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def short_cut(tmp_path_factory):
    answer = tmp_path_factory.mktemp("short_cut") / "answer.npy"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BUILT + SHORT_CUT, answer],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"answer": np.load(answer)}


def test_building_leaves_no_stand_in(short_cut):
    assert "diffusers.models.unets.unet_2d" in short_cut["built"]
    names = ("torch._dynamo", "diffusers.models.transformers", "diffusers.models.unets")
    assert not set(names) & set(short_cut["built"])
    assert not [name for name in short_cut["built"] if name.startswith("diffusers.models.transformers.")]


def test_building_and_training_import_nothing_slow_and_unused(short_cut):
    assert short_cut["steps"] == 4 and short_cut["augmented"] > 0  # all of train_step was gone through
    slow = {"torch._dynamo", "torch._inductor", "sympy", "scipy.stats", "transformers", "torchvision"}
    assert not slow & set(short_cut["trained"])


def test_after_building_diffusers_imports_for_real(short_cut):
    assert short_cut["real"] == [True] * 4
    assert short_cut["transformer is a class"] and short_cut["one class"]
    assert short_cut["same answer"]
    assert short_cut["images"] == [2, 8, 8, 1]


def test_network_answers_as_one_that_was_imported_the_usual_way(short_cut):
    usual = {}
    exec(BUILT, usual)
    assert type(usual["network"]) is diffusers.UNet2DModel
    assert diffusers.models.unets.unet_2d_blocks.Transformer2DModel is not None  # where the short cut leaves None
    expected = usual["answer"](usual["network"]).numpy()
    assert np.abs(expected).max() > 0.1
    assert np.array_equal(short_cut["answer"], expected)
