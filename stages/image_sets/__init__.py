"""The image sets that an experiment can name. To add one: a function that returns its ImageSet, in the module for its kind
(`packaged`: comes with a package; `official`: files with checksums; `folders`: image files), an entry of SETS here, its name
in workflow/schemas/params.schema.yaml.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from stages.image_sets import captions, folders, official, packaged
from stages.image_sets.parts import ImageSet, NotThereError


@dataclass(frozen=True)
class Entry:
    """What the rest of the project knows of an image set.

    load       function: section data of params.yaml -> ImageSet
    obtain     words that say where the images come from and what to put under data.root
    needs      keys of the section that must be there, beside name and split_seed
    takes      further keys that have an effect
    pinned     the pinned packages alone say what its images are, as they hold them or check their files: DVC need not
               watch data.root
    download   data.download: true fetches it
    captions   its images have captions, which a text-conditioned model is trained with
    stored     function: section data -> (number of images, (H, W, C)), without reading them; for an estimate
    """

    load: Callable
    obtain: str
    needs: tuple = ("root",)
    takes: tuple = ("num_train",)
    pinned: bool = False
    download: bool = False
    captions: bool = False
    stored: Callable = None


def _of_size(num_images, side, channels):
    """For a set that is known: data.size may change the side, and makes no other channels."""
    return lambda data: (num_images, (data.get("size", side), data.get("size", side), channels))


SETS = {
    "digits": Entry(
        packaged.digits,
        "its images come with scikit-learn",
        needs=("num_train",),
        takes=(),
        pinned=True,
        stored=_of_size(1797, 8, 1),
    ),
    "fashion_mnist": Entry(
        official.fashion_mnist,
        "put the four official files (train-images-idx3-ubyte.gz and so on, packed) into FashionMNIST/raw under data.root",
        pinned=True,
        download=True,
        stored=_of_size(70_000, 28, 1),
    ),
    "cifar10": Entry(
        official.cifar10,
        "put the folder cifar-10-batches-py with its official files (of cifar-10-python.tar.gz) under data.root",
        takes=("num_train", "size"),
        pinned=True,
        download=True,
        stored=_of_size(60_000, 32, 3),
    ),
    "cifar100": Entry(
        official.cifar100,
        "put the folder cifar-100-python with its official files (of cifar-100-python.tar.gz) under data.root",
        takes=("num_train", "size"),
        pinned=True,
        download=True,
        stored=_of_size(60_000, 32, 3),
    ),
    "afhq_dog": Entry(
        folders.afhq_dog,
        "put the folders train/dog and val/dog of AFHQ v1 (from the project stargan-v2 of clovaai: download.sh afhq-dataset) "
        "under data.root",
        takes=("num_train", "heldout_share"),
        stored=_of_size(sum(folders.AFHQ_DOG.values()), folders.AFHQ_TO_PX, 3),
    ),
    "image_folder": Entry(
        folders.image_folder,
        "put your images under data.root",
        takes=("size", "num_train", "heldout_share"),
        stored=folders.stored,
    ),
    "captioned_folder": Entry(
        captions.captioned_folder,
        "put your images under data.root, with captions.json, metadata.jsonl or a .txt beside each (README, Stable Diffusion)",
        takes=("size", "captions", "num_train", "heldout_share"),
        captions=True,
        stored=folders.stored,
    ),
}


def load(data) -> ImageSet:
    """The image set of the section data of params.yaml.

    Raises   ValueError: missing or damaged files, an unreadable image, images of several sizes and no data.size
    """
    check_root(data)
    try:
        return SETS[data["name"]].load(data)
    except NotThereError as error:
        raise ValueError(f"{error}: {_advice(data)}") from None


def stored(data):
    """Number and shape (H, W, C) of the images that the data stage will store, for an estimate; None where that cannot be seen."""
    try:
        return SETS[data["name"]].stored(data)
    except (ValueError, OSError):  # told by the data stage
        return None


def check_root(data):
    """Raises   ValueError: there is no folder data.root, and it will not be made by a download"""
    if "root" in data and not os.path.isdir(data["root"]) and not data.get("download"):
        raise ValueError(f"the folder {os.path.abspath(data['root'])} does not exist: {_advice(data)}")


def linked_folders(data):
    """Folders inside data.root that are symbolic links: their images are read, but DVC does not look behind such links.

    Returns   list of paths; none where DVC need not watch data.root
    Raises    ValueError: what neither DVC nor the data stage can read: a link to nothing, a folder that is reached twice,
              a name that is not UTF-8
    """
    if SETS[data["name"]].pinned or not os.path.isdir(data["root"]):
        return []
    return folders.listing(data["root"])[1]


def _advice(data):
    entry = SETS[data["name"]]
    fetch = ", or set data.download: true" if entry.download and not data.get("download") else ""
    return f"{entry.obtain}{fetch}, or mend data.root (params.yaml)"
