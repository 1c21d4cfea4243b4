"""What an image set is, once it has been found and looked at."""

from dataclasses import dataclass

import numpy as np


class NotThereError(ValueError):
    """What is not there; `image_sets.load` adds what to put where."""


@dataclass
class Part:
    """keys [N] names of the images; labels [N] int64, 0 to C-1; images: function (indices) -> iterator of [H,W,C] uint8;
    captions [N]: a list of at least one text for each image, None for a set without captions"""

    keys: list[str]
    labels: np.ndarray
    images: object
    captions: list[list[str]] | None = None


@dataclass
class ImageSet:
    """shape (H, W, C) of every image; classes: names in the order of the labels, [] where images have no classes; pool:
    what training images are drawn from; test: the official test part, which is held out, None where the set has none"""

    shape: tuple
    classes: list[str]
    pool: Part
    test: Part | None = None


def from_array(keys, labels, images, size=None):
    """A part whose images are all in memory: [N,H,W,C] uint8, C = 3 where there is a size to bring them to (PIL's bilinear)."""

    def chosen(indices):
        if size is None:
            yield from images[indices]
            return
        from PIL import Image

        for index in indices:
            yield np.asarray(Image.fromarray(images[index]).resize((size, size), Image.Resampling.BILINEAR))

    return Part(keys, np.asarray(labels, np.int64), chosen)
