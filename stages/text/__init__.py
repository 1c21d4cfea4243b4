"""Models with captions: fine-tuning a Stable Diffusion model. stages.methods.kinds says what a kind of model offers.

Importing this package imports no torch: params.py reads the settings of prompt_mitigations, and no stage should pay for more.
"""


def build(method, model, diffusion, image_shape, num_classes, device):
    """See stages.methods.kinds. The noise schedule is the model's own, and there are no classes."""
    from stages.text import kind

    return kind.Model(method, model["pipeline"], image_shape, device)


def memory_needed(model, image_shape, precision, batch_size=None, keeps_ema=False, guidance=1):
    """See stages.methods.kinds."""
    from stages.text import memory

    return memory.needed(model["pipeline"], image_shape, precision, batch_size, keeps_ema, guidance)


def unseen(captions):
    """First captions of held-out images, each once, that no training image has among its own.

    captions   dict: train, heldout, each a list of lists of texts
    """
    known = {text for texts in captions["train"] for text in texts}
    return [text for text in dict.fromkeys(texts[0] for texts in captions.get("heldout", [])) if text not in known]
