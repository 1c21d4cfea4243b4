"""How sure it is that a generated image which looks like a copy is one.

M generated images, compared with F parts of the training set and with a held-out set that is as large as each part
(memorisation.matched_parts). No model has seen the held-out images, so their ratios are those that come by chance.
"""

import numpy as np

LEAKED = 0.95  # from this confidence on an image counts as leaked; below it is a candidate
TAIL = 10  # lowest held-out ratios that say how fast chance falls off towards 0


def of_copies(ratios, weights, heldout_ratios, heldout_weights):
    """The confidence that each generated image is a copy, and not one by chance: 1 - the local false discovery rate.

    With T(r) the comparisons with parts of the training set whose ratio is at most r, and H(r) those of them that are expected by
    chance (`expected_by_chance`), the local false discovery rate is fdr(r) = dH / dT, the share of chance among the comparisons at
    ratio r (Efron et al. 2001). It is taken to rise with r, so it is the slope of the greatest convex minorant of H over T (Grenander
    1956), which an isotonic regression gives, and it is cut off at 1. Of the images with a confidence near c about a share c are copies.
    A q-value would say that of all images with a ratio up to r; those at r itself are less sure than it.

    ratios            [F,M] float64: ratio of each image in each part, lower is nearer to a copy; the lowest one speaks for an image
    weights           [F,M] float64 > 0: what a hit there counts, so that the parts stand for the whole training set
    heldout_ratios    [M] float64: ratio of each image in the held-out set
    heldout_weights   [M] float64 > 0: what a hit there counts
    Returns           [M] float64 in [0, 1]
    Raises            ValueError: shapes that do not go together, or no image
    """
    from scipy.optimize import isotonic_regression  # takes a while to import

    if (
        not ratios.size
        or ratios.shape != weights.shape
        or not (ratios.shape[1:] == heldout_ratios.shape == heldout_weights.shape)
    ):
        shapes = [array.shape for array in (ratios, weights, heldout_ratios, heldout_weights)]
        raise ValueError(f"found {shapes}, expected [F,M] twice and [M] twice, F and M at least 1")
    values, position = np.unique(ratios, return_inverse=True)
    found = np.bincount(position.ravel(), weights.ravel())
    by_chance = np.diff(expected_by_chance(values, heldout_ratios, heldout_weights), prepend=0.0)
    fdr = isotonic_regression(by_chance / found, weights=found).x
    return 1 - np.minimum(fdr[position.reshape(ratios.shape).min(axis=0)], 1)


def expected_by_chance(values, heldout_ratios, heldout_weights):
    """How many comparisons with the training set have a ratio up to each value by chance: the weights of the held-out ratios up to it.

    Few held-out ratios lie at the low end, and none among M is no proof of none among F M. Below the TAIL-th lowest, u, the number
    falls as a power of the ratio, H(u) (r / u)^d, as distances to the nearest of points with a smooth density in d dimensions do. d is
    estimated from the TAIL - 1 below u by Hill (1975), without bias; Levina and Bickel (2005) estimate dimensions so. Where more were
    seen, these count.

    values            [V] float64 >= 0
    heldout_ratios, heldout_weights   as in `of_copies`
    Returns           [V] float64
    """
    order = np.argsort(heldout_ratios, kind="stable")
    lowest, summed = heldout_ratios[order], np.concatenate([[0.0], np.cumsum(heldout_weights[order])])
    seen = summed[np.searchsorted(lowest, values, side="right")]
    num = min(TAIL, len(lowest))
    upper, below = lowest[num - 1], lowest[: num - 1]
    below = below[below > 0]
    logs = np.log(upper / below).sum() if len(below) else 0.0
    dimension = max(len(below) - 1, 0) / logs if logs else (np.inf if len(below) > 1 else 0.0)
    if upper == 0:
        return seen
    return np.maximum(seen, summed[num] * np.minimum(values / upper, 1) ** dimension * (values <= upper))
