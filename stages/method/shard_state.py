"""What a shard keeps for itself from round to round, while its weights are replaced by the average."""

from dataclasses import dataclass

import torch


@dataclass
class ShardState:
    """What one shard carries from round to round beside the averaged weights.

    ema, exp_avg, exp_avg_sq   lists of tensors, in the order of network.parameters()
    bank                       [T] float32
    step                       optimiser steps of this shard so far
    """

    ema: list
    exp_avg: list
    exp_avg_sq: list
    bank: torch.Tensor
    step: int


def fresh_state(parameters, num_timesteps, device):
    """The state of a shard before its first round: EMA = the weights, no moments, an empty bank."""
    return ShardState(
        ema=[p.detach().clone() for p in parameters],
        exp_avg=[torch.zeros_like(p) for p in parameters],
        exp_avg_sq=[torch.zeros_like(p) for p in parameters],
        bank=torch.zeros(num_timesteps, device=device),
        step=0,
    )
