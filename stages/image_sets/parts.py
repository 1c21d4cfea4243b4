"""What an image set is, once it has been found and looked at."""

from dataclasses import dataclass, field

import numpy as np


class NotThereError(ValueError):
    """Files are missing; `image_sets.load` adds to the sentence what to put where."""


@dataclass
class Part:
    """N images of a set, C classes.

    keys       [N] names of the images, all different
    labels     [N] int64, 0 to C-1; all 0 where images have no classes
    images     function (indices) -> iterator over [H,W,C] uint8 arrays, decoded when they are asked for
    captions   [N] lists of at least one text; None for a set without captions
    """

    keys: list[str]
    labels: np.ndarray
    images: object
    captions: list[list[str]] | None = None

    def of(self, indices):
        """The part that some of its images are."""
        chosen = [self.captions[i] for i in indices] if self.captions is not None else None
        return Part([self.keys[i] for i in indices], self.labels[indices], lambda i: self.images(indices[i]), chosen)


@dataclass
class ImageSet:
    """An image set whose images are known and not yet decoded.

    shape     (H, W, C) of every image; here C is the number of channels, 1 or 3
    classes   names in the order of the labels; [] where images have no classes
    pool      what training images are drawn from
    test      the official test part, which is held out; None where the set has none
    notes     sentences on what the user should know: files that were not read, choices that were made
    value_range   (lo, hi) of more than 8 bits that became 0 and 255; None where there were none
    """

    shape: tuple
    classes: list[str]
    pool: Part
    test: Part | None = None
    notes: list[str] = field(default_factory=list)
    value_range: tuple | None = None


def from_array(keys, labels, images, size=None):
    """A part whose images are all in memory.

    images   [N,H,W,C] uint8, C = 3 where a size is given
    size     side in pixels to which images are resized (Pillow's bilinear filter); None: as they are
    """

    def chosen(indices):
        if size is None:
            yield from images[indices]
            return
        from PIL import Image

        for index in indices:
            yield np.asarray(Image.fromarray(images[index]).resize((size, size), Image.Resampling.BILINEAR))

    return Part(keys, np.asarray(labels, np.int64), chosen)


def silent(what, unit):
    """A `progress` that tells nothing; see `image_sets.load`."""
    return _Silent()


class _Silent:
    def update(self, done, total):
        pass
