"""A small made-up tree of artifacts with its report, for all tests of the report."""

import contextlib
import copy
import json
import math

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file

from stages import report
from stages.run import files, params

NUM_IMAGES = 100  # generated
THRESHOLDS = [0.4, 0.5, 0.6]
SETTINGS = {
    "seeds": [0],
    "data": {"name": "digits", "num_train": 5, "split_seed": 0},
    "compute": {"device": "cpu", "threads": 1},
    "sample": {"weights": ["raw", "ema"]},
    "score": {
        "neighbours": 5,
        "thresholds": THRESHOLDS,
        "headline": {"weights": "raw", "protocol": "l2_from_gen", "threshold": 0.5},
    },
    "arms": {  # not in the order of the alphabet, which a sorted table would show
        "plain": {"rounds": 1, "shard": {"num_shards": 1}, "train": {"epochs": 3}, "redistribute": {}, "sample": {}},
        "iet": {
            "rounds": 2,
            "shard": {"num_shards": 2},
            "train": {"epochs": 2},
            "redistribute": {"share": 0.5, "select": "memory"},
            "sample": {},
        },
    },
}
# Five training images. iet starts with shards {0, 2, 4} and {1, 3}; after round 1 images 4 and 3 change places.
IET_ROUNDS = [
    [
        {"index": [0, 2, 4], "skips": [0, 1, 2], "visits": [2, 2, 2], "loss": [1.0, 0.5], "skipped": [1, 2]},
        {"index": [1, 3], "skips": [0, 4], "visits": [2, 2], "loss": [3.0, 2.5], "skipped": [2, 2]},
    ],
    [
        {"index": [0, 2, 3], "skips": [0, 0, 1], "visits": [2, 2, 2], "loss": [0.2, 0.1], "skipped": [0, 1]},
        {"index": [1, 4], "skips": [0, 2], "visits": [2, 2], "loss": [0.7, 0.6], "skipped": [1, 1]},
    ],
]
PLAIN_ROUNDS = [
    [{"index": [0, 1, 2, 3, 4], "skips": [0] * 5, "visits": [3] * 5, "loss": [1.0, 0.8, 0.6], "skipped": [0, 0, 0]}]
]


def write_counts(root, run, rounds):
    for r, shards in enumerate(rounds, start=1):
        for k, shard in enumerate(shards):
            path = root / f"artifacts/results/counts/{run}/round{r}/shard{k}/counts.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            size, epochs = len(shard["index"]), len(shard["loss"])
            arrays = {
                "index": np.array(shard["index"], np.int64),
                "skips": np.array(shard["skips"], np.int32),
                "augmented": np.array([1] + [0] * (size - 1) if any(shard["skips"]) else [0] * size, np.int32),
                "visits": np.array(shard["visits"], np.int32),
                "epoch_loss": np.array(shard["loss"], np.float64),
                "epoch_skipped": np.array(shard["skipped"], np.int64),
                "epoch_augmented": np.array([int(any(shard["skips"]))] + [0] * (epochs - 1), np.int64),
                "epoch_visited": np.full(epochs, size, np.int64),
                "t_skipped": np.zeros(10, np.int64),
                "t_visited": np.zeros(10, np.int64),
                "carried.bank": np.zeros(4, np.float32),
                "forward_images": np.array([size * epochs], np.int64),
                "optimizer_steps": np.array([epochs], np.int64),
            }
            save_file(arrays, path)


def write_duplicates(root, sets=()):
    """sets   as stages.measures.duplicates.summary returns them"""
    folder = root / "artifacts/results/data"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "duplicates.json").write_text(json.dumps({"near_distance": 9.5, "sets": list(sets)}))


def write_scores(root, run, level, round_=None, held_out=True, key="<b>3&7.png"):
    """level   the run's excess at threshold 0.5 under l2_from_gen with raw weights"""
    folder = root / "artifacts/results/score" / files.place(run, round_)
    folder.mkdir(parents=True)
    none = math.nan
    rows = []
    for weights, shift in [("raw", 0), ("ema", 1)]:
        for protocol in ["code_sq", "l2_from_gen"]:
            for threshold in np.round(np.arange(0.3, 0.71, 0.1), 2):
                excess = level + shift + round(100 * (threshold - 0.5)) + 20 * (protocol == "code_sq")
                count = excess + 10
                row = {"weights": weights, "protocol": protocol, "threshold": threshold, "count": count}
                row |= {"share": count / NUM_IMAGES, "distinct": 3 + shift, "excess": excess if held_out else none}
                row |= {"excess_low": excess - 4 if held_out else none, "excess_high": excess + 5 if held_out else none}
                rows.append(row | {"simplicity": 12.5 if held_out else none})
    pd.DataFrame(rows).to_parquet(folder / "curves.parquet")
    # At 0.5 with raw weights, images 7 and 2 are copies of training image 2; with EMA weights image 3 is one of image 3.
    ratios = {"raw": {7: 0.123, 2: 0.4, 5: 0.55}, "ema": {3: 0.5}}
    images = [
        {"weights": weights, "image": i, "nearest_train": i % 5, "nearest_key": key if weights == "raw" else "=other"}
        | {"train_l2_from_gen": ratios[weights].get(i, 0.9), "excess": 0.0, "influence": 0.0}
        | ({"confidence": (96 - i) / 100, "matched_ratio": i / 10, "heldout_l2_from_gen": i / 8} if held_out else {})
        for weights in ("ema", "raw")
        for i in range(10)
    ]
    pd.DataFrame(images).to_parquet(folder / "images.parquet")
    distances = {"fd_pixels": 1 / 3 + level / 1000, "fd_pixels_heldout": 0.5 if held_out else None}
    scores = {"num_images": NUM_IMAGES, "num_train": 5, "num_heldout": 7 if held_out else 0}
    scores |= {
        "num_compared": 4 if held_out else 0,
        "largest_hits": [1.0, 1.0] if held_out else None,
        "fd_mean_image": 9.0,
    }
    (folder / "scores.json").write_text(json.dumps(scores | {"raw": distances, "ema": distances}))
    pictures = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
    gallery = {"generated": pictures, "train": pictures, "image": np.array([7, 5]), "nearest_train": np.array([2, 0])}
    save_file(gallery | {"ratio": np.array([0.123, 0.55])}, folder / "gallery.safetensors")


SELF_TEST = {
    "variants": False,
    "alterations": [
        {"alteration": "unchanged", "planted": 4, "found": 4},
        {"alteration": "mirrored", "planted": 4, "found": 1},
        {"alteration": "<blurred>", "planted": 4, "found": 2},
    ],
}


def write_self_test(root, found=SELF_TEST):
    folder = root / "artifacts/results/score/reference"
    folder.mkdir(parents=True)
    (folder / "self_test.json").write_text(json.dumps(found))
    write_duplicates(root)


def make_tree(root, settings, levels, **options):
    (root / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    write_self_test(root)
    for arm, rounds in [("plain", PLAIN_ROUNDS), ("iet", IET_ROUNDS)]:
        for seed in settings["seeds"]:
            write_counts(root, f"{arm}-seed{seed}", rounds)
            write_scores(root, f"{arm}-seed{seed}", levels[arm][seed], len(rounds), **options)


@contextlib.contextmanager
def built(root, levels, seeds=(0,), *, sections=None, write_more=None, **options):
    """A tree with its report, as current folder.

    levels       by arm the excess of each seed, see write_scores
    sections     further sections of params.yaml
    write_more   function of settings and levels that adds the artifacts of further phases
    options      of write_scores
    """
    settings = copy.deepcopy(SETTINGS) | {"seeds": list(seeds)} | (sections or {})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(params, "check", lambda *_: None)  # this params.yaml holds what the report reads, no more
        make_tree(root, settings, levels, **options)
        if write_more:
            write_more(settings, levels)
        report.main([])
        yield root, json.loads((root / "artifacts/report/summary.json").read_text())


ONE_SEED = {"plain": [60], "iet": [15]}
