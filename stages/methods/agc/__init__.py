"""AGC and TAA: skip samples with abnormally low loss, augment those just above the threshold (Eq. 3 to 8 of the paper).

B batch, T timesteps.
"""

import torch

from stages.methods import base
from stages.methods.agc import augmentation, memory_bank, two_pass

SETTINGS = {
    "required": ["lambda"],
    "properties": {
        "lambda": {
            "description": "a sample is skipped when its loss is below lambda times the memory bank",
            "type": "number",
            "minimum": 0,
        },
        "eta": {
            "description": "decay of the memory bank per sample",
            "default": 0.8,
            "type": "number",
            "minimum": 0,
            "exclusiveMaximum": 1,
        },
        "taa": {
            "description": "augmentation of samples just above the threshold",
            "type": "object",
            "additionalProperties": False,
            "required": ["R", "magnitude"],
            "if": {"required": ["authors"], "properties": {"authors": {"const": True}}},
            "then": {
                "properties": {
                    "R": {
                        "description": "must be .inf with taa.authors, which augments every sample that is kept",
                        "enum": [1e999],
                    }
                }
            },
            "properties": {
                "R": {
                    "description": "a sample is augmented when its loss is below R times the threshold; .inf: every sample that is not skipped",
                    "type": "number",
                    "minimum": 1,
                },
                "A": {
                    "description": "how fast the augmentation gets weaker with the distance from the threshold",
                    "default": 5.0,
                    "type": "number",
                    "minimum": 0,
                },
                "magnitude": {
                    "description": "M, level of RandAugment at the threshold itself",
                    "type": "number",
                    "minimum": 0,
                },
                "num_ops": {
                    "description": "number of RandAugment operations per image",
                    "default": 2,
                    "type": "integer",
                    "minimum": 1,
                },
                "max_level": {
                    "description": "level at which an operation has its full strength",
                    "default": 30,
                    "type": "number",
                    "exclusiveMinimum": 0,
                },
                "authors": {
                    "description": "as in the authors' code for Stable Diffusion, with R infinite: samples that are kept are queued, "
                    "augmented at one level and given new noise; no image is trained on unaugmented (default: false)",
                    "type": "boolean",
                },
            },
        },
    },
}
COUNTS_SKIPS = True
MODELS = ["pixels", "text"]
COMPILE = ["inductor", "graph"]


class Method(base.Method):
    """AGC, with TAA where the section taa is there."""

    def initial_state(self, num_timesteps, device):
        queue = two_pass.initial_state(device) if self._as_authors() else {}
        return {"bank": torch.zeros(num_timesteps, device=device), **queue}

    def _as_authors(self):
        return bool(self.settings.get("taa", {}).get("authors"))

    def losses(self, step):
        """The loss of every sample (Eq. 2), judged against the bank as it was before this batch (Eq. 8): the mean over the kept,
        those of augmented samples taken anew."""
        if self._as_authors():
            return two_pass.losses(step, self.settings)
        taa, lam, bank = self.settings.get("taa"), self.settings["lambda"], step.carried["bank"]
        loss = step.sample_losses()
        original = loss.detach()
        skipped = memory_bank.skip_mask(original, bank, step.t, lam)
        threshold, augmented = lam * bank[step.t], None
        if taa:
            augmented = memory_bank.augment_mask(original, bank, step.t, lam, taa["R"])
        # Eq. 3: the losses of the originals only, those of skipped samples included
        step.carried["bank"] = memory_bank.updated(bank, step.t, original, self.settings["eta"])
        kept_as_is = ~skipped if augmented is None else ~(skipped | augmented)
        first = memory_bank.batch_loss(step.counted(loss), skipped, kept_as_is)
        rho = augmentation.relative_strength(original, threshold, taa["A"]) if taa else None
        return base.Losses(first, original, skipped, augmented, rho)

    def drawn(self, batch_size, key):
        """Operations and signs of the augmentation."""
        if self._as_authors() or not (taa := self.settings.get("taa")):
            return {}
        ops, signs = augmentation.drawn(batch_size, key, taa["num_ops"])
        return {"ops": ops, "signs": signs}

    def rest(self, step, losses, size):
        """The augmented samples' part of the mean over the kept ones."""
        taa = self.settings["taa"]
        anew = augmentation.augmented_losses(step, losses.augmented, losses.again, taa, size)
        return memory_bank.batch_loss(step.counted(anew), losses.skipped, losses.augmented)

    def rest_size(self, count):
        return augmentation.capacity(count)

    def rest_sizes(self, batch_size):
        return augmentation.capacities(batch_size) if "taa" in self.settings else []
