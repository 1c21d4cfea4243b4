"""GN: Gaussian noise on the embeddings of the captions at every visit (Somepalli et al. 2023)."""

import torch

from stages import randomness
from stages.methods import base

SETTINGS = {
    "required": ["std"],
    "properties": {
        "std": {"description": "standard deviation of the noise", "type": "number", "exclusiveMinimum": 0},
    },
}
MODELS = ["text"]


class Method(base.Method):
    def losses(self, step):
        clean = step.objective.condition(step)
        generator = randomness.torch_generator(clean.device, "text_noise", *step.key)
        step.condition = clean + self.settings["std"] * torch.randn(
            clean.shape, generator=generator, device=clean.device
        )
        return super().losses(step)
