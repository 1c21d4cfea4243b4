"""What a shard keeps for itself from round to round, while its weights are replaced by the average."""

from dataclasses import dataclass

import torch


@dataclass
class ShardState:
    """What one shard carries from round to round beside the averaged weights.

    ema, exp_avg, exp_avg_sq   lists of tensors, in the order of network.parameters(); ema is empty where none is kept
    carried                    dict name -> float32 tensor: what the training method carries, such as AGC's memory bank
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
