"""Timesteps that count for more or for less than others: by how often they are drawn, or by a weight of their loss.

centre, width       timesteps are drawn from a Gaussian over t / T that is cut off at 0 and at the last timestep (emphasis on some noise
                    levels, as in Vu et al., arXiv 2601.21348). With importance_weights the expected loss is that of uniform timesteps.
low, high, weight   the loss of timesteps with low <= t / T < high is multiplied by weight (less of the medium noise at which images are
                    learnt by heart, as in Dodson et al., arXiv 2602.17846)

The equations are this project's: the papers' code was not to be found. B batch, T timesteps.
"""

import torch

from stages import randomness
from stages.methods import base

SETTINGS = {
    "oneOf": [{"required": ["centre", "width"]}, {"required": ["low", "high", "weight"]}],
    "dependentRequired": {"importance_weights": ["centre"]},
    "properties": {
        "centre": {
            "description": "the t / T that is drawn most often",
            "type": "number",
            "minimum": 0,
            "maximum": 1,
        },
        "width": {
            "description": "standard deviation over t / T of the Gaussian that timesteps are drawn from; 0.1 or more with importance_weights, "
            "as the weights of rare timesteps grow without bound",
            "type": "number",
            "minimum": 0.01,
        },
        "importance_weights": {
            "description": "with centre and width: losses are divided by how often their timestep is drawn, so that the objective stays the "
            "same (default: false)",
            "type": "boolean",
        },
        "low": {
            "description": "with high and weight: the first t / T whose loss is weighted",
            "type": "number",
            "minimum": 0,
            "maximum": 1,
        },
        "high": {
            "description": "the t / T above low from which on losses are as they were",
            "type": "number",
            "minimum": 0,
            "maximum": 1,
        },
        "weight": {"description": "what losses in [low, high) are multiplied by", "type": "number", "minimum": 0},
    },
}
INCREASING = [["low", "high"]]
MODELS = ["pixels", "text"]


def probabilities(num_timesteps, centre, width):
    """How often each timestep is drawn: p_t proportional to exp(-(t / T - centre)^2 / (2 width^2)).

    Returns   [T] float64, sum 1
    """
    distance = (torch.arange(num_timesteps, dtype=torch.float64) / num_timesteps - centre) / width
    return torch.softmax(-distance.square() / 2, dim=0)


def drawn(p, uniform):
    """The timesteps that uniform numbers stand for, by the inverse of the cumulative sum of their probabilities.

    p         [T] float64
    uniform   [B] float64 in [0, 1)
    Returns   [B] int64, 0 <= t < T
    """
    edges = p.cumsum(0)
    return torch.searchsorted(edges, uniform * edges[-1], right=True).clamp(max=len(p) - 1)


def in_interval(t, num_timesteps, low, high):
    """Whether low <= t / T < high: [B] bool. The division is exact where low and high are decimal fractions; low * T is not."""
    share = t.double() / num_timesteps
    return (share >= low) & (share < high)


class Method(base.Method):
    def losses(self, step):
        settings, num_timesteps = self.settings, len(step.alpha_bar)
        if "weight" in settings:
            loss = step.sample_losses()
            inside = in_interval(step.t, num_timesteps, settings["low"], settings["high"])
            return base.Losses(torch.where(inside, settings["weight"] * loss, loss).mean(), loss.detach())
        device = step.t.device
        p = probabilities(num_timesteps, settings["centre"], settings["width"]).to(device)
        generator = randomness.torch_generator(device, "method", *step.key)
        step.t = drawn(p, torch.rand(len(step.t), generator=generator, dtype=torch.float64, device=device))
        loss = step.sample_losses()
        weighted = loss / (num_timesteps * p[step.t]).float() if settings.get("importance_weights") else loss
        return base.Losses(weighted.mean(), loss.detach())
