"""Memorisation quantities: which samples count as copies of a training image, and how many that is.

Legend: M sample images, N training images, k nearest training images of a sample (50 in the paper), D_j squared
distance from a sample to its j-th nearest, I_j that neighbour, xbar = I_1, H held-out images used as queries.

Every protocol divides a sample's distance to its nearest training image by a scale of its surroundings and counts
ratios below a threshold. The paper's Eq. 12 and the public code behind its tables differ in three ways (squared or not,
around xbar or around the sample, <= or <), so each reading is a protocol of its own and none is called the MQ.
All inputs are the integers of stages.measures.neighbours; ratios have no unit, so grey levels serve as well as [0, 1].

A count alone does not show memorisation: real images no model has seen come close to training images too, by being
simple. excess and simplicity measure that.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stages.measures import intervals


class Protocol(NamedTuple):
    """One reading of the memorisation quantity.

    ratio       (distances, from_nearest) -> [M] float64, both [M, k] int64 as in ratios
    strict      True: memorised when ratio < threshold; False: when ratio <= threshold
    thresholds  the thresholds it is reported at
    """

    ratio: Callable
    strict: bool
    thresholds: tuple[float, ...]


def code_sq(distances, from_nearest):
    """D_1 / mean(D_1 .. D_k): the public code behind the tables, squared and around the sample.

    Computed as k D_1 / sum D: one rounding of a fraction of integers, so comparing with 0.4 is exact at equality.
    """
    return _quotient(distances.shape[1] * distances[:, 0], distances.sum(axis=1))


def printed_eq12(distances, from_nearest):
    """sqrt(D_1) / mean_{y in I_1 .. I_k} ||xbar - y||: Eq. 12 as printed, S including xbar with its own 0."""
    return _quotient(np.sqrt(distances[:, 0]), np.sqrt(from_nearest).mean(axis=1))


def printed_eq12_excl(distances, from_nearest):
    """Eq. 12 with the other k - 1 neighbours as S; the paper does not say whether S contains xbar."""
    return _quotient(np.sqrt(distances[:, 0]), np.sqrt(from_nearest[:, 1:]).mean(axis=1))


def l2_from_gen(distances, from_nearest):
    """sqrt(D_1) / mean(sqrt(D_1) .. sqrt(D_k)): Eq. 12 around the sample, the scale of Carlini et al. 2023."""
    root = np.sqrt(distances)
    return _quotient(distances.shape[1] * root[:, 0], root.sum(axis=1))


def carlini(distances, from_nearest):
    """l2_from_gen / alpha with alpha = 0.5, extracted when <= 1 (Carlini et al. 2023, "Extracting Training Data")."""
    return l2_from_gen(distances, from_nearest) / 0.5


def third(distances, from_nearest):
    """sqrt(D_1) / sqrt(D_2), memorised when < 1/3 (Gu et al. 2023, "On Memorization in Diffusion Models").

    Computed as sqrt(D_1 / D_2): of two separate roots, one in twenty exact thirds would fall below 1/3 by rounding.
    """
    return np.sqrt(_quotient(distances[:, 0], distances[:, 1]))


PROTOCOLS = {
    "code_sq": Protocol(code_sq, strict=True, thresholds=(0.4, 0.5, 0.6)),
    "printed_eq12": Protocol(printed_eq12, strict=False, thresholds=(0.4, 0.5, 0.6)),
    "printed_eq12_excl": Protocol(printed_eq12_excl, strict=False, thresholds=(0.4, 0.5, 0.6)),
    "l2_from_gen": Protocol(l2_from_gen, strict=False, thresholds=(0.4, 0.5, 0.6)),
    "carlini": Protocol(carlini, strict=False, thresholds=(1.0,)),
    "third": Protocol(third, strict=True, thresholds=(1 / 3,)),
}


def ratios(distances, from_nearest):
    """The ratio of every sample under every protocol (readings of Eq. 12).

    distances     [M, k] int64: squared distances to the k nearest training images, ascending (neighbours.nearest)
    from_nearest  [M, k] int64: squared distances from xbar to those images (neighbours.distances_from_nearest)
    Returns       dict of protocol name -> [M] float64, >= 0. A denominator of 0 gives 0: all k neighbours are the
                  sample itself or, for printed_eq12, copies of xbar, however far the sample is from them.
    Raises        ValueError: shapes differ, k < 2, distances not ascending from >= 0, from_nearest not 0 at xbar.
    """
    distances, from_nearest = np.asarray(distances), np.asarray(from_nearest)
    if distances.ndim != 2 or distances.shape[1] < 2 or distances.shape != from_nearest.shape:
        raise ValueError(
            f"distances are {distances.shape} and from_nearest {from_nearest.shape}, expected one shape [M, k], k >= 2"
        )
    if (distances[:, 0] < 0).any() or (np.diff(distances, axis=1) < 0).any():
        raise ValueError("distances are negative or not ascending, expected the result of neighbours.nearest")
    if from_nearest[:, 0].any() or (from_nearest < 0).any():
        raise ValueError("from_nearest is not 0 in column 0 or negative, expected distances from the nearest image")
    return {name: protocol.ratio(distances, from_nearest) for name, protocol in PROTOCOLS.items()}


def is_memorised(ratio, threshold, strict):
    """Samples counted as memorised (Eq. 13 with <= as printed; the public code compares with <).

    ratio      [M] float64: one entry of ratios
    threshold  real number
    strict     the protocol's: True compares with <, False with <=
    Returns    [M] bool
    """
    return ratio < threshold if strict else ratio <= threshold


def distinct(nearest_indices, memorised):
    """Number of different training images among the copies: one image emitted fifty times counts once.

    nearest_indices  [M] integer: the nearest training image of each sample (column 0 of the search's indices)
    memorised        [M] bool (is_memorised)
    Returns          int, at most the count
    Raises           ValueError: memorised is not a bool mask of the same length.
    """
    _check_mask("memorised", memorised)
    if len(nearest_indices) != len(memorised):
        raise ValueError(f"{len(nearest_indices)} nearest indices for {len(memorised)} samples, expected one each")
    return np.unique(nearest_indices[memorised]).size


def excess(counted_train, counted_heldout, weights, groups=None):
    """How many more samples are copies of a training image than chance explains, for the whole training set.

    Each sample is compared with parts of the training set that are as large as the held-out set (`matched_parts`), and with the
    held-out images. A part without copies and the held-out set count equally many samples in the mean, so the sum over all parts,
    less as many times the count of the held-out set, has the number of copies as its expectation, whatever share of the training
    set the held-out set is:

        d_i = counted_train_i - counted_heldout_i,     excess = sum_i d_i

    with the 95 % interval of intervals.sum_of_differences. It is paired: samples that are merely simple count on both sides. The
    interval covers the draw of the samples. It holds for this one model, for these held-out images, and says nothing of another
    training run.

    counted_train     [M] float64: sum over the parts that sample i counts against, of the weight of its nearest image there
    counted_heldout   [M] float64: weight of the nearest held-out image where sample i counts against the held-out set, else 0
    weights           (largest weight of a training image, largest weight of a held-out image), both > 0
    groups            [M] integer: samples that were asked for with one prompt have one number, since they are alike; their d_i are
                      added up before the interval is taken. None: every sample is independent of the others
    Returns           (excess float64, low float64, high float64), not clipped
    Raises            ValueError: not float64 arrays of one length, or no sample.
    """
    counted = {"counted_train": counted_train, "counted_heldout": counted_heldout, "groups": groups}
    found = {name: (array.dtype, array.shape) for name, array in counted.items() if array is not None}
    num_samples = len(counted_train)
    if num_samples == 0 or any(shape != (num_samples,) for _, shape in found.values()):
        raise ValueError(f"found {found}, expected one value per sample in each, at least one sample")
    if counted_train.dtype != np.float64 or counted_heldout.dtype != np.float64:
        raise ValueError(f"found {found}, expected float64")
    differences, of_a_group = counted_train - counted_heldout, 1
    if groups is not None:
        _, position = np.unique(groups, return_inverse=True)
        differences, of_a_group = np.bincount(position, differences), np.bincount(position).max()
    return intervals.sum_of_differences(differences, of_a_group * weights[0], of_a_group * weights[1])


def simplicity(memorised_heldout_queries, num_samples):
    """The count that held-out real images reach in the place of samples, scaled to M samples.

    How far real images of this data set look like copies under the protocol; a label beside a count, not a floor to
    subtract from it.

    memorised_heldout_queries  [H] bool: held-out images as queries, memorised with the training reference, H >= 1
    num_samples                M, the number of samples the count is compared with
    Returns                    float: M * share of held-out images that count
    Raises                     ValueError: not a bool mask, or empty.
    """
    _check_mask("memorised_heldout_queries", memorised_heldout_queries)
    num_queries = len(memorised_heldout_queries)
    if num_queries == 0:
        raise ValueError("memorised_heldout_queries is empty, expected at least one held-out image")
    return np.count_nonzero(memorised_heldout_queries) * num_samples / num_queries


class MatchedParts(NamedTuple):
    """Parts of the training set that compare with the held-out images: equal in number and in classes.

    parts            [F, R] int64: positions of training images, R >= 2
    heldout          [R] int64: positions of held-out images
    weight_train     [N] float64: what a hit on a training image counts, so that the F parts stand for the whole training set;
                     0 for images of a class that no held-out image has
    weight_heldout   [H] float64: the same for a hit on a held-out image, 0 for images that are not in `heldout`
    """

    parts: np.ndarray
    heldout: np.ndarray
    weight_train: np.ndarray
    weight_heldout: np.ndarray

    @property
    def num_train(self):
        """Number of training images that are compared: all but those of classes without a held-out image."""
        return int(np.count_nonzero(self.weight_train))

    def among(self, train, num_train, heldout, num_heldout):
        """The same parts by the positions that their images have among more images, which weigh nothing.

        train, heldout           [N], [H] int64: where the images lie that the parts are of
        num_train, num_heldout   numbers of images there
        """
        weight_train, weight_heldout = np.zeros(num_train), np.zeros(num_heldout)
        weight_train[train], weight_heldout[heldout] = self.weight_train, self.weight_heldout
        return MatchedParts(train[self.parts], heldout[self.heldout], weight_train, weight_heldout)

    def neighbours(self, k):
        """Neighbours that a ratio is taken over in a part or in the held-out set, where it is k in the training set.

        The same share of the images, so that the neighbourhood is as wide as in the training set, and at least 2:
        with k of fewer images it would be wider, and many more samples would count by chance.
        """
        return max(2, round(k * len(self.heldout) / self.num_train))


def matched_parts(train_labels, heldout_labels, rng):
    """Divides the training images at random into parts of the same size and class mix as the held-out images.

    A reference of more images, or of other classes, has nearer neighbours without any memorisation. Of class c, with n_c training
    and m_c held-out images, r_c = min(n_c, m_c) are in each part and in the held-out reference. There are F = max over c of
    ceil(n_c / r_c) parts. Each takes the next r_c of the class, in an order drawn at random that begins anew when it ends, so
    each image is in about F r_c / n_c of them. A hit on a training image counts n_c / (F r_c), one on a held-out image n_c / r_c.

    train_labels    [N] integer class of each training image; all equal where there are no classes
    heldout_labels  [H] integer class of each held-out image
    rng             numpy.random.Generator
    Returns         MatchedParts, or None where fewer than two held-out images match
    Raises          ValueError: labels not one-dimensional integers, or no class on both sides.
    """
    train_labels, heldout_labels = np.asarray(train_labels), np.asarray(heldout_labels)
    for role, labels in (("train", train_labels), ("heldout", heldout_labels)):
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(f"{role} labels are {labels.dtype} {labels.shape}, expected one integer per image")
    classes = np.intersect1d(train_labels, heldout_labels)
    if classes.size == 0:
        raise ValueError(
            f"train images have classes {np.unique(train_labels)} and held-out images {np.unique(heldout_labels)}, "
            "expected at least one in common"
        )
    members = [(np.flatnonzero(train_labels == c), np.flatnonzero(heldout_labels == c)) for c in classes]
    num_parts = max(-(-train.size // min(train.size, heldout.size)) for train, heldout in members)
    parts, chosen = [], []
    weight_train, weight_heldout = np.zeros(len(train_labels)), np.zeros(len(heldout_labels))
    for train, heldout in members:
        number = min(train.size, heldout.size)
        if train.size > number:
            train = rng.permutation(train)
        if heldout.size > number:
            heldout = rng.choice(heldout, number, replace=False)
        parts.append(np.resize(train, (num_parts, number)))
        chosen.append(heldout)
        weight_train[train] = train.size / (num_parts * number)
        weight_heldout[heldout] = train.size / number
    parts, chosen = np.sort(np.concatenate(parts, axis=1), axis=1), np.sort(np.concatenate(chosen))
    return MatchedParts(parts, chosen, weight_train, weight_heldout) if len(chosen) >= 2 else None


def _quotient(numerator, denominator):
    """numerator / denominator [M] float64, 0 where the denominator is 0."""
    quotient = np.zeros(numerator.shape, np.float64)
    return np.divide(numerator, denominator, out=quotient, where=denominator > 0)


def _check_mask(role, mask):
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 1:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"{role} is {found}, expected a one-dimensional bool array")
