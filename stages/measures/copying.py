"""Do generated images copy the training images? Three measures of the literature, on features of images.

N training images, P held-out (test) images, M generated images, D features.

authenticity   share of the generated images that are not too close to a training image (Alaa et al. 2022)
C_T            whether generated images are closer to the training images than test images are (Meehan et al. 2020)
FLD gap        whether a density of the generated images gives training images a higher likelihood than test images (Jiralerspong et al. 2023)

None of them tells copies from poor images: a blurred image is far from every training image, and so is authentic, and raises C_T.
So each is read beside the same measure of held-out images and of a copycat.
"""

import numpy as np

CELLS, COMPONENTS, LEAST = 3, 64, 20  # of C_T, as in its authors' code and in dgm-eval
AT_ONCE = 2**24  # pairs of images
ROUNDS, NARROWEST = 100, 1e-4  # of the widths of FLD: the variance of a Gaussian whose image is a training image


def authenticity(generated, train):
    """Share of the generated images that are authentic (Alaa et al. 2022, Section 3.3).

    With r the training image nearest to a generated image x, x is authentic where |x - r| > min over other training images r' of |r - r'|.

    generated   [M,D]
    train       [N,D], N >= 2
    Returns     float in [0, 1]: 0 for copies; about one half for images like the training images
    """
    distance, nearest = _nearest(generated, train)
    originals, place = np.unique(nearest, return_inverse=True)
    return float((distance > _nearest(train[originals], train, originals)[0][place]).mean())


def c_t(generated, test, train, rng):
    """The statistic C_T of Meehan, Chaudhuri and Dasgupta (2020), Eq. 4.

    The space is divided into cells by k-means of the training images (on their first principal components). In each cell, U is the number of pairs of
    a generated and a test image of which the generated one is farther from the nearest training image of the cell, as a standard
    normal variable under the hypothesis that both are as far: Z = (U - (n m / 2 - 1/2)) / sqrt(n m (n + m + 1) / 12). C_T is the mean of Z over
    cells, weighted by their test images, without cells that have fewer than LEAST of the generated or of the test images.

    generated   [M,D]
    test        [P,D]: images of the same distribution as the training images
    train       [N,D], N >= CELLS
    rng         numpy.random.Generator, of the k-means
    Returns     float: below about -3 generated images copy, above 3 they are farther away than new images are; None where no cell has
                enough images
    """
    from sklearn.cluster import KMeans

    mean, axes = _principal(train)
    train, test, generated = ((images - mean) @ axes for images in (train, test, generated))
    cells = KMeans(CELLS, n_init=10, random_state=int(rng.integers(2**31))).fit(train)
    placed = [cells.predict(images) for images in (train, test, generated)]
    total = weight = 0.0
    for cell in range(CELLS):
        own, tested, made = (
            images[place == cell] for images, place in zip((train, test, generated), placed, strict=True)
        )
        if not len(own) or len(tested) < LEAST or len(made) < LEAST:
            continue
        total += len(tested) * _further(_nearest(made, own)[0], _nearest(tested, own)[0])
        weight += len(tested)
    return total / weight if weight else None


def _further(generated, test):
    """Mann and Whitney's U of generated above test, standardised: ties count half."""
    from scipy.stats import rankdata

    m, n = len(generated), len(test)
    above = rankdata(np.concatenate([generated, test]))[:m].sum() - m * (m + 1) / 2
    return (above - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12)


def _principal(train):
    """Mean and the axes of the first COMPONENTS principal components of images [N,D]: [D] and [D,c]."""
    mean = train.mean(axis=0)
    _, _, axes = np.linalg.svd(train - mean, full_matrices=False)
    return mean, axes[:COMPONENTS].T


def fld_gap(generated, test, train):
    """Gap of the Feature Likelihood Divergence between training and test images (Jiralerspong et al. 2023).

    The density is a mean of Gaussians around the generated images, p(y) = 1/M sum_j N(y; x_j, s_j^2 I), whose widths s_j are those that give
    the training images the highest likelihood. With L the mean logarithm of p in 1/100 nats a feature, the gap is L(test) - L(train): a copy is
    a narrow Gaussian around a training image, which no test image profits from. Features are scaled to mean 0 and variance 1 over the training
    images. The widths are found by expectation maximisation, where the authors' code has 50 steps of Adam: with r_ij the share of the density at
    training image y_i that is of Gaussian j, s_j^2 = sum_i r_ij |y_i - x_j|^2 / (D sum_i r_ij), ROUNDS times, and at least NARROWEST.

    generated   [M,D]
    test        [P,D]
    train       [N,D]
    Returns     float: 0 where training and test images are as likely; the lower, the more is copied. Below 0 a little for any images, as the
                widths are fitted to the training images
    """
    from scipy.special import logsumexp

    mean, scale = train.mean(axis=0), train.std(axis=0)
    generated, test, train = ((images - mean) / np.where(scale > 0, scale, 1) for images in (generated, test, train))
    num_features = train.shape[1]
    to_train, to_test = (_squares(images, generated) for images in (train, test))

    def parts(squares, variance):  # [n,M]: logarithms of the Gaussians, but for what cancels
        return -squares / (2 * variance) - num_features / 2 * np.log(variance)

    variance = np.full(len(generated), to_train.mean() / num_features)
    for _ in range(ROUNDS):
        each = parts(to_train, variance)
        shares = np.exp(each - logsumexp(each, axis=1, keepdims=True))
        weight = shares.sum(axis=0)
        fitted = (shares * to_train).sum(axis=0) / np.where(weight > 0, num_features * weight, 1)
        variance = np.where(weight > 0, np.maximum(fitted, NARROWEST), variance)
    likelihood = [logsumexp(parts(squares, variance), axis=1).mean() for squares in (to_test, to_train)]
    return float(100 * (likelihood[0] - likelihood[1]) / num_features)


def _squares(images, others):
    """Squared distances of all pairs: [n,m]."""
    from scipy.spatial.distance import cdist

    return cdist(images, others, "sqeuclidean")


def measures(generated, test, train, rng):
    """All three: dict authenticity, c_t, fld_gap. The last is of as many training images as test images, drawn at random, or of all where there
    are fewer.

    generated, test, train   [M,D], [P,D], [N,D] of any type
    rng                      numpy.random.Generator
    """
    generated, test, train = (np.asarray(images, np.float64) for images in (generated, test, train))
    as_many = rng.permutation(len(train))[: len(test)]
    return {
        "authenticity": authenticity(generated, train),
        "c_t": c_t(generated, test, train, rng),
        "fld_gap": fld_gap(generated, test, train[as_many]),
    }


def _nearest(images, others, own=None):
    """Distance to the nearest of others, and which: two [n]. own: [n] the one of others that an image is itself, and is not compared with."""
    from scipy.spatial.distance import cdist

    rows, distance, nearest = max(1, AT_ONCE // len(others)), [], []
    for start in range(0, len(images), rows):
        found = cdist(images[start : start + rows], others)
        if own is not None:
            found[np.arange(len(found)), own[start : start + rows]] = np.inf
        nearest.append(found.argmin(axis=1))
        distance.append(found.min(axis=1))
    return np.concatenate(distance), np.concatenate(nearest)
