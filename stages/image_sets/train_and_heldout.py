"""Training images and held-out images that lie apart, each as a folder of images or as an array file."""

import os
from pathlib import Path

import numpy as np

from stages.image_sets import elsewhere, folders
from stages.image_sets.parts import ImageSet, NotThereError, Part, from_array
from stages.image_sets.registry import image_set

ARRAY_FILES = (".npz", ".npy")


@image_set(
    "put the training images into a folder train, and images that are held out into a folder heldout, under data.root",
    takes=("size", "deduplicate"),
)
def train_and_heldout(data, progress):
    """Folders train and heldout under data.root; held-out images may be missing.

    Each is read as `image_folder` reads a folder, and may be an array file in its place: train.npz or train.npy, uint8 [N,H,W,C] or
    [N,H,W], whose images are called by their position. If one of the two is in colour, both have three channels. Sub-folders are
    classes where both have sub-folders of the same names; otherwise there are no classes.

    Raises   NotThereError: no training images
             ValueError: held-out images of another size, an array of another size than data.size, and what the readers raise
    """
    root = Path(data["root"])
    train = _side(root, "train", data.get("size"), progress)
    if train is None:
        raise NotThereError(f"{os.path.abspath(root)} has no folder train, and no train.npz or train.npy")
    heldout = _side(root, "heldout", data.get("size"), progress, train.value_range)
    if heldout is None:
        return train
    if train.shape[:2] != heldout.shape[:2]:
        raise ValueError(
            f"the held-out images of {root} are {_size(heldout)} pixels, but the training images are {_size(train)}: give data.size, "
            "the side in pixels to which both are brought"
        )
    channels = max(train.shape[2], heldout.shape[2])
    has_classes = train.classes == heldout.classes
    pool, test = (_alike(side, channels, has_classes) for side in (train, heldout))
    notes = [f"{name}: {note}" for name, side in (("train", train), ("heldout", heldout)) for note in side.notes]
    classes = train.classes if has_classes else []
    return ImageSet((*train.shape[:2], channels), classes, pool, test, notes, train.value_range)


def _side(root, name, size, progress, value_range=None):
    """The images of one side as an ImageSet without a test part; None where there is nothing of that name. value_range: see folders.image_folder."""
    for suffix in ARRAY_FILES:
        if (path := root / f"{name}{suffix}").exists():
            array = elsewhere.of_file(path)
            if size and array.shape[1:3] != (size, size):
                raise ValueError(
                    f"the images of {path} are {array.shape[2]}x{array.shape[1]} pixels, but data.size is {size}: an array is not "
                    "resized"
                )
            return ImageSet(
                array.shape[1:], [], from_array([str(i) for i in range(len(array))], np.zeros(len(array)), array)
            )
    if not (root / name).is_dir():
        return None
    asked = {"root": str(root / name), **({"size": size} if size else {})}
    return folders.image_folder(asked, progress, value_range=value_range)


def _size(side):
    return f"{side.shape[1]}x{side.shape[0]}"


def _alike(side, channels, has_classes):
    """The images of one side with so many channels, and without classes where the two sides do not have the same."""
    part = side.pool

    def images(indices):
        for image in part.images(indices):
            yield image if image.shape[2] == channels else np.repeat(image, channels, axis=2)

    return Part(part.keys, part.labels if has_classes else np.zeros_like(part.labels), images)
