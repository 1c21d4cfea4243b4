"""A params.yaml for a folder of images: what fits what is found there, and why. `make experiment NAME=my_images DATA=folder` writes it.

Sizes are pure functions of the number of images and of their side, made for two cores and no GPU: tens of minutes up to 10,000 images.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import data, image_sets
from stages.measures import memorisation
from stages.run.progress import Progress

SMALLEST_SET = 60  # three shards of 15 images, and 15 held out
LARGEST_SIDE = 32  # what a CPU trains on in tens of minutes
ROUNDS, SEED = 4, 0
PASSES = (60_000, 100_000)  # images that an arm passes through the network: for AGC's memory bank; for a CPU
IMAGES_PER_S = {8: 500, 16: 250, 32: 90}  # trained on, by side, one core; three times as many are sampled in one step
STAGE_S, GENERATED, STEPS = 4, 256, 50


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    num_images   number of images
    side         shorter side in pixels of an image in the middle of all
    channels     1: all are grey; 3
    labels       [num_images] int64, the class of each
    """

    num_images: int
    side: int
    channels: int
    labels: np.ndarray


@dataclass(frozen=True)
class Chosen:
    """Settings that depend on the images. See the comments in `text`."""

    size: int
    block_channels: list
    heldout_share: float
    num_train: int
    num_heldout: int
    num_shards: int
    batch_size: int
    epochs: int
    neighbours: int
    group_size: int
    minutes: int


def look(root):
    """What a folder holds. Every file in it is opened.

    Returns   Found
    Raises    ValueError: no folder, an unreadable file, fewer than SMALLEST_SET images, classes of too few images
    """
    section = {"name": "image_folder", "root": root, "size": LARGEST_SIDE, "split_seed": SEED}
    images = image_sets.load(section, Progress)
    keys, labels = images.pool.keys, images.pool.labels
    if len(keys) < SMALLEST_SET:
        raise ValueError(
            f"{root} holds {len(keys)} images, expected {SMALLEST_SET} at least, of which a part is held out and never trained on: add "
            "images, or audit a generator that was trained on them (README.md)"
        )
    found = Found(len(keys), _side(root, keys), images.shape[2], labels)
    _check_classes(root, found, section)
    return found


def _side(root, keys):
    """The shorter side of an image in the middle of all; LARGEST_SIDE where none says its size without being decoded."""
    from PIL import Image, UnidentifiedImageError

    sides, progress = [], Progress("looking at the sizes", "images")
    for i, key in enumerate(keys, start=1):
        try:
            with Image.open(Path(root) / key) as image:
                sides.append(min(image.size))
        except (UnidentifiedImageError, OSError):
            pass
        progress.update(i, len(keys))
    return int(np.median(sides)) if sides else LARGEST_SIDE


def _check_classes(root, found, section):
    """Raises ValueError if held-out images would be of other classes than training images: sub-folders of an image or two."""
    share = {"heldout_share": choose(found.num_images, found.side).heldout_share}
    train, heldout = data.split(found.labels, section | share, has_test=False)
    try:
        parts = memorisation.matched_parts(found.labels[train], found.labels[heldout], np.random.default_rng(SEED))
    except ValueError:
        parts = None
    if parts is None or 2 * parts.num_train < len(train):
        raise ValueError(
            f"the {len(set(found.labels))} sub-folders of {root} are read as classes, and most of them hold too few images for one of each "
            "to be held out: use fewer sub-folders, or none"
        )


def choose(num_images, side):
    """Settings for a folder of images.

    num_images   at least SMALLEST_SET
    side         in pixels
    Returns      Chosen
    """
    size = max(8, min(side, LARGEST_SIDE) // 4 * 4)
    share = 0.25 if num_images < 200 else 0.2 if num_images < 2000 else 0.1
    num_heldout = round(num_images * share)
    num_train = num_images - num_heldout
    num_shards = 3 if num_train < 20_000 else 5
    shard = num_train // num_shards
    batch_size = shard // max(1, round(shard / (32 if num_train < 2000 else 64)))
    passes = min(max(PASSES[0], 400 * num_train), PASSES[1])
    epochs = max(1, round(passes / ROUNDS / num_train))
    return Chosen(
        size=size,
        block_channels=[16, 32] if size < 16 else [16, 32, 32],
        heldout_share=share,
        num_train=num_train,
        num_heldout=num_heldout,
        num_shards=num_shards,
        batch_size=batch_size,
        epochs=epochs,
        neighbours=min(50, num_heldout, num_train // 3),
        group_size=min(32, num_heldout, num_train // 2),
        minutes=_minutes(size, num_train * ROUNDS * epochs, num_shards),
    )


def _minutes(size, passes, num_shards):
    """About how long four arms take on two cores."""
    speed = next(images for side, images in IMAGES_PER_S.items() if size <= side)
    sampled = 4 * ROUNDS - 1
    stages = ROUNDS * (3 + num_shards) + 4 * ROUNDS + 2 * sampled + 10
    seconds = 4 * passes / speed + sampled * 2 * GENERATED * STEPS / (3 * speed) + stages * STAGE_S
    return math.ceil(seconds / 2 / 60 / 5) * 5


def text(name, root, found, chosen):
    """The content of params.yaml.

    name    what the experiment is called
    root    the folder, as params.yaml names it
    """
    kind = "grey" if found.channels == 1 else "colour"
    steps = chosen.epochs * (chosen.num_train // chosen.batch_size)
    halvings = len(chosen.block_channels) - 1
    return _aligned(f"""\
# {name}: four training recipes on {found.num_images:,} images of your own ({kind}), written by `make experiment`. All of it may be edited;
# `make settings` has the meaning, unit and range of every key, and the default of what is left out. Write floats with a dot: 2.0e-4.
#
# Budget: {chosen.num_train:,} training images, about {ROUNDS * steps:,} optimiser steps an arm in {ROUNDS} rounds; some {chosen.minutes} minutes on two cores, less on more or
# with a GPU. With a GPU, or patience, raise train.epochs first: a model that is trained too little copies nothing.

data:
  name: image_folder
  root: {json.dumps(str(root), ensure_ascii=False)}
  size: {chosen.size}              # sides are {found.side} pixels at the median; to {LARGEST_SIDE} a CPU learns in minutes, with a GPU try 64. It must divide by {2**halvings}
  heldout_share: {chosen.heldout_share}   # {chosen.num_heldout:,} images are never trained on: they say how many copies chance makes

model:
  block_channels: {chosen.block_channels}  # halved {"once" if halvings == 1 else "twice"}, {chosen.size} pixels to {chosen.size >> halvings}. Small enough for a CPU; [128, 256, 256, 256] is the size of the paper
  layers_per_block: 1

diffusion: {{}}             # the schedule of DDPM
compute: {{}}               # a GPU where there is one

sample_rounds: all        # each arm is sampled after every round: only the curve tells whether it beats training less

train:                    # shared by all arms
  epochs: {chosen.epochs}             # passes over the images in a round, the same number of steps for any number of shards. The one number to raise
  batch_size: {chosen.batch_size}          # divides a shard of {chosen.num_train // chosen.num_shards:,} images with next to nothing left over
  learning_rate: 2.0e-3   # of a small network; 2.0e-4 for one of the size of the paper
  warmup_steps: 20
  ema_decay: 0.99         # for short runs; 0.9999 would still hold the random start

sample:                   # shared by all arms
  num_images: {GENERATED}         # a copy in a hundred is seen; more images see rarer ones, and cost in proportion
  batch_size: 128

score:
  neighbours: {chosen.neighbours}          # {"as in the paper" if chosen.neighbours == 50 else "the paper has 50, too many for so few images"}
  variants: true         # finds copies that are mirrored, shifted, cropped or of another brightness, too; 29 times as many searches
  headline: {{weights: ema}}  # raw weights carry the noise of the last steps

membership:
  num_images: 1000        # of each kind at most: tries to tell from each model which images it was trained on

analyse:
  group_size: {chosen.group_size}          # images of each group; at most half of the training images

arms:
  ddpm:                   # the baseline
    rounds: {ROUNDS}
    method: {{name: ddpm}}
    shard: {{num_shards: 1}}
    train: {{}}
    sample: {{}}
  iet_agc_plus:
    rounds: {ROUNDS}
    sample_rounds: [2, 3, 4]  # after the first there is little but noise
    method: {{name: agc, lambda: 0.5, taa: {{R: 1.7, magnitude: 1}}}}
    shard: {{num_shards: {chosen.num_shards}}}  # of {chosen.num_train // chosen.num_shards:,} images
    train: {{}}
    redistribute: {{share: 0.25, select: memory}}
    sample: {{}}
  ddpm_dropout:
    rounds: {ROUNDS}
    method: {{name: ddpm}}
    shard: {{num_shards: 1}}
    train: {{dropout: 0.2}}
    sample: {{}}
  timestep_focus:         # plain DDPM whose losses at medium noise, 2 % to 20 % of the timesteps, count a tenth
    rounds: {ROUNDS}
    method: {{name: ddpm}}
    shard: {{num_shards: 1}}
    train: {{timestep_focus: {{low: 0.02, high: 0.2, weight: 0.1}}}}
    sample: {{}}
""")


def _aligned(text):
    """YAML with its comments behind keys in one column where there is room; a path is left as it is."""

    def line(text):
        found = re.fullmatch(r"( *[\w{[].*?) {2,}(# .*)", text)
        return f"{found[1]:<25} {found[2]}" if found and not text.startswith("  root:") else text

    return "\n".join(map(line, text.split("\n")))
