"""Ambient Diffusion (Daras et al. 2023): the network never sees a whole training image, so it cannot learn one by heart.

Each training image has two masks of its own, the same at every visit: A keeps a pixel with probability 1 - p, and
A~ = A * (a mask that keeps with probability 1 - delta). The network sees A~ * (x + sigma n) and A~, and is scored on the
pixels of A, so that it has to fill in pixels it was not shown. Its target is the image, not the noise: at a pixel outside A~
the noise cannot be seen. Noise levels, weights and preconditioning are those of EDM (Karras et al. 2022).

B batch, C H W image.
"""

import itertools

import numpy as np
import torch

from stages import randomness
from stages.diffusion import ddpm
from stages.methods import base

SETTINGS = {
    "required": ["p", "delta"],
    "properties": {
        "p": {
            "description": "share of the pixels of a training image that are never used in training",
            "type": "number",
            "minimum": 0,
            "exclusiveMaximum": 1,
        },
        "delta": {
            "description": "share of the other pixels that are hidden from the network but count in its loss",
            "type": "number",
            "minimum": 0,
            "exclusiveMaximum": 1,
        },
    },
}
PREDICTS_NOISE = False
FOCUSABLE = False  # its noise levels are its own
AUGMENTABLE = False  # its masks belong to the pixels of an image where they are
SIGMA_DATA = 0.5  # standard deviation of images in [-1, 1] that EDM's preconditioning assumes
LOG_SIGMA_MEAN, LOG_SIGMA_STD = -1.2, 1.2  # of the noise levels in training
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7  # of the noise levels in sampling


def masks(ids, shape, seed, p, delta):
    """The two masks of training images, keyed by (seed, image) and shared by all channels.

    ids       [B] int
    shape     (H, W)
    Returns   A, A~: [B,1,H,W] float32 of 0 and 1, A~ <= A
    """
    draws = [randomness.numpy_generator("mask", seed, int(i)).random((2, 1, *shape)) for i in ids]
    draws = torch.from_numpy(np.stack(draws))
    outer = draws[:, 0] >= p
    inner = outer & (draws[:, 1] >= delta)
    return outer.float(), inner.float()


def denoised(network, noisy, mask, sigma, precision="fp32", labels=None):
    """The image behind a noisy one of which only some pixels are seen: EDM's preconditioned network D.

    D = c_skip A~ x + c_out F(c_in [A~ x, A~], 1000 c_noise), c_noise = ln(sigma) / 4

    noisy     [B,C,H,W] float32: x + sigma n
    mask      [B,1,H,W] float32: A~
    sigma     [B] float32, > 0
    Returns   [B,C,H,W] float32
    """
    sigma = sigma.view(-1, 1, 1, 1)
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
    c_in = 1 / (sigma**2 + SIGMA_DATA**2).sqrt()
    seen = mask * noisy
    shown = torch.cat([seen, mask.expand_as(seen)], dim=1)
    time = 1000 * sigma.flatten().log() / 4
    return c_skip * seen + c_out * ddpm.predicted(network, c_in * shown, time, precision, labels)


def noise_levels(num_steps):
    """sigma_0 > ... > sigma_{n-1} of EDM's sampler, and a last 0: [num_steps + 1] float64 (Eq. 5 of Karras et al.)."""
    i = torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
    ends = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    return torch.cat([(ends[0] + i * (ends[1] - ends[0])) ** RHO, torch.zeros(1, dtype=torch.float64)])


class Method(base.Method):
    def network_channels(self, channels):
        return 2 * channels, channels

    def losses(self, step):
        """weight(sigma) * |A (D - x)|^2, mean over C, H and W: weight (sigma^2 + s^2) / (sigma s)^2 with s = SIGMA_DATA."""
        x, device = ddpm.normalise(step.x), step.x.device
        generator = randomness.torch_generator(device, "sigma", *step.key)
        sigma = (LOG_SIGMA_MEAN + LOG_SIGMA_STD * torch.randn(len(x), generator=generator, device=device)).exp()
        outer, inner = masks(step.ids, x.shape[2:], step.key[0], self.settings["p"], self.settings["delta"])
        # A mirrored image has mirrored masks: else what is withheld of it would be shown by the next mirroring.
        flipped = step.flipped.view(-1, 1, 1, 1)
        outer, inner = (torch.where(flipped, m.flip(-1), m) for m in (outer.to(device), inner.to(device)))
        noisy = x + sigma.view(-1, 1, 1, 1) * step.eps
        found = denoised(step.network, noisy, inner, sigma, step.settings["precision"], step.labels)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        loss = weight * (outer * (found - x)).square().mean(dim=(1, 2, 3))
        return base.Losses(loss.mean(), loss.detach())

    def sample(self, network, x, images, seed, labels, alpha_bars, settings, sampler):
        """EDM's deterministic Heun sampler in settings["num_steps"] steps (2 num_steps - 1 passes), one fixed mask an image that
        keeps a pixel with probability (1 - p)(1 - delta). The protocols of DDIM do not apply."""
        kept = (1 - self.settings["p"]) * (1 - self.settings["delta"])
        draws = [randomness.numpy_generator("sample_mask", seed, i).random((1, *x.shape[2:])) for i in images]
        mask = torch.from_numpy(np.stack(draws) < kept).float().to(x.device)

        def slope(x, sigma):
            level = torch.full((len(x),), float(sigma), device=x.device)
            return (x - denoised(network, x, mask, level, settings["precision"], labels)) / float(sigma)

        levels = noise_levels(settings["num_steps"])
        x = float(levels[0]) * x
        for sigma, sigma_next in itertools.pairwise(levels):
            first = slope(x, sigma)
            moved = x + float(sigma_next - sigma) * first
            if sigma_next > 0:
                moved = x + float(sigma_next - sigma) * (first + slope(moved, sigma_next)) / 2
            x = moved
        return x
