"""Decodes the image set once, into arrays that every arm reads, and splits it into training and held-out images.

params    data
reads     the folder data.root, or the package the images come with
writes    artifacts/data/train.npy, heldout.npy: [N,H,W,C] uint8; *_labels.npy: [N] int64; keys.json: names of the images;
          classes.json: names of the classes in the order of the labels, [] where images have no classes
          captions.json: captions of the images, a list of texts each, where the set has captions
          An image's index, its identity in all other files, is its position in train.npy.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import experiments, image_sets, phases, randomness
from stages.iet import sharding
from stages.run import cli, files, lock, params
from stages.run.instance import START_UP, Instance
from stages.run.progress import Progress

# What says which images a set has where DVC need not watch a folder: the pinned packages, which hold the images or check them.
# The folder of such a set may be missing, too, until a download makes it.
PINNED_DATA = "requirements.txt"
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
            "captions": {"description": "captioned_folder: path of the JSON file of captions, relative to root (default: captions.json)", "type": "string", "minLength": 1},
            "num_train": {"description": "number of training images, drawn with the class mix of the set", "type": "integer", "minimum": 1},
            "heldout_share": {"description": "share of the images that is never trained on: the held-out set", "type": "number", "minimum": 0, "exclusiveMaximum": 1},
            "split_seed": {"description": "seed of the random split into training and held-out images", "default": 0, "type": "integer", "minimum": 0, "maximum": 4294967295},
        },
    },
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Images(Instance):
    """source   what DVC watches for changes of the images: their folder, or the lock of the packages that hold or check them"""

    source: str

    start_up = START_UP // 4

    def outputs(self):
        return [files.DATA]

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
    if "num_train" in data and "heldout_share" in data:
        raise ValueError("data.num_train and data.heldout_share both say what is held out: give one of them")


def check_files(experiment):
    """Raises ValueError if the folder of the images is gone and no decoded copy of it is there, or it would not be safe; says on stderr where
    DVC will not notice changes of the images."""
    data = experiment["data"]
    root = data.get("root")
    if root:
        files.check_outside(root, f"data.root = {root}", "your images")
    if root and not Path(root).is_dir() and not _is_decoded(data):
        image_sets.check_root(data)
    if linked := image_sets.linked_folders(data):
        print(
            f"{linked[0]}{f' and {len(linked) - 1} more' if linked[1:] else ''} in data.root: a link, behind which DVC does not "
            "look; when images change there, run: dvc repro --force --single-item data",
            file=sys.stderr,
        )


def _is_decoded(data):
    """Whether artifacts/data holds the images of this section data, by DVC's record."""
    recorded = (lock.entry("data") or {}).get("params", {}).get(params.PARAMS_FILE, {}).get("data")
    return files.DATA.exists() and recorded is not None and params.filled({"data": recorded})["data"] == data


def split(pool_labels, data, has_test):
    """Indices into the pool of training and held-out images, each sorted.

    data      section data of params.yaml: num_train, or heldout_share, or neither (all train)
    has_test  the set has an official test part, which is held out instead of what num_train leaves
    Raises    ValueError: more training images asked for than there are
    """
    num_images = len(pool_labels)
    num_train = data.get("num_train", num_images - round(num_images * data.get("heldout_share", 0)))
    if not 1 <= num_train <= num_images:
        raise ValueError(
            f"data leaves {num_train} training images of {num_images}, expected 1 to {num_images} (params.yaml)"
        )
    train = sharding.stratified_subset(pool_labels, num_train, randomness.numpy_generator("split", data["split_seed"]))
    rest = np.setdiff1d(np.arange(num_images), train, assume_unique=True)
    return train, rest[:0] if has_test else rest


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments, check) as job:
        data = job.params["data"]
        images = image_sets.load(data, Progress)
        train, heldout = split(images.pool.labels, data, images.test is not None)
        try:
            phases.check_sizes(job.params, len(train))
        except ValueError as error:  # of a folder the number is known only now
            raise ValueError(f"{params.PARAMS_FILE}: {error}") from None
        heldout_part = images.pool
        if images.test is not None:
            heldout, heldout_part = np.arange(len(images.test.keys)), images.test
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
            if captions:
                files.write_json(folder / "captions.json", captions)


if __name__ == "__main__":
    cli.run(main)
