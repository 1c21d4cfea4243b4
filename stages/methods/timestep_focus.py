"""Timesteps that count for more or for less than others: by how often they are drawn, or by a weight of their loss.

centre, width       timesteps are drawn from a Gaussian over t / T that is cut off at 0 and at the last timestep (emphasis on some noise
                    levels, as in Vu et al., arXiv 2601.21348). With importance_weights the expected loss is that of uniform timesteps.
low, high, weight   the loss of timesteps with low <= t / T < high is multiplied by weight (less of the medium noise at which images are
                    learnt by heart, as in Dodson et al., arXiv 2602.17846)

It goes with any method that learns at the timestep which it is given. A method that compares losses, such as AGC, compares them as they are, and
weighs those that it minimises. The equations are this project's: the papers' code was not to be found.

B batch, T timesteps.
"""

import torch

from stages import randomness


def probabilities(num_timesteps, centre, width, device="cpu"):
    """How often each timestep is drawn: p_t proportional to exp(-(t / T - centre)^2 / (2 width^2)).

    Returns   [T] float64, sum 1
    """
    distance = (torch.arange(num_timesteps, dtype=torch.float64, device=device) / num_timesteps - centre) / width
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


def applied(settings, t, num_timesteps, key):
    """The timesteps of a step, and what their losses count.

    settings   section train.timestep_focus
    t          [B] int64, drawn uniformly
    key        (seed, shard, step)
    Returns    [B] int64, and [B] float32 or None where all count 1
    """
    if "weight" in settings:
        inside = in_interval(t, num_timesteps, settings["low"], settings["high"])
        return t, torch.where(inside, float(settings["weight"]), 1.0)
    p = probabilities(num_timesteps, settings["centre"], settings["width"], t.device)
    generator = randomness.torch_generator(t.device, "timestep_focus", *key)
    t = drawn(p, torch.rand(len(t), generator=generator, dtype=torch.float64, device=t.device))
    return t, (1 / (num_timesteps * p[t])).float() if settings.get("importance_weights") else None
