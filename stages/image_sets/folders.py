"""Image sets that are folders of image files, in any common format."""

import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.image_sets.parts import ImageSet, NotThereError, Part
from stages.image_sets.registry import image_set, of_size

FORMATS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
# What Pillow raises for a file that is no image, or half of one.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, MemoryError, LookupError, TypeError, struct.error)
# Images of AFHQ version 1 in train/dog and val/dog; version 2 has other numbers. They are 512x512, and are resized to 64x64 as
# the authors of the paper do.
AFHQ_DOG = {"train": 4739, "val": 500}
AFHQ_PX, AFHQ_TO_PX = 512, 64


def stored(data):
    """`Entry.stored` of a folder of images: as if all images had the size of the first, and were in colour."""
    paths = _images_under(data["root"])
    if not paths:
        raise NotThereError(f"{data['root']} holds no image")
    if size := data.get("size"):
        return len(paths), (size, size, 3)
    with _opened(paths[0]) as image:
        width, height = _upright_size(paths[0], image)
    return len(paths), (height, width, 3)


@image_set("put your images under data.root", takes=("size", "num_train", "heldout_share"), stored=stored)
def image_folder(data, progress, mode=None):
    """A folder of images. Its sub-folders, if it has any, are the classes; an image's name is its path inside the folder.

    EXIF orientation is applied, transparency is dropped, and 16-bit grey is reduced to 8 bits. If all images are grey, the set
    has one channel, otherwise three. With data.size the shorter side is resized to it (bilinear) and the middle is cut out;
    without it all images must have one size.

    progress   see `stages.image_sets.load`
    mode       "RGB": three channels even if all images are grey; "L": one channel; None: as the images are
    Raises     NotThereError: no image
               ValueError: an unreadable image, several sizes and no data.size, and what `listing` refuses
    """
    root = Path(data["root"])
    paths = _images_under(root)
    if not paths:
        raise NotThereError(
            f"the folder {os.path.abspath(root)} holds no image, expected files that end in {', '.join(sorted(FORMATS))}"
        )
    keys = [path.relative_to(root).as_posix() for path in paths]
    names, labels = np.unique([key.split("/")[0] if "/" in key else "." for key in keys], return_inverse=True)
    classes = [] if list(names) == ["."] else names.tolist()

    size = data.get("size")
    grey, first = True, None
    looking = progress("looking at the images", "images")
    for i, path in enumerate(paths):
        with _opened(path) as image:
            grey = grey and image.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
            shape = (size, size) if size else _upright_size(path, image)
        first = first or (path, shape)
        if shape != first[1]:
            raise ValueError(
                f"the images have several sizes ({first[0]} is {first[1][0]}x{first[1][1]}, {path} is {shape[0]}x{shape[1]}): "
                "give data.size, the side in pixels to which all are brought (params.yaml)"
            )
        looking.update(i + 1, len(paths))
    width, height = first[1]
    mode = mode or ("L" if grey else "RGB")
    return ImageSet((height, width, 1 if mode == "L" else 3), classes, _part(keys, labels, paths, mode, size))


@image_set(
    "put the folders train/dog and val/dog of AFHQ v1 (from the project stargan-v2 of clovaai: download.sh afhq-dataset) "
    "under data.root",
    takes=("num_train", "heldout_share"),
    stored=of_size(sum(AFHQ_DOG.values()), AFHQ_TO_PX, 3),
)
def afhq_dog(data, progress):
    """The 4,739 dogs of AFHQ version 1, in colour, resized from 512x512 to 64x64 (bilinear, with Pillow's antialiasing).

    If val/dog with its 500 images lies beside train/dog, it is the test part.
    """
    root = Path(data["root"])
    if not (root / "train/dog").is_dir():
        raise NotThereError(f"{os.path.abspath(root)} has no folder train/dog")
    parts = []
    for name, expected in AFHQ_DOG.items():
        folder = root / name / "dog"
        if not folder.is_dir():
            continue
        paths = _images_under(folder)
        if len(paths) != expected:
            raise ValueError(
                f"{os.path.abspath(folder)} holds {len(paths):,} images, expected the {expected:,} of AFHQ version 1: "
                f"complete it, or read another selection with data.name: image_folder, root: {root / 'train/dog'} and "
                f"size: {AFHQ_TO_PX} (params.yaml)"
            )
        looking = progress(f"looking at the images of {folder}", "images")
        for i, path in enumerate(paths):
            with _opened(path) as image:
                if image.size != (AFHQ_PX, AFHQ_PX):
                    raise ValueError(
                        f"{path} is {image.size[0]}x{image.size[1]}, expected {AFHQ_PX}x{AFHQ_PX} as all of AFHQ version 1"
                    )
            looking.update(i + 1, len(paths))
        keys = [path.relative_to(root).as_posix() for path in paths]
        parts.append(_part(keys, np.zeros(len(paths)), paths, "RGB", AFHQ_TO_PX))
    if len(parts) > 1 and "heldout_share" in data:
        raise ValueError(
            f"{os.path.abspath(root / 'val/dog')} is held out, so data.heldout_share has no effect: remove it (params.yaml)"
        )
    return ImageSet((AFHQ_TO_PX, AFHQ_TO_PX, 3), [], *parts)


def sizes(root, progress):
    """How many images a folder holds, and what sizes they have, upright.

    progress   see `stages.image_sets.load`
    Returns    (number, set of (height, width))
    Raises     ValueError: no image, an unreadable one, and what `listing` refuses
    """
    paths, found = _images_under(root), set()
    if not paths:
        raise NotThereError(f"{root} holds no image, expected files that end in {', '.join(sorted(FORMATS))}")
    looking = progress(f"looking at the images of {root}", "images")
    for i, path in enumerate(paths):
        with _opened(path) as image:
            found.add(_upright_size(path, image)[::-1])
        looking.update(i + 1, len(paths))
    return len(paths), found


def _part(keys, labels, paths, mode, size):
    def images(indices) -> Iterator[np.ndarray]:
        for index in indices:
            yield _decoded(paths[index], mode, size)

    return Part(keys, np.asarray(labels, np.int64), images)


def listing(root):
    """All files under a folder, those behind links to folders included.

    Returns  (files, linked): sorted lists of paths; linked are the folders that are symbolic links
    Raises   ValueError: a link to nothing; a folder that is reached twice, for example by a link to a folder above it; a name
             that is not UTF-8, which neither DVC nor keys.json can hold
    """
    files, linked, reached, todo = [], [], {}, [Path(root)]
    while todo:
        folder = todo.pop()
        before = reached.setdefault(os.path.realpath(folder), folder)
        if before is not folder:
            raise ValueError(
                f"{before} and {folder} are the same folder, by a link: remove the link (its images count twice)"
            )
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            try:
                entry.name.encode("utf-8")
            except UnicodeEncodeError:
                shown = os.fsencode(entry.path).decode("utf-8", "backslashreplace")
                raise ValueError(f"the name of {shown} is not UTF-8: rename it") from None
            if entry.is_symlink() and not os.path.exists(entry.path):
                raise ValueError(f"{entry.path} is a link to nothing ({os.readlink(entry.path)}): mend or remove it")
            if entry.is_dir():
                todo.append(Path(entry.path))
                linked += [Path(entry.path)] if entry.is_symlink() else []
            elif entry.is_file():
                files.append(Path(entry.path))
    return sorted(files), sorted(linked)


def _images_under(folder):
    return [path for path in listing(folder)[0] if path.suffix.lower() in FORMATS]


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
