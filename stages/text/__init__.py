"""The text-conditioned half: fine-tuning a Stable Diffusion model. What differs from the unconditional half, and nothing else."""

from stages import methods, params
from stages.run import files


def unseen(captions):
    """First captions of held-out images, each once, that no training image has among its own.

    captions   dict: train, heldout, each a list of lists of texts
    """
    known = {text for texts in captions["train"] for text in texts}
    return [text for text in dict.fromkeys(texts[0] for texts in captions.get("heldout", [])) if text not in known]


def build(job, image_shape):
    """The training method of a job's arm, and the UNet of its Stable Diffusion model, uninitialised on the CPU.

    image_shape   (C, H, W)
    Returns       base.Model
    Raises        ValueError: the folder is no such model, does not take images of that shape, or is too large for the GPU
    """
    from stages.methods import base
    from stages.text import latents, memory, model

    folder = job.params["model"]["pipeline"]
    estimate = memory.check(job, image_shape)
    frozen = model.Frozen(folder, job.device)
    shape = frozen.latent_shape(image_shape)

    def objective():
        captions = files.load_json(files.DATA / "captions.json")["train"]
        if fixed := params.fixed_text(job.params, job.arm):
            captions = [[fixed]] * len(captions)
        settings = params.section(job.params, "train", job.arm)
        any_caption = settings.get("caption") == "random_of_all"
        return latents.build(frozen, captions, shape, settings["flip"], any_caption)

    return base.Model(
        method=methods.method(job.recipe["method"]),
        network=model.unet(folder),
        num_classes=None,
        alpha_bars=frozen.alpha_bars,
        first_weights=lambda seed: model.unet_weights(folder),
        objective=objective,
        inputs=model.files_of(folder, *model.PARTS),
        frozen=frozen,
        memory=estimate,
    )
