"""What grows with the number of images, measured on few and multiplied up: decoding, hashing, dealing, moving, searching.

Every figure is processor time of one thread, so that other work on the machine matters less. The last column is the straight
line to --target images (and to 65,536 generated ones for the search): a figure of size, not a measurement.
"""

from benchmarks import common

CHOSEN = common.arguments(
    __doc__, threads=1, files=20_000, indices=1_000_000, shards=1000, reference=16384, target=100_000_000
)

import hashlib  # noqa: E402
import resource  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from benchmarks import project  # noqa: E402
from stages import image_sets  # noqa: E402
from stages.iet import redistribution, sharding  # noqa: E402
from stages.measures import neighbours  # noqa: E402

SHAPE = (32, 32, 3)
GENERATED, QUERIES = 65_536, 1024


def children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_images(folder, number, random):
    from PIL import Image

    folder.mkdir(parents=True)
    for i in range(number):
        Image.fromarray(random.integers(0, 256, SHAPE, np.uint8)).save(folder / f"{i:09d}.png")


def decoding(root):
    start = time.process_time()
    loaded = image_sets.load({"name": "image_folder", "root": str(root), "size": SHAPE[0], "split_seed": 0})
    assert sum(image.shape == SHAPE for image in loaded.pool.images(range(len(loaded.pool.keys)))) == CHOSEN.files
    return time.process_time() - start


def hashing_of_files(root):
    """Of a folder of images, which DVC does before it can say whether anything changed there; less what it does with none."""
    seconds = []
    for name in ("few", "many"):
        before = children()
        project.run(root, "dvc", "add", "--quiet", "--no-commit", name)
        seconds.append(children() - before)
    return seconds[1] - seconds[0]


def hashing_of_array(array):
    start = time.process_time()
    hashlib.md5(array, usedforsecurity=False)
    return time.process_time() - start


def dealing(labels):
    start = time.process_time()
    shards = sharding.stratified_shards(labels, CHOSEN.shards, np.random.default_rng(0))
    return time.process_time() - start, shards


def moving(shards):
    skips = [np.random.default_rng(k).integers(0, 9, len(shard)) for k, shard in enumerate(shards)]
    count = redistribution.num_moved(shards, 0.25)
    start = time.process_time()
    leaving = [
        redistribution.most_skipped(shard, s, count, np.random.default_rng(0))
        for shard, s in zip(shards, skips, strict=True)
    ]
    redistribution.moved_on(shards, leaving)
    return time.process_time() - start


def searching(random):
    import torch

    torch.set_num_threads(CHOSEN.threads)
    queries, reference = (random.integers(0, 256, (n, *SHAPE), np.uint8) for n in (QUERIES, CHOSEN.reference))
    start = time.process_time()
    neighbours.nearest(queries, reference, 50)
    return time.process_time() - start


def row(what, number, seconds, target):
    print(f"{what:44} {number:14,} {seconds:9.2f} {target:18,} {seconds * target / number / 3600:12.1f}", flush=True)


def main():
    common.heading()
    random = np.random.default_rng(0)
    print(f"\n{'':44} {'measured on':>14} {'CPU s':>9} {'line to':>18} {'CPU hours':>12}")
    with tempfile.TemporaryDirectory(prefix="redistribute-benchmark-") as folder:
        root = Path(folder)
        write_images(root / "many", CHOSEN.files, random)
        write_images(root / "few", 1, random)
        row("decoding PNG files of 32x32x3", CHOSEN.files, decoding(root / "many"), CHOSEN.target)
        project.run(root, "git", "init", "-q")
        project.run(root, "dvc", "init", "-q")
        row("DVC hashes a folder of them", CHOSEN.files, hashing_of_files(root), CHOSEN.target)
    array = random.integers(0, 256, (100_000, *SHAPE), np.uint8)
    row("DVC hashes the decoded array (MD5)", len(array), hashing_of_array(array), CHOSEN.target)
    seconds, shards = dealing(random.integers(0, 10, CHOSEN.indices))
    row(f"dealing to {CHOSEN.shards:,} shards", CHOSEN.indices, seconds, CHOSEN.target)
    row(f"moving between {CHOSEN.shards:,} shards, a round", CHOSEN.indices, moving(shards), CHOSEN.target)
    pairs = QUERIES * CHOSEN.reference
    row("exact search, pairs of images", pairs, searching(random), GENERATED * CHOSEN.target)


if __name__ == "__main__":
    main()
