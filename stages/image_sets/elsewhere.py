"""Images of a generator that someone else trained: a folder of images or an array file.

An arm with a section `generator` in the place of a training recipe has these as its samples; nothing is trained for it. Only
data is read: no pickle is loaded. The third kind of generator, a saved pipeline, is in `stages.diffusion.saved_pipeline`.
"""

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from stages.image_sets import folders

# What numpy and zipfile raise for a file that is none of theirs, or a damaged one. RuntimeError: a password is asked for.
BROKEN = (
    OSError, ValueError, EOFError, LookupError, SyntaxError, TypeError, RuntimeError, MemoryError, AttributeError, OverflowError,
    struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
)  # fmt: skip


def images(generator, shape, num_images, progress, value_range=None):
    """The images of a folder or a file, in the shape of the training images.

    generator    section arms.<arm>.generator: folder or file; with folder optionally resize
    shape        (H, W, C) of the training images
    num_images   M, how many are wanted: the first ones by name or position; None: all there are
    progress     as that of `stages.image_sets.load`; of a folder only
    value_range  (lo, hi) of more than 8 bits that became 0 and 255 in the training images; None where they had none
    Returns      [M,H,W,C] uint8
    Raises       ValueError: nothing there, another size, too few images, no images of 8 bits
    """
    path = Path(generator.get("folder") or generator["file"])
    if "folder" in generator:
        found = _of_folder(path, shape, generator.get("resize", False), num_images, progress, value_range)
    else:
        if not path.is_file():
            raise ValueError(f"the file generator.file = {path} does not exist: mend the path (params.yaml)")
        found = of_file(path, shape, num_images)
    wanted = num_images or len(found)
    if len(found) < wanted:
        raise ValueError(
            f"{path} holds {len(found)} images, but sample.num_images of the arm asks for {wanted}: remove it there to take all "
            "images (params.yaml)"
        )
    return found[:wanted]


def names(generator, progress):
    """The files that the images of a folder come from, in the order of `images`: list of paths in the folder; None if it is gone.

    generator, progress   as in `images`
    """
    path = Path(generator["folder"])
    # The size plays no part in the order; without one, images of several sizes would be refused.
    return folders.image_folder({"root": str(path), "size": 1}, progress).pool.keys if path.is_dir() else None


def _of_folder(path, shape, resize, num_images, progress, value_range):
    data = {"root": str(path), **({"size": shape[0]} if resize else {})}
    if resize and shape[0] != shape[1]:
        raise ValueError("generator.resize works for square images only, and the training images are not square")
    try:
        found = folders.image_folder(data, progress, value_range=value_range)
        check_size(path, found.shape, shape, "set generator.resize: true to resize and centre-crop them, or ")
        chosen = range(len(found.pool.keys))[:num_images]
        array = np.empty((len(chosen), *shape[:2], found.shape[2]), np.uint8)
        reading = progress(f"reading the images of {path}", "images")
        for i, image in enumerate(found.pool.images(chosen)):
            array[i] = image
            reading.update(i + 1, len(chosen))
    except ValueError as error:  # sentences about folders name the keys of the section data
        told = str(error).replace("data.root", "generator.folder")
        told = told.replace("give data.size, the side in pixels to which all are brought", "set generator.resize: true")
        raise ValueError(told) from None
    return with_channels(path, array, shape[2])


def of_file(path, shape=None, num_images=None):
    """The images of an array file, .npy or .npz with one array of images.

    path         pathlib.Path
    shape        (H, W, C) of the training images, which these must fit; None: any
    num_images   how many are wanted, the first ones; None: all
    Returns      [M,H,W,C] uint8
    Raises       ValueError: what `file_shape` raises, more images than the memory holds, another shape than asked for or, with shape None,
                 neither 1 nor 3 channels
    """
    import psutil  # which a machine that only runs the benchmarks need not have

    found, name = file_shape(path), _described(path)[0]
    if shape:
        check_size(path, found[1:], shape)
    elif found[3] not in (1, 3):
        raise ValueError(
            f"{path} holds images of {found[3]} channels {found}, expected 1 or 3 in the last place: convert it"
        )
    num_bytes, free = math.prod(found), psutil.virtual_memory().available
    if path.suffix == ".npz" and num_bytes > free:  # unpacked as a whole
        raise ValueError(
            f"{path} says that it holds {num_bytes / 2**30:,.1f} GiB of images, but {free / 2**30:.1f} GiB of memory are free: "
            "give them as .npy, which is read in parts, or fewer of them"
        )
    try:
        array = _unpacked(path, name) if name else np.load(path, mmap_mode="r", allow_pickle=False)
        array = np.ascontiguousarray((array[..., None] if array.ndim == 3 else array)[:num_images])
    except BROKEN as error:
        raise _unreadable(path, error) from None
    return with_channels(path, array, shape[2]) if shape else array


def file_shape(path):
    """The shape [M,H,W,C] of the images of an array file, from its header.

    path      pathlib.Path
    Returns   (M, H, W, C)
    Raises    ValueError: no array file, not one array of images, not uint8, no image
    """
    try:
        _, found, dtype = _described(path)
    except BROKEN as error:
        raise _unreadable(path, error) from None
    if dtype != np.uint8 or len(found) not in (3, 4) or not all(found):
        raise ValueError(
            f"{path} holds {dtype} {found}, expected uint8 [images, height, width, channels] in 0..255: convert it, "
            "for values x in [0, 1] with (255 * x).round().astype('uint8')"
        )
    return found if len(found) == 4 else (*found, 1)


def _unreadable(path, error):
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} cannot be read as a numpy array ({reason[:200]}): expected .npy or .npz")


def _described(path):
    """What the header of the array says, before anything is unpacked.

    Returns   name in the archive, None for a .npy file; shape; dtype
    Raises    those of BROKEN
    """
    if path.suffix != ".npz":
        with open(path, "rb") as stream:
            return None, *_header(stream)
    with zipfile.ZipFile(path) as archive:
        found = []
        for name in archive.namelist():
            with archive.open(name) as member:
                found.append((name, *_header(member)))
    images = [entry for entry in found if len(entry[1]) in (3, 4)]
    if len(images) != 1:
        raise ValueError(f"it has {len(images)} arrays of images, expected one")
    return images[0]


def _header(stream):
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never read")
    return shape, dtype


def _unpacked(path, name):
    with np.load(path, allow_pickle=False) as arrays:
        return arrays[name.removesuffix(".npy")]


def check_size(path, found, expected, remedy=""):
    """Refuses images that are not as wide and as high as the training images.

    path              where the images come from
    found, expected   (H, W) or (H, W, C): of these images, of the training images
    remedy            what else the user can do, the beginning of a sentence
    Raises            ValueError: another height or width
    """
    if tuple(found[:2]) != tuple(expected[:2]):
        raise ValueError(
            f"the images of {path} are {found[1]}x{found[0]} pixels, but the training images are {expected[1]}x{expected[0]}: "
            f"{remedy}give data.size of the generated images (params.yaml)"
        )


def with_channels(path, array, channels):
    """Images with as many channels as the training images: grey is repeated, and colour becomes grey only where it is grey.

    path       where the images come from
    array      [M,H,W,1] or [M,H,W,3] uint8
    channels   1 or 3
    Returns    [M,H,W,channels] uint8
    Raises     ValueError: colour, where the training images are grey; another number of channels
    """
    if array.shape[3] == channels:
        return array
    if array.shape[3] == 1 and channels == 3:
        return np.repeat(array, 3, axis=3)
    if array.shape[3] == 3 and channels == 1 and (array == array[..., :1]).all():
        return np.ascontiguousarray(array[..., :1])
    raise ValueError(
        f"the images of {path} have {array.shape[3]} channels, but the training images have {channels}: convert one of them"
    )
