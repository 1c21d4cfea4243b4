"""Peak of the disk that an experiment takes, with every round kept and with REDISTRIBUTE_KEEP=needed, beside the formula.

With P parameters of the network (4 bytes each), K shards, R rounds and J stages at a time: a shard's folder holds two sets of
weights and Adam's two moments, 16 P bytes, an averaged model 8 P, a checkpoint in scratch/ 16 P.
    all      R K 16 P                + R 8 P + J 16 P
    needed   2 K 16 P                + R 8 P + J 16 P    (a round and the one before; at most R of them)
What stages that have nothing to do with the size of the network write comes on top: `rest`, measured at the end. Files that are
linked into the cache count once.
"""

from benchmarks import common

CHOSEN = common.arguments(__doc__, threads=1, cores=2, shards=3, rounds=4, channels=48, keep="all,needed")

import os  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402

import yaml  # noqa: E402

from benchmarks import project  # noqa: E402

PAPER = {"shards": 10, "rounds": 20, "parameters": 35.7e6, "jobs": 10}
EXPERIMENT = """
seeds: [0]
data: {name: digits, num_train: 60, split_seed: 0}
diffusion: {num_timesteps: 20, beta_start: 0.005, beta_end: 0.4}
compute: {device: cpu, threads: 1, precision: fp32}
checkpoint_minutes: 0  # a checkpoint after every step: the worst moment of every stage is seen
train: {batch_size: 5, learning_rate: 2.0e-3, warmup_steps: 5, grad_clip_norm: 1.0, ema_decay: 0.9, flip: false}
sample: {num_images: 20, parts: 1, batch_size: 20, protocol: paper, num_steps: 2, weights: [raw]}
score: {neighbours: 10, thresholds: [0.5], grid_step: 0.5, headline: {protocol: l2_from_gen, threshold: 0.5, weights: raw}}
"""


def experiment():
    channels = CHOSEN.channels
    model = {"block_channels": [channels, 2 * channels], "attention_levels": [], "layers_per_block": 1}
    arm = {
        "rounds": CHOSEN.rounds, "method": {"name": "agc", "lambda": 0.5, "eta": 0.8}, "shard": {"num_shards": CHOSEN.shards},
        "train": {"epochs": 1}, "redistribute": {"share": 0.25, "select": "memory"}, "sample": {},
    }  # fmt: skip
    return yaml.safe_load(EXPERIMENT) | {"model": model | {"norm_groups": 4}, "arms": {"iet_agc": arm}}


def used(root, *folders):
    """Bytes of the files under these folders, each file once however many names it has."""
    sizes = {}
    for folder in folders:
        for where, _, names in os.walk(root / folder):
            for name in names:
                try:
                    found = os.lstat(os.path.join(where, name))
                except FileNotFoundError:
                    continue
                sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


def watched(root, keep):
    """(peak, end) in bytes of a run of the experiment."""
    seen, over = [], threading.Event()

    def look():
        while not over.wait(0.05):
            seen.append(used(root, "artifacts", "scratch", ".dvc/cache"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        os.environ["REDISTRIBUTE_KEEP"] = keep
        project.run(root, "snakemake", "--cores", str(CHOSEN.cores))
    finally:
        over.set()
        thread.join()
    return max(seen), used(root, "artifacts", "scratch", ".dvc/cache")


def formula(keep, shards, rounds, parameters, jobs):
    """Bytes, without the rest."""
    kept = rounds if keep == "all" else min(2, rounds)
    return 16 * parameters * (kept * shards + jobs) + 8 * parameters * rounds


def main():
    from safetensors.numpy import load_file

    common.heading()
    print(f"\n{'':8} {'peak MB':>10} {'formula + rest MB':>18} {'at the end MB':>14} {'rest MB':>9}")
    for keep in CHOSEN.keep.split(","):
        with project.copy(experiment()) as root:
            peak, end = watched(root, keep)
            model = load_file(Path(root, f"artifacts/model/iet_agc-seed0/round{CHOSEN.rounds}/raw.safetensors"))
            parameters = sum(value.size for value in model.values())
            of_networks = used(root, "artifacts/train", "artifacts/model")
            rest = end - of_networks
        expected = formula(keep, CHOSEN.shards, CHOSEN.rounds, parameters, min(CHOSEN.cores, CHOSEN.shards)) + rest
        print(f"{keep:8} {peak / 1e6:10.1f} {expected / 1e6:18.1f} {end / 1e6:14.1f} {rest / 1e6:9.1f}", flush=True)
    print(f"K = {CHOSEN.shards}, R = {CHOSEN.rounds}, P = {parameters:,}, J = {CHOSEN.cores}")
    print(f"\nby the formula for {PAPER}, without the rest:")
    for keep in ("all", "needed"):
        print(f"{keep:8} {formula(keep, **PAPER) / 1e9:10.1f} GB")


if __name__ == "__main__":
    main()
