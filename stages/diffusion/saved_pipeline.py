"""A saved diffusers pipeline that someone else trained, as a source of images.

Only data is read: no pickle is loaded, and no code that lies beside a pipeline is run.
"""

import json
from types import SimpleNamespace

import numpy as np

from stages import randomness
from stages.diffusion import ddpm
from stages.image_sets.elsewhere import check_size, with_channels
from stages.methods import kinds

PIPELINES = ("DDPMPipeline", "DDIMPipeline")  # of diffusers: unconditional, in pixels
# The noise that a prediction stands for, of its kind in diffusers' words: functions of the prediction, x and its alpha_bar.
NOISE = {
    "epsilon": lambda found, x, signal: found,
    "v_prediction": lambda found, x, signal: signal.sqrt() * found + (1 - signal).sqrt() * x,
    "sample": lambda found, x, signal: (x - signal.sqrt() * found) / (1 - signal).sqrt(),
}


class Source(kinds.Source):
    """A saved DDPM or DDIM pipeline as a source of images; its weights come with it.

    path        pathlib.Path of its folder
    shape       (H, W, C) of the training images
    num_steps   steps of the pipeline's own sampler
    files       the files of the pipeline
    Raises      ValueError: no pipeline, one of another class, one with code of its own, images of another size
    """

    def __init__(self, path, shape, seed, num_steps, device):
        self.pipeline = _pipeline(path).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.network, self.shape, self.seed, self.num_steps = self.pipeline.unet, shape, seed, num_steps
        size = self.network.config.sample_size
        check_size(path, size if isinstance(size, (list, tuple)) else [size] * 2, shape)
        self.files = sorted(file for file in path.rglob("*") if file.is_file())

    def generate(self, start, stop):
        """Images start..stop-1, each from a random generator of its own: [stop - start,H,W,C] uint8.

        Torch's CPU generator reads 32 bits of a seed. Image i gets the number that follows from `seed`, plus i, modulo 2^32: so no two
        of 2^32 images have the same.

        Raises   ValueError: colour, where the training images are grey
        """
        import torch

        first = randomness.seed_of("sample", self.seed, 0)
        generators = [torch.Generator().manual_seed((first + i) % 2**32) for i in range(start, stop)]
        with torch.no_grad():
            made = self.pipeline(
                batch_size=len(generators), generator=generators, num_inference_steps=self.num_steps, output_type="np"
            ).images
        return with_channels("the pipeline", (made * 255).round().clip(0, 255).astype(np.uint8), self.shape[2])

    def profiled(self, images):
        """The network as measures.loss_profile looks at it, see kinds.Model.profiled.

        images    [n,H,W,C] uint8
        Returns   function (x, t) -> object with the noise in .sample
                  [n,c,H,W] float32 on the device: the images in [-1, 1], with as many channels as the network takes
                  [T] float64 alpha_bars
        Raises    ValueError: colour, where the network takes grey; a sampler without a noise schedule; a prediction of another kind
        """
        import torch

        config = self.pipeline.scheduler.config
        if (kind := config.get("prediction_type", "epsilon")) not in NOISE:
            raise ValueError(f"the pipeline predicts {kind}, expected one of {', '.join(NOISE)}")
        if getattr(self.pipeline.scheduler, "alphas_cumprod", None) is None:
            raise ValueError(f"its {type(self.pipeline.scheduler).__name__} has no noise schedule (alphas_cumprod)")
        alpha_bars = self.pipeline.scheduler.alphas_cumprod.double().cpu()
        images = with_channels("the training set", images, self.network.config.in_channels)
        x_0 = ddpm.normalise(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()).to(self.pipeline.device)

        def predict(x, t):
            found = self.network(x, t).sample[:, : x.shape[1]]  # without the variance that some networks predict too
            signal = alpha_bars.to(x)[t].view(-1, 1, 1, 1)
            return SimpleNamespace(sample=NOISE[kind](found, x, signal))

        return predict, x_0, alpha_bars


def size_of(path):
    """The size of a pipeline's images: (height, width).

    path     pathlib.Path of its folder
    Raises   ValueError: it has no UNet with a size
    """
    config = path / "unet/config.json"
    try:
        size = json.loads(config.read_text(encoding="utf-8"))["sample_size"]
        height, width = size if isinstance(size, list) else (size, size)
        return int(height), int(width)
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} is a pipeline without {config.relative_to(path)} that says the size of its images (sample_size): generate its "
            "images yourself and give their folder"
        ) from None


def _pipeline(path):
    index = path / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"{path} is no saved pipeline of diffusers: it has no model_index.json (params.yaml, generator.pipeline)"
        )
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        name, unet, scheduler = (content[key] for key in ("_class_name", "unet", "scheduler"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} cannot be read ({error})") from None
    if name not in PIPELINES:
        raise ValueError(
            f"{path} is a {name}, expected one of {', '.join(PIPELINES)}: generate its images yourself and give their folder"
        )
    # Any other library named here would be imported, from a file beside the pipeline too.
    if unet != ["diffusers", "UNet2DModel"] or not isinstance(scheduler, list) or scheduler[:1] != ["diffusers"]:
        raise ValueError(
            f"{index} names unet {unet} and scheduler {scheduler}, expected UNet2DModel and a scheduler of diffusers: generate "
            "its images yourself and give their folder"
        )
    import diffusers

    try:
        return getattr(diffusers, name).from_pretrained(path, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the pipeline {path} cannot be loaded: {reason[:300]}") from None
