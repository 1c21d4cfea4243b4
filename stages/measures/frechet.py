"""Frechet distance between two sets of vectors, and between two sets of images by their pixels.

Legend: D length of a vector, N images, H W C height, width and channels of an image.

The distance of pixels is not the one of Inception features and is never called FID. It needs no network and no
weights, and shows the coarse failures (colour, contrast, blur, collapse) of samples from short runs.
"""

from typing import NamedTuple

import numpy as np

MAX_SIDE_PX = 32  # of an image whose pixels are compared: 3 * 32^2 = 3,072 values, a covariance of 75 MB
SPLITS = 4  # of a set into halves, for what is chance in a distance
IMAGES_AT_ONCE = 2048  # 50 MB of float64 at 3,072 values


def frechet_distance(mean_sample, cov_sample, mean_train, cov_train):
    """Squared Frechet distance of two normal distributions (Dowson and Landau 1982; Heusel et al. 2017).

    |m_s - m_t|^2 + tr C_s + tr C_t - 2 tr (C_s^1/2 C_t C_s^1/2)^1/2

    mean_sample, mean_train  [D] float
    cov_sample, cov_train    [D, D] float, symmetric, no negative eigenvalue beyond rounding; any rank
    Returns                  float, >= 0 up to rounding, in the squared unit of the vectors; symmetric in the two roles
    Raises                   ValueError: shapes do not fit, or values not finite.

    With C = F F^T the last trace is the sum of the singular values of F_s^T F_t. F comes from the symmetric eigen
    decomposition. scipy.linalg.sqrtm of the product, the common way, fails or turns complex where a covariance has
    less than full rank, as it has whenever there are fewer images than values.
    """
    mean_sample, mean_train = np.asarray(mean_sample, np.float64), np.asarray(mean_train, np.float64)
    cov_sample, cov_train = np.asarray(cov_sample, np.float64), np.asarray(cov_train, np.float64)
    size = mean_train.size
    for role, mean, cov in (("sample", mean_sample, cov_sample), ("train", mean_train, cov_train)):
        if mean.shape != (size,) or cov.shape != (size, size):
            raise ValueError(
                f"{role} mean is {mean.shape} and cov {cov.shape}, expected ({size},) and ({size}, {size})"
            )
        if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
            raise ValueError(f"{role} mean or cov has values that are not finite")
    return _distance(_spread(mean_sample, cov_sample), _spread(mean_train, cov_train))


class Spread(NamedTuple):
    """What the distance needs of a set of vectors: mean [D], trace of the covariance C, and a factor F [D, R] with F F^T = C."""

    mean: np.ndarray
    trace: float
    factor: np.ndarray


def _spread(mean, cov):
    return Spread(mean, np.trace(cov), _factor(cov))


def _distance(sample, train):
    """`frechet_distance` of two Spreads."""
    cross = np.linalg.svd(sample.factor.T @ train.factor, compute_uv=False).sum()
    shift = sample.mean - train.mean
    return float(shift @ shift + sample.trace + train.trace - 2 * cross)


def pixel_moments(images):
    """Mean and covariance of pixels in [0, 1].

    images   [N, H, W, C] uint8, may be memory-mapped, N >= 2. A side longer than 32 is first averaged down to 32:
             whole pixels where 32 divides it, otherwise pixels weighted by the area they share with the new one.
    Returns  mean [D] and cov [D, D], float64, D = min(H, 32) min(W, 32) C; cov divides by N - 1.
    Raises   ValueError: not uint8, not four axes, fewer than two images.
    """
    _check_pixels(images)
    return _moments(images, _vectors)


def _check_pixels(images):
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) < 2:
        raise ValueError(f"images are {images.dtype} {images.shape}, expected uint8 [N, H, W, C] with N >= 2")


def feature_moments(features):
    """Mean and covariance of feature vectors, summed in float64 as pytorch-fid does.

    features [N, D] float, N >= 2
    Returns  mean [D] and cov [D, D], float64; cov divides by N - 1.
    Raises   ValueError: not two axes, fewer than two vectors.
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features are {features.shape}, expected [N, D] with N >= 2")
    return _moments(features, lambda block: block.astype(np.float64))


def fd_pixels(sample, train):
    """Frechet distance of the pixels of two sets of images, float64 in units of the [0, 1] pixel range squared.

    sample   [M, H, W, C] uint8, M >= 2
    train    [N, H, W, C] uint8, N >= 2
    Raises   ValueError: as pixel_moments, or different image shapes.
    """
    if sample.shape[1:] != train.shape[1:]:
        raise ValueError(
            f"sample images are {sample.shape[1:]} and train images {train.shape[1:]} (H, W, C), expected one shape"
        )
    return _distance(_pixel_spread(sample), _pixel_spread(train))


def fd_of_mean_image(images):
    """fd_pixels of a generator that gives out nothing but the mean image: the trace of the covariance. A scale for fd_pixels.

    images   as of pixel_moments
    Raises   ValueError: as pixel_moments
    """
    _check_pixels(images)
    mean = _mean(images, _vectors)
    return float(sum(((_vectors(block) - mean) ** 2).sum() for block in _blocks(images)) / (len(images) - 1))


def distance_of_halves(images, rng):
    """What chance alone makes of `fd_pixels`: the mean distance of the two halves of a set of images, divided at random SPLITS times.

    Few images have a covariance that is off by chance, which only ever adds to the distance: about c / M + c / N for M images compared with N
    of the same distribution, so that of two halves of n images each is 2 c / n.

    images    as of pixel_moments, N >= 4
    rng       numpy.random.Generator
    Returns   (n, distance)
    """
    num, found = len(images) // 2, []
    for _ in range(SPLITS):
        order = rng.permutation(len(images))
        found.append(fd_pixels(images[np.sort(order[:num])], images[np.sort(order[num : 2 * num])]))
    return num, float(np.mean(found))


def feature_distance_of_halves(features, rng):
    """What chance alone makes of the distance of two sets of feature vectors: that of the two halves of one set, divided at random.

    Of features it does not follow c / M + c / N while there are fewer vectors than values, as is usual with the 2,048 of Inception: so it
    is a scale, which is not carried over to other numbers of images.

    features  [N, D] float, N >= 4
    rng       numpy.random.Generator
    Returns   (n, distance), n = N // 2 vectors a half
    """
    num, order = len(features) // 2, rng.permutation(len(features))
    halves = [_feature_spread(features[np.sort(order[part * num : (part + 1) * num])]) for part in (0, 1)]
    return num, _distance(*halves)


def _feature_spread(features):
    """Spread of the features that `feature_moments` is of."""
    few = len(features) < features.shape[1]
    return _spread_of_few(features.astype(np.float64)) if few else _spread(*feature_moments(features))


def by_chance(num_half, distance, num_sample, num_others):
    """The same for M = num_sample images compared with N = num_others, from `distance_of_halves`: n d / 2 (1 / M + 1 / N)."""
    return num_half * distance / 2 * (1 / num_sample + 1 / num_others)


def _pixel_spread(images):
    """Spread of the pixels that `pixel_moments` is of."""
    num_values = int(np.prod([min(side, MAX_SIDE_PX) for side in images.shape[1:3]])) * images.shape[3]
    if images.dtype != np.uint8 or not 2 <= len(images) < num_values:
        return _spread(*pixel_moments(images))
    return _spread_of_few(_vectors(images))


def _spread_of_few(vectors):
    """Spread of fewer vectors than values: centred, they are themselves a factor of the covariance, which then need not be made: 200 images
    of 3,072 values take 0.1 s instead of a minute.

    vectors   [n,D] float64, 2 <= n < D
    """
    mean = vectors.mean(axis=0)
    factor = (vectors - mean).T / np.sqrt(len(vectors) - 1)
    return Spread(mean, (factor**2).sum(), factor)


def influences(sample, train):
    """How much each generated image pulls fd_pixels, to first order: what the error of the distance is made of.

    With m_s, C_s the moments of the sample, m_t, C_t those of the other set and T = C_t^1/2 (C_t^1/2 C_s C_t^1/2)^-1/2 C_t^1/2,

        psi_i = 2 (m_s - m_t) . (x_i - m_s) + (x_i - m_s)^T (I - T) (x_i - m_s) - tr (I - T) C_s

    is the influence function of the distance (its derivatives 2 (m_s - m_t) and I - T by the moments). The variance of the distance
    over draws of the sample is about that of the mean of psi. Directions in which either set does not vary are left out of T.

    sample, train   as in fd_pixels
    Returns         [M] float64, with mean 0 up to rounding, in the unit of fd_pixels
    """
    of_sample, of_train = _pixel_spread(sample), _pixel_spread(train)
    left, singular, _ = np.linalg.svd(of_train.factor.T @ of_sample.factor, full_matrices=False)
    kept = singular > singular[0] * len(singular) * np.finfo(np.float64).eps
    towards = of_train.factor @ (left[:, kept] / np.sqrt(singular[kept]))  # T = towards towards^T
    found = []
    for start in range(0, len(sample), IMAGES_AT_ONCE):
        centred = _vectors(sample[start : start + IMAGES_AT_ONCE]) - of_sample.mean
        stretched = (centred**2).sum(axis=1) - ((centred @ towards) ** 2).sum(axis=1)
        found.append(2 * centred @ (of_sample.mean - of_train.mean) + stretched)
    found = np.concatenate(found)
    return found - found.mean()


def _moments(items, vectors):
    """Mean and covariance of vectors(items), where vectors turns some items into [B, D] float64."""
    mean = _mean(items, vectors)
    # A second pass around the mean: E[xx] - E[x]E[x] would cancel where values hardly vary.
    cov = np.zeros((mean.size, mean.size))
    for block in _blocks(items):
        centred = vectors(block) - mean
        cov += centred.T @ centred
    return mean, cov / (len(items) - 1)


def _mean(items, vectors):
    return sum(vectors(block).sum(axis=0) for block in _blocks(items)) / len(items)


def _blocks(items):
    return [items[start : start + IMAGES_AT_ONCE] for start in range(0, len(items), IMAGES_AT_ONCE)]


def _factor(cov):
    """F [D, rank] with F F^T = cov. Eigenvalues within rounding of 0 are left out: their roots are not small."""
    values, vectors = np.linalg.eigh(cov)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _vectors(images):
    """Pixels [B, D] float64 in [0, 1] of images [B, H, W, C] uint8, sides averaged down to at most 32."""
    pixels = images / 255.0
    height, width = images.shape[1:3]
    if height > MAX_SIDE_PX:
        pixels = np.einsum("yh,bhwc->bywc", _area_weights(height), pixels, optimize=True)
    if width > MAX_SIDE_PX:
        pixels = np.einsum("xw,bywc->byxc", _area_weights(width), pixels, optimize=True)
    return pixels.reshape(len(images), -1)


def _area_weights(side):
    """Weights [32, side] of an area average along one axis: share of each old pixel in each new one, rows sum to 1."""
    edges = np.arange(MAX_SIDE_PX + 1) * side / MAX_SIDE_PX
    old = np.arange(side)
    overlap = np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old)
    return overlap.clip(min=0) * MAX_SIDE_PX / side
