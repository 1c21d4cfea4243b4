"""Image sets that are folders of image files, in any common format."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.image_sets import dicom, looks
from stages.image_sets.parts import ImageSet, NotThereError, Part, silent
from stages.image_sets.registry import image_set, of_size

# What no one means as an image, beside names that begin with a dot: what archives of macOS and Windows leave.
HIDDEN = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini"}
HEIF = {".heic", ".heif", ".hif"}
HEIF_INSTALL = "HEIC is read where pillow-heif is installed: pip install pillow-heif"
BITS = (8, 10, 12, 14, 16)
DARK = 64  # an image whose brightest value comes out below this is told of
# Images of AFHQ version 1 in train/dog and val/dog; version 2 has other numbers. They are 512x512, and are resized to 64x64 as
# the authors of the paper do.
AFHQ_DOG = {"train": 4739, "val": 500}
AFHQ_PX, AFHQ_TO_PX = 512, 64


def stored(data):
    """`Entry.stored` of a folder of images: as if all images had the size of the first, and were in colour."""
    paths, _ = image_files(data["root"])
    if not paths:
        raise NotThereError(f"{data['root']} holds no image")
    channels = 1 if data.get("channels") == 1 else 3
    if size := data.get("size"):
        return len(paths), (size, size, channels)
    (first,) = looks.look(paths[:1], silent)
    if first.fault:
        raise ValueError(looks.refusal(Path(data["root"]), [(paths[0], first.fault)]))
    return len(paths), (first.height, first.width, channels)


@image_set(
    "put your images under data.root",
    takes=("size", "channels", "range", "num_train", "heldout_share", "group", "deduplicate"),
    stored=stored,
)
def image_folder(data, progress, mode=None, beside=(), value_range=None):
    """A folder of images. Its sub-folders, if it has any, are the classes, unless data.group is folder; an image's name is its path inside
    the folder.

    Every file is decoded once, before anything is made of it. EXIF orientation is applied, transparency is dropped. Of a file with
    several pictures the first is read. With data.size the shorter side is resized to it (bilinear) and the middle is cut out;
    without it all images must have one size.

    data.channels: 1, 3, or auto (the default): 1 where every pixel of the set is grey, however it is stored, otherwise 3.

    data.range says how more than 8 bits become 8: [lo, hi], what becomes 0 and 255; full, 0 to 65,535; or auto (the default), the
    smallest of 8, 10, 12, 14 and 16 bits that holds all values of the set. A DICOM image has its own window instead, unless
    [lo, hi] is given; values of DICOM images without one may be negative, so that auto goes from the lowest to the highest.

    progress   see `stages.image_sets.load`
    mode       "RGB": three channels even if all images are grey; None: as data.channels says
    beside     suffixes of files that something else reads
    value_range   (lo, hi) in the place of data.range, as of the images that these are compared with
    Raises     NotThereError: no image
               ValueError: unreadable images, several sizes and no data.size, a key that has no effect, and what `listing` refuses
    """
    root = Path(data["root"])
    paths, notes = image_files(root, beside)
    if not paths:
        raise NotThereError(
            f"the folder {os.path.abspath(root)} holds no image, expected files that end in .bmp, .gif, .jpg, .png, .tif, .webp or "
            f"the like{''.join(f' ({note})' for note in notes)}"
        )
    found = looks.look(paths, progress)
    size = data.get("size")
    if told := [*_faults(root, paths, found), *([] if size else _sizes(paths, found))]:
        raise ValueError("; ".join(told))
    value_range = value_range or _value_range(data, found, paths)
    if mode is None:
        one = {1: True, 3: False}.get(data.get("channels"), all(one.grey for one in found))
        mode = "L" if one else "RGB"
        notes += _of_channels(data, found, one)
    notes += [*_of_range(data, found, value_range), *_of_pages(paths, found)]

    keys = [path.relative_to(root).as_posix() for path in paths]
    of_classes = data.get("group") != "folder"  # folders that are groups are no classes
    names, labels = np.unique([k.split("/")[0] if "/" in k and of_classes else "." for k in keys], return_inverse=True)
    classes = [] if list(names) == ["."] else names.tolist()
    width, height = (size, size) if size else (found[0].width, found[0].height)
    part = _part(keys, labels, paths, mode, size, value_range, isinstance(data.get("range"), list))
    return ImageSet((height, width, 1 if mode == "L" else 3), classes, part, None, notes, value_range)


def _faults(root, paths, found):
    """All files that cannot be used, in one sentence: list of at most one."""
    faults = [(path, one.fault) for path, one in zip(paths, found, strict=True) if one.fault]
    return [looks.refusal(root, faults)] if faults else []


def _sizes(paths, found):
    first = {}
    for path, one in zip(paths, found, strict=True):
        if not one.fault:
            first.setdefault((one.width, one.height), path)
    if len(first) < 2:
        return []
    (one, (width, height)), (other, (other_width, other_height)) = (
        (path, side) for side, path in list(first.items())[:2]
    )
    return [
        f"the images have several sizes ({looks.printable(one)} is {width}x{height}, {looks.printable(other)} is "
        f"{other_width}x{other_height}): give data.size, the side in pixels to which all are brought (params.yaml)"
    ]


def _value_range(data, found, paths):
    """(lo, hi) of image_folder's data.range; None where no image has more than 8 bits."""
    asked = data.get("range", "auto")
    deep = [one for one in found if one.highest is not None]
    if not deep and not any(one.windowed for one in found):
        if "range" in data:
            raise ValueError(
                f"data.range has no effect, as no image under {data['root']} has more than 8 bits: remove it (params.yaml)"
            )
        return None
    if isinstance(asked, list):
        return tuple(asked)
    if asked == "full" or not deep:
        return 0, 65535
    lowest, highest = min(one.lowest for one in deep), max(one.highest for one in deep)
    if any(dicom.is_dicom(path) and one.highest is not None for path, one in zip(paths, found, strict=True)):
        return lowest, highest
    return 0, next(2**bits - 1 for bits in BITS if highest < 2**bits)


def _of_range(data, found, value_range):
    """What is said of images of more than 8 bits: list of sentences."""
    told, deep = [], [one for one in found if one.highest is not None]
    windowed = sum(one.windowed for one in found)
    if windowed and isinstance(data.get("range"), list):
        told.append(f"{windowed:,} DICOM images have a window of their own, in whose place data.range is used")
    elif windowed:
        told.append(f"{windowed:,} DICOM images are shown by their own window")
    if deep:
        lo, hi = value_range
        dark = sum(looks.in_8_bits(np.array(one.highest), lo, hi) < DARK for one in deep)
        values = f"{min(one.lowest for one in deep):,g} to {max(one.highest for one in deep):,g}"
        told.append(
            f"{len(deep):,} images have more than 8 bits, with values from {values}: {lo:,g} to {hi:,g} becomes 0 to 255 (data.range "
            f"sets another range){f', so that {dark:,} of them come out dark, below {DARK}' if dark else ''}"
        )
    if reduced := sum(one.reduced for one in found):
        told.append(
            f"{reduced:,} images have colours of 16 bits: the upper 8 are read, and data.range has no effect on them"
        )
    return told


def _of_channels(data, found, one):
    if "channels" not in data and one and (coloured := sum(not each.as_grey for each in found)):
        return [
            f"all images are grey, {coloured:,} of them stored as colour: one channel is read (data.channels: 3 for three)"
        ]
    if one and (colourful := sum(not each.grey for each in found)):
        return [f"{colourful:,} images in colour become grey (data.channels)"]
    return []


def _of_pages(paths, found):
    several = [path for path, one in zip(paths, found, strict=True) if one.pages]
    return [f"only the first picture is read of files that hold several: {_by_suffix(several)}"] if several else []


def _by_suffix(paths):
    """12 .gif, 3 .tif, 1 without a suffix; the most frequent first."""
    counts = Counter(path.suffix.lower() or "without a suffix" for path in paths)
    kinds = sorted(counts, key=lambda kind: (-counts[kind], kind))
    return looks.listed([f"{counts[kind]:,} {looks.printable(kind)}" for kind in kinds], 20)


@image_set(
    "put the folders train/dog and val/dog of AFHQ v1 (from the project stargan-v2 of clovaai: download.sh afhq-dataset) "
    "under data.root",
    takes=("num_train", "heldout_share", "deduplicate"),
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
        paths, _ = image_files(folder)
        if len(paths) != expected:
            raise ValueError(
                f"{os.path.abspath(folder)} holds {len(paths):,} images, expected the {expected:,} of AFHQ version 1: "
                f"complete it, or read another selection with data.name: image_folder, root: {root / 'train/dog'} and "
                f"size: {AFHQ_TO_PX} (params.yaml)"
            )
        found = looks.look(paths, progress)
        if told := _faults(folder, paths, found):
            raise ValueError(told[0])
        for path, one in zip(paths, found, strict=True):
            if (one.width, one.height) != (AFHQ_PX, AFHQ_PX):
                raise ValueError(
                    f"{path} is {one.width}x{one.height}, expected {AFHQ_PX}x{AFHQ_PX} as all of AFHQ version 1"
                )
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
    Raises     ValueError: no image, unreadable ones, and what `listing` refuses
    """
    paths, _ = image_files(root)
    if not paths:
        raise NotThereError(
            f"{root} holds no image, expected files that end in .bmp, .gif, .jpg, .png, .tif, .webp or the like"
        )
    found = looks.look(paths, progress)
    if told := _faults(Path(root), paths, found):
        raise ValueError(*told)
    return len(paths), {(one.height, one.width) for one in found}


def _part(keys, labels, paths, mode, size, value_range=None, over_windows=False):
    def images(indices) -> Iterator[np.ndarray]:
        for index in indices:
            yield looks.decoded(paths[index], mode, size, value_range or (0, 65535), over_windows)

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


def image_files(root, beside=()):
    """The image files under a folder, and what else lies there.

    beside    suffixes of files that are read as something else
    Returns   sorted list of paths; list of sentences on files that are not read
    Raises    ValueError: see `listing`
    """
    root, known = Path(root), looks.suffixes()
    images, hidden, others, without_pydicom = [], 0, [], 0
    for path in listing(root)[0]:
        if is_hidden(path.relative_to(root)):
            hidden += 1
        elif path.suffix.lower() in known:
            images.append(path)
        elif dicom.is_dicom(path):
            if dicom.is_installed():
                images.append(path)
            else:
                without_pydicom += 1
        elif path.suffix.lower() not in beside:
            others.append(path)
    notes = []
    if hidden:
        notes.append(
            f"{hidden:,} hidden files are not read (names that begin with a dot, __MACOSX, Thumbs.db, desktop.ini)"
        )
    if without_pydicom:
        notes.append(f"{without_pydicom:,} DICOM files are not read; {dicom.INSTALL}")
    if others:
        heif = f"; {HEIF_INSTALL}" if any(path.suffix.lower() in HEIF for path in others) else ""
        notes.append(f"not read, as no image of a kind that is known here: {_by_suffix(others)}{heif}")
    return images, notes


def is_hidden(path):
    """Whether a path below the folder is one that no one means: a name that begins with a dot, or of HIDDEN, anywhere in it."""
    return any(part.startswith(".") or part.lower() in HIDDEN for part in path.parts)
