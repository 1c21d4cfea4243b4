"""Do generated images copy the training images? Three measures of the literature, on features of images.

N training images, P held-out (test) images, M generated images, D features.

authenticity   share of the generated images that are not too close to a training image (Alaa et al. 2022)
C_T            whether generated images are closer to the training images than test images are (Meehan et al. 2020)
FLD gap        whether a density of the generated images gives training images a higher likelihood than test images (Jiralerspong et al. 2023)

None of them tells copies from poor images: a blurred image is far from every training image, and so is authentic, and raises C_T.
So each is read beside the same measure of held-out images and of a copycat.
"""

import math

import numpy as np

CELLS, COMPONENTS, LEAST = 3, 64, 20  # of C_T, as in its authors' code and in dgm-eval
AT_ONCE = 2**24  # pairs of images
MOST = 10_000  # training images of FLD: with 2,000 generated ones a minute and 2 GB
# Of the widths of FLD, as in its authors' code: passes of Adam and its rate, images in a step, bounds of log s^2, and the share of its distance
# to the mean of the training images that the Gaussian around this mean sees of an image.
PASSES, RATE, IN_A_STEP, BOUNDS, SHARE = 50, 0.5, 10_000, (-40, 20), 0.9


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
    cells, weighted by their test images, without cells that have fewer than LEAST of the generated or of the test images. In the authors' code and
    in dgm-eval a cell must have more than LEAST generated images, and test images are not counted.

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
    """Gap of the Feature Likelihood Divergence between training and test images (Jiralerspong et al. 2023), as in its authors' code (marcojira/fld).

    The density is a mean of Gaussians around the generated images, p(y) = 1/M sum_j N(y; x_j, s_j^2 I), whose widths s_j are fitted to the
    training images, see `_widths`. With L the mean logarithm of p in 1/100 nats a feature, the gap is L(test) - L(train): a copy is a narrow
    Gaussian around a training image, which no test image profits from. Features are scaled to mean 0 and variance 1 over the test images.

    Three things differ: all is in float64 here, in float32 there; a feature that is the same in all test images stays as it is, where
    theirs divides by 0; and there the generated images are 10,000 at most.

    generated   [M,D]
    test        [P,D], P >= 2
    train       [N,D] in random order, as of more than IN_A_STEP images each step of the fit takes the next so many
    Returns     float: 0 where training and test images are as likely; the lower, the more is copied. Below 0 a little for any images, as the
                widths are fitted to the training images; without bound where all generated images are copies to the last digit
    """
    from scipy.special import logsumexp

    mean, scale = test.mean(axis=0), np.where(np.ptp(test, axis=0) > 0, test.std(axis=0, ddof=1), 1)
    generated, test, train = ((images - mean) / scale for images in (generated, test, train))
    num_features = train.shape[1]
    to_train, to_test = (_squares(images, generated) for images in (train, test))
    log_variance = _widths(to_train, ((train - train.mean(axis=0)) ** 2).sum(axis=1), num_features)

    def likelihood(squares):  # but for what cancels
        each = -squares / (2 * np.exp(log_variance)) - num_features / 2 * log_variance
        return logsumexp(each, axis=1).mean()

    return float(100 * (likelihood(to_test) - likelihood(to_train)) / num_features)


def _widths(squares, to_mean, num_features):
    """Logarithms of the variances s_j^2 of the Gaussians of FLD.

    They begin at the training image that is nearest to each, log((min_i |y_i - x_j|^2 + 0.001) / D). Adam then lowers the mean of -log q(y_i) / D,
    q(y) = p(y) + N(SHARE y + (1 - SHARE) m; m, s_0^2 I), with m the mean of the training images and s_0, which begins at 1, fitted too: without
    that further Gaussian, training images far from all generated ones would widen those. It is no part of the density that is judged.

    squares        [N,M] float64: |y_i - x_j|^2 of training images y_i and generated images x_j
    to_mean        [N] float64: |y_i - m|^2
    num_features   D
    Returns        [M] float64
    """
    import torch

    squares, to_mean = torch.from_numpy(squares), torch.from_numpy(to_mean)
    log_variance = ((squares.min(dim=0).values + 1e-3) / num_features).log().requires_grad_()
    of_mean = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_variance, of_mean], lr=RATE)
    for _ in range(PASSES):
        for part, part_to_mean in zip(squares.split(IN_A_STEP), to_mean.split(IN_A_STEP), strict=True):
            each = -part / (2 * log_variance.exp()) - num_features / 2 * log_variance - math.log(squares.shape[1])
            far = -(SHARE**2) * part_to_mean / (2 * of_mean.exp()) - num_features / 2 * of_mean
            loss = -torch.cat([each, far[:, None]], dim=1).logsumexp(dim=1).mean() / num_features
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                log_variance.clamp_(*BOUNDS)
    return log_variance.detach().numpy()


def _squares(images, others):
    """Squared distances of all pairs: [n,m]."""
    from scipy.spatial.distance import cdist

    return cdist(images, others, "sqeuclidean")


def measures(generated, test, train, rng):
    """All three: dict authenticity, c_t, fld_gap. The last takes the training images in random order, and MOST of them at most, where its
    authors take all.

    generated, test, train   [M,D], [P,D], [N,D] of any type
    rng                      numpy.random.Generator
    """
    generated, test, train = (np.asarray(images, np.float64) for images in (generated, test, train))
    order = rng.permutation(len(train))[:MOST]
    return {
        "authenticity": authenticity(generated, train),
        "c_t": c_t(generated, test, train, rng),
        "fld_gap": fld_gap(generated, test, train[order]),
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
