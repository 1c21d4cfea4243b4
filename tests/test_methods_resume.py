"""A round that was cut off anywhere goes on to the same bits, whatever the method: those of experiments/tiny/digits.yaml."""

import pytest
import torch
import yaml
from conftest import ROOT

from stages import methods
from stages.diffusion import ddpm, unet, weights
from stages.iet import shard_state
from stages.methods import base, loop, told_augmentation
from stages.pixels import initial_weights
from stages.run import declarations

EXPERIMENT = yaml.safe_load((ROOT / "experiments/tiny/digits.yaml").read_text(encoding="utf-8"))
ARMS = EXPERIMENT["arms"]
T, SEED, SHARD, NUM_IMAGES, BATCH, STEPS = 20, 4, 2, 11, 4, 7
MODEL = {"block_channels": [8, 8], "attention_levels": [], "layers_per_block": 1, "dropout": 0.2, "norm_groups": 4}
SETTINGS = {
    "batch_size": BATCH, "learning_rate": 3e-3, "warmup_steps": 5, "grad_clip_norm": 1.0, "ema_decay": 0.9, "flip": True,
    "precision": "fp32", "steps": STEPS,
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def begun(arm):
    """A round before its first step, whose network already answers."""
    method = methods.method(ARMS[arm]["method"])
    own = {name: value for name, value in ARMS[arm]["train"].items() if name in ("told_augmentation", "timestep_focus")}
    settings, told = SETTINGS | own, own.get("told_augmentation")
    num_told = told_augmentation.num_told(told) if told else 0
    network = unet.build(MODEL, (1, 8, 8), method.network_channels(1), num_told=num_told)
    if "teacher" in ARMS[arm]["method"]:
        torch.manual_seed(7)
        method.take_teachers([unet.build(MODEL, (1, 8, 8)).eval() for _ in range(2)], torch.arange(40) % 2)
    weights.load(network, initial_weights.initial_weights(network, SEED), "the initialisation")
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=random))
    pixels = torch.randint(256, (NUM_IMAGES, 1, 8, 8), generator=random, dtype=torch.uint8)
    images = base.Images(pixels, torch.arange(3, 3 + 2 * NUM_IMAGES, 2))
    state = shard_state.fresh_state(list(network.parameters()), method.initial_state(T, torch.device("cpu")))
    record = loop.Record.empty(NUM_IMAGES, loop.num_epochs(NUM_IMAGES, SETTINGS), "cpu")
    alpha_bar = ddpm.alpha_bars(T, 0.005, 0.3).float()
    return loop.Training(network, state, record, images, method, settings, alpha_bar, SEED, SHARD)


def so_far(training):
    """Everything that a checkpoint holds."""
    saved = shard_state.unfinished_as_arrays(training.network, training.state, vars(training.record))
    return {name: value.copy() for name, value in saved.items()}


class CutOff(Exception):
    pass


def test_the_arms_have_what_stands_in_train():
    assert {"told_augmentation", "timestep_focus"} <= {name for recipe in ARMS.values() for name in recipe["train"]}


@pytest.mark.parametrize("arm", list(dict.fromkeys(ARMS)))
def test_a_round_that_is_cut_off_goes_on_to_the_same_bits(arm):
    whole = begun(arm)
    loop.train_round(whole, lambda *_: None)
    cut, kept = begun(arm), {}

    def after_step(done, total, loss):
        if done == 3:
            kept.update(so_far(cut))
            raise CutOff

    with pytest.raises(CutOff):
        loop.train_round(cut, after_step)
    again = begun(arm)
    torch.manual_seed(99)  # what the process drew before must not matter
    shard_state.take_up(kept, again.network, again.state, vars(again.record))
    loop.train_round(again, lambda *_: None)
    one, other = so_far(whole), so_far(again)
    assert one.keys() == other.keys() and int(one["step"][0]) == STEPS
    differing = [name for name in one if not (one[name] == other[name]).all()]
    assert not differing
    assert any((one[name] != kept[name]).any() for name in one if name.startswith("raw."))


def test_every_method_of_pixels_has_an_arm():
    of_pixels = {name for name, declared in declarations.methods().items() if "pixels" in declared["MODELS"]}
    assert {recipe["method"]["name"] for recipe in ARMS.values()} == of_pixels
