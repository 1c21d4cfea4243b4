"""Reads image files: what each holds, found by decoding it whole, and its pixels in 8 bits."""

import functools
import os
import re
import struct
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np

from stages.image_sets import dicom
from stages.image_sets.dicom import RefusedError

# What Pillow raises for a file that is no image, or half of one.
BROKEN = (OSError, ValueError, SyntaxError, EOFError, MemoryError, LookupError, TypeError, struct.error)
# Kinds that Pillow lists but cannot decode, and EPS, which is a program that Ghostscript would run.
NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF", "IPTC"}
CODECS = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # kinds that Pillow may have been built without
MEND = "mend it or remove it from data.root"
REDUCED = re.compile(r"\b(RGB|RGBA|RGBX|LA|CMYK);16")  # how Pillow says that it drops the lower 8 of 16 bits
SETTLED_NS = 2 * 10**9  # a file that was written to since then may change again without another time


@dataclass(frozen=True)
class Look:
    """What one image file holds.

    fault      None, or what is wrong with the file and what to do: a tuple of two texts; nothing else is then known of it
    width, height   of the upright image, in pixels
    grey       every pixel is grey, however it is stored
    as_grey    it is stored as grey
    lowest, highest   values of an image of more than 8 bits that has no window of its own; None for all others
    windowed   a DICOM image that says itself what is black and white
    reduced    colour of 16 bits, of which Pillow reads the upper 8
    pages      it holds further pictures, which are not read
    """

    fault: tuple | None = None
    width: int = 0
    height: int = 0
    grey: bool = False
    as_grey: bool = False
    lowest: float | None = None
    highest: float | None = None
    windowed: bool = False
    reduced: bool = False
    pages: bool = False


# Path of a file -> (size in bytes, mtime in ns, its Look), of files that were looked at. Whoever runs a stage may keep it for the next one.
KNOWN = {}


def suffixes():
    """Endings of files that are read, in lower case and with the dot: set. Those of DICOM are not among them."""
    return {suffix for suffix, kind in _pillow().registered_extensions().items() if kind in _kinds()}


@functools.cache
def _kinds():
    from PIL import features

    missing = {kind for kind, codec in CODECS.items() if not features.check(codec)}
    return sorted(_pillow().OPEN.keys() - NOT_READ - missing)


@functools.cache
def _pillow():
    from PIL import Image

    Image.init()
    try:
        import pillow_heif
    except ImportError:
        return Image
    pillow_heif.register_heif_opener()
    return Image


def look(paths, progress):
    """Decodes files whole, as many at a time as there are cores, unless they were looked at before and have not changed since.

    progress   see `stages.image_sets.load`
    Returns    list of Look
    """
    found, stats = {}, {path: os.stat(path) for path in paths}
    for path, stat in stats.items():
        size, mtime, known = KNOWN.get(os.path.abspath(path), (None, None, None))
        if (size, mtime) == (stat.st_size, stat.st_mtime_ns):
            found[path] = known
    new = [path for path in paths if path not in found]
    if new:
        _pillow()  # before there are threads
        looking, now = progress("looking at the images", "images"), time.time_ns()
        with _strict(), ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for done, (path, one) in enumerate(zip(new, pool.map(_look, new), strict=True), start=1):
                    found[path] = one
                    if now - stats[path].st_mtime_ns > SETTLED_NS:
                        KNOWN[os.path.abspath(path)] = stats[path].st_size, stats[path].st_mtime_ns, one
                    looking.update(done, len(new))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return [found[path] for path in paths]


def to_text(known):
    """Rows for JSON of what KNOWN holds: list."""
    return [[path, size, mtime, *astuple(one)] for path, (size, mtime, one) in known.items()]


def from_text(rows):
    """What `to_text` made, for KNOWN: dict.

    Raises   ValueError, TypeError: of another form
    """
    return {
        path: (size, mtime, Look(tuple(fault) if fault else None, *rest)) for path, size, mtime, fault, *rest in rows
    }


def refusal(root, faults):
    """The sentence on files that cannot be used.

    root     the folder that they lie under
    faults   list of (path, (what is wrong, what to do)), one at least
    """
    if len(faults) == 1:
        (path, (what, advice)) = faults[0]
        return f"{printable(path)} {what}: {advice}"
    told = listed([f"{printable(path.relative_to(root))} {what}" for path, (what, _) in faults], 20)
    return f"{len(faults)} files under {root} cannot be used: {told}: mend them or remove them from data.root"


def listed(items, most):
    """Items with commas between them; of more than `most` the first and how many more there are."""
    shown = [*items[:most], *([f"and {len(items) - most:,} more"] if len(items) > most else [])]
    return ", ".join(shown)


def printable(path):
    """A path on one line, whatever its characters."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def decoded(path, mode, size, value_range, over_windows=False):
    """One image as [H,W,C] uint8, upright, without transparency.

    mode           "L" (C = 1) or "RGB" (C = 3)
    size           side in pixels to which the shorter side is resized (bilinear), the middle being cut out; None: as it is
    value_range    (lo, hi): what becomes 0 and 255 where there are more than 8 bits
    over_windows   also where a DICOM image has a window of its own
    Raises         ValueError: an unreadable image
    """
    from PIL import Image, ImageOps

    with _strict():
        try:
            content = _read(path)
        except RefusedError as error:
            raise ValueError(f"{printable(path)} {error}") from None
    image = content.image
    if image is None:
        ends = value_range if over_windows or content.window is None else content.window
        pixels = in_8_bits(content.values, *ends)
        image = Image.fromarray(255 - pixels if content.inverted else pixels)
    image = image.convert(mode)
    if size:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
    array = np.asarray(image, np.uint8)
    return array[..., None] if mode == "L" else array


def in_8_bits(values, lo, hi):
    """Values brought to 0..255: lo becomes 0, hi 255, and what lies beyond is cut off. From 0..65535 or 0..4095 the low bits are dropped.

    values    array of any numbers
    Returns   uint8
    """
    return np.clip((values.astype(np.float64) - lo) * 256 // max(hi - lo, 1e-9), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Content:
    """image: upright Pillow image of 8 bits, or None; values: [H,W] numbers of more than 8 bits, or None. See `dicom.read` and Look."""

    image: object = None
    values: np.ndarray | None = None
    window: tuple | None = None
    inverted: bool = False
    reduced: bool = False
    pages: bool = False


@contextmanager
def _strict():
    """Images that claim to be huge are refused, and pydicom, whose warnings quote attributes, is silent. For all threads at once."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"pydicom|stages\.image_sets\.dicom")
        yield


def _look(path):
    try:
        content = _read(path)
    except RefusedError as error:
        return Look(fault=(error.what, error.advice))
    shown = {"windowed": content.window is not None, "reduced": content.reduced, "pages": content.pages}
    if content.values is not None:
        height, width = content.values.shape
        ends = (None, None) if content.window else (float(content.values.min()), float(content.values.max()))
        return Look(None, width, height, True, True, *ends, **shown)
    image = content.image
    as_grey = image.mode in ("1", "L", "LA")
    grey = as_grey
    if not as_grey:
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), 2, 0)
        grey = np.array_equal(red, green) and np.array_equal(red, blue)
    return Look(None, *image.size, grey, as_grey, **shown)


def _read(path):
    """Raises   RefusedError: an unreadable image"""
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise RefusedError("is not a readable image (it is empty)", MEND)
        if dicom.is_dicom(path):
            return _of_dicom(path)
        return _of_pillow(path)
    except RefusedError:
        raise
    except BROKEN as error:
        raise RefusedError(f"is not a readable image ({_reason(error)})", MEND) from None


def _of_dicom(path):
    from PIL import Image

    pixels, window, inverted, frames = dicom.read(path)
    if pixels.ndim == 3:
        return _Content(Image.fromarray(pixels), pages=frames > 1)
    return _Content(values=pixels, window=window, inverted=inverted, pages=frames > 1)


def _of_pillow(path):
    from PIL import Image, ImageOps

    try:
        image = Image.open(path, formats=_kinds())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise RefusedError(
            f"claims to have more than {Image.MAX_IMAGE_PIXELS} pixels", "remove it from data.root"
        ) from None
    with image:
        reduced = any(REDUCED.search(str(tile[-1])) for tile in image.tile)
        image.load()
        upright = ImageOps.exif_transpose(image)
        pages = getattr(image, "is_animated", False)  # looks for a second picture: after the first one was copied
    if upright.mode.startswith(("I", "F")):
        values = np.asarray(upright)
        if upright.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise RefusedError("has 32-bit values, expected 8 or 16 bits", "convert or remove it")
        return _Content(values=values, pages=pages)
    upright.info.pop("transparency", None)  # Pillow warns of every palette that has some
    if upright.mode not in ("1", "L", "LA", "RGB"):
        upright = upright.convert("RGB")
    return _Content(upright, reduced=reduced, pages=pages)


def _reason(error):
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "its content is no image"
    told = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(told.split())[:200]
