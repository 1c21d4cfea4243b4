"""A Stable Diffusion 1.x or 2.x model in diffusers' layout: what is trained of it, and what is only used.

B batch, L tokens of a prompt (77), D width of the text encoder, C H W image, c h w latent, f = H / h.
"""

import contextlib
import json
import math
import re
from pathlib import Path

from stages.text import prediction

# What must be there of a pipeline, by the sub-folder it lies in. Weights are read from safetensors alone.
PARTS = {
    "tokenizer": ("tokenizer_config.json",),
    "text_encoder": ("config.json", "*.safetensors"),
    "vae": ("config.json", "*.safetensors"),
    "unet": ("config.json", "*.safetensors"),
    "scheduler": ("scheduler_config.json",),
}
# Files of weights, whole or in pieces; not the variants beside them, such as .fp16.safetensors.
WEIGHTS = re.compile(r"[a-z_]+(-\d+-of-\d+)?\.safetensors")
# What a damaged configuration would have built for hours, by file and key: the largest number that is taken for meant.
BOUNDS = {
    "unet/config.json": {"layers_per_block": 20, "transformer_layers_per_block": 100, "mid_block_layers": 20},
    "vae/config.json": {"layers_per_block": 20},
    "text_encoder/config.json": {"num_hidden_layers": 200},
    "scheduler/scheduler_config.json": {"num_train_timesteps": 100_000},
}
MEND = "mend the folder model.pipeline (params.yaml)"
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
    for file, keys in BOUNDS.items():
        for key, most in keys.items():
            if _largest(found := _config(folder / file).get(key)) > most:
                raise ValueError(f"{folder / file} has {key} {_short(found)}, expected at most {most:,}: {MEND}")
    kind = _config(folder / "unet/config.json").get("_class_name", "a network of no name")
    if kind != "UNet2DConditionModel":
        raise ValueError(
            f"{folder}/unet is {kind}, expected the UNet2DConditionModel of Stable Diffusion 1.x or 2.x (params.yaml, model.pipeline)"
        )
    found = _config(folder / "scheduler/scheduler_config.json").get("prediction_type", "epsilon")
    if found not in prediction.TYPES:
        raise ValueError(
            f"{folder}/scheduler has prediction_type {found}, expected epsilon or v_prediction (params.yaml, model.pipeline)"
        )


def _largest(value):
    """The largest number in a value of a configuration; 0 where there is none."""
    if isinstance(value, list):
        return max(map(_largest, value), default=0)
    return value if isinstance(value, (int, float)) else 0


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
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no safetensors file ({error}): put the model there again") from None
    return total


def has_safety_checker(folder):
    index = Path(folder) / "model_index.json"
    named = _config(index).get("safety_checker") if index.exists() else None
    return isinstance(named, list) and any(named)


def _config(path):
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {MEND}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {_short(found)}, expected an object: {MEND}")
    return found


def _short(found):
    text = " ".join(str(found).split())
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextlib.contextmanager
def _told(what):
    """Whatever the libraries say of a file that they cannot use, of which there is no list, becomes one sentence."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} cannot be used ({type(error).__name__}: {_short(error)}): {MEND}") from None


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

    network = _loaded(UNet2DConditionModel, folder, "unet", torch_dtype=torch.float32, low_cpu_mem_usage=False)
    return {name: parameter.detach().numpy() for name, parameter in network.named_parameters()}


def _loaded(kind, folder, part, **options):
    """A part of the model with its weights, of which none may be missing (they would be random) and none too many (the part would be
    another one than was trained; old files of text encoders hold what is no weight)."""
    path = Path(folder) / part
    with _told(path):
        found, told = kind.from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    if missing := sorted(told["missing_keys"]):
        raise ValueError(f"{path} lacks the weights {_short(', '.join(missing))}: {MEND}")
    if part != "text_encoder" and (more := sorted(told["unexpected_keys"])):
        raise ValueError(f"{path} has weights that its config.json does not know, {_short(', '.join(more))}: {MEND}")
    return found


def without_memory(folder):
    """The parts of a model that have weights, as shapes without memory (on torch's device meta), tried on each other.

    Returns   dict: unet, vae, text_encoder
    Raises    ValueError: no such model, a configuration that cannot be used or describes more than there are weights, parts that do
              not fit each other, such as those of a model for inpainting
    """
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = Path(folder)
    check(folder)
    build = {
        "unet": lambda path: unet(folder),
        "vae": lambda path: AutoencoderKL.from_config(AutoencoderKL.load_config(path, local_files_only=True)),
        "text_encoder": lambda path: CLIPTextModel(CLIPTextConfig.from_pretrained(path, local_files_only=True)),
    }
    parts = {}
    for name, make in build.items():
        with _told(folder / name), torch.device("meta"):
            parts[name] = make(folder / name).eval()
        described = sum(parameter.numel() for parameter in parts[name].parameters())
        if described > (there := num_values(folder, name)):
            raise ValueError(
                f"{folder / name}/config.json describes {described:,} parameters, but the weights beside it are {there:,}: {MEND}"
            )
    vae, width = parts["vae"], parts["text_encoder"].config.hidden_size
    with _told(f"the network of {folder} with the latents of its VAE and the embeddings of its text encoder"):
        with torch.device("meta"), torch.no_grad():
            side = 8 * 2 ** (len(vae.config.block_out_channels) - 1)
            latents = vae.encode(torch.empty(1, vae.config.in_channels, side, side)).latent_dist.parameters.chunk(
                2, dim=1
            )[0]
            found = parts["unet"](latents, torch.zeros(1), encoder_hidden_states=torch.empty(1, 77, width)).sample
            image = vae.decode(found).sample
        shapes = [tuple(found.shape), tuple(latents.shape), tuple(image.shape)]
        expected = (1, vae.config.latent_channels, 8, 8)
        if shapes != [expected, expected, (1, 3, side, side)]:
            raise ValueError(
                f"shapes of prediction, latent and image are {shapes}, expected {expected} of the first two"
            )
    return parts


def latent_shape(vae_config, image_shape, folder):
    """(c, h, w) of the latent of an image (C, H, W).

    Raises   ValueError: grey images, or a size that the VAE cannot halve as often as it does
    """
    channels, height, width = image_shape
    factor = 2 ** (len(vae_config.block_out_channels) - 1)
    if channels != vae_config.in_channels or height % factor or width % factor:
        raise ValueError(
            f"images are {width}x{height} with {channels} channels, expected {vae_config.in_channels} channels and multiples of "
            f"{factor} pixels for the VAE of {folder}: set data.size (params.yaml)"
        )
    return vae_config.latent_channels, height // factor, width // factor


class Frozen:
    """All of a model that is not trained: tokenizer, text encoder, VAE, noise schedule.

    num_tokens        of a prompt, which is padded or cut to it
    alpha_bars        [T] float64
    prediction_type   of the network: see stages.text.prediction
    """

    def __init__(self, folder, device):
        import torch
        from diffusers import AutoencoderKL, DDIMScheduler
        from transformers import AutoTokenizer, CLIPTextModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # of a config that names what this version does not need
        without_memory(folder)
        self.folder, self.device = Path(folder), device
        self.text_encoder = _loaded(CLIPTextModel, folder, "text_encoder", dtype=torch.float32)
        self.vae = _loaded(AutoencoderKL, folder, "vae", torch_dtype=torch.float32, low_cpu_mem_usage=False)
        scale = self.vae.config.scaling_factor
        if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
            raise ValueError(
                f"{self.folder}/vae/config.json has scaling_factor {_short(scale)}, expected a number above 0: {MEND}"
            )
        for module in (self.text_encoder, self.vae):
            module.to(device).eval().requires_grad_(False)
        with _told(self.folder / "tokenizer"):
            self.tokenizer = AutoTokenizer.from_pretrained(self.folder / "tokenizer", local_files_only=True)
        with _told(f"the tokenizer of {self.folder} with its text encoder"):
            self._try_prompts()
        with _told(self.folder / "scheduler"):
            scheduler = DDIMScheduler.from_pretrained(self.folder / "scheduler", local_files_only=True)
            self.alpha_bars = scheduler.alphas_cumprod.double()
            if not ((self.alpha_bars > 0) & (self.alpha_bars < 1)).all():
                raise ValueError("its noise schedule leaves (0, 1)")
        self.prediction_type = scheduler.config.prediction_type

    def _try_prompts(self):
        """That the text encoder knows the tokens, and what becomes of prompts."""
        known = self.text_encoder.config
        self.num_tokens = min(self.tokenizer.model_max_length, known.max_position_embeddings)  # of a prompt
        if len(self.tokenizer) > known.vocab_size:
            raise ValueError(
                f"it has {len(self.tokenizer):,} tokens, of which the text encoder knows {known.vocab_size:,}"
            )
        found, expected = self.embeddings(["a prompt", ""]), (2, self.num_tokens, known.hidden_size)
        if tuple(found.shape) != expected or not found.isfinite().all():
            raise ValueError(
                f"two prompts become embeddings of shape {tuple(found.shape)}, expected finite ones of {expected}"
            )

    def latent_shape(self, image_shape):
        """(c, h, w) of the latent of an image (C, H, W)."""
        return latent_shape(self.vae.config, image_shape, self.folder)

    def tokens(self, prompts):
        """Token ids of prompts, padded or cut to the length that the text encoder takes: [B,L] int64 on the device."""
        encoded = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.num_tokens,
            return_tensors="pt",
        )
        return encoded.input_ids.to(self.device)

    def num_cut(self, prompts):
        """How many prompts have more tokens than the text encoder takes, and are cut."""
        ids = self.tokenizer(prompts, truncation=False, verbose=False).input_ids
        return sum(len(one) > self.num_tokens for one in ids)

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
