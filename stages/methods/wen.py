"""Wen et al. 2024 at training time: leave samples out whose prediction depends on the caption abnormally strongly.

The magnitude of a sample is |eps(x_t, caption) - eps(x_t, "")|, in the space of the noise whatever the network predicts: v-space
differences are up to 13 times larger at high noise, as eps_c - eps_0 = sqrt(alpha_bar) (v_c - v_0).

B batch, T timesteps, S = BINS bins of timesteps.
"""

import torch

from stages.methods import base
from stages.text import magnitude_detector

SETTINGS = {
    "required": ["threshold"],
    "properties": {
        "threshold": {
            "description": "which samples are left out",
            "type": "object",
            "additionalProperties": False,
            "required": ["kind", "value"],
            "properties": {
                "kind": {
                    "description": "quantile: the share `value` with the largest of the recent magnitudes, for each tenth of the timesteps; "
                    "rms: a root mean square over the latent above `value`; raw: a norm above `value`, as published, which grows with the latent",
                    "enum": ["quantile", "rms", "raw"],
                },
                "value": {"description": "a share below 1, or a magnitude", "type": "number", "exclusiveMinimum": 0},
            },
        },
    },
}
COUNTS_SKIPS = True
MODELS = ["text"]

BINS, KEPT = 10, 128  # bins of timesteps, and magnitudes that each remembers
TOO_MANY = 0.3  # share left out above which the model is rather under-trained than spared


def left_out(magnitude, bins, history, share):
    """Samples above the (1 - share)-quantile of the magnitudes that their bin remembers; none while it knows fewer than 1 / share.

    magnitude   [B] float32
    bins        [B] int64, 0 <= bin < S
    history     [S, KEPT] float32, nan where nothing is remembered yet
    Returns     [B] bool
    """
    limit = torch.nanquantile(history, 1 - share, dim=1)
    known = (~history.isnan()).sum(dim=1) * share >= 1
    return known[bins] & (magnitude > limit[bins])


def remember(magnitude, bins, history, seen):
    """Puts magnitudes into the history in batch order, each in the place of the oldest of its bin.

    seen   [S] float32: how many each bin has seen
    Changes history and seen in place.
    """
    for value, row in zip(magnitude, bins, strict=True):
        history[row, (seen[row] % history.shape[1]).long()] = value
        seen[row] += 1


class Method(base.Method):
    passes = 2

    def initial_state(self, num_timesteps, device):
        if self.settings["threshold"]["kind"] != "quantile":
            return {}
        return {
            "history": torch.full((BINS, KEPT), torch.nan, device=device),
            "seen": torch.zeros(BINS, device=device),
        }

    def losses(self, step):
        kind, value = self.settings["threshold"]["kind"], self.settings["threshold"]["value"]
        learnt = step.objective
        x_t, wanted = learnt.noised(step)
        found = learnt.predicted(step, x_t, learnt.condition(step))
        with torch.no_grad():
            empty = learnt.predicted(step, x_t, learnt.embedded([""] * len(x_t)))
            magnitude = magnitude_detector.magnitudes(learnt.noise_difference(found, empty, step))
            if kind == "quantile":
                bins = step.t * BINS // len(step.alpha_bar)
                skipped = left_out(magnitude["rms"], bins, step.carried["history"], value)
                remember(magnitude["rms"], bins, step.carried["history"], step.carried["seen"])
            else:
                skipped = magnitude[kind] >= value
        loss = learnt.squared_error(found, wanted)
        kept = torch.where(skipped, 0.0, step.counted(loss)).sum() / (~skipped).sum().clamp(min=1)
        return base.Losses(kept, loss.detach(), skipped)

    def remark(self, skipped_share):
        if skipped_share > TOO_MANY:
            return (
                f"{skipped_share:.0%} of the samples were left out, more than {TOO_MANY:.0%}: the model is under-trained, which by "
                "itself makes it memorise less; raise or lower method.threshold.value (params.yaml)"
            )
        return None
