"""DDIM sampling (Song et al. 2021), in the two protocols of the experiments.

M images, B batch, C H W image, T timesteps. Images in [-1, 1] until they are stored.
"""

import numpy as np
import torch

from stages import randomness
from stages.diffusion import ddpm


def timesteps(num_timesteps, num_steps):
    """Timesteps visited, from noisy to clean: 1, 1 + stride, ... reversed; 981, 961, ..., 21, 1 for T = 1000 in 50 steps.

    Where num_steps does not divide T, the authors' code goes on to the last multiple of the stride below T, and so takes more steps
    than are asked for: 31 for T = 1000 in "30". Here it is always as many as asked for.
    """
    stride = num_timesteps // num_steps
    return [1 + stride * i for i in reversed(range(num_steps))]


def starting_noise(first, last, shape, seed):
    """x_T of images first..last-1, each from a generator of its own, so batches, parts and devices do not matter.

    Drawn with numpy: torch's CPU generator reads 32 bits of a seed, so that among 65,536 images two would start from the same
    noise with a probability of 39 %.

    Returns   [last - first, *shape] float32, on the CPU
    """
    draws = [
        randomness.numpy_generator("sample", seed, image).standard_normal(shape, np.float32)
        for image in range(first, last)
    ]
    return torch.from_numpy(np.stack(draws))


def class_labels(first, last, num_classes, seed):
    """The class of images first..last-1, uniform over all classes, each from a generator of its own: [last - first] int64."""
    draws = [randomness.numpy_generator("class", seed, image).integers(num_classes) for image in range(first, last)]
    return np.array(draws, np.int64)


@torch.inference_mode()
def ddim(model, x, alpha_bars, num_steps, protocol, precision="fp32", labels=None, clip=True):
    """Deterministic DDIM (eta = 0) with the predicted image clamped to [-1, 1], unless told otherwise.

    paper   ends at alpha_bar_0 as the authors' code does: the last step goes from t = 1 to t = 0 and leaves noise of
            standard deviation 0.01
    clean   ends at alpha_bar = 1, the predicted image itself

    model        network in evaluation mode, (x [B,C,H,W], t [B]) -> object with .sample
    x            [B,C,H,W] float32: x_T, standard normal
    alpha_bars   [T] float64
    labels       [B] int64 class of each image, None for an unconditional network
    clip         clamp the predicted image, which a latent must not be
    Returns      [B,C,H,W] float32
    """
    steps = timesteps(len(alpha_bars), num_steps)
    stride = len(alpha_bars) // num_steps
    end = {"paper": float(alpha_bars[0]), "clean": 1.0}[protocol]
    for t in steps:
        signal = float(alpha_bars[t])
        signal_next = float(alpha_bars[t - stride]) if t >= stride else end
        eps = ddpm.predicted(model, x, torch.full((len(x),), t, device=x.device), precision, labels)
        x_0 = (x - (1 - signal) ** 0.5 * eps) / signal**0.5
        x_0 = x_0.clamp(-1, 1) if clip else x_0
        x = signal_next**0.5 * x_0 + (1 - signal_next) ** 0.5 * eps
    return x


def stored(x):
    """Images in [-1, 1] as they are stored: clamped and rounded to uint8.

    x        [B,C,H,W] float32
    Returns  [B,H,W,C] uint8 numpy array
    """
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def part_of(num_images, batch_size, part, num_parts):
    """The images of one part: whole batches, so that a batch is the same batch however many parts there are.

    part      0 <= part < num_parts <= number of batches
    Returns   (first, last): images first..last-1
    """
    num_batches = -(-num_images // batch_size)
    bounds = [min(num_images, batch_size * (num_batches * p // num_parts)) for p in (part, part + 1)]
    return bounds[0], bounds[1]
