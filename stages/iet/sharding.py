"""Dealing the training images to K shards.

N images, K shards, C classes. An index is a position in the training set.
"""

import numpy as np


def stratified_shards(labels, num_shards, generator):
    """K random shards with the same class mix, the IID split of the paper.

    Inside each class the images are shuffled and dealt to the shards in turn. The turn runs on from class to class: were
    it to start anew in each, the remainders would pile up on the first shards (sizes would differ by up to C - 1).

    labels      [N] int: class of each training image; all zero where there are no classes
    num_shards  K, 1 <= K <= N
    generator   numpy Generator
    Returns     list of K int64 arrays, sorted: a partition of 0..N-1 whose sizes, and whose counts of each class, differ by
                at most one
    Raises      ValueError: more shards than images
    """
    num_images = len(labels)
    if not 1 <= num_shards <= num_images:
        raise ValueError(f"num_shards is {num_shards}, expected 1 to the number of training images, {num_images}")
    dealt = np.concatenate([generator.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)])
    return [np.sort(dealt[k::num_shards]).astype(np.int64) for k in range(num_shards)]


def contiguous_shards(num_images, num_shards):
    """K shards of images that follow each other, as the authors' code for Stable Diffusion deals them; sizes differ by at most one.

    Returns   list of K int64 arrays, sorted
    """
    return [part.astype(np.int64) for part in np.array_split(np.arange(num_images), num_shards)]


def stratified_subset(labels, count, generator, groups=None):
    """A random part of an image set with its class mix, to about one image per class.

    Each image gets the rank (i + 1/2) / n_c for its place i in its shuffled class of n_c, and the lowest ranks are taken;
    equal ranks of different classes are taken at random. A group is taken as a whole, at the rank of its first image, where it still fits.

    labels     [N] int
    count      0 <= count <= N
    generator  numpy Generator
    groups     [N] int, equal for images that belong together; None: every image by itself
    Returns    [count] int64, sorted; fewer where no group fits what is left
    """
    rank = np.empty(len(labels))
    for c in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == c))
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = np.lexsort((generator.random(len(labels)), rank))
    if groups is None:
        return np.sort(order[:count]).astype(np.int64)
    _, place = np.unique(groups, return_inverse=True)
    by_group = np.split(np.argsort(place, kind="stable"), np.cumsum(np.bincount(place))[:-1])
    taken, num_taken, seen = [], 0, set()
    for group in place[order]:
        if group not in seen and num_taken + len(by_group[group]) <= count:
            taken.append(by_group[group])
            num_taken += len(by_group[group])
        seen.add(group)
    return np.sort(np.concatenate([np.empty(0, np.int64), *taken]))
