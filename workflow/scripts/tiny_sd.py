"""Makes a tiny Stable Diffusion model and toy images with captions, to try the text-conditioned half of the project on a CPU.

`python workflow/scripts/tiny_sd.py data/tiny_text` writes data/tiny_text/model, a model in diffusers' layout with random weights,
data/tiny_text/images, coloured shapes with a metadata.jsonl, and data/tiny_text/pooled_pixels.torchscript.pt, which stands in for
SSCD. Nothing is downloaded. Model and images have the same bytes every time. The bytes of the stand-in vary, but its features do not.
"""

import argparse
import itertools
import json
import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from stages.run import cli, files  # before torch: `import stages` sets the number of threads

# isort: split
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

COLOURS = {
    "red": (210, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 70, 210),
    "yellow": (230, 210, 50),
    "white": (240, 240, 240),
    "purple": (140, 50, 160),
}
SHAPES = ("square", "circle", "triangle", "cross")
WORDS = (*COLOURS, *SHAPES, "a", "the", "of", "on", "black")

# All have latents of 8x8.
# C: images of 64 px, with the levels and the downsampling by 8 of Stable Diffusion itself.
# D: 32 px, two levels, downsampling by 4. It learns its images by heart in half a minute.
# E: 16 px, to measure with. Its VAE loses little of an image (`average_patches`). It has 100 timesteps, each with more noise, so that
#    each is visited often enough for AGC to act in a short run.
CONFIGS = {
    "C": {
        "size": 64,
        "vae": (8, 8, 16, 16),
        "unet": (8, 16, 16, 16),
        "down": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    "D": {
        "size": 32,
        "vae": (8, 16, 16),
        "unet": (16, 32),
        "down": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
}
CONFIGS["E"] = CONFIGS["D"] | {"size": 16, "vae": (8, 16), "averages": True, "timesteps": 100}


def build(folder, config="D", prediction_type="epsilon", seed=0):
    """Writes a Stable Diffusion model with random weights, in diffusers' layout.

    folder            path of the folder; its parents are made
    config            C, D or E, see CONFIGS
    prediction_type   epsilon or v_prediction
    seed              of the weights
    """
    transformers.utils.logging.disable_progress_bar()
    parts, words = CONFIGS[config], tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder, vae, unet = _text_encoder(words), _vae(parts), _unet(parts)
    _prepare(vae, parts)
    scheduler = _scheduler(parts.get("timesteps", 1000), prediction_type)
    pipeline = StableDiffusionPipeline(
        vae.eval(), text_encoder.eval(), words, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder)


def _text_encoder(words):
    """Drawn five times wider than usual: otherwise embeddings of different captions would be nearly equal."""
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        initializer_factor=5.0,
    )
    return transformers.CLIPTextModel(config)


def _vae(parts):
    return AutoencoderKL(
        sample_size=parts["size"],
        block_out_channels=parts["vae"],
        down_block_types=("DownEncoderBlock2D",) * len(parts["vae"]),
        up_block_types=("UpDecoderBlock2D",) * len(parts["vae"]),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1 if parts.get("averages") else 4,
    )


def _unet(parts):
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=parts["unet"],
        down_block_types=parts["down"],
        up_block_types=parts["up"],
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=32,
        attention_head_dim=8,
    )


@torch.no_grad()
def _prepare(vae, parts):
    """Gives the VAE a narrow posterior, as that of a trained one, and latents of toy images with standard deviation 1."""
    if parts.get("averages"):
        average_patches(vae)
    vae.quant_conv.weight[4:] = 0.0  # the log variance: a random one would drown the mean
    vae.quant_conv.bias[4:] = -8.0
    x = torch.from_numpy(np.stack([image for image, _ in toy_images(24, parts["size"])])).permute(0, 3, 1, 2)
    latents = vae.eval().encode(x.float() / 127.5 - 1).latent_dist.mode()
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))


def _scheduler(num_timesteps, prediction_type):
    """The schedule of Stable Diffusion; with fewer timesteps the steps are larger, so that the last one has as much noise."""
    return DDIMScheduler(
        num_train_timesteps=num_timesteps,
        beta_start=0.85 / num_timesteps,
        beta_end=12 / num_timesteps,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def average_patches(vae, constant=100.0, shift=20.0):
    """Sets the weights of a VAE by hand, so that it loses what is finer than a patch of pixels and nothing else.

    The four channels of a latent are the mean red, green and blue of its patch, and the mean of these three. The decoder fills each
    patch with the colour of the first three.

    Eight channels carry it: each colour and its negative, a large constant and its negative. Their mean is 0 and their variance
    nearly that of the constants, so the last normalisation of encoder and decoder only scales them; what follows it, x sigmoid(x),
    is the identity for numbers as large as `shift`.

    vae   AutoencoderKL of 3 channels and 4 latents, one normalisation group, at least 8 channels everywhere; in torch.no_grad
    """
    for parameter in vae.parameters():
        parameter.zero_()  # residual branches add nothing
    for name, module in vae.named_modules():
        if name.endswith(("conv_shortcut", "upsamplers.0.conv")):
            middle = module.kernel_size[0] // 2
            for i in range(min(module.weight.shape[:2])):
                module.weight[i, i, middle, middle] = 1.0
        elif name.endswith("downsamplers.0.conv"):
            for i in range(len(module.weight)):
                module.weight[i, i, :2, :2] = 0.25
    for part in (vae.encoder, vae.decoder):
        for colour in range(3):
            part.conv_in.weight[2 * colour, colour, 1, 1] = 1.0
            part.conv_in.weight[2 * colour + 1, colour, 1, 1] = -1.0
            part.conv_out.weight[colour, 2 * colour, 1, 1] = 1.0
        part.conv_in.bias[6], part.conv_in.bias[7] = constant, -constant
        part.conv_norm_out.weight.fill_(constant * (2 / part.conv_norm_out.num_channels) ** 0.5)
        part.conv_norm_out.bias.fill_(shift)
        part.conv_out.bias[:3] = -shift
    vae.encoder.conv_out.weight[3] = vae.encoder.conv_out.weight[:3].mean(dim=0)
    vae.encoder.conv_out.bias[3] = -shift
    for module in (vae.quant_conv, vae.post_quant_conv):
        for i in range(4):
            module.weight[i, i] = 1.0


def pooled_pixels(path):
    """Writes a network that stands in for SSCD, as TorchScript: features are the normalised mean colours of 8x8 patches.

    It recognises copies of small pictures. But it takes pictures that are bright in the same places for copies too, so its values
    are not similarities of SSCD.
    """
    network = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.LayerNorm(3 * 8 * 8)
    ).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        torch.jit.script(network).save(str(path))


def tokenizer():
    """A CLIP tokenizer of some 560 ids: every byte, and the words of WORDS as one token each."""
    symbols = byte_symbols()
    merges = []
    for word in WORDS:
        for i in range(1, len(word)):
            pair = (word[:i], word[i] + ("</w>" if i == len(word) - 1 else ""))
            if pair not in merges:
                merges.append(pair)
    tokens = [*symbols, *(f"{s}</w>" for s in symbols), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def byte_symbols():
    """The 256 characters that stand for bytes in byte-level BPE: printable Latin-1 for itself, the rest from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = itertools.count(256)
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def toy_images(count, size):
    """Coloured shapes on grey: `count` pairs of an image [size,size,3] uint8 and its caption, such as "a red square".

    The first 24 all have another caption; later ones differ in place and extent.
    """
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    kinds = list(itertools.product(SHAPES, COLOURS))
    generator = np.random.default_rng(0)
    for i in range(count):
        shape, colour = kinds[i % len(kinds)]
        (u, v), r = generator.uniform(-0.3, 0.3, 2), generator.uniform(0.4, 0.65)
        a, b = np.abs(x - u), np.abs(y - v)
        inside = {
            "square": np.maximum(a, b) < r,
            "circle": np.hypot(a, b) < r,
            "triangle": (b < r) & (a < (y - v + r) / 2),
            "cross": (np.minimum(a, b) < r / 3) & (np.maximum(a, b) < r),
        }[shape]
        background = np.full((size, size, 3), generator.integers(20, 110), np.uint8)
        yield np.where(inside[..., None], np.uint8(COLOURS[colour]), background), f"a {colour} {shape}"


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--config", choices=sorted(CONFIGS), default="D")
    chosen = parser.parse_args(arguments)
    from PIL import Image

    build(chosen.folder / "model", chosen.config)
    pooled_pixels(chosen.folder / "pooled_pixels.torchscript.pt")
    folder = chosen.folder / "images"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (image, caption) in enumerate(toy_images(chosen.images, CONFIGS[chosen.config]["size"])):
        Image.fromarray(image).save(folder / f"{i:03}.png")
        lines.append(json.dumps({"file_name": f"{i:03}.png", "text": caption}))
    files.write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    print(f"{chosen.folder} has a tiny model and {chosen.images} images with captions")


if __name__ == "__main__":
    cli.run(main)
