"""The state of a shard as named arrays and back: nothing is lost, and arrays of another network or method are refused."""

import numpy as np
import pytest
import torch

from stages.iet import shard_state

NAMES = ["first.weight", "first.bias"]


def network_of(seed):
    """Weights of two shapes, with names as torch gives them."""
    network = torch.nn.ModuleDict({"first": torch.nn.Linear(3, 2)})
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.rand(p.shape, generator=torch.Generator().manual_seed(seed)))
    return network


def carried(number):
    """What a method carries: floats, and integers that a float32 could not hold."""
    return {"bank": torch.full((5,), float(number)), "queue": torch.tensor([2**40 + number, -1])}


def trained(seed=1, ema=True):
    network = network_of(seed)
    state = shard_state.fresh_state(list(network.parameters()), carried(seed), ema)
    for i, values in enumerate((state.ema, state.exp_avg, state.exp_avg_sq)):
        for value in values:
            value.add_(10 * (i + 1) + seed)
    state.step = 7
    return network, state


def everything(state):
    return [*state.ema, *state.exp_avg, *state.exp_avg_sq, *state.carried.values(), torch.tensor(state.step)]


def same(one, other):
    found = everything(one), everything(other)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("ema", [True, False])
def test_what_is_handed_over_comes_back(ema):
    network, state = trained(ema=ema)
    arrays = shard_state.trained_as_arrays(network, state)
    assert list(arrays) == (["raw", "ema", "state"] if ema else ["raw", "state"])
    assert list(arrays["raw"]) == NAMES and arrays["state"]["step"].tolist() == [7]
    assert arrays["state"]["carried.queue"].dtype == np.int64
    parameters = dict(network_of(2).named_parameters())
    back = shard_state.from_arrays(arrays["state"], arrays.get("ema", {}), parameters, carried(0), "there")
    assert same(state, back)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("exp_avg_sq.first.bias", None, "nothing, expected (2,)"),
        ("exp_avg.first.weight", np.zeros((2, 4), np.float32), "(2, 4), expected (2, 3)"),
        ("carried.queue", np.zeros(3, np.int64), "(3,), expected (2,)"),
        ("step", np.zeros(2, np.int64), "(2,), expected (1,)"),
    ],
)
def test_the_state_of_another_network_or_method_is_refused(name, value, found):
    network, state = trained()
    arrays = shard_state.as_arrays(state, NAMES)
    arrays = {n: v for n, v in arrays.items() if n != name} | ({} if value is None else {name: value})
    with pytest.raises(ValueError) as error:
        shard_state.from_arrays(arrays, {}, dict(network.named_parameters()), carried(0), "there")
    assert str(error.value) == (
        f"there holds the state of another network: {name} is {found}; set model, diffusion and method in params.yaml back, or rerun "
        "the phase that wrote it"
    )


def test_an_unfinished_round_goes_on_in_place():
    network, state = trained(1)
    record = {"skips": torch.arange(4), "loss": torch.tensor([0.25, 0.5], dtype=torch.float64)}
    arrays = shard_state.unfinished_as_arrays(network, state, record)
    arrays = {name: value.copy() for name, value in arrays.items()}
    other, other_state = trained(2)
    bank = other_state.carried["bank"]
    other_record = {name: torch.zeros_like(value) for name, value in record.items()}
    shard_state.take_up(arrays, other, other_state, other_record)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))
    assert same(state, other_state) and bank is other_state.carried["bank"]
    assert all(torch.equal(value, other_record[name]) for name, value in record.items())


@pytest.mark.parametrize("name", ["raw.first.bias", "ema.first.weight", "record.skips", "carried.bank", "step"])
def test_a_checkpoint_of_another_round_is_noticed(name):
    """Also where torch would copy it all the same: one number into many."""
    network, state = trained()
    record = {"skips": torch.arange(4)}
    arrays = shard_state.unfinished_as_arrays(network, state, record)
    for changed in ({n: v for n, v in arrays.items() if n != name}, arrays | {name: np.zeros((1, 1), np.float32)}):
        with pytest.raises(AssertionError, match=f"the checkpoint is of another round: {name} is"):
            shard_state.take_up(changed, network, state, record)
