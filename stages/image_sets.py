"""The image sets that an experiment can name: where they come from and how they become uint8 arrays.

Each function returns an ImageSet. `pool` is what training images are drawn from; a set with an official test part has it
as `test`, and those images are held out.
"""

import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FORMATS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
# What Pillow raises for a file that is no image, or half of one.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, MemoryError, LookupError, TypeError, struct.error)


@dataclass
class Part:
    """keys [N] names of the images; labels [N] int64; images: function (indices) -> iterator of [H,W,C] uint8"""

    keys: list[str]
    labels: np.ndarray
    images: object


@dataclass
class ImageSet:
    """shape (H, W, C) of every image; pool and test parts, test None where the set has none"""

    shape: tuple
    pool: Part
    test: Part | None = None


def load(data):
    """The image set of the section data of params.yaml.

    Raises   ValueError: missing or empty folder, an unreadable image, images of several sizes and no data.size
    """
    return {"digits": digits, "image_folder": image_folder, "cifar10": cifar10}[data["name"]](data)


def _from_array(keys, labels, images):
    return Part(keys, np.asarray(labels, np.int64), lambda indices: iter(images[indices]))


def digits(data):
    """The 1,797 handwritten digits of scikit-learn: 8x8 grey, 10 classes.

    The 17 grey levels become 0, 15, ..., 240. Not 255: RandAugment's Solarize inverts a saturated pixel at any strength,
    however small, and strokes here are saturated.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images * 15).astype(np.uint8)[..., None]
    return ImageSet((8, 8, 1), _from_array([f"digit-{i:04}" for i in range(len(images))], bunch.target, images))


def cifar10(data):
    """CIFAR-10 from torchvision's folder, whose checksums torchvision verifies: 50,000 + 10,000 images of 32x32."""
    from torchvision.datasets import CIFAR10

    parts = []
    for train in (True, False):
        try:
            part = CIFAR10(root=data["root"], train=train, download=False)
        except RuntimeError:
            raise ValueError(
                f"{Path(data['root']).resolve()} does not hold CIFAR-10, expected the folder cifar-10-batches-py with its "
                "official files: put it there, or set data.root to where it is (params.yaml)"
            ) from None
        name = "train" if train else "test"
        parts.append(_from_array([f"{name}/{i:05}" for i in range(len(part.data))], part.targets, part.data))
    return ImageSet((32, 32, 3), *parts)


def image_folder(data):
    """A folder of images: sub-folders are classes where there are any, an image's name is its path inside the folder.

    EXIF orientation is honoured, transparency dropped, 16-bit grey reduced to 8 bits. All grey images make a set of one
    channel, any colour image makes it three. With data.size the shorter side is resized to it (bilinear) and the middle cut
    out; without it all images must have one size.
    """
    root = Path(data["root"])
    if not root.is_dir():
        raise ValueError(
            f"the folder data.root = {root} does not exist: put your images there, or mend data.root (params.yaml)"
        )
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in FORMATS and p.is_file())
    if not paths:
        raise ValueError(
            f"the folder data.root = {root} holds no image, expected files that end in {', '.join(sorted(FORMATS))}"
        )
    keys = [p.relative_to(root).as_posix() for p in paths]
    folders = [key.split("/")[0] if "/" in key else "" for key in keys]
    labels = np.unique(folders, return_inverse=True)[1]

    size = data.get("size")
    grey, first = True, None
    for path in paths:
        with _opened(path) as image:
            grey = grey and image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
            shape = (size, size) if size else _upright_size(path, image)
        first = first or (path, shape)
        if shape != first[1]:
            raise ValueError(
                f"the images have several sizes ({first[0]} is {first[1][0]}x{first[1][1]}, {path} is {shape[0]}x{shape[1]}): "
                "give data.size, the side in pixels to which all are brought (params.yaml)"
            )
    width, height = first[1]

    def images(indices) -> Iterator[np.ndarray]:
        for index in indices:
            yield _decoded(paths[index], "L" if grey else "RGB", size)

    return ImageSet((height, width, 1 if grey else 3), Part(keys, labels.astype(np.int64), images))


def _opened(path):
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"{path} claims to have more than {Image.MAX_IMAGE_PIXELS} pixels: remove it from data.root"
        ) from None
    except BROKEN as error:
        raise _unreadable(path, error) from None


def _unreadable(path, error):
    return ValueError(f"{path} is not a readable image ({error}): mend it or remove it from data.root")


def _upright_size(path, image):
    try:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except BROKEN as error:
        raise _unreadable(path, error) from None
    return image.size[::-1] if turned else image.size


def _decoded(path, mode, size):
    """One image as [H,W,C] uint8."""
    from PIL import Image, ImageOps

    with _opened(path) as image:
        try:
            image.load()
            image = ImageOps.exif_transpose(image)
        except BROKEN as error:
            raise _unreadable(path, error) from None
        if image.mode.startswith(("I", "F")):
            values = np.asarray(image)
            if image.mode == "F" or values.min() < 0 or values.max() > 65535:
                raise ValueError(f"{path} has 32-bit values, expected 8 or 16 bits: convert or remove it")
            image = Image.fromarray((values >> 8).astype(np.uint8))
        image.info.pop("transparency", None)  # Pillow warns of every palette that has some
        image = image.convert(mode)
        if size:
            image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
        array = np.asarray(image, np.uint8)
    return array[..., None] if mode == "L" else array
