"""The text-conditional magnitude: how strongly a prompt pulls at the noise prediction, which tells memorised prompts (Wen et al. 2024).

d(prompt) = mean over steps and generated images of |eps(x_t, prompt) - eps(x_t, empty)|, the norm over the latent. A network that
predicts v is read as noise, as the differences of v are up to 13 times larger where alpha_bar is small:
eps_c - eps_u = sqrt(alpha_bar_t) (v_c - v_u), for one and the same x_t.

B images, c h w latent, S sampling steps.
"""

import numpy as np

from stages.text import prediction


def magnitudes(difference):
    """Size of each image's difference [B,c,h,w]: dict of raw, the Euclidean norm [B], and rms, that over sqrt(c h w) [B].

    rms does not depend on the resolution; raw is what published thresholds are of.
    """
    raw = difference.flatten(1).norm(dim=1)
    return {"raw": raw, "rms": raw / difference[0].numel() ** 0.5}


class Recorder:
    """Records the magnitudes of every step while images are sampled: `with Recorder(...) as recorder: sample(...)`.

    It listens to the network itself, so it works with every sampler that shows the network both halves of classifier-free guidance
    at once, those of the empty prompt first, as diffusers' pipelines do.

    network           called with x [2B,c,h,w] and the timestep first
    prediction_type   of the network: see stages.text.prediction
    alpha_bars        [T] float
    guidance          scale of classifier-free guidance; where it is 1 or less there is no second half
    Raises            ValueError: guidance of at most 1
    """

    def __init__(self, network, prediction_type, alpha_bars, guidance):
        if guidance <= 1:
            raise ValueError(
                f"the guidance is {guidance}, expected more than 1: without classifier-free guidance the network is not asked for "
                "the empty prompt, and there is no magnitude"
            )
        self.network, self.prediction_type, self.alpha_bars = network, prediction_type, alpha_bars
        self.steps = []

    def __enter__(self):
        self.handle = self.network.register_forward_hook(self._see, with_kwargs=True)
        return self

    def __exit__(self, *_):
        self.handle.remove()

    def _see(self, network, args, kwargs, output):
        t = args[1] if len(args) > 1 else kwargs["timestep"]
        t = int(t.flatten()[0]) if hasattr(t, "flatten") else int(t)
        output = output[0] if isinstance(output, tuple) else output.sample
        uncond, cond = output.detach().float().chunk(2)
        signal = float(self.alpha_bars[t])
        found = magnitudes(prediction.noise_difference(self.prediction_type, cond, uncond, signal))
        self.steps.append({kind: values.cpu().numpy() for kind, values in found.items()})

    def per_step(self, kind):
        """[B,S] float array: raw or rms of each image, first step first."""
        return np.stack([step[kind] for step in self.steps], axis=1)


def scores(per_step):
    """What a prompt's magnitudes come to: dict of mean, over steps and images; first_step, over images; per_step [S].

    per_step   [G,S]: of G generated images of the prompt
    """
    return {
        "mean": float(per_step.mean()),
        "first_step": float(per_step[:, 0].mean()),
        "per_step": [float(value) for value in per_step.mean(axis=0)],
    }
