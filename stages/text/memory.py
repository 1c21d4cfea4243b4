"""How much memory of the device a stage of a model with captions takes, from its configuration files alone.

P parameters of the network, F of the text encoder and the VAE together, B images at a time. All weights are float32, 4 bytes.

training   weights, gradients and Adam's two moments 16 P (with averaged weights 20 P), 4 F, and B times 1.1 times the outputs of
           all layers of the network for one image, which are kept for the gradient with some of what stands between layers
sampling   weights 4 P, 4 F, and four times the largest output of a layer of the network or the VAE for one image, as a sample stage
           itself goes down to one image at a time where more do not fit
With compute.precision bf16 a copy of the weights adds 2 P, and the outputs of the network's layers take half.
"""

from stages.text import model


def needed(folder, image_shape, precision, batch_size=None, keeps_ema=False, guidance=1):
    """Bytes that a stage takes.

    folder        of the model
    image_shape   (C, H, W)
    batch_size    of training; None: the stage only samples
    guidance      of sampling: above 1 the network sees each image twice
    precision     fp32 or bf16
    keeps_ema     training keeps averaged weights
    Returns       dict: weights, with all that goes with them; frozen; image, activations of one image
    Raises        ValueError: no such model, or one that images of this shape do not fit
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
