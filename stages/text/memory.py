"""How much memory of the device a stage of a text-conditioned model takes, from its configuration files alone, and whether there
is so much.

P parameters of the network, F of the text encoder and the VAE together, B images at a time. All weights are float32, 4 bytes.

training   weights, gradients and Adam's two moments 16 P (with averaged weights 20 P), 4 F, and B times 1.1 times the outputs of
           all layers of the network for one image, which are kept for the gradient with some of what stands between layers
sampling   weights 4 P, 4 F, and four times the largest output of a layer of the network or the VAE for one image, as a sample stage
           itself goes down to one image at a time where more do not fit
With compute.precision bf16 a copy of the weights adds 2 P, and the outputs of the network's layers take half.
"""

import sys

from stages import params
from stages.run import device, files
from stages.text import model


def needed(folder, image_shape, precision, batch_size=None, keeps_ema=False, guidance=1):
    """Bytes that a stage takes.

    folder        of the model
    image_shape   (C, H, W)
    batch_size    of training; None: the stage only samples
    guidance      of sampling: above 1 the network sees each image twice
    Returns       dict: weights, with all that goes with them; frozen; image, activations of one image
    """
    import torch

    network, vae, text_encoder = model.without_memory(folder).values()
    with torch.device("meta"):
        latent = torch.empty(1, *model.latent_shape(vae.config, image_shape, folder))
        tokens = torch.empty(1, text_encoder.config.max_position_embeddings, text_encoder.config.hidden_size)
        outputs = _outputs(network, latent, torch.zeros(1), encoder_hidden_states=tokens)
    per_value, copy = (2, 2) if precision == "bf16" else (4, 0)
    if batch_size is None:
        with torch.device("meta"):
            decoded = _outputs(vae.decoder, latent)
        weights, image = 4, 4 * max((1 + (guidance > 1)) * per_value * max(outputs), 4 * max(decoded))
    else:
        weights, image = 20 if keeps_ema else 16, round(1.1 * per_value * sum(outputs))
    return {
        "weights": (weights + copy) * _num_parameters(network),
        "frozen": 4 * (_num_parameters(text_encoder) + _num_parameters(vae)),
        "image": image,
    }


def _num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def _outputs(module, *inputs, **more):
    """Number of values that each layer gives out."""
    import torch

    found = []
    layers = [layer for layer in module.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(lambda _, __, output: found.append(output.numel())) for layer in layers]
    with torch.no_grad():
        module(*inputs, **more)
    for hook in hooks:
        hook.remove()
    return found


def check(job, image_shape):
    """Compares what a stage takes with what its GPU has, and says so where that is more.

    Returns   the estimate in words; "" on the CPU
    Raises    ValueError: the weights alone do not fit
    """
    if (has := device.memory(job.device)) is None:
        return ""
    precision, folder = job.params["compute"]["precision"], job.params["model"]["pipeline"]
    if training := job.phase == "train":
        settings = params.section(job.params, "train", job.arm)
        batch_size = settings["batch_size"]
        found = needed(folder, image_shape, precision, batch_size, bool(settings["ema_decay"]))
        what = f"weights, gradients and Adam's moments {_size(found['weights'])}"
        images = f"a batch of {batch_size} images {_size(batch_size * found['image'])}"
    else:
        found = needed(
            folder, image_shape, precision, guidance=params.section(job.params, "sample", job.arm)["guidance"]
        )
        batch_size = 1
        what, images = f"weights {_size(found['weights'])}", f"one image {_size(found['image'])}"
    fixed = found["weights"] + found["frozen"]
    told = (
        f"by estimate this takes {_size(fixed + batch_size * found['image'])} of device memory ({what}, text encoder and VAE "
        f"{_size(found['frozen'])}, {images}), and the GPU has {_size(has)} for it"
    )
    smaller = "a smaller data.size" if precision == "bf16" else "compute.precision: bf16 or a smaller data.size"
    if fixed > has:
        raise ValueError(
            f"{told}: no smaller batch helps, so use another GPU, fewer stages a GPU ({device.SLOTS}) or a smaller model.pipeline"
        )
    if fixed + batch_size * found["image"] > has:
        fitting = int((has - fixed) // found["image"])
        advice = f"train.batch_size {fitting}, {smaller}" if training and fitting else smaller
        print(f"{told}: where it does not suffice, try {advice} (params.yaml)", file=sys.stderr)
    return told


def _size(num_bytes):
    return files.text_of_size(num_bytes)
