"""Duplicates among images: exact ones, whose decoded pixels are equal, and near ones, such as one photograph saved twice.

Duplicated training images are what models copy first (Carlini et al. 2023, "Extracting Training Data from Diffusion Models"; Somepalli et
al. 2023, "Understanding and Mitigating Copying in Diffusion Models"), and an image that lies on both sides of the split is neither
trained on nor held out.

N images; H, W, C height, width and channels. A set is two or more images that are duplicates of each other.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np

SIDE = 16  # pixels: larger images are compared by the means of blocks, which JPEG and noise hardly change
NEAR = 1 / 3  # of the median distance to the nearest other image
DRAWN = 1000  # images at most, evenly spaced, whose nearest other ones the median is of
AXES = 12  # of the space in which pairs are looked for


class Found(NamedTuple):
    """sets      [N] int64: the number of an image's set, which is the lowest index in it; an image without duplicates is a set by itself
    exact     [N] int64: the same for exact duplicates alone
    distance  root mean square distance in grey levels at or below which two images are near duplicates; nan for fewer than three images
    """

    sets: np.ndarray
    exact: np.ndarray
    distance: float


def find(digests, thumbnails, progress=None):
    """The sets of duplicates.

    Two images are near duplicates where their thumbnails are at most a third as far apart as the median image is from the nearest
    other one. So a set of which most images have a near duplicate shows little more than its exact duplicates.

    digests      list of N bytes, as from `digest`
    thumbnails   [N, h, w, C] uint8, as from `thumbnail`
    progress     None or a callable (images done, images)
    Returns      Found
    """
    from stages.measures import neighbours  # imports torch

    _, first, place = np.unique(np.array(digests), return_index=True, return_inverse=True)
    exact = first[place]
    distinct = np.unique(exact)
    if len(distinct) < 3:
        return Found(exact, exact, float("nan"))
    shown = np.ascontiguousarray(thumbnails[distinct])
    drawn = np.unique(np.linspace(0, len(distinct) - 1, DRAWN).astype(int))
    squared, _ = neighbours.nearest(shown[drawn], shown, 2, progress=progress)
    limit = NEAR * float(np.median(np.sqrt(squared[:, 1] / shown[0].size)))  # the nearest is the image itself
    sets = distinct[_components(len(distinct), *_near_pairs(shown, limit))]
    return Found(sets[np.searchsorted(distinct, exact)], exact, limit)


def digest(image):
    """What exact duplicates have in common. image: [H, W, C] uint8; returns 16 bytes."""
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def first_of_each(images):
    """Positions of the first of each images that are equal: [D] int64, ascending. images: [N, H, W, C] uint8, may be memory-mapped."""
    _, first = np.unique(np.array([digest(image) for image in images], dtype="S16"), return_index=True)
    return np.sort(first)


def thumbnail(image):
    """[H, W, C] uint8 as [h, w, C] uint8, h and w at most SIDE: means of blocks, up to a row and a column of which may be left out."""
    height, width, channels = image.shape
    block = -(-max(height, width) // SIDE)
    h, w = max(height // block, 1), max(width // block, 1)
    block_h, block_w = min(block, height), min(block, width)
    cut = image[: h * block_h, : w * block_w].reshape(h, block_h, w, block_w, channels)
    return np.round(cut.mean((1, 3))).astype(np.uint8)


def members(sets):
    """The sets of two images or more: list of int64 arrays of indices, in the order of their lowest index."""
    order = np.argsort(sets, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(sets[order])) + 1)
    return [group for group in groups if len(group) > 1]


def joined(first, second):
    """Two divisions of N images into sets as one: images that share a set of either are in one set. [N] int64 each, and returned."""
    nodes = np.concatenate(
        [np.unique(first, return_inverse=True)[1], np.unique(second, return_inverse=True)[1] + len(first)]
    )
    images = np.arange(len(first))
    components = _components(3 * len(first), np.tile(images + 2 * len(first), 2), nodes)
    return components[2 * len(first) :]


def _near_pairs(images, limit):
    """All pairs of images whose root mean square distance is at most limit: two [P] int64 arrays.

    Pairs are looked for in few axes and then compared in full. The axes are orthonormal, so nothing is further apart in them than in truth.
    """
    from scipy.spatial import cKDTree

    values = images.reshape(len(images), -1).astype(np.float32)
    values -= values.mean(0)
    _, axes = np.linalg.eigh(np.cov(values, rowvar=False).reshape(values.shape[1], -1))
    radius = limit * math.sqrt(values.shape[1])
    rows, columns = cKDTree(values @ axes[:, -AXES:]).query_pairs(radius * (1 + 1e-5), output_type="ndarray").T
    near = [
        ((values[rows[part]] - values[columns[part]]) ** 2).sum(1) <= radius**2
        for part in np.array_split(np.arange(len(rows)), len(rows) // 100_000 + 1)
    ]
    near = np.concatenate(near)
    return rows[near], columns[near]


def _components(number, rows, columns):
    """The lowest index of the images that are linked to each, directly or by others: [number] int64."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    links = coo_array((np.ones(len(rows), np.int8), (rows, columns)), (number, number))
    _, component = connected_components(links, directed=False)
    _, first = np.unique(component, return_index=True)
    return first[component]


def summary(found, train, heldout, keys):
    """What duplicates.json holds: sets of duplicates by the indices that images have on their side of the split.

    found       Found of the pool's images, followed by those of the official test part
    train       [n] int64: training images, positions in the pool
    heldout     [h] int64: held-out images, positions among all images
    keys        dict train, heldout -> list of the names of these images
    Returns     dict: near_distance, None where nothing could be compared; sets, list of dicts with exact, train, heldout and keys, which has
                the names by side; only sets that have two images or more among these
    """
    place = {int(i): ("train", n) for n, i in enumerate(train)} | {
        int(i): ("heldout", n) for n, i in enumerate(heldout)
    }
    sets = []
    for group in members(found.sets):
        sides = {"train": [], "heldout": []}
        for i in group:
            if int(i) in place:
                side, n = place[int(i)]
                sides[side].append(n)
        if len(sides["train"]) + len(sides["heldout"]) > 1:
            names = {side: [keys[side][n] for n in numbers] for side, numbers in sides.items()}
            sets.append({"exact": len(np.unique(found.exact[group])) == 1} | sides | {"keys": names})
    return {"near_distance": None if np.isnan(found.distance) else found.distance, "sets": sets}
