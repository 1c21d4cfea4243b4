"""Which training images a generator leaked, and how often.

M generated images. A generated image that counts as memorised (stages.measures.memorisation) is a copy of its nearest training
image, and of no other.
"""

from typing import NamedTuple

import numpy as np


class Leaks(NamedTuple):
    """Training images that leaked, the clearest first: arrays of one length.

    index   int64 index of the training image
    count   int64 >= 1, generated images that are copies of it
    ratio   float64, the lowest ratio among those
    twin    int64, number of the generated image with that ratio
    """

    index: np.ndarray
    count: np.ndarray
    ratio: np.ndarray
    twin: np.ndarray


def given_out(nearest, ratio, memorised):
    """The training images among whose copies is at least one generated image.

    nearest     [M] int64: index of the nearest training image of each generated image
    ratio       [M] float64: its ratio under one protocol
    memorised   [M] bool: whether that counts as memorised
    Returns     Leaks, ordered by ratio, equal ratios by the number of the twin
    """
    copies = np.flatnonzero(memorised)
    copies = copies[np.argsort(ratio[copies], kind="stable")]
    index, first, count = np.unique(nearest[copies], return_index=True, return_counts=True)
    clearest_first = np.argsort(first)
    twin = copies[first[clearest_first]]
    return Leaks(index[clearest_first].astype(np.int64), count[clearest_first].astype(np.int64), ratio[twin], twin)
