"""CLIP score: how well images fit their prompts, the cosine of CLIP's embeddings (Radford et al. 2021; Hessel et al. 2021).

The score of a set is the mean over images, times 100, without a clamp at 0. It depends on the CLIP model: published values are of
ViT-B/16.

M images, B batch, D embedding, H W C height, width and channels of an image.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

# How images reach the network.
PREPROCESS = (
    "clip",  # as the model's own preprocessor says
    "dcr",  # as in the code of Somepalli et al. and of the paper: as for SSCD, so with other statistics than CLIP was trained on
)


class Clip(NamedTuple):
    model: object
    tokenizer: object
    image_processor: object


def load(folder):
    """CLIP from a folder in transformers' layout, in evaluation mode on the CPU. Nothing is fetched, and no pickle is read.

    Raises   ValueError: the folder lacks something, or holds another kind of model
    """
    from safetensors import SafetensorError
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel
    from transformers.utils import logging

    check(folder)
    logging.disable_progress_bar()
    here = {"local_files_only": True}
    try:
        model = CLIPModel.from_pretrained(folder, use_safetensors=True, **here).eval()
        return Clip(
            model.requires_grad_(False),
            AutoTokenizer.from_pretrained(folder, **here),
            CLIPImageProcessor.from_pretrained(folder, **here),
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        first = " ".join(str(error).split())[:160]
        raise ValueError(f"{folder} cannot be read as a CLIP model of transformers ({first})") from None


def check(folder):
    """Raises ValueError if the folder is not there or lacks a file that CLIP needs; names it."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"the folder {folder} does not exist: put a CLIP model in transformers' layout there")
    needed = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "*.safetensors")
    missing = [pattern for pattern in needed if not any(folder.glob(pattern))]
    # A processor saved as a whole has the image processor's settings inside its own file.
    if "preprocessor_config.json" in missing and (folder / "processor_config.json").exists():
        missing.remove("preprocessor_config.json")
    if missing:
        raise ValueError(f"{folder} is no CLIP model in transformers' layout: it lacks {', '.join(missing)}")


def image_embeddings(clip, images, preprocess, batch_size, progress=None):
    """Unit embeddings of images.

    clip         from `load`, its model on the device to compute on
    images       [M, H, W, C] uint8 array, C = 1 or 3
    preprocess   clip or dcr
    progress     None or a callable (images done, M), called after each batch
    Returns      [M, D] float32
    Raises       ValueError: dcr with a model of another image size than 224
    """
    import torch

    from stages.measures import sscd

    size = clip.model.config.vision_config.image_size
    if preprocess == "dcr" and size != 224:
        raise ValueError(f"preprocess is dcr, which gives images of 224 px, but the CLIP model takes {size} px")
    device, found = clip.model.device, []
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            if preprocess == "dcr":
                pixels = sscd.network_input(batch, "dcr")
            else:
                colour = [np.repeat(image, 3 // image.shape[2], axis=2) for image in batch]
                pixels = clip.image_processor(
                    colour, return_tensors="pt", input_data_format="channels_last"
                ).pixel_values
            pooled = clip.model.vision_model(pixel_values=pixels.to(device)).pooler_output
            found.append(_unit(clip.model.visual_projection(pooled)))
            if progress is not None:
                progress(start + len(batch), len(images))
    return np.concatenate(found)


def text_embeddings(clip, prompts, batch_size):
    """Unit embeddings of prompts, [M, D] float32; what has more than 77 tokens is cut off. Equal prompts are embedded once."""
    import torch

    distinct, place = np.unique(prompts, return_inverse=True)
    found = []
    with torch.no_grad():
        for start in range(0, len(distinct), batch_size):
            tokens = clip.tokenizer(
                distinct[start : start + batch_size].tolist(),
                padding="max_length",
                truncation=True,
                max_length=clip.model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(clip.model.device)
            pooled = clip.model.text_model(
                input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
            ).pooler_output
            found.append(_unit(clip.model.text_projection(pooled)))
    return np.concatenate(found)[place]


def _unit(vectors):
    return (vectors / vectors.norm(dim=1, keepdim=True)).float().cpu().numpy()


def scores(images, texts):
    """Cosine of each image with its prompt, from unit embeddings [M, D] and [M, D]: [M] float64."""
    return np.einsum("md,md->m", images.astype(np.float64), texts.astype(np.float64))
