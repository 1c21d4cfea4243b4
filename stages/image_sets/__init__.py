"""The image sets that an experiment can name.

To add one, write a function `name(data, progress)` that returns an ImageSet, under the decorator `image_set`, in any module of
this folder or in a new one; `data.name: name` then finds it. The modules sort the sets by kind: `packaged` come with a package,
`official` are files with known checksums, `folders` are image files, `captions` image files with captions.
"""

import importlib
import os
import pkgutil

from stages.image_sets import folders
from stages.image_sets.parts import ImageSet, NotThereError, silent
from stages.image_sets.registry import DECLARED

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)  # which declares the sets in it

SETS = dict(sorted(DECLARED.items()))  # name -> Entry


def load(data, progress=None) -> ImageSet:
    """The image set of the section data of params.yaml. The images themselves are decoded later, one at a time.

    progress   function (what is being done, unit) -> object whose update(done, total) tells how far it is; None: nothing is told
    Raises     ValueError: missing or damaged files, an unreadable image, images of several sizes and no data.size
    """
    check_root(data)
    try:
        return SETS[data["name"]].load(data, progress or silent)
    except NotThereError as error:
        raise ValueError(f"{error}: {_advice(data)}") from None


def stored(data):
    """Number and shape (H, W, C) of the images that the data stage will store, for an estimate; None where that is not known."""
    estimate = SETS[data["name"]].stored
    try:
        return estimate(data) if estimate else None
    except (ValueError, OSError):  # the data stage says what is wrong
        return None


def check_root(data):
    """Raises   ValueError: there is no folder data.root, and no download will make it"""
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
