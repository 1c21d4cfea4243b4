"""The fixed cost of a train stage: start-up, loading, the first steps and saving, beside 50 epochs of 5,000 images.

The stage is run as people run it, for two lengths in turn. What an epoch adds is its cost; what is left of the shorter run is
the fixed cost. Random images of 32x32x3; the network of the paper and bf16 where there is a GPU.
"""

from benchmarks import common

CHOSEN = common.arguments(
    __doc__, network="small", batch=128, images=5000, short=1, long=3, turns=2, precision="fp32", device=None, threads=1
)

import statistics  # noqa: E402 (the thread pools are set first)
import sys  # noqa: E402

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import project  # noqa: E402
from benchmarks.networks import NETWORKS  # noqa: E402

EPOCHS = 50  # of one round of the paper's settings for CIFAR-10


def experiment(device):
    network = dict(NETWORKS[CHOSEN.network])
    dropout = network.pop("dropout")
    arms = {
        name: {
            "rounds": 1, "method": {"name": "agc", "lambda": 0.5, "eta": 0.8}, "shard": {"num_shards": 1},
            "train": {"epochs": epochs}, "redistribute": {}, "sample": {},
        }
        for name, epochs in (("short", CHOSEN.short), ("long", CHOSEN.long))
    }  # fmt: skip
    return yaml.safe_load(project.EXPERIMENT) | {
        "seeds": [0],
        "data": {"name": "image_folder", "root": "images", "size": 32, "heldout_share": 0.0, "split_seed": 0},
        "model": network,
        "diffusion": {"num_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02},
        "compute": {"device": device.type, "threads": CHOSEN.threads, "precision": CHOSEN.precision},
        "train": {"batch_size": CHOSEN.batch, "learning_rate": 2e-4, "warmup_steps": 0, "grad_clip_norm": 1.0,
                  "ema_decay": 0.9999, "flip": True, "dropout": dropout},
        "arms": arms,
    }  # fmt: skip


def measured(device):
    """Seconds of the stage, a list for `short` and one for `long`."""
    random = np.random.default_rng(0)
    with project.code_copy(experiment(device)) as root:
        (root / "images").mkdir()
        for number in range(CHOSEN.images):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(root / f"images/{number:05}.png")

        def stage(name, *words):
            return lambda: project.run(root, sys.executable, "-m", f"stages.{name}", *words)

        stage("data")()
        sides = {}
        for arm in ("short", "long"):
            stage("shard", "--arm", arm, "--seed", "0")()
            sides[arm] = stage("train", "--arm", arm, "--seed", "0", "--round", "1", "--shard", "0")
        return common.take_turns(sides, CHOSEN.turns)


def parted(times):
    """What does not depend on the length of the training, and an epoch, in seconds."""
    short, long = statistics.median(times["short"]), statistics.median(times["long"])
    epoch = (long - short) / (CHOSEN.long - CHOSEN.short)
    return short - CHOSEN.short * epoch, epoch


def main():
    device = common.torch_device(CHOSEN)
    common.heading()
    times = measured(device)
    common.table(
        f"train stage, network {CHOSEN.network}, {CHOSEN.images:,} images, batch {CHOSEN.batch}, {CHOSEN.precision}, on "
        f"{device.type}; short: {CHOSEN.short} epochs, long: {CHOSEN.long}",
        times,
        "short",
    )
    fixed, epoch = parted(times)
    whole = fixed + EPOCHS * epoch
    print(f"an epoch {epoch:.2f} s; fixed {fixed:.2f} s, {fixed / whole:.1%} of {EPOCHS} epochs ({whole:.0f} s)")


if __name__ == "__main__":
    main()
