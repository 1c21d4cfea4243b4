"""A Stable Diffusion 1.x or 2.x model in diffusers' layout: what is trained of it, and what is only used.

B batch, L tokens of a prompt (77), D width of the text encoder, C H W image, c h w latent, f = H / h.
"""

import json
import math
import re
from pathlib import Path

# What must be there of a pipeline, by the sub-folder it lies in. Weights are read from safetensors alone.
PARTS = {
    "tokenizer": ("tokenizer_config.json",),
    "text_encoder": ("config.json", "*.safetensors"),
    "vae": ("config.json", "*.safetensors"),
    "unet": ("config.json", "*.safetensors"),
    "scheduler": ("scheduler_config.json",),
}
WEIGHTS = re.compile(
    r"[a-z_]+(-\d+-of-\d+)?\.safetensors"
)  # whole or in pieces; not the variants beside them, such as .fp16.
READ = (".json", ".txt", ".safetensors")  # the files of a part that its content depends on


def check(folder):
    """Raises   ValueError: the folder is no Stable Diffusion pipeline; names what is missing or of another kind"""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"the folder {folder.absolute()} does not exist: put a Stable Diffusion 1.x or 2.x model in diffusers' layout there, or "
            "mend model.pipeline (params.yaml)"
        )
    missing = [
        f"{part}/{pattern}"
        for part, patterns in PARTS.items()
        for pattern in patterns
        if not any((folder / part).glob(pattern))
    ]
    if missing:
        raise ValueError(
            f"{folder} is no Stable Diffusion model in diffusers' layout: it lacks {', '.join(missing)} (params.yaml, model.pipeline)"
        )
    kind = _config(folder / "unet/config.json").get("_class_name", "a network of no name")
    if kind != "UNet2DConditionModel":
        raise ValueError(
            f"{folder}/unet is {kind}, expected the UNet2DConditionModel of Stable Diffusion 1.x or 2.x (params.yaml, model.pipeline)"
        )
    prediction = _config(folder / "scheduler/scheduler_config.json").get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"{folder}/scheduler has prediction_type {prediction}, expected epsilon or v_prediction (params.yaml, model.pipeline)"
        )


def files_of(folder, *parts):
    """The files that parts of a model are read from, in order."""
    return sorted(
        file for part in parts for file in (Path(folder) / part).rglob("*") if file.is_file() and file.suffix in READ
    )


def num_values(folder, part):
    """Number of values in the weights of a part, from the headers of its files alone.

    Raises   ValueError: a file is no safetensors
    """
    total = 0
    for path in sorted(path for path in (Path(folder) / part).iterdir() if WEIGHTS.fullmatch(path.name)):
        try:
            with open(path, "rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > path.stat().st_size:
                    raise ValueError("it is shorter than its header says")
                header = json.loads(stream.read(length))
            total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no safetensors file ({error}): put the model there again") from None
    return total


def has_safety_checker(folder):
    index = Path(folder) / "model_index.json"
    return index.exists() and any(_config(index).get("safety_checker") or [])


def _config(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): mend the folder model.pipeline (params.yaml)") from None


def unet(folder):
    """The network of a model, uninitialised, in training mode on the CPU: called with a text condition.

    Returns   UNet2DConditionModel: (x [B,c,h,w], t [B], encoder_hidden_states [B,L,D]) -> prediction [B,c,h,w] in .sample
    """
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(Path(folder) / "unet", local_files_only=True)
    return UNet2DConditionModel.from_config(config).train()


def unet_weights(folder):
    """The weights that come with the model: dict name -> float32 array."""
    import torch
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel.from_pretrained(
        folder,
        subfolder="unet",
        local_files_only=True,
        use_safetensors=True,
        low_cpu_mem_usage=False,
        torch_dtype=torch.float32,
    )
    return {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}


class Frozen:
    """All of a model that is not trained: tokenizer, text encoder, VAE, noise schedule.

    alpha_bars        [T] float64
    prediction_type   of the network: epsilon or v_prediction
    """

    def __init__(self, folder, device):
        import torch
        from diffusers import AutoencoderKL, DDIMScheduler
        from transformers import AutoTokenizer, CLIPTextModel
        from transformers.utils import logging

        check(folder)
        logging.disable_progress_bar()
        logging.set_verbosity_error()  # of a config that names what this version does not need
        here = {"local_files_only": True}
        self.folder, self.device = Path(folder), device
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", **here)
        self.text_encoder = CLIPTextModel.from_pretrained(
            self.folder / "text_encoder", use_safetensors=True, dtype=torch.float32, **here
        )
        self.vae = AutoencoderKL.from_pretrained(
            self.folder / "vae", use_safetensors=True, low_cpu_mem_usage=False, torch_dtype=torch.float32, **here
        )
        for module in (self.text_encoder, self.vae):
            module.to(device).eval().requires_grad_(False)
        scheduler = DDIMScheduler.from_pretrained(self.folder / "scheduler", **here)
        self.alpha_bars = scheduler.alphas_cumprod.double()
        self.prediction_type = scheduler.config.prediction_type

    def latent_shape(self, image_shape):
        """(c, h, w) of the latent of an image (C, H, W).

        Raises   ValueError: grey images, or a size that the VAE cannot halve as often as it does
        """
        channels, height, width = image_shape
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        if channels != self.vae.config.in_channels or height % factor or width % factor:
            raise ValueError(
                f"images are {width}x{height} with {channels} channels, expected {self.vae.config.in_channels} channels and multiples "
                f"of {factor} pixels for the VAE of {self.folder}: set data.size (params.yaml)"
            )
        return self.vae.config.latent_channels, height // factor, width // factor

    def tokens(self, prompts):
        """Token ids of prompts, padded or cut to the length that the text encoder takes: [B,L] int64 on the device."""
        encoded = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        return encoded.input_ids.to(self.device)

    def num_cut(self, prompts):
        """How many prompts have more tokens than the text encoder takes, and are cut."""
        ids = self.tokenizer(prompts, truncation=False, verbose=False).input_ids
        return sum(len(one) > self.tokenizer.model_max_length for one in ids)

    def embeddings(self, prompts):
        """What the network sees of prompts: [B,L,D] float32 on the device."""
        import torch

        with torch.no_grad():
            return self.text_encoder(self.tokens(prompts))[0]

    def moments(self, images):
        """Mean and logarithm of the variance of the VAE's posterior of images.

        images    [B,C,H,W] float32 in [-1, 1]
        Returns   [B,2c,h,w] float32
        """
        import torch

        with torch.no_grad():
            return self.vae.encode(images).latent_dist.parameters

    def latents(self, moments, noise):
        """A sample of the posterior, scaled as the network expects it: scaling_factor * (mean + std * noise).

        moments   [B,2c,h,w]
        noise     [B,c,h,w] float32, standard normal
        """
        mean, log_variance = moments.chunk(2, dim=1)
        return self.vae.config.scaling_factor * (mean + (0.5 * log_variance.clamp(-30, 20)).exp() * noise)

    def decoded(self, latents):
        """Images of latents [B,c,h,w]: [B,C,H,W] float32, about [-1, 1]."""
        import torch

        with torch.no_grad():
            return self.vae.decode(latents / self.vae.config.scaling_factor).sample
