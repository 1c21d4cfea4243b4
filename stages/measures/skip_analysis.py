"""What the skip counts of a run say: how often each image was skipped (Fig. 9), at which timesteps, and after a move (MSR).

N training images, K shards, R rounds. `rounds` is a list of R rounds, each the list of its K shards, each the arrays of its
counts file (stages.train); their `index` is the identity of an image, whichever shard it is in.
"""

from typing import NamedTuple

import numpy as np

from stages.iet.redistribution import floor_of_share
from stages.measures import intervals


class History(NamedTuple):
    """What happened to each image in each round: arrays [R,N] int64.

    shard    where the image was; -1 if in none
    skips, augmented, visits
    """

    shard: np.ndarray
    skips: np.ndarray
    augmented: np.ndarray
    visits: np.ndarray


def history(rounds, num_train):
    """The counts of all rounds by image.

    Returns   History
    Raises    ValueError: the counts are of images that the training set does not have
    """
    shape = len(rounds), num_train
    found = History(np.full(shape, -1), *(np.zeros(shape, np.int64) for _ in range(3)))
    for r, shards in enumerate(rounds):
        for k, counts in enumerate(shards):
            index = counts["index"]
            if len(index) and index.max() >= num_train:
                raise ValueError(
                    f"the counts of round {r + 1}, shard {k} are of image {index.max()}, but there are {num_train} training "
                    "images: rerun its train stage"
                )
            found.shard[r, index] = k
            for name in ("skips", "augmented", "visits"):
                getattr(found, name)[r, index] = counts[name]
    return found


def rate(skips, visits):
    """Share of its visits at which an image was skipped; nan for an image that was never visited."""
    return np.divide(skips, visits, out=np.full(np.shape(skips), np.nan), where=visits > 0)


def by_tenth(rounds):
    """Samples skipped and visited by round and tenth of the timesteps, the least noisy first: two [R,10] int64."""
    skipped, visited = (
        np.array([sum(shard[name] for shard in shards) for shards in rounds], np.int64)
        for name in ("t_skipped", "t_visited")
    )
    return skipped, visited


def extremes(skips, share, generator):
    """The most and the least skipped images, equal counts in random order.

    skips      [N] int64
    share      of the images in each group, 0 < share <= 0.5
    generator  numpy Generator: counts are small integers with many ties, which would otherwise go by index
    Returns    most, least: two [floor(share N)] int64 arrays of indices, sorted, without a common member
    """
    size = floor_of_share(share, len(skips))
    shuffled = generator.permutation(len(skips))
    order = shuffled[np.argsort(skips[shuffled], kind="stable")]
    return np.sort(order[len(order) - size :]), np.sort(order[:size])


class Move(NamedTuple):
    """Skip rates around a move: of the m images that changed shard, and of P pairs of a moved image with one that stayed.

    before, after  [m] float64: of the moved images in the round before and the round after
    pair_before    [P,2] float64: of the moved image and of the one that stayed, in the round before
    pair_after     [P,2] in the round after
    """

    before: np.ndarray
    after: np.ndarray
    pair_before: np.ndarray
    pair_after: np.ndarray


def move(found, r, generator):
    """What the move between two rounds did to skip rates.

    MSR moves the most skipped images, and what was extreme in one round is less so in the next whether it moves or not
    (regression to the mean). So a moved image is compared with one that stayed and was in the same shard with the same
    number of skips. Among those of one shard and count, redistribution broke the tie at random: a pair differs in nothing
    but the move, save by chance. Images of higher counts all moved and have no pair.

    found       History
    r           0 <= r < R - 1: the move from round r to r + 1, counted from 0
    generator   numpy Generator that pairs moved and staying images
    Returns     Move, of the images that were visited in both rounds
    """
    visited = (found.visits[r] > 0) & (found.visits[r + 1] > 0)
    moved = visited & (found.shard[r] != found.shard[r + 1])
    before, after = (rate(found.skips[i], found.visits[i]) for i in (r, r + 1))
    stratum = found.shard[r] * (found.skips[r].max() + 1) + found.skips[r]
    pairs = _pairs(stratum, moved, visited & ~moved, generator)
    return Move(before[moved], after[moved], before[pairs], after[pairs])


def _pairs(stratum, treated, control, generator):
    """As many pairs of a treated and a control image of the same stratum as there can be, at random: [P,2] int64 indices."""
    pairs = []
    for s in np.intersect1d(stratum[treated], stratum[control]):
        sides = [generator.permutation(np.flatnonzero(side & (stratum == s))) for side in (treated, control)]
        size = min(map(len, sides))
        pairs.append(np.stack([side[:size] for side in sides], axis=1))
    return np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64)


def premise(moves):
    """Are moved images skipped less in their new shard than if they had stayed (the premise of MSR)?

    moves     list of Move, taken together
    Returns   dict: moved, pairs                              numbers of images and of pairs
                    before, after                             mean skip rate of all moved images
                    pair_{before,after}_{moved,stayed}        mean skip rates over the pairs
                    difference, low, high                     mean over the pairs of (after - before of the moved image) -
                                                              (after - before of the other), below 0 if moving helps, with
                                                              its 95 % t-interval
              nan for what too few images or pairs leave undefined: a mean of none, an interval of fewer than two.
              An image that moves twice counts twice, so pairs of different moves are not quite independent.
    """
    before, after, pair_before, pair_after = (np.concatenate(parts) for parts in zip(*moves, strict=True))
    fall = np.subtract(*(pair_after - pair_before).T)
    low, high = intervals.t_interval(fall) if len(fall) > 1 else (np.nan, np.nan)
    return {
        "moved": len(before),
        "before": _mean(before),
        "after": _mean(after),
        "pairs": len(fall),
        "pair_before_moved": _mean(pair_before[:, 0]),
        "pair_after_moved": _mean(pair_after[:, 0]),
        "pair_before_stayed": _mean(pair_before[:, 1]),
        "pair_after_stayed": _mean(pair_after[:, 1]),
        "difference": _mean(fall),
        "low": float(low),
        "high": float(high),
    }


def _mean(values):
    return float(values.mean()) if len(values) else np.nan
