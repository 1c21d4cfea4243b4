"""Adding Noise: Gaussian noise on the training images, so that none of them is ever seen as it is (section IV of the paper)."""

import torch

from stages import randomness
from stages.diffusion import ddpm
from stages.methods import base

SETTINGS = {
    "required": ["variance"],
    "properties": {
        "variance": {
            "description": "variance of the noise on images in [-1, 1], drawn anew at every visit",
            "type": "number",
            "exclusiveMinimum": 0,
        }
    },
}


class Method(base.Method):
    def images(self, step):
        generator = randomness.torch_generator(step.x.device, "added_noise", *step.key)
        noise = torch.randn(step.x.shape, generator=generator, device=step.x.device)
        return ddpm.normalise(step.x) + self.settings["variance"] ** 0.5 * noise
