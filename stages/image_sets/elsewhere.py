"""Images of a generator that someone else trained: a folder of images, an array file, or a saved diffusers pipeline.

An arm with a section `generator` in the place of a training recipe has these as its samples; nothing is trained for it. Only
data is read: no pickle is loaded, and no code that lies beside a pipeline is run.
"""

import json
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import psutil

from stages.image_sets import folders

KINDS = ("folder", "file", "pipeline")
# What numpy and zipfile raise for a file that is none of theirs, or a damaged one. RuntimeError: a password is asked for.
BROKEN = (
    OSError, ValueError, EOFError, LookupError, SyntaxError, TypeError, RuntimeError, MemoryError, AttributeError, OverflowError,
    struct.error, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
)  # fmt: skip
PIPELINES = ("DDPMPipeline", "DDIMPipeline")  # of diffusers: unconditional, in pixels


def source(generator):
    """The path that a section arms.<arm>.generator names."""
    return next(generator[kind] for kind in KINDS if kind in generator)


def images(generator, shape, num_images, progress):
    """The images of a folder or a file, in the shape of the training images.

    generator  section arms.<arm>.generator: folder or file, and optionally resize (folder)
    shape      (H, W, C) of the training images
    num_images how many are wanted: None = all there are
    progress   function (done, total)
    Returns    [M,H,W,C] uint8
    Raises     ValueError: nothing there, another size, too few images, no images of 8 bits
    """
    path = Path(source(generator))
    if "folder" in generator:
        found = _of_folder(path, shape, generator.get("resize", False), num_images, progress)
    else:
        found = _of_file(path, shape, num_images)
    wanted = num_images or len(found)
    if len(found) < wanted:
        raise ValueError(
            f"{path} holds {len(found)} images, but sample.num_images of the arm asks for {wanted}: remove it there to take all "
            "images (params.yaml)"
        )
    return found[:wanted]


def _of_folder(path, shape, resize, num_images, progress):
    data = {"root": str(path), **({"size": shape[0]} if resize else {})}
    if resize and shape[0] != shape[1]:
        raise ValueError("generator.resize works for square images only, and the training images are not square")
    try:
        found = folders.image_folder(data)
        _check_size(path, found.shape, shape, "set generator.resize: true to resize and centre-crop them, or ")
        chosen = range(len(found.pool.keys))[:num_images]
        array = np.empty((len(chosen), *shape[:2], found.shape[2]), np.uint8)
        for i, image in enumerate(found.pool.images(chosen)):
            array[i] = image
            progress(i + 1, len(chosen))
    except ValueError as error:  # sentences about folders name the keys of the section data
        told = str(error).replace("data.root", "generator.folder")
        told = told.replace("give data.size, the side in pixels to which all are brought", "set generator.resize: true")
        raise ValueError(told) from None
    return _with_channels(path, array, shape[2])


def _of_file(path, shape, num_images):
    if not path.is_file():
        raise ValueError(f"the file generator.file = {path} does not exist: mend the path (params.yaml)")
    try:
        name, found, dtype = _described(path)
    except BROKEN as error:
        raise _unreadable(path, error) from None
    if dtype != np.uint8 or len(found) not in (3, 4) or not found[0]:
        raise ValueError(
            f"{path} holds {dtype} {found}, expected uint8 [images, height, width, channels] in 0..255: convert it, "
            "for values x in [0, 1] with (255 * x).round().astype('uint8')"
        )
    _check_size(path, found[1:], shape, "")
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
    return _with_channels(path, array, shape[2])


def _unreadable(path, error):
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(f"{path} cannot be read as a numpy array ({reason[:200]}): expected .npy or .npz")


def _described(path):
    """What the headers say, before anything is unpacked: (name in the archive or None, shape, dtype)."""
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


def _check_size(path, found, expected, remedy):
    if tuple(found[:2]) != tuple(expected[:2]):
        raise ValueError(
            f"the images of {path} are {found[1]}x{found[0]} pixels, but the training images are {expected[1]}x{expected[0]}: "
            f"{remedy}give data.size of the generated images (params.yaml)"
        )


def _with_channels(path, array, channels):
    """Grey images as colour where the training images have colour; colour as grey only where it is grey."""
    if array.shape[3] == channels:
        return array
    if array.shape[3] == 1 and channels == 3:
        return np.repeat(array, 3, axis=3)
    if array.shape[3] == 3 and channels == 1 and (array == array[..., :1]).all():
        return np.ascontiguousarray(array[..., :1])
    raise ValueError(
        f"the images of {path} have {array.shape[3]} channels, but the training images have {channels}: convert one of them"
    )


def generated(pipeline, shape, start, stop, seed, num_steps):
    """Images start..stop-1 of a pipeline, image i from a generator of its own: [stop - start,H,W,C] uint8.

    Torch's CPU generator reads 32 bits of a seed: they are counted up from one that follows from `seed`, so no two are equal.

    shape   (H, W, C) of the training images
    """
    import torch

    from stages import randomness

    first = randomness.seed_of("sample", seed, 0)
    generators = [torch.Generator().manual_seed((first + i) % 2**32) for i in range(start, stop)]
    with torch.no_grad():
        made = pipeline(
            batch_size=len(generators), generator=generators, num_inference_steps=num_steps, output_type="np"
        ).images
    return _with_channels("the pipeline", (made * 255).round().clip(0, 255).astype(np.uint8), shape[2])


def pipeline(path, shape, device):
    """A saved DDPM or DDIM pipeline, on the device.

    shape   (H, W, C) of the training images
    Raises  ValueError: no pipeline, another one, one with code of its own, images of another size
    """
    loaded = _pipeline(path).to(device)
    loaded.set_progress_bar_config(disable=True)
    config = loaded.unet.config
    size = config.sample_size if isinstance(config.sample_size, (list, tuple)) else [config.sample_size] * 2
    _check_size(path, (*size, config.out_channels), shape, "")
    return loaded


def _pipeline(path):
    index = path / "model_index.json"
    if not index.is_file():
        raise ValueError(
            f"{path} is no saved pipeline of diffusers: it has no model_index.json (params.yaml, generator.pipeline)"
        )
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        name, unet, scheduler = (content[key] for key in ("_class_name", "unet", "scheduler"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} cannot be read ({error})") from None
    if name not in PIPELINES:
        raise ValueError(
            f"{path} is a {name}, expected one of {', '.join(PIPELINES)}: generate its images yourself and give their folder"
        )
    # Any other library named here would be imported, from a file beside the pipeline too.
    if unet != ["diffusers", "UNet2DModel"] or not isinstance(scheduler, list) or scheduler[:1] != ["diffusers"]:
        raise ValueError(
            f"{index} names unet {unet} and scheduler {scheduler}, expected UNet2DModel and a scheduler of diffusers: generate "
            "its images yourself and give their folder"
        )
    import diffusers

    try:
        return getattr(diffusers, name).from_pretrained(path, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the pipeline {path} cannot be loaded: {reason[:300]}") from None
