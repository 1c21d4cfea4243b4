"""What a shard keeps for itself from round to round, while its weights are replaced by the average; as tensors and as named arrays.

Named arrays are what files hold: dict name -> numpy array. `names` are those of network.named_parameters(), in that order.
"""

from dataclasses import dataclass

import numpy as np
import torch

from stages.diffusion import weights


@dataclass
class ShardState:
    """What one shard carries from round to round beside the averaged weights.

    ema, exp_avg, exp_avg_sq   lists of tensors, in the order of network.parameters(); ema is empty where none is kept
    carried                    dict name -> tensor of any dtype: what the training method carries, such as AGC's memory bank
    step                       optimiser steps of this shard so far
    """

    ema: list
    exp_avg: list
    exp_avg_sq: list
    carried: dict
    step: int


def fresh_state(parameters, carried, keeps_ema=True):
    """The state of a shard before its first round: EMA = the weights, no moments, what the method begins with."""
    return ShardState(
        ema=[p.detach().clone() for p in parameters if keeps_ema],
        exp_avg=[torch.zeros_like(p) for p in parameters],
        exp_avg_sq=[torch.zeros_like(p) for p in parameters],
        carried=carried,
        step=0,
    )


def ema_as_arrays(state, names):
    """The averaged weights under the names of the weights; empty where none are kept."""
    return {n: value.cpu().numpy() for n, value in zip(names, state.ema, strict=True)} if state.ema else {}


def carried_as_arrays(state):
    """What the method carries, as carried.<name>."""
    return {f"carried.{name}": value.cpu().numpy() for name, value in state.carried.items()}


def as_arrays(state, names):
    """All of the state but the averaged weights: exp_avg.<name>, exp_avg_sq.<name>, carried.<name>; step, [1] int64."""
    return {
        **{f"exp_avg.{n}": value.cpu().numpy() for n, value in zip(names, state.exp_avg, strict=True)},
        **{f"exp_avg_sq.{n}": value.cpu().numpy() for n, value in zip(names, state.exp_avg_sq, strict=True)},
        **carried_as_arrays(state),
        "step": np.array([state.step], np.int64),
    }


def from_arrays(arrays, ema, parameters, carried, source):
    """The state that `as_arrays` and `ema_as_arrays` gave, on the device of the parameters.

    ema          named arrays, of the names and shapes of the parameters; empty where no averaged weights are kept
    parameters   dict name -> parameter, in the order of network.named_parameters()
    carried      dict name -> tensor: what the method begins with, of the names and shapes that are expected
    source       where the arrays come from, for the message
    Raises       ValueError: an array is missing or of another shape
    """
    expected = {f"{kind}.{n}": p.shape for kind in ("exp_avg", "exp_avg_sq") for n, p in parameters.items()}
    expected |= {f"carried.{name}": value.shape for name, value in carried.items()} | {"step": (1,)}
    for name, shape in expected.items():
        found = arrays[name].shape if name in arrays else "nothing"
        if found != tuple(shape):
            raise ValueError(
                f"{source} holds the state of another network: {name} is {found}, expected {tuple(shape)}; "
                "set model, diffusion and method in params.yaml back, or rerun the phase that wrote it"
            )
    device = next(iter(parameters.values())).device

    def tensors(named, prefix):  # in memory they lie as the parameters do, which fused Adam asks for
        return [torch.empty_like(p).copy_(torch.from_numpy(named[f"{prefix}{n}"])) for n, p in parameters.items()]

    return ShardState(
        ema=tensors(ema, "") if ema else [],
        exp_avg=tensors(arrays, "exp_avg."),
        exp_avg_sq=tensors(arrays, "exp_avg_sq."),
        carried={name: torch.from_numpy(arrays[f"carried.{name}"]).to(device) for name in carried},
        step=int(arrays["step"][0]),
    )


def trained_as_arrays(network, state):
    """What a shard hands over after a round: named arrays of raw, its weights; ema, where averaged ones are kept; state."""
    names = [name for name, _ in network.named_parameters()]
    found = {"raw": weights.as_arrays(network), "ema": ema_as_arrays(state, names), "state": as_arrays(state, names)}
    return {name: arrays for name, arrays in found.items() if arrays}


def unfinished_as_arrays(network, state, record):
    """Everything that the rest of a round depends on.

    record    dict name -> tensor: what was counted so far
    Returns   named arrays: raw.<name>, ema.<name>, record.<name> and those of `as_arrays`
    """
    names = [name for name, _ in network.named_parameters()]
    return {
        **{f"raw.{n}": value for n, value in weights.as_arrays(network).items()},
        **{f"ema.{n}": value for n, value in ema_as_arrays(state, names).items()},
        **{f"record.{name}": value.cpu().numpy() for name, value in record.items()},
        **as_arrays(state, names),
    }


@torch.no_grad()
def take_up(arrays, network, state, record):
    """Puts the arrays of `unfinished_as_arrays` into a network, state and record of the same round, in place.

    A checkpoint is only taken up by the stage that wrote it, so arrays of another round are a bug of ours.
    """
    for name, value in unfinished_as_arrays(network, state, record).items():
        found = arrays[name].shape if name in arrays else "nothing"
        assert found == value.shape, f"the checkpoint is of another round: {name} is {found}, expected {value.shape}"
    saved = {name: torch.from_numpy(value) for name, value in arrays.items()}
    for i, (name, parameter) in enumerate(network.named_parameters()):
        parameter.copy_(saved[f"raw.{name}"])
        if state.ema:
            state.ema[i].copy_(saved[f"ema.{name}"])
        state.exp_avg[i].copy_(saved[f"exp_avg.{name}"])
        state.exp_avg_sq[i].copy_(saved[f"exp_avg_sq.{name}"])
    for name, value in state.carried.items():
        value.copy_(saved[f"carried.{name}"])
    state.step = int(saved["step"])
    for name, value in record.items():
        value.copy_(saved[f"record.{name}"])
