"""Images of a model with captions: captions of training images as prompts, DDIM with classifier-free guidance.

B images at a time, L tokens, D width of the text encoder, c h w latent, T timesteps.
"""

import statistics
import sys
from types import SimpleNamespace

import torch

from stages import randomness, text
from stages.diffusion import ddpm
from stages.methods import kinds
from stages.text import magnitude_detector, prediction, prompt_mitigations

NUM_UNSEEN = 100  # captions, at most, that the default target of Wen et al. is computed from


def prompted(num_images, images_per_prompt, num_train, seed, with_replacement=False):
    """The training images whose captions are prompts: the same for every arm, so that one image number means one prompt.

    num_train          number of training images
    with_replacement   draw each prompt from all training images, so that one may come more than once
    Returns            [num_images] int64 indices: images_per_prompt of each, one after the other
    """
    count = -(-num_images // images_per_prompt)
    generator = randomness.numpy_generator("prompts", seed)
    chosen = generator.integers(num_train, size=count) if with_replacement else generator.permutation(num_train)[:count]
    return chosen.repeat(images_per_prompt)[:num_images]


def guided(network, cond, uncond, guidance, alpha_bars, prediction_type):
    """The network as a predictor of noise under classifier-free guidance (Ho and Salimans 2022):
    eps = eps_uncond + guidance * (eps_cond - eps_uncond); with guidance 1 the conditional half alone, at half the cost, with 0 the other.

    network           (x, t, encoder_hidden_states) -> object with .sample
    cond, uncond      [B,L,D]: what the network is shown with and without the prompt
    guidance          its scale, or a function of the timestep
    alpha_bars        [T] float64
    prediction_type   of the network: see stages.text.prediction
    Returns           function (x [B,c,h,w], t [B]) -> object with .sample, as `sampling.ddim` asks for
    """

    def predict(x, t):
        scale = guidance(int(t[0])) if callable(guidance) else guidance
        if scale in (0, 1):
            found = network(x, t, encoder_hidden_states=cond if scale else uncond).sample
        else:
            both = network(torch.cat([x, x]), torch.cat([t, t]), encoder_hidden_states=torch.cat([uncond, cond])).sample
            without, found = both.float().chunk(2)
            found = without + scale * (found - without)
        signal = float(alpha_bars[int(t[0])])
        return SimpleNamespace(sample=prediction.as_noise(prediction_type, found.float(), x, signal))

    return predict


class Source(kinds.Source):
    """A fine-tuned model as a source of images.

    model      text.kind.Model
    settings   section sample, with the arm's own and precision
    data       kinds.DataSet
    Raises     ValueError: the mitigation wen is to find its target from captions that no training image has, and there are none
    """

    def __init__(self, model, settings, data, seed, sampler):
        self.settings, self.data, self.seed, self.sampler = settings, data, seed, sampler
        self.frozen, self.latent_shape, self.alpha_bars = model.frozen, model.latent_shape, model.alpha_bars
        self.device = self.frozen.device
        self.network = model.network.to(self.device).eval().requires_grad_(False)
        self.mitigation = settings.get("mitigation")
        self.prompted = prompted(
            settings["num_images"],
            settings.get("images_per_prompt", 1),
            len(data.keys),
            seed,
            settings.get("with_replacement", False),
        )
        self.targets = {}  # of wen, by kind of weights, where params.yaml has none
        self.unseen = []
        if self.mitigation and self.mitigation["name"] == "wen" and "target" not in self.mitigation:
            unseen = text.unseen(data.captions)
            if not unseen:
                raise ValueError(
                    "sample.mitigation has no target, and there is no caption of a held-out image that no training image shares, from "
                    "which it could be computed: set data.heldout_share, or give sample.mitigation.target (params.yaml)"
                )
            self.unseen = unseen[:: -(-len(unseen) // NUM_UNSEEN)]

    def load(self, kind, weights, source):
        super().load(kind, weights, source)
        if self.unseen:
            value = self.targets[kind] = self.median_of_unseen()
            self.mitigation = self.mitigation | {"target": {"kind": "rms", "value": value}}
            print(
                f"sample.mitigation: the target of wen is {value:.4g} (rms), the median magnitude of {len(self.unseen)} captions of "
                f"held-out images, {kind} weights",
                file=sys.stderr,
            )

    def median_of_unseen(self):
        """The median over unseen captions of the rms magnitude at the first step, each with the noise of one image. One caption at a
        time: the result depends on no batch size."""
        found = []
        with torch.no_grad():
            uncond = self.frozen.embeddings([""])
            for i, prompt in enumerate(self.unseen):
                x_T = self.sampler.starting_noise(i, i + 1, self.latent_shape, self.seed).to(self.device)
                difference = self.first_difference(x_T, uncond)(self.frozen.embeddings([prompt]))
                found.append(float(magnitude_detector.magnitudes(difference)["rms"]))
        return statistics.median(found)

    def prompt(self, image):
        """The prompt of an image: the first caption of its training image, or the one text that the model was trained with."""
        return self.data.fixed_text or self.data.captions["train"][self.prompted[image]][0]

    def records(self, first, last):
        """What images first..last-1 are asked for: a list of dicts; a text that stands for all images is that of none."""
        return [
            {
                "index": image,
                "prompt_used": self.prompt_used(image),
                "prompt_original": self.prompt(image),
                "train_key": None if self.data.fixed_text else self.data.keys[self.prompted[image]],
                "seed": self.seed,
                **({"wen_target": self.targets} if self.targets else {}),
            }
            for image in range(first, last)
        ]

    def prompt_used(self, image):
        """The prompt as the text encoder gets it."""
        if not self.mitigation:
            return self.prompt(image)
        return prompt_mitigations.reworded(self.mitigation, self.prompt(image), self.frozen.tokenizer, self.seed, image)

    def embeddings(self, start, stop, x_T):
        """What the network is shown with and without the prompts of images start..stop-1: two [B,L,D] float32."""
        cond = self.frozen.embeddings([self.prompt_used(image) for image in range(start, stop)])
        uncond = self.frozen.embeddings([""]).expand_as(cond)
        if not self.mitigation:
            return cond, uncond
        difference = self.first_difference(x_T, uncond) if self.mitigation["name"] == "wen" else None
        return prompt_mitigations.embeddings(self.mitigation, cond, uncond, self.seed, range(start, stop), difference)

    def first_difference(self, x_T, uncond):
        """How the noise at the first timestep depends on the embeddings of the prompts: see prompt_mitigations."""
        t = self.sampler.timesteps(len(self.alpha_bars), self.settings["num_steps"])[0]
        at = torch.full((len(x_T),), t, device=x_T.device)

        def predict(embedding):
            return ddpm.predicted(self.network, x_T, at, self.settings["precision"], condition=embedding)

        return prompt_mitigations.first_difference(predict, uncond, self.frozen.prediction_type, self.alpha_bars[t])

    def generate(self, start, stop):
        settings = self.settings
        x_T = self.sampler.starting_noise(start, stop, self.latent_shape, self.seed).to(self.device)
        cond, uncond = self.embeddings(start, stop, x_T)
        latents = self.sampled(x_T, cond, uncond, settings["num_steps"], self.guidance, settings["protocol"])
        return self.sampler.stored(self.frozen.decoded(latents))

    def guidance(self, t):
        """The scale of guidance at a timestep."""
        return prompt_mitigations.guidance_at(self.mitigation, self.settings["guidance"], t, len(self.alpha_bars))

    def sampled(self, x_T, cond, uncond, num_steps, guidance, protocol):
        """Latents from noise, under guidance: [B,c,h,w] float32.

        x_T            [B,c,h,w] float32 on the device
        guidance       its scale, or a function of the timestep
        cond, uncond   [B,L,D] float32: what the network is shown with and without the prompts
        protocol       paper or clean: see sampling.ddim
        """
        predict = guided(self.network, cond, uncond, guidance, self.alpha_bars, self.frozen.prediction_type)
        return self.sampler.ddim(
            predict, x_T, self.alpha_bars, num_steps, protocol, self.settings["precision"], clip=False
        )
