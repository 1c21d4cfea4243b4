"""Nearest neighbours of 8-bit images: ours against faiss.knn, and against the bare matrix products that bound both.

CIFAR-10 where --root has its official files, random bytes of its shape otherwise. Ours is checked against integers by brute
force in every run, and --memory prints the peak memory of a search by itself.
"""

import subprocess
import sys

from benchmarks import common

CHOSEN = common.arguments(
    __doc__, samples=10_000, train=50_000, neighbours=50, turns=3, root=None, device=None, block=4096, memory="also"
)

import numpy as np  # noqa: E402 (the thread pools are set first)
import torch  # noqa: E402

from stages import image_sets  # noqa: E402
from stages.measures import neighbours  # noqa: E402


def images(number, part):
    """[number,32,32,3] uint8; of the official set as often as needed, each repetition with other last bits."""
    random = np.random.default_rng(0 if part == "train" else 1)
    if CHOSEN.root is None:
        return random.integers(0, 256, (number, 32, 32, 3), np.uint8)
    loaded = image_sets.load({"name": "cifar10", "root": CHOSEN.root})
    source = loaded.pool if part == "train" else loaded.test
    array = np.stack(list(source.images(range(min(number, len(source.keys))))))
    whole = np.concatenate([array] * -(-number // len(array)))[:number]
    whole[len(array) :] ^= random.integers(0, 2, whole[len(array) :].shape, np.uint8)
    return whole


def check(sample, train, distances, indices):
    """Raises AssertionError unless the neighbours of a few samples are those of plain integer arithmetic."""
    for row in np.random.default_rng(2).choice(len(sample), min(8, len(sample)), replace=False):
        expected = np.concatenate(
            [
                np.square(train[i : i + 1000].astype(np.int64) - sample[row]).sum(axis=(1, 2, 3))
                for i in range(0, len(train), 1000)
            ]
        )
        order = np.lexsort((np.arange(len(train)), expected))[: indices.shape[1]]
        assert np.array_equal(indices[row], order) and np.array_equal(distances[row], expected[order]), f"sample {row}"


def peak_memory():
    """GB of a process that does nothing but our search, images included."""
    words = [sys.executable, "-m", "benchmarks.search", *sys.argv[1:], "--memory", "only"]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def main():
    device = common.torch_device(CHOSEN)
    sample, train = images(CHOSEN.samples, "test"), images(CHOSEN.train, "train")

    def ours():
        return neighbours.nearest(sample, train, CHOSEN.neighbours, block=CHOSEN.block, device=device)

    if CHOSEN.memory == "only":
        ours()
        print(common.peak_memory())
        return
    common.heading()
    check(sample, train, *ours())

    flat = [array.reshape(len(array), -1) for array in (sample, train)]
    fp32 = [torch.from_numpy(array).to(device).float() for array in flat]
    int8 = [(torch.from_numpy(array).to(device).to(torch.int16) - 128).to(torch.int8) for array in flat]

    def product(operands, multiply):
        for start in range(0, len(operands[0]), CHOSEN.block):
            multiply(operands[0][start : start + CHOSEN.block], operands[1].T)

    sides = {
        "ours, exact": ours,
        "bare int8 product": lambda: product(int8, torch._int_mm),
        "bare fp32 product": lambda: product(fp32, torch.matmul),
    }
    if device.type == "cpu":
        import faiss

        faiss.omp_set_num_threads(CHOSEN.threads)
        whole = [array.numpy() for array in fp32]
        sides["faiss.knn, fp32"] = lambda: faiss.knn(*whole, CHOSEN.neighbours)
    reference = "faiss.knn, fp32" if device.type == "cpu" else "bare int8 product"
    times = common.take_turns(sides, CHOSEN.turns, device, "search")
    shape = f"{CHOSEN.samples:,} x {CHOSEN.train:,} x {flat[0].shape[1]:,}, {CHOSEN.neighbours} neighbours"
    common.table(f"{shape}, {'CIFAR-10' if CHOSEN.root else 'random bytes'}", times, reference)
    print(f"peak memory of our search by itself: {peak_memory():.2f} GB")


if __name__ == "__main__":
    main()
