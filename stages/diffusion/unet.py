"""The network: diffusers' UNet2DModel as a DDPM.

Importing the class the usual way also imports torch._dynamo, scipy.stats and every text model of diffusers, which this
network never uses and which cost two thirds of the start-up of a stage. `_import_unet` leaves them out.
"""

import importlib
import os
import sys
import types


def _import_unet():
    """diffusers' UNet2DModel, without the parts of diffusers that import slowly and are not used by it.

    While diffusers is imported, stand-ins take the place of torch._dynamo (whose decorators then return the function
    as it is) and of the text transformers; afterwards they are removed, so later imports get the real ones. What diffusers
    imported meanwhile keeps the stand-ins: a process that also wants its text-conditioned UNet must import that first.
    """
    if "diffusers" in sys.modules or "torch._dynamo" in sys.modules:
        from diffusers import UNet2DModel

        return UNet2DModel

    def undecorated(function=None, recursive=True, reason=None):
        return function if function is not None else undecorated

    stand_ins = {
        "torch._dynamo": {"allow_in_graph": undecorated, "disable": undecorated},
        "diffusers.models.transformers": {},
        "diffusers.models.transformers.dual_transformer_2d": {"DualTransformer2DModel": None},
        "diffusers.models.transformers.transformer_2d": {"Transformer2DModel": None},
        "diffusers.models.unets": {},
    }
    sys.modules["torch._dynamo"] = _module("torch._dynamo", stand_ins["torch._dynamo"])
    importlib.import_module("diffusers.utils")  # finds out whether transformers is there while it still can be
    absent = [] if "transformers" in sys.modules else ["transformers"]
    try:
        sys.modules.update(dict.fromkeys(absent))
        models = importlib.import_module("diffusers.models")
        for name, contents in stand_ins.items():
            sys.modules.setdefault(name, _module(name, contents))
        sys.modules["diffusers.models.unets"].__path__ = [os.path.join(models.__path__[0], "unets")]
        return importlib.import_module("diffusers.models.unets.unet_2d").UNet2DModel
    finally:
        for name in [*stand_ins, *absent]:
            sys.modules.pop(name, None)


def _module(name, contents):
    module = types.ModuleType(name)
    module.__path__ = []
    module.__dict__.update(contents)
    return module


def build(model, image_shape, network_channels=None, num_classes=None, num_told=0):
    """An uninitialised network for images of one shape.

    model         dict: block_channels [L] multiples of norm_groups, attention_levels (positions in block_channels),
                  layers_per_block, norm_groups, and dropout where it is not 0
    image_shape   (C, H, W)
    network_channels   (in, out) channels of the network where they are not those of an image
    num_classes   makes the network class-conditional: called with class_labels [B] int64
    num_told      numbers that the network may be told of an image, see `_tell`
    Returns       UNet2DModel in training mode on the CPU: (x [B,C,H,W], t [B]) -> prediction [B,C,H,W] in .sample
    Raises        ValueError: the image cannot be halved as often as there are levels
    """
    channels, height, width = image_shape
    levels = len(model["block_channels"])
    multiple = 2 ** (levels - 1)
    if height % multiple or width % multiple:
        raise ValueError(
            f"block_channels has {levels} levels, so images must be multiples of {multiple} pixels, but they are "
            f"{width}x{height}: use fewer levels or images of another size"
        )
    in_channels, out_channels = network_channels or (channels, channels)
    unet_2d = _import_unet()
    attention = [level in model["attention_levels"] for level in range(levels)]
    network = unet_2d(
        sample_size=(height, width),
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=tuple(model["block_channels"]),
        layers_per_block=model["layers_per_block"],
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
        dropout=model.get("dropout", 0.0),
        norm_num_groups=model["norm_groups"],
        norm_eps=1e-5,
        attention_head_dim=None,  # one head; the default of 8 would make heads of 8 channels, another architecture
        downsample_padding=1,
        freq_shift=0,
        flip_sin_to_cos=False,
        time_embedding_type="positional",
        add_attention=True,  # in the middle block
        num_class_embeds=num_classes,
    )
    if num_told:
        _tell(network, num_told)
    return network


def _tell(network, num_told):
    """Lets a network be told numbers of an image: called with class_labels (labels or None, told [B, num_told] float32), it adds a linear
    map of them, without a bias, to the embedding of the timestep. Called without them they are 0, which changes nothing."""
    import torch

    class Told(torch.nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.classes = classes
            self.told = torch.nn.Linear(num_told, network.time_embedding.linear_2.out_features, bias=False)

        def forward(self, class_labels):
            labels, told = class_labels
            found = self.told(told)
            return found if self.classes is None else found + self.classes(labels)

    def with_numbers(_, arguments, named):
        labels = named.get("class_labels")
        if not isinstance(labels, tuple):
            nothing = torch.zeros(len(arguments[0]), num_told, device=arguments[0].device)
            named = named | {"class_labels": (labels, nothing)}
        return arguments, named

    network.class_embedding = Told(network.class_embedding)
    network.register_forward_pre_hook(with_numbers, with_kwargs=True)


def untold(network):
    """The network as diffusers knows it: of one that may be told numbers what it is where they are 0, which is exact. Changes it in place."""
    if hasattr(network.class_embedding, "told"):
        network.class_embedding = network.class_embedding.classes
        network._forward_pre_hooks.clear()
        network._forward_pre_hooks_with_kwargs.clear()
    return network


def num_parameters(model, channels, num_classes=0):
    """Parameters of the network that `build` makes, without making it: a sum over its layers, which needs no torch.

    channels      of an image
    num_classes   0 for an unconditional network
    """
    widths, layers = model["block_channels"], model["layers_per_block"]
    embedding = 4 * widths[0]

    def conv(c_in, c_out, side=3):
        return c_out * (c_in * side**2 + 1)

    def residual(
        c_in, c_out
    ):  # two norms, two convolutions, the projection of the timestep; 1x1 where the width changes
        shortcut = conv(c_in, c_out, 1) if c_in != c_out else 0
        return 2 * (c_in + c_out) + conv(c_in, c_out) + conv(c_out, c_out) + conv(embedding, c_out, 1) + shortcut

    def attention(c):  # norm; queries, keys, values, output
        return 2 * c + 4 * conv(c, c, 1)

    def level(i, inputs):
        has_attention = i in model["attention_levels"]
        return sum(residual(c_in, widths[i]) + has_attention * attention(widths[i]) for c_in in inputs)

    total = conv(channels, widths[0]) + 2 * widths[0] + conv(widths[0], channels)
    total += conv(widths[0], embedding, 1) + conv(embedding, embedding, 1) + num_classes * embedding
    total += 2 * residual(widths[-1], widths[-1]) + attention(widths[-1])
    for i, width in enumerate(widths):
        before = widths[max(i - 1, 0)]
        total += level(i, [before] + [width] * (layers - 1))
        # The way up takes in the level below and, at each layer, what the way down had at that place.
        below = widths[min(i + 1, len(widths) - 1)]
        total += level(i, [below + width] + [2 * width] * (layers - 1) + [width + before])
        total += conv(width, width) * ((i < len(widths) - 1) + (i > 0))  # halving and doubling the side
    return total
