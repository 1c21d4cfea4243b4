"""Features of DINOv2 (Oquab et al. 2023), for distances between images: the class token of the last layer, as in dgm-eval (Stein et al. 2023).

M images, D embedding, H W C height, width and channels of an image.
"""

import numpy as np

SIZE = 224  # pixels of a side, as images reach the network
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, by channel


def load(folder):
    """DINOv2 from a folder in transformers' layout, in evaluation mode on the CPU. Nothing is fetched, and no pickle is read.

    Raises   ValueError: the folder lacks something, or holds another kind of model
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, Dinov2Model
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        if (kind := AutoConfig.from_pretrained(folder, local_files_only=True).model_type) != "dinov2":
            raise ValueError(f"it is a model of the kind {kind}, expected dinov2")
        model = Dinov2Model.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        return model.requires_grad_(False)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        first = " ".join(str(error).split())[:160]
        raise ValueError(f"{folder} cannot be read as a DINOv2 model of transformers ({first})") from None


def features(model, images, batch_size, progress=None):
    """Features of images, which are resized to SIZE with a bicubic filter.

    model        from `load`, on the device to compute on
    images       [M,H,W,C] uint8, C = 1 or 3
    progress     None or a callable (images done, M), called after each batch
    Returns      [M,D] float32
    """
    import torch
    from PIL import Image

    found = []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            colour = [np.repeat(image, 3 // image.shape[2], axis=2) for image in batch]
            resized = [np.asarray(Image.fromarray(image).resize((SIZE, SIZE), Image.BICUBIC)) for image in colour]
            pixels = (np.stack(resized) / 255 - MEAN) / STD
            pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32)).to(model.device)
            found.append(model(pixels).last_hidden_state[:, 0].float().cpu().numpy())
            if progress is not None:
                progress(start + len(batch), len(images))
    return np.concatenate(found)
