"""The method and the network of an arm, as the phases that run one need them."""

from stages import methods
from stages.run import files


def build(job, image_shape):
    """The training method of a job's arm, and its uninitialised network on the CPU.

    image_shape   (C, H, W)
    Returns       base.Model
    Raises        ValueError: a class-conditional model on images without classes; see unet.build
    """
    from stages.diffusion import ddpm, initial_weights, unet
    from stages.methods import base

    method = methods.method(job.recipe["method"])
    num_classes = None
    if job.params["model"].get("class_conditional"):
        num_classes = len(files.load_json(files.DATA / "classes.json"))
        if not num_classes:
            raise ValueError(
                f"model.class_conditional is true, but the images of data.name {job.params['data']['name']} have no classes: "
                "put them into one sub-folder per class, or set it to false (params.yaml)"
            )
    channels = method.network_channels(image_shape[0])
    network = unet.build(job.params["model"], image_shape, channels, num_classes)
    return base.Model(
        method=method,
        network=network,
        num_classes=num_classes,
        alpha_bars=ddpm.alpha_bars(**job.params["diffusion"]),
        first_weights=lambda seed: initial_weights.initial_weights(network, seed),
    )
