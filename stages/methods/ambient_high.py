"""Ambient at high noise (Shah, Daras et al. 2025, arXiv 2502.21278): at high noise only one fixed noisy copy of each image is ever seen.

The copy is y = x + sigma_n e_x, with e_x ~ N(0, I) keyed by the seed and the image. With sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t),
timesteps with sigma_t <= sigma_n are plain DDPM. At the others

    x_t = sqrt(alpha_bar_t) (y + sqrt(sigma_t^2 - sigma_n^2) eps),   loss |eps - r eps_theta(x_t, t)|^2,   r = sqrt(1 - sigma_n^2 / sigma_t^2)

Over e_x, x_t is distributed as a noised image is, with noise n = (sigma_n e_x + sqrt(sigma_t^2 - sigma_n^2) eps) / sigma_t. Given x_t, eps is
r n on average: so the loss is smallest at eps_theta = E[n | x_t], as that of DDPM. The paper predicts the image, with the weight of EDM; this form,
of a network that predicts the noise, is derived from it.

B batch, C H W image, T timesteps.
"""

import numpy as np
import torch

from stages import randomness
from stages.diffusion import ddpm
from stages.methods import base

SETTINGS = {
    "required": ["sigma_n"],
    "properties": {
        "sigma_n": {
            "description": "noise of the one copy that is seen at high noise, on images in [-1, 1] (published: 0.5)",
            "type": "number",
            "exclusiveMinimum": 0,
        }
    },
}
AUGMENTABLE = False  # its noise belongs to the pixels of an image where they are


def fixed_noise(ids, shape, seed):
    """e_x of training images, keyed by (seed, image): [B,C,H,W] float32 on the CPU.

    ids     [B] int
    shape   (C, H, W)
    """
    draws = [randomness.numpy_generator("fixed_noise", seed, int(i)).standard_normal(shape, np.float32) for i in ids]
    return torch.from_numpy(np.stack(draws)) if draws else torch.zeros(0, *shape)


class Method(base.Method):
    def losses(self, step):
        x, device = ddpm.normalise(step.x), step.x.device
        noise = fixed_noise(step.ids, x.shape[1:], step.key[0]).to(device)
        # A mirrored image has mirrored noise: else the mean of the two copies would show more of it than one does.
        noise = torch.where(step.flipped.view(-1, 1, 1, 1), noise.flip(-1), noise)
        signal, variance = step.alpha_bar[step.t], self.settings["sigma_n"] ** 2
        rest = 1 - variance * signal / (1 - signal)  # r^2; not above 0 where the noise is at most sigma_n
        high = (rest > 0).view(-1, 1, 1, 1)
        r = torch.where(high, rest.clamp(min=0).sqrt().view(-1, 1, 1, 1), 1.0)
        # sqrt(alpha_bar) sqrt(sigma_t^2 - sigma_n^2) = sqrt(1 - alpha_bar) r
        seen = torch.where(high, x + self.settings["sigma_n"] * noise, x)
        x_t = ddpm.noised(seen, step.t, r * step.eps, step.alpha_bar)
        found = ddpm.predicted(step.network, x_t, step.t, step.settings["precision"], step.labels)
        loss = (step.eps - r * found).square().mean(dim=(1, 2, 3))
        return base.Losses(step.counted(loss).mean(), loss.detach())
