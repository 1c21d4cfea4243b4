"""Images of a text-conditioned model: captions of training images as prompts, DDIM with classifier-free guidance.

B images at a time, L tokens, D width of the text encoder, c h w latent.
"""

import statistics
import sys
from types import SimpleNamespace

import torch

from stages import params, randomness, text
from stages.diffusion import ddpm, sampling
from stages.run import files
from stages.text import latents, magnitude_detector, prompt_mitigations

NUM_UNSEEN = 100  # captions, at most, that the default target of Wen et al. is computed from


def prompted(num_images, images_per_prompt, num_train, seed, with_replacement=False):
    """The training images whose captions are prompts: the same for every arm, so that one image number means one prompt.

    Returns   [num_images] int64: images_per_prompt of each, one after the other
    """
    count = -(-num_images // images_per_prompt)
    generator = randomness.numpy_generator("prompts", seed)
    chosen = generator.integers(num_train, size=count) if with_replacement else generator.permutation(num_train)[:count]
    return chosen.repeat(images_per_prompt)[:num_images]


def guided(network, cond, uncond, guidance, alpha_bars, prediction_type):
    """The network as a predictor of noise under classifier-free guidance (Ho and Salimans 2022):
    eps = eps_uncond + guidance * (eps_cond - eps_uncond); with guidance 1 the conditional half alone, at half the cost.

    network        (x, t, encoder_hidden_states) -> object with .sample
    cond, uncond   [B,L,D]: what the network is shown with and without the prompt
    alpha_bars     [T] float64
    Returns        function (x [B,c,h,w], t [B]) -> object with .sample, as `sampling.ddim` asks for
    """

    def predict(x, t):
        if guidance == 1:
            found = network(x, t, encoder_hidden_states=cond).sample
        else:
            both = network(torch.cat([x, x]), torch.cat([t, t]), encoder_hidden_states=torch.cat([uncond, cond])).sample
            without, found = both.float().chunk(2)
            found = without + guidance * (found - without)
        return SimpleNamespace(sample=latents.as_noise(prediction_type, found.float(), x, float(alpha_bars[int(t[0])])))

    return predict


class Source:
    """The final model of an arm as a source of images; the text-conditioned twin of the one in stages/sample.py."""

    def __init__(self, job, settings, shape):
        height, width, channels = shape
        self.job, self.settings = job, settings
        self.built = text.build(job, (channels, height, width))
        self.frozen = self.built.frozen
        self.latent_shape = self.frozen.latent_shape((channels, height, width))
        num_timesteps = len(self.built.alpha_bars)
        if 2 * settings["num_steps"] > num_timesteps:
            raise ValueError(
                f"sample.num_steps of {job.arm} is {settings['num_steps']}, expected at most half of the {num_timesteps} timesteps of "
                f"{self.frozen.folder} (params.yaml)"
            )
        self.network = self.built.network.to(job.device).eval().requires_grad_(False)
        self.mitigation = settings.get("mitigation")
        self.folder = files.model_dir(job.run, job.recipe["rounds"])
        read = [files.DATA / "captions.json", files.DATA / "keys.json"]
        weights = [self.folder / f"{name}.safetensors" for name in settings["weights"]]
        self.inputs = [*weights, *read, *self.built.inputs]
        captions, keys = map(files.load_json, read)
        self.captions, self.keys = captions["train"], keys["train"]
        self.fixed_text = params.fixed_text(job.params, job.arm)
        self.prompted = prompted(
            settings["num_images"],
            settings.get("images_per_prompt", 1),
            len(self.keys),
            job.seed,
            settings.get("with_replacement", False),
        )

        self.targets = {}  # of wen, by kind of weights, where params.yaml has none
        self.unseen = []
        if self.mitigation and self.mitigation["name"] == "wen" and "target" not in self.mitigation:
            unseen = text.unseen(captions)
            if not unseen:
                raise ValueError(
                    "sample.mitigation has no target, and there is no caption of a held-out image that no training image shares, from "
                    "which it could be computed: set data.heldout_share, or give sample.mitigation.target (params.yaml)"
                )
            self.unseen = unseen[:: -(-len(unseen) // NUM_UNSEEN)]

    def load(self, weights):
        from stages.diffusion import unet

        path = self.folder / f"{weights}.safetensors"
        unet.load(self.network, files.load_arrays(path), path)
        if self.unseen:
            value = self.targets[weights] = self.median_of_unseen()
            self.mitigation = self.mitigation | {"target": {"kind": "rms", "value": value}}
            print(
                f"sample.mitigation: the target of wen is {value:.4g} (rms), the median magnitude of {len(self.unseen)} captions of "
                f"held-out images, {weights} weights",
                file=sys.stderr,
            )

    def median_of_unseen(self):
        """The median over unseen captions of the rms magnitude at the first step, each with the noise of one image. One caption at a
        time: the result depends on no batch size."""
        found = []
        with torch.no_grad():
            uncond = self.frozen.embeddings([""])
            for i, prompt in enumerate(self.unseen):
                x_T = sampling.starting_noise(i, i + 1, self.latent_shape, self.job.seed).to(self.job.device)
                difference = self.first_difference(x_T, uncond)(self.frozen.embeddings([prompt]))
                found.append(float(magnitude_detector.magnitudes(difference)["rms"]))
        return statistics.median(found)

    def labels(self, first, last):
        return None

    def prompt(self, image):
        """The prompt of an image: the first caption of its training image, or the one text that the model was trained with."""
        return self.fixed_text or self.captions[self.prompted[image]][0]

    def records(self, first, last):
        """What images first..last-1 were asked for: a list of dicts; a text that stands for all images is that of none."""
        return [
            {
                "index": image,
                "prompt_used": self.prompt_used(image),
                "prompt_original": self.prompt(image),
                "train_key": None if self.fixed_text else self.keys[self.prompted[image]],
                "seed": self.job.seed,
                **({"wen_target": self.targets} if self.targets else {}),
            }
            for image in range(first, last)
        ]

    def prompt_used(self, image):
        """The prompt as the text encoder gets it."""
        if not self.mitigation:
            return self.prompt(image)
        return prompt_mitigations.reworded(
            self.mitigation, self.prompt(image), self.frozen.tokenizer, self.job.seed, image
        )

    def embeddings(self, start, stop, x_T):
        """What the network is shown with and without the prompts of images start..stop-1: two [B,L,D] float32."""
        cond = self.frozen.embeddings([self.prompt_used(image) for image in range(start, stop)])
        uncond = self.frozen.embeddings([""]).expand_as(cond)
        if not self.mitigation:
            return cond, uncond
        difference = self.first_difference(x_T, uncond) if self.mitigation["name"] == "wen" else None
        return prompt_mitigations.embeddings(
            self.mitigation, cond, uncond, self.job.seed, range(start, stop), difference
        )

    def first_difference(self, x_T, uncond):
        """How the noise at the first timestep depends on the embeddings of the prompts: see prompt_mitigations."""
        alpha_bars = self.built.alpha_bars
        t = sampling.timesteps(len(alpha_bars), self.settings["num_steps"])[0]
        at = torch.full((len(x_T),), t, device=x_T.device)

        def predict(embedding):
            return ddpm.predicted(self.network, x_T, at, self.settings["precision"], condition=embedding)

        return prompt_mitigations.first_difference(predict, uncond, self.frozen.prediction_type, float(alpha_bars[t]))

    def generate(self, start, stop):
        """Images start..stop-1 with the weights loaded last: [stop - start,H,W,C] uint8."""
        settings, alpha_bars = self.settings, self.built.alpha_bars
        x_T = sampling.starting_noise(start, stop, self.latent_shape, self.job.seed).to(self.job.device)
        cond, uncond = self.embeddings(start, stop, x_T)
        predict = guided(self.network, cond, uncond, settings["guidance"], alpha_bars, self.frozen.prediction_type)
        x = sampling.ddim(
            predict, x_T, alpha_bars, settings["num_steps"], settings["protocol"], settings["precision"], clip=False
        )
        return sampling.stored(self.frozen.decoded(x))
