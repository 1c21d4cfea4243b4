"""Decodes the image set once, into arrays that every arm reads, and splits it into training and held-out images.

params    data
reads     the folder data.root, or the package the images come with
writes    artifacts/data/train.npy, heldout.npy: [N,H,W,C] uint8; *_labels.npy: [N] int64; keys.json: names of the images;
          classes.json: names of the classes in the order of the labels, [] where images have no classes
          captions.json: captions of the images, a list of texts each, where the set has captions
          An image's index, its identity in all other files, is its position in train.npy.
"""

import math

import numpy as np

from stages import image_sets, params, randomness
from stages.iet import sharding
from stages.run import cli, files
from stages.run.progress import Progress


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
    with cli.stage("data", __doc__, arguments) as job:
        data = job.params["data"]
        images = image_sets.load(data)
        train, heldout = split(images.pool.labels, data, images.test is not None)
        params.check_num_train(job.params, len(train))
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
