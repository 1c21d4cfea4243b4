"""Peak memory at the paper's sizes: a training step of one shard, a batch of sampling, a search among 50,000 images.

Each in a process of its own, with the CIFAR-10 network (35.7 M parameters) where there is one. On a CPU it is the memory of the
process, on a GPU what torch took of the card. Neither the number of generated images nor that of shards changes it: images are
searched for in blocks, and a shard is trained by a process of its own.
"""

import subprocess
import sys

from benchmarks import common

PARTS = ("training", "training, everything augmented", "sampling", "search")
CHOSEN = common.arguments(
    __doc__, network="cifar10", batch=128, samples=8192, train=50_000, precision="fp32", device=None, part=""
)

import numpy as np  # noqa: E402 (the thread pools are set first)
import torch  # noqa: E402

from benchmarks.networks import NETWORKS  # noqa: E402
from stages import methods  # noqa: E402
from stages.diffusion import ddpm, sampling, unet, weights  # noqa: E402
from stages.iet import shard_state  # noqa: E402
from stages.measures import neighbours  # noqa: E402
from stages.methods import base, loop  # noqa: E402
from stages.pixels import initial_weights  # noqa: E402

SETTINGS = {
    "batch_size": CHOSEN.batch, "learning_rate": 2e-4, "warmup_steps": 0, "grad_clip_norm": 1.0, "ema_decay": 0.9999,
    "flip": True, "precision": CHOSEN.precision,
}  # fmt: skip
T = 1000
SHARD = 5000  # images: 50,000 in 10 shards


def random_images(number):
    return np.random.default_rng(0).integers(0, 256, (number, 32, 32, 3), np.uint8)


def network(device):
    built = unet.build(NETWORKS[CHOSEN.network], (3, 32, 32))
    weights.load(built, initial_weights.initial_weights(built, 0), "the initialisation")
    return built.to(device)


def training_steps(device, augmented):
    """Two steps, as Adam's moments are in use from the first on; `augmented`: every sample goes through the network twice."""
    taa = {"R": float("inf"), "A": 5.0, "magnitude": 3, "num_ops": 2, "max_level": 30}
    settings = {"name": "agc", "lambda": 1e-6, "eta": 0.8} | ({"taa": taa} if augmented else {})
    method, net = methods.method(settings), network(device).train()
    carried = method.initial_state(T, device)
    carried["bank"] += 1  # as if every timestep had been visited
    images = torch.from_numpy(random_images(SHARD)).permute(0, 3, 1, 2).contiguous().to(device)
    state = shard_state.fresh_state(list(net.parameters()), carried)
    record = loop.Record.empty(SHARD, 1, device)
    alpha_bar = ddpm.alpha_bars(T, 1e-4, 0.02).float().to(device)
    shard = base.Images(images, torch.arange(SHARD))
    training = loop.Training(net, state, record, shard, method, SETTINGS, alpha_bar, seed=0, shard=0)
    for _ in range(2):
        loop.train_step(training, epoch=0)
    assert int(record.epoch_augmented) == (2 * CHOSEN.batch if augmented else 0)


def sampling_steps(device):
    net, noise = network(device).eval(), sampling.starting_noise(0, CHOSEN.batch, (3, 32, 32), 0).to(device)
    sampling.ddim(net, noise, ddpm.alpha_bars(T, 1e-4, 0.02), 2, "paper", CHOSEN.precision)


def measure(part, device):
    """Prints the peak in GB."""
    if part == "search":
        neighbours.nearest(random_images(CHOSEN.samples), random_images(CHOSEN.train), 50, device=device)
    elif part == "sampling":
        sampling_steps(device)
    else:
        training_steps(device, augmented=part != "training")
    print(torch.cuda.max_memory_reserved() / 1e9 if device.type == "cuda" else common.peak_memory())


def peaks():
    """What is measured, in words, and its peak in GB, one after the other."""
    for part in PARTS:
        words = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--part", part]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {part}: {done.stderr.strip().splitlines()[-1]}")
        size = f", {CHOSEN.samples:,} x {CHOSEN.train:,} images" if part == "search" else ""
        yield part + size, float(done.stdout)


def main():
    device = common.torch_device(CHOSEN)
    if CHOSEN.part:
        measure(CHOSEN.part, device)
        return
    common.heading()
    print(f"\nPeak memory, network {CHOSEN.network}, batch {CHOSEN.batch}, {CHOSEN.precision}, on {device.type}, GB")
    for what, peak in peaks():
        print(f"{what:40} {peak:6.2f}")


if __name__ == "__main__":
    main()
