"""Decodes the image set once, into arrays that every arm reads, and splits it into training and held-out images.

params    data
reads     the folder data.root, or the package the images come with
writes    artifacts/data/train.npy, heldout.npy: [N,H,W,C] uint8; *_labels.npy: [N] int64; keys.json: names of the images;
          classes.json: names of the classes in the order of the labels, [] where images have no classes
          range.json: [lo, hi], which became 0 and 255, where image files had more than 8 bits
          captions.json: captions of the images, a list of texts each, where the set has captions
          artifacts/results/data/duplicates.json: sets of images that are the same or nearly so, see measures.duplicates.summary
          An image's index, its identity in all other files, is its position in train.npy.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import sys
import time
from pathlib import Path

import numpy as np

from stages import experiments, image_sets, phases, randomness
from stages.iet import sharding
from stages.image_sets import groups, looks
from stages.measures import duplicates
from stages.run import cli, files, lock, params, repository
from stages.run.instance import START_UP, Instance
from stages.run.progress import Progress

# What says which images a set has where DVC need not watch a folder: the pinned packages, which hold the images or check them.
# The folder of such a set may be missing, too, until a download makes it.
PINNED_DATA = "requirements.txt"
LOOKS = files.SCRATCH / "looks.json"  # what image files hold; names of private files, so outside of all that is shared
# fmt: off
PHASE = {
    "name": "data",
    "per": "experiment",
    "section": {
        "description": "the image set, and which part of it is used for training",
        "required": ["name"],
        "properties": {
            "name": {"description": "the image set", "type": "string", "minLength": 1},
            "root": {"description": "folder of the images; README.md says what each image set expects there", "type": "string", "minLength": 1},
            "download": {"description": "fetch the official files that root lacks, where the image set allows it; without this nothing is ever fetched", "type": "boolean"},
            "size": {"description": "side length in pixels to which images are resized; images that are not square are cropped to their centre", "type": "integer", "minimum": 4, "maximum": 1024},
            "channels": {"description": "image_folder: 1 reads all images as grey, 3 as colour (default auto: 1 where all of them are grey)", "enum": [1, 3, "auto"]},
            "range": {
                "description": "of images of more than 8 bits: [lo, hi], the values that become 0 and 255; full: 0 and 65535; or auto, the smallest of 8, 10, 12, 14 and 16 bits that holds all values of the set (the default)",
                "if": {"type": "string"}, "then": {"enum": ["auto", "full"]}, "else": {"type": "array", "items": {"type": "number"}},
            },
            "captions": {"description": "captioned_folder: path of the JSON file of captions, relative to root (default: captions.json)", "type": "string", "minLength": 1},
            "caption_column": {"description": "captioned_folder: column of metadata.jsonl, .csv or .parquet that captions stand in (default: text, or caption)", "type": "string", "minLength": 1},
            "num_train": {"description": "number of training images, drawn with the class mix of the set", "type": "integer", "minimum": 1},
            "heldout_share": {"description": "share of the images that is never trained on: the held-out set", "type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "group": {
                "description": "images of one group, as of one person, lie on one side of the split: folder; {pattern: regular expression}, what its brackets find in the path; or {table: file.csv, column: name}, of a table with a column file_name under root",
                "if": {"type": "string"}, "then": {"enum": ["folder"]},
                "else": {"type": "object", "additionalProperties": False, "properties": {"pattern": {"type": "string", "minLength": 1}, "table": {"type": "string", "minLength": 1}, "column": {"type": "string", "minLength": 1}}},
            },
            "deduplicate": {"description": "drop all but the first of images that are the same (exact), or nearly so as well (near); off: they stay, on one side of the split (the default)", "enum": ["exact", "near", "off"]},
            "split_seed": {"description": "seed of the random split into training and held-out images", "default": 0, "type": "integer", "minimum": 0, "maximum": 4294967295},
        },
    },
}
# fmt: on


class PatientProgress(Progress):
    """Says nothing of what takes less than two seconds, as at a start where no image is new."""

    def update(self, done, total, note=None):
        if time.monotonic() - self.start > 2:
            super().update(done, total, note)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Instance):
    """source   what DVC watches for changes of the images: their folder, or the lock of the packages that hold or check them"""

    source: str

    start_up = START_UP // 4

    def outputs(self):
        return [files.DATA, files.DUPLICATES]

    def size(self, scale):
        return scale.num_images * (scale.values + 8 + 30)  # pixels, label, name


def instances(experiment):
    data = experiment["data"]
    return [Images(block="data", source=PINNED_DATA if image_sets.SETS[data["name"]].pinned else data["root"])]


def check(experiment):
    """Raises ValueError if keys of the section do not go together."""
    data = experiment["data"]
    name = data["name"]
    if name not in image_sets.SETS:
        raise ValueError(params.not_one_of("data.name", name, image_sets.SETS, " (the image set)"))
    entry = image_sets.SETS[name]
    for key in entry.needs:
        if key not in data:
            raise ValueError(f"the key data.{key} is missing: data.name {name} needs it")
    if data.get("download") and not entry.download:
        raise ValueError(f"data.download cannot fetch {name}: {entry.obtain}; remove data.download")
    for key in data:
        if key not in ("name", "split_seed", "download", *entry.needs, *entry.takes):
            raise ValueError(f"data.{key} has no effect for data.name {name}: remove it")
    if isinstance(ends := data.get("range"), list) and not (len(ends) == 2 and ends[0] < ends[1]):
        raise ValueError(f"data.range is {ends}, expected [lo, hi] with lo below hi, full or auto")
    groups.check(data.get("group"))
    if "num_train" in data and "heldout_share" in data:
        raise ValueError("data.num_train and data.heldout_share both say what is held out: give one of them")


def check_files(experiment):
    """Looks at the images before anything runs, where they are files of the user's own; says on stderr what the user should know of them.

    Every file is decoded once; what was found is kept in scratch/, so that the next start looks only at files that are new or changed.

    Raises   ValueError: no folder and no decoded copy of it, a folder that is not safe or that git would commit, images that cannot be used,
             or settings that do not go with their number or size
    """
    data = experiment["data"]
    if root := data.get("root"):
        files.check_outside(root, f"data.root = {root}", "your images")
        if not Path(root).is_dir() and not _is_decoded(data):
            image_sets.check_root(data)
    if _is_own_folder(data):
        _check_place(data)
        _check_images(experiment, _images(data, PatientProgress))
    elif image_sets.SETS[data["name"]].pinned and (known := image_sets.stored(data)):
        _refuse(_of_shape(experiment, known[1]))


def _is_own_folder(data):
    """Whether the images are files of the user's own, and there."""
    return "root" in data and not image_sets.SETS[data["name"]].pinned and Path(data["root"]).is_dir()


def _check_place(data):
    linked = image_sets.linked_folders(data)
    repository.check_not_committed([data["root"], *linked], f"data.root = {data['root']}")
    if linked:
        print(
            f"{linked[0]}{f' and {len(linked) - 1} more' if linked[1:] else ''} in data.root: a link, behind which DVC does not "
            "look; when images change there, run: dvc repro --force --single-item data",
            file=sys.stderr,
        )


def _images(data, progress):
    """The image set; what the user should know of it is said on stderr."""
    with _looks_kept(data.get("root", "")):
        images = image_sets.load(data, progress)
    for note in images.notes:
        print(f"data.root: {note}", file=sys.stderr)
    return images


def _check_images(experiment, images, together=None):
    """Returns the split of a set, see `split`. together: [N] int64, equal for images that lie on one side; None: by data.group.

    Raises   ValueError: settings do not go with the number of images, their classes or their shape; all of it at once
    """
    data, pool = experiment["data"], images.pool
    together = groups.of_keys(data, pool.keys) if together is None else together
    train, heldout = split(pool.labels, data, images.test is not None, together)
    told = []
    try:
        phases.check_sizes(experiment, len(train))
    except ValueError as error:
        told.append(str(error))
    if len(heldout) and _num_matched(images.pool.labels, train, heldout) < 2:
        told.append(
            f"{len(heldout)} of the {len(images.pool.keys)} images are held out, and fewer than 2 of them have a class of training images: hold "
            "out more (data.heldout_share, data.num_train)"
        )
    if experiments.trained(experiment) and experiment["model"].get("class_conditional") and not images.classes:
        told.append(
            f"model.class_conditional is true, but the images of data.name {experiment['data']['name']} have no classes: put them into one "
            "sub-folder per class, or set it to false"
        )
    _refuse([*told, *_of_shape(experiment, images.shape)])
    return train, heldout


def _refuse(told):
    if told:
        raise ValueError(f"{params.PARAMS_FILE}: {'; '.join(told)}")


def _num_matched(labels, train, heldout):
    """Held-out images that can be compared with training images of their class, see memorisation.matched_parts."""
    return sum(min(np.sum(labels[train] == c), np.sum(labels[heldout] == c)) for c in np.unique(labels[heldout]))


def _of_shape(experiment, shape):
    """What is wrong with images of a shape (H, W, C) for a network that is trained on them: list of at most one sentence. It halves them from
    level to level."""
    if not experiments.trained(experiment):
        return []
    if experiments.is_text(experiment):
        folder = experiment["model"]["pipeline"]
        try:
            levels = len(files.load_json(Path(folder, "vae/config.json"))["block_out_channels"])
        except (ValueError, LookupError, TypeError):  # told where the model is looked at
            return []
        whose, fewer = f"the VAE of {folder}", ""
    else:
        levels = len(experiment["model"]["block_channels"])
        whose, fewer = "model.block_channels", ", or use fewer levels"
    height, width, _ = shape
    multiple = 2 ** (levels - 1)
    if not (height % multiple or width % multiple):
        return []
    return [
        f"images are {width}x{height} pixels, expected multiples of {multiple} for the {levels} levels of {whose}: set data.size to one{fewer}"
    ]


@contextlib.contextmanager
def _looks_kept(root):
    """What was found out about the image files of a folder by an earlier start is known within the block, and kept for the next one. It is only
    good for the code and the packages that found it."""
    code = [Path(looks.__file__), Path(looks.dicom.__file__)]
    versions = [importlib.metadata.version("pillow"), looks.dicom.is_installed()]
    made_by = [*(hashlib.sha256(path.read_bytes()).hexdigest() for path in code), *versions]
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        kept = json.loads(LOOKS.read_text(encoding="utf-8"))
        if kept["made_by"] == made_by:
            looks.KNOWN.update(looks.from_text(kept["looks"]))
    before = dict(looks.KNOWN)
    try:
        yield
    finally:
        if before != looks.KNOWN:
            with contextlib.suppress(OSError):  # it only saves time
                below = os.path.join(os.path.abspath(root), "")
                rows = looks.to_text({path: found for path, found in looks.KNOWN.items() if path.startswith(below)})
                files.write_text(LOOKS, json.dumps({"made_by": made_by, "looks": rows}) + "\n")


def _is_decoded(data):
    """Whether artifacts/data holds the images of this section data, by DVC's record."""
    recorded = (lock.entry("data") or {}).get("params", {}).get(params.PARAMS_FILE, {}).get("data")
    return files.DATA.exists() and recorded is not None and params.filled({"data": recorded})["data"] == data


def split(pool_labels, data, has_test, together=None):
    """Indices into the pool of training and held-out images, each sorted.

    data      section data of params.yaml: num_train, or heldout_share, or neither (all train)
    has_test  the set has an official test part, which is held out instead of what num_train leaves
    together  [N] int64, equal for images that lie on one side; None: every image by itself
    Raises    ValueError: more training images asked for than there are, or groups that do not add up to data.num_train
    """
    num_images = len(pool_labels)
    num_train = data.get("num_train", num_images - round(num_images * data.get("heldout_share", 0)))
    if not 1 <= num_train <= num_images:
        raise ValueError(
            f"data leaves {num_train} training images of {num_images}, expected 1 to {num_images} (params.yaml)"
        )
    generator = randomness.numpy_generator("split", data["split_seed"])
    train = sharding.stratified_subset(pool_labels, num_train, generator, together)
    if len(train) == 0 or ("num_train" in data and len(train) < num_train):
        raise ValueError(
            f"data.num_train is {num_train}, but images that belong together fill {len(train)} of these places: give that "
            "number, or use data.heldout_share (params.yaml)"
        )
    rest = np.setdiff1d(np.arange(num_images), train, assume_unique=True)
    return train, rest[:0] if has_test else rest


def _duplicates(images):
    """measures.duplicates.Found of the images of the pool, followed by those of the test part."""
    parts = [part for part in (images.pool, images.test) if part is not None]
    progress, total = Progress("looking for duplicates", "images"), sum(len(part.keys) for part in parts)
    digests, thumbnails = [], []
    for part in parts:
        for image in part.images(np.arange(len(part.keys))):
            digests.append(duplicates.digest(image))
            thumbnails.append(duplicates.thumbnail(image))
            progress.update(len(digests), total)
    return duplicates.find(digests, np.stack(thumbnails))


def _without_duplicates(images, found, data):
    """The set and its Found without the images that data.deduplicate drops: all of a set of duplicates but the first."""
    sets = {"exact": found.exact, "near": found.sets}.get(data.get("deduplicate", "off"))
    if sets is None:
        return images, found
    keep = sets == np.arange(len(sets))
    num_pool = len(images.pool.keys)
    print(f"data.deduplicate: {(~keep).sum():,} of {len(keep):,} images are dropped", file=sys.stderr)
    test = images.test and images.test.of(np.flatnonzero(keep[num_pool:]))
    renumbered = np.cumsum(keep) - 1
    kept = [renumbered[numbers[keep]] for numbers in (found.sets, found.exact)]
    images = dataclasses.replace(images, pool=images.pool.of(np.flatnonzero(keep[:num_pool])), test=test)
    return images, duplicates.Found(*kept, found.distance)


def _together(images, found, data):
    """Which images of the pool lie on one side of the split: those of one group, and in folders of the user's own, duplicates. A packaged or official set
    is split as it always was. Returns [N] int64, or None where every image stands for itself."""
    groups_of = groups.of_keys(data, images.pool.keys)
    if image_sets.SETS[data["name"]].pinned:
        return groups_of
    sets = found.sets[: len(images.pool.keys)]
    return sets if groups_of is None else duplicates.joined(sets, groups_of)


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments, check) as job:
        data = job.params["data"]
        if _is_own_folder(data):
            _check_place(data)
        images = _images(data, Progress)
        found = _duplicates(images)
        images, found = _without_duplicates(images, found, data)
        train, heldout = _check_images(job.params, images, _together(images, found, data))
        heldout_part, first = images.pool, 0
        if images.test is not None:
            heldout, heldout_part, first = np.arange(len(images.test.keys)), images.test, len(images.pool.keys)
        keys, captions = {}, {}
        num_bytes = (len(train) + len(heldout)) * math.prod(images.shape)
        with files.publish(files.DATA, num_bytes) as folder:
            folder.mkdir()
            for name, part, indices in (("train", images.pool, train), ("heldout", heldout_part, heldout)):
                progress = Progress(f"decoding {name} images", "images")
                with open(folder / f"{name}.npy", "wb") as stream:  # a memory map dies of SIGBUS when the disk is full
                    header = {"descr": "|u1", "fortran_order": False, "shape": (len(indices), *images.shape)}
                    np.lib.format.write_array_header_1_0(stream, header)
                    for i, image in enumerate(part.images(indices)):
                        assert image.shape == images.shape and image.dtype == np.uint8, "an image of another shape"
                        stream.write(image.tobytes())
                        progress.update(i + 1, len(indices))
                files.save_array(folder / f"{name}_labels.npy", part.labels[indices])
                keys[name] = [part.keys[i] for i in indices]
                if part.captions is not None:
                    captions[name] = [part.captions[i] for i in indices]
            files.write_json(folder / "keys.json", keys)
            files.write_json(folder / "classes.json", images.classes)
            if images.value_range:
                files.write_json(folder / files.RANGE.name, images.value_range)
            if captions:
                files.write_json(folder / "captions.json", captions)
        with files.publish(files.DUPLICATES) as folder:
            folder.mkdir(parents=True)
            files.write_json(folder / "duplicates.json", duplicates.summary(found, train, heldout + first, keys))


if __name__ == "__main__":
    cli.run(main)
