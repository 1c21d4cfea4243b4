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

from stages.measures.intervals import NORMAL_97_5


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


def excess(memorised_train, memorised_heldout):
    """How many more samples count against the training images than against as many images no model has seen.

    The same M samples are scored against both references, so the interval is that of paired differences:
    d_i = memorised_train_i - memorised_heldout_i in {-1, 0, 1}, excess = sum d_i, and
    low, high = excess -+ 1.96 sqrt(M) s with s^2 = sum (d_i - mean d)^2 / (M - 1).
    Taking the two counts as independent would ignore that simple images count against both.

    memorised_train    [M] bool: memorised with the training reference, M >= 2
    memorised_heldout  [M] bool: memorised with a held-out reference of the same size and class mix (class_matched)
    Returns            (excess int in [-M, M], low float64, high float64): the 95 % normal interval, not clipped.
                       It has no width where all d_i are equal, which says nothing about rare events then.
    Raises             ValueError: not bool masks of one length, or fewer than two samples.
    """
    _check_mask("memorised_train", memorised_train)
    _check_mask("memorised_heldout", memorised_heldout)
    num_samples = len(memorised_train)
    if len(memorised_heldout) != num_samples or num_samples < 2:
        raise ValueError(
            f"memorised_train has {num_samples} samples and memorised_heldout {len(memorised_heldout)}, "
            "expected the same samples in both, at least 2"
        )
    difference = memorised_train.astype(np.float64) - memorised_heldout.astype(np.float64)
    total = int(difference.sum())
    half_width = NORMAL_97_5 * np.sqrt(num_samples) * difference.std(ddof=1)
    return total, float(total - half_width), float(total + half_width)


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


def class_matched(train_labels, heldout_labels, rng):
    """Two references of the same size and class mix, as large as both sides allow.

    A reference of more images, or of other classes, has nearer neighbours without any memorisation.

    train_labels    [N] integer class of each training image; all equal where there are no classes
    heldout_labels  [H] integer class of each held-out image
    rng             numpy.random.Generator, used only for classes of unequal number
    Returns         (train_indices, heldout_indices), both [R] int64, ascending, without repeats: min(n_c train,
                    n_c held-out) of every class c, drawn without replacement where a side has more
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
    train_parts, heldout_parts = [], []
    for label in classes:
        train_members = np.flatnonzero(train_labels == label)
        heldout_members = np.flatnonzero(heldout_labels == label)
        number = min(train_members.size, heldout_members.size)
        train_parts.append(_draw(train_members, number, rng))
        heldout_parts.append(_draw(heldout_members, number, rng))
    return np.sort(np.concatenate(train_parts)), np.sort(np.concatenate(heldout_parts))


def _draw(members, number, rng):
    return members if members.size == number else rng.choice(members, number, replace=False)


def _quotient(numerator, denominator):
    """numerator / denominator [M] float64, 0 where the denominator is 0."""
    quotient = np.zeros(numerator.shape, np.float64)
    return np.divide(numerator, denominator, out=quotient, where=denominator > 0)


def _check_mask(role, mask):
    if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 1:
        found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"{role} is {found}, expected a one-dimensional bool array")
