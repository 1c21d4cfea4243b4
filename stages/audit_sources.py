"""The images of an audit: looked at, kept apart and brought to one size before anything is measured.

Three roles: `generated` images, those that the generator was trained on (`train`), and others of their kind (`heldout`).
"""

import math
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from stages.run import files
from stages.run.progress import Progress

ROLES = ("generated", "train", "heldout")
# Two neighbours of half of the training images for a ratio, two held-out images for an excess, two images for a covariance.
FEWEST = {"generated": 2, "train": 4, "heldout": 2}
ARRAY_FILES = (".npz", ".npy")


@dataclass(frozen=True)
class Source:
    """Images of one role, looked at and not yet read.

    role   one of ROLES
    path   pathlib.Path, absolute: a folder of images, an array file or the folder of a pipeline
    name   what the user calls it
    kind   folder, file or pipeline
    num    number of images; None of a pipeline
    sizes  set of (height, width)
    """

    role: str
    path: Path
    name: str
    kind: str
    num: int | None
    sizes: set

    @property
    def link(self):
        """Where the experiment finds it: a path that says nothing of the user's folders."""
        return Path("images") / (self.role + (self.path.suffix.lower() if self.kind == "file" else ""))


def look(images, work, num_images):
    """The images of all roles, each looked at.

    images       dict role -> path (text or pathlib.Path), or array [M,H,W,C] or [M,H,W] uint8, or None
    work         folder for what a zip or an array becomes
    num_images   generated images asked for; None: all
    Returns      dict role -> Source, without the roles that are None
    Raises       ValueError: nothing there, no images or too few, a file of another kind, images that two roles share
    """
    sources = {role: _source(role, images[role], work) for role in ROLES if images.get(role) is not None}
    _check_apart(sources)
    for role, source in sources.items():
        if source.num is not None and source.num < FEWEST[role]:
            raise ValueError(f"{source.name} holds {count(source.num)}, expected at least {FEWEST[role]} ({role})")
    generated = sources["generated"]
    if num_images and generated.num and num_images > generated.num:
        raise ValueError(f"{generated.name} holds {count(generated.num)}, but {num_images} are asked for (num_images)")
    return sources


def count(number):
    """1 image, 2 images."""
    return f"{number:,} image{'s' * (number != 1)}"


def _source(role, given, work):
    from stages.image_sets import elsewhere, folders

    if not isinstance(given, (str, Path)):
        path, name = _saved(role, given, work), role
    else:
        path, name = Path(given).absolute(), str(given)
    if not path.exists():
        raise ValueError(f"{name} does not exist ({role})")
    if path.is_file() and path.suffix.lower() in ARRAY_FILES:
        shape = elsewhere.file_shape(path)
        return Source(role, path, name, "file", shape[0], {shape[1:3]})
    if path.is_file() and path.suffix.lower() == ".zip":
        path = _unzipped(path, work / "unpacked" / role)
    if not path.is_dir():
        raise ValueError(f"{name} is a file, expected a folder, a .zip, a .npz or a .npy of images ({role})")
    if (path / "model_index.json").is_file():
        if role != "generated":
            raise ValueError(f"{name} is a saved pipeline, expected images ({role})")
        from stages.diffusion import saved_pipeline

        return Source(role, path, name, "pipeline", None, {saved_pipeline.size_of(path)})
    try:
        return Source(role, path, name, "folder", *folders.sizes(path, Progress))
    except ValueError as error:
        told = str(error).replace(str(path), name).replace("data.root", name)
        raise ValueError(f"{told} ({role})") from None


def _saved(role, given, work):
    """The file of an array, which is read like one that the user names."""
    import numpy as np

    array = np.asarray(given)
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise ValueError(
            f"{role} is {array.dtype} {array.shape}, expected uint8 [images, height, width, channels] in 0..255: convert it, for values x "
            "in [0, 1] with (255 * x).round().astype('uint8')"
        )
    path = work / f"arrays/{role}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, array, allow_pickle=False)
    return path


def _unzipped(path, to):
    """The folder of a zip's images, from which folders that hold all of them are left out."""
    from stages.image_sets import looks

    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    try:
        with zipfile.ZipFile(path) as archive:
            known = looks.suffixes()
            members = [m for m in archive.infolist() if Path(m.filename).suffix.lower() in known]
            members = [m for m in members if not m.filename.startswith("__MACOSX/")]
            needed, free = sum(m.file_size for m in members), files.free_room(to)
            if needed > free:
                sizes = files.text_of_size(needed), files.text_of_size(free, math.floor)
                raise OSError(f"its images need {sizes[0]}, and {sizes[1]} are free")
            progress = Progress(f"unpacking {path.name}", "images")
            for i, member in enumerate(members):
                archive.extract(member, to)
                progress.update(i + 1, len(members))
    except (
        zipfile.BadZipFile,
        OSError,
        RuntimeError,
        NotImplementedError,
    ) as error:  # RuntimeError: a password is asked for
        raise ValueError(f"{path} cannot be unpacked: {' '.join(str(error).split())}") from None
    while len(inside := list(to.iterdir())) == 1 and inside[0].is_dir():
        to = inside[0]
    return to


def _check_apart(sources):
    """Raises ValueError if two roles have one path, one path lies in another, or two folders share a file."""
    from stages.image_sets import folders

    for role, source in sources.items():
        for other in list(sources.values())[: list(sources).index(role)]:
            one, two = source.path.resolve(), other.path.resolve()
            if one == two:
                raise ValueError(
                    f"{source.name} is given twice, as {other.role} and as {role}: expected different images"
                )
            if one.is_relative_to(two) or two.is_relative_to(one):
                raise ValueError(
                    f"{source.name} ({role}) and {other.name} ({other.role}) lie one in the other and so share images: move one away"
                )
    seen = {}  # (device, inode) of a file -> (role, path)
    for role, source in sources.items():
        for path in folders.listing(source.path)[0] if source.kind == "folder" else ():
            status = path.stat()
            other, first = seen.setdefault((status.st_dev, status.st_ino), (role, path))
            if other != role:
                raise ValueError(
                    f"{first} ({other}) and {path} ({role}) are one file, by a link: an image is generated, trained on or held out"
                )


def to_one_size(sources, size, work):
    """Brings all images to one size, where they are not.

    size      side in pixels; None: the shorter side of the smallest generated image, where the images have several sizes
    work      folder for resized arrays
    Returns   sources; the side in pixels that folders must still be resized to, None where all images have one size; a sentence on what was
              done, "" for nothing
    Raises    ValueError: a size that the search cannot take, or that a pipeline does not make
    """
    from stages.measures import neighbours

    found, generated = set().union(*(source.sizes for source in sources.values())), sources["generated"]
    largest = math.isqrt(neighbours.MAX_VALUES // 3)
    if size is None and len(found) == 1 and math.prod(*found) <= largest**2:
        return sources, None, ""
    side = size or min(largest, *map(min, generated.sizes))
    if side > largest:
        raise ValueError(f"size is {side}, expected at most {largest}: the search takes no larger images")
    if generated.kind == "pipeline" and generated.sizes != {(side, side)}:
        height, width = next(iter(generated.sizes))
        raise ValueError(
            f"the pipeline {generated.name} makes images of {width}x{height} pixels, which are not brought to {side}x{side} here: leave "
            "size out, or generate its images yourself and give their folder"
        )
    if found == {(side, side)}:
        return sources, None, ""
    resized = {role: _resized(source, side, work) for role, source in sources.items()}
    return (
        resized,
        side,
        f"All images are brought to {side}x{side} pixels: the shorter side is resized, the middle cut out.",
    )


def _resized(source, side, work):
    """A source whose images can be brought to the size: readers of folders do that themselves, those of arrays do not."""
    if source.kind != "file" or source.sizes == {(side, side)}:
        return source
    import numpy as np
    from PIL import Image, ImageOps

    from stages.image_sets import elsewhere

    array = elsewhere.of_file(source.path)
    resized = np.empty((len(array), side, side, array.shape[3]), np.uint8)
    progress = Progress(f"resizing the images of {source.name}", "images")
    for i, image in enumerate(array):
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        fitted = np.asarray(ImageOps.fit(picture, (side, side), Image.Resampling.BILINEAR))
        resized[i] = fitted.reshape(resized.shape[1:])
        progress.update(i + 1, len(array))
    path = work / f"resized/{source.role}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, resized, allow_pickle=False)
    return replace(source, path=path, sizes={(side, side)})
