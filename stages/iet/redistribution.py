"""MSR: the most skipped images of each shard move to the next shard (Eq. 10 and 11 of the paper).

K shards in a ring. `share` is the paper's P. An index is a position in the training set.
"""

import numpy as np


def floor_of_share(share, count):
    """floor(share * count), int. A product that floats leave just below a whole number counts as that number.

    share   in [0, 1], a decimal fraction
    count   of images, >= 0
    """
    return int(share * count + 1e-9)  # 0.29 * 100 is 28.999... in floats


def num_moved(shards, share):
    """How many images leave each shard: floor(P * size of the smallest shard). All give as many, so that no size changes.

    shards    K arrays of indices
    share     P, in [0, 1]
    Returns   int
    """
    return floor_of_share(share, min(len(shard) for shard in shards))


def most_skipped(shard, skips, count, generator):
    """The images D_k^easy that leave a shard (Eq. 10): its `count` most skipped ones, ties broken at random.

    shard      [n] int64 indices
    skips      [n] int: skips of these images in the round that ended, in the order of `shard`
    count      0 <= count <= n
    generator  numpy Generator for the ties: counts are small integers and ties are common; by index they would always
               favour the same images
    Returns    [count] int64 indices, sorted
    """
    shuffled = generator.permutation(len(shard))
    order = shuffled[np.argsort(-skips[shuffled].astype(np.int64), kind="stable")]
    return np.sort(shard[order[:count]])


def random_images(shard, count, generator):
    """The control of Table V: `count` images of a shard at random. Same arguments as `most_skipped`, less the counts."""
    return np.sort(generator.permutation(shard)[:count])


def moved_on(shards, leaving):
    """Every shard after the move (Eq. 11, read as an exchange): D'_(k+1) = (D_(k+1) without what leaves it) with D_k^easy.

    All sets are those before the exchange, and an image is in one shard only before and after: Eq. 11 alone is a union
    that would leave copies behind and let every shard grow into the whole data set.

    shards    K arrays of indices, a partition
    leaving   K arrays: what leaves shard k for shard (k + 1) mod K
    Returns   list of K int64 arrays, sorted
    """
    num_shards = len(shards)
    staying = [np.setdiff1d(shard, easy, assume_unique=True) for shard, easy in zip(shards, leaving, strict=True)]
    return [np.sort(np.concatenate([staying[k], leaving[(k - 1) % num_shards]])) for k in range(num_shards)]
