"""Loss against timestep of memorised and of other images (Fig. 3 of the paper).

A network that has learnt an image by heart sees through the noise on it too well. But it also sees well through the noise on an
image that is merely simple, so a third group stands beside the two of the paper: held-out images as simple as the memorised.

N training images, H held-out ones, n images of a group, S timesteps looked at.
"""

import numpy as np
import torch

from stages import randomness
from stages.diffusion import ddpm


def most_similar(distance, size):
    """The training images that came nearest to a generated one.

    distance   [N] float64: of each training image to the nearest generated one; infinite where there is none
    Returns    [n] int64 indices, nearest first, ties by index; n = size, or fewer where fewer distances are finite
    """
    return np.argsort(distance, kind="stable")[: min(size, np.isfinite(distance).sum())]


def others(num_train, chosen, generator):
    """As many training images as were chosen, at random among the rest: [n] int64 indices, sorted.

    Raises   ValueError: the rest is smaller than that
    """
    rest = np.setdiff1d(np.arange(num_train), chosen)
    if len(rest) < len(chosen):
        raise ValueError(
            f"{len(chosen)} of {num_train} training images were chosen, which leaves {len(rest)} to compare them with: expected at "
            "most half of them"
        )
    return np.sort(generator.choice(rest, len(chosen), replace=False))


def matched(values, pool):
    """For each value one of a pool, no member twice, such that the sum of all differences is as small as can be.

    values    [n] float64
    pool      [H] float64, H >= n
    Returns   [n] int64: positions in the pool
    """
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(np.abs(values[:, None] - pool[None]))[1]


@torch.no_grad()
def losses(
    network, x_0, timesteps, num_draws, alpha_bar, seed, batch_size, precision="fp32", progress=None, labels=None
):
    """Loss (Eq. 2) of every image at every timestep, a mean over noise draws that all images share.

    The noise is keyed by (seed, timestep, draw), so a curve with fewer timesteps is a part of one with more.

    network     in evaluation mode
    x_0         [n,C,H,W] float32 on the device of the network: images in [-1, 1], or their latents
    timesteps   [S] int, 0 <= t < T
    num_draws   noise draws for each timestep
    alpha_bar   [T] float32 on the device
    progress    None or a callable (timesteps done, S)
    labels      [n] int64 class of each image, or [n,L,D] embedding of its caption; None for an unconditional network
    Returns     [n,S] float64 numpy array
    Raises      FloatingPointError: a loss is not finite
    """
    device = x_0.device
    total = torch.zeros(len(x_0), len(timesteps), dtype=torch.float64, device=device)
    for s, timestep in enumerate(timesteps):
        for draw in range(num_draws):
            generator = randomness.numpy_generator("loss_noise", seed, timestep, draw)
            eps = torch.from_numpy(generator.standard_normal(x_0.shape[1:], np.float32)).to(device)
            for start in range(0, len(x_0), batch_size):
                batch = x_0[start : start + batch_size]
                t = torch.full((len(batch),), timestep, device=device)
                y = None if labels is None else labels[start : start + batch_size]
                loss = ddpm.sample_losses(network, batch, t, eps.expand_as(batch), alpha_bar, precision, y)
                total[start : start + batch_size, s] += loss
        if progress is not None:
            progress(s + 1, len(timesteps))
    if not total.isfinite().all():
        raise FloatingPointError("the loss of a training or held-out image is not finite: the model has diverged")
    return (total / num_draws).cpu().numpy()


def band(group_losses):
    """Mean, lower and upper quartile over the images of a group, for each timestep: [n,S] to three [S] float64."""
    low, high = np.quantile(group_losses, [0.25, 0.75], axis=0)
    return group_losses.mean(axis=0), low, high
