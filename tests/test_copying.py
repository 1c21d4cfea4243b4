"""Measures of data copying against loops, published formulas and a copycat."""

import math

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.cluster import KMeans

from stages.measures import copying, frechet

RANDOM = np.random.default_rng(0)


def far(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def test_authenticity_by_loops(monkeypatch):
    train, generated = RANDOM.integers(0, 6, (17, 3)).astype(float), RANDOM.integers(0, 6, (29, 3)).astype(float)
    authentic = 0
    for x in generated:
        r = min(range(17), key=lambda i: far(x, train[i]))
        authentic += far(x, train[r]) > min(far(train[r], train[i]) for i in range(17) if i != r)
    assert 0 < authentic < 29
    for at_once in (2**24, 50):
        monkeypatch.setattr(copying, "AT_ONCE", at_once)
        assert copying.authenticity(generated, train) == authentic / 29
    assert copying.authenticity(train, train) == 0


def test_c_t_of_one_cell_is_the_u_test_of_scipy(monkeypatch):
    monkeypatch.setattr(copying, "CELLS", 1)
    train, test, generated = (RANDOM.normal(size=(n, 4)) for n in (40, 30, 50))
    generated *= 1.3
    to_train = [[min(far(x, r) for r in train) for x in images] for images in (generated, test)]
    u = stats.mannwhitneyu(*to_train).statistic
    expected = (u - (30 * 50 / 2 - 0.5)) / math.sqrt(30 * 50 * 81 / 12)
    assert copying.c_t(generated, test, train, np.random.default_rng(0)) == pytest.approx(expected) and expected > 1


def test_c_t_is_a_mean_over_cells_by_their_test_images_and_leaves_small_cells_out():
    """Three clusters far apart. In the first all is copied, in the second nothing; the third has 19 generated images."""
    centres = np.array([[0, 0], [100, 0], [0, 100]])
    train, test, generated = [], [], []
    for centre, num_test, num_made, spread in zip(centres, (30, 60, 40), (40, 25, 19), (0.01, 5, 0.0)):
        own = centre + RANDOM.normal(size=(30, 2))
        train.append(own)
        test.append(centre + RANDOM.normal(size=(num_test, 2)))
        generated.append(own[RANDOM.integers(30, size=num_made)] + spread * RANDOM.normal(size=(num_made, 2)))

    def z(cell):
        m, t = ([min(far(x, r) for r in train[cell]) for x in images[cell]] for images in (generated, test))
        u = sum((a > b) + 0.5 * (a == b) for a in m for b in t)
        return (u - (len(m) * len(t) / 2 - 0.5)) / math.sqrt(len(m) * len(t) * (len(m) + len(t) + 1) / 12)

    found = copying.c_t(*(np.concatenate(images) for images in (generated, test, train)), np.random.default_rng(0))
    assert found == pytest.approx((30 * z(0) + 60 * z(1)) / 90)
    few = [np.concatenate(images) for images in (generated, test, train)]
    assert copying.c_t(few[0][:10], few[1], few[2], np.random.default_rng(0)) is None


def test_c_t_takes_the_nearest_training_image_of_the_same_cell():
    """One cloud, whose cells touch: for many images the nearest training image is one of the cell beside."""
    train, test, generated = (RANDOM.normal(size=(n, 2)) for n in (50, 150, 130))
    centred = [images - train.mean(axis=0) for images in (train, test, generated)]
    axes = np.linalg.eigh(centred[0].T @ centred[0])[1]  # C_T turns the axes too, which changes no distance
    state = int(np.random.default_rng(0).integers(2**31))
    cells = KMeans(3, n_init=10, random_state=state).fit(centred[0] @ axes)
    place = [cells.predict(images @ axes) for images in centred]

    def nearest(x, cell):
        return min(far(x, r) for r in train[place[0] == cell])

    total = other = weight = 0
    for cell in range(3):
        t, m = test[place[1] == cell], generated[place[2] == cell]
        assert min(len(t), len(m)) >= 20
        other += sum(nearest(x, cell) > min(far(x, r) for r in train) for x in m)
        u = sum((nearest(x, cell) > nearest(y, cell)) for x in m for y in t)
        spread = math.sqrt(len(m) * len(t) * (len(m) + len(t) + 1) / 12)
        total, weight = total + len(t) * (u - (len(m) * len(t) / 2 - 0.5)) / spread, weight + len(t)
    assert other > 3
    assert copying.c_t(generated, test, train, np.random.default_rng(0)) == pytest.approx(total / weight)


def test_the_gap_of_one_gaussian_is_that_of_its_best_width():
    """One generated image: the best variance is the mean square of the scaled distances, by the likelihood's derivative."""
    train, test, generated = RANDOM.normal(size=(40, 3)), 2 * RANDOM.normal(size=(25, 3)), RANDOM.normal(size=(1, 3))
    scaled = [(images - train.mean(axis=0)) / train.std(axis=0) for images in (generated, test, train)]
    squares = [((images - scaled[0]) ** 2).sum(axis=1) for images in scaled[1:]]
    variance = squares[1].mean() / 3
    expected = 100 * (-squares[0].mean() / 2 / variance + squares[1].mean() / 2 / variance) / 3
    assert copying.fld_gap(generated, test, train) == pytest.approx(expected, rel=1e-6)


def test_the_gap_has_a_width_for_each_image():
    """Two generated images far apart, each amid training images spread otherwise: the likelihoods by hand with two widths."""
    near, wide = 0.3 * RANDOM.normal(size=(60, 2)), 1.5 * RANDOM.normal(size=(60, 2)) + 20
    train, generated = np.concatenate([near, wide]), np.array([[0.0, 0.0], [20.0, 20.0]])
    test = np.concatenate([0.5 * near[:10], 0.5 * (wide[:10] - 20) + 20])
    scale = train.std(axis=0)
    widths = [((part - centre) / scale) ** 2 for part, centre in zip((near, wide), generated, strict=True)]
    variances = [part.sum(axis=1).mean() / 2 for part in widths]
    likelihood = [np.mean([-(s.sum(axis=1) / 2 / v + np.log(v)).mean() for s, v in zip(parts, variances, strict=True)])
                  for parts in (widths, [widths[0][:10] / 4, widths[1][:10] / 4])]  # fmt: skip
    assert copying.fld_gap(generated, test, train) == pytest.approx(100 * (likelihood[1] - likelihood[0]) / 2, rel=1e-6)


def test_the_widths_are_those_of_the_highest_likelihood_where_gaussians_overlap():
    """Three Gaussians amid each other, by scipy's densities and its own search for the widths."""
    random = np.random.default_rng(4)
    train, test, generated = random.normal(size=(50, 3)), random.normal(size=(30, 3)), random.normal(size=(3, 3))
    scaled = [(images - train.mean(axis=0)) / train.std(axis=0) for images in (generated, test, train)]

    def likelihood(log_width, images):
        each = [
            stats.multivariate_normal(x, np.exp(2 * w) * np.eye(3)).pdf(images)
            for x, w in zip(scaled[0], log_width, strict=True)
        ]
        return np.log(np.mean(each, axis=0)).mean()

    found = optimize.minimize(lambda w: -likelihood(w, scaled[2]), np.zeros(3), tol=1e-12).x
    assert np.ptp(found) > 0.1
    expected = 100 * (likelihood(found, scaled[1]) - likelihood(found, scaled[2])) / 3
    assert copying.fld_gap(generated, test, train) == pytest.approx(expected, rel=1e-3, abs=0.01)


def test_each_finds_out_a_copycat_and_the_frechet_distance_does_not():
    images = RANDOM.normal(size=(900, 8)) * np.arange(1, 9)
    train, test, new = images[:300], images[300:600], images[600:]
    copies = train[RANDOM.integers(300, size=300)] + 0.01 * RANDOM.normal(size=(300, 8))
    honest, copied = (copying.measures(made, test, train, np.random.default_rng(0)) for made in (new, copies))
    assert 0.3 < honest["authenticity"] < 0.7 and copied["authenticity"] == 0
    assert abs(honest["c_t"]) < 3 and copied["c_t"] < -10
    assert honest["fld_gap"] > -10 and copied["fld_gap"] < 3 * honest["fld_gap"] - 30

    def distance(made):
        (a, b), (c, d) = frechet.feature_moments(made), frechet.feature_moments(train)
        return frechet.frechet_distance(a, b, c, d)

    assert distance(copies) < distance(new)  # a copycat is as close as can be


def test_poor_images_pass_for_original_ones():
    """Why the measures stand beside reference rows: noise has nothing of the training images, and scores above new images."""
    train, test, new = (RANDOM.normal(size=(200, 6)) for _ in range(3))
    noise = 3 * RANDOM.normal(size=(200, 6))
    honest, poor = (copying.measures(made, test, train, np.random.default_rng(0)) for made in (new, noise))
    assert poor["authenticity"] > honest["authenticity"] + 0.2 and poor["c_t"] > honest["c_t"] + 3


def test_the_gap_is_of_as_many_training_images_as_test_images(monkeypatch):
    seen = []
    monkeypatch.setattr(copying, "fld_gap", lambda generated, test, train: seen.append(train) or 0.0)
    train, test = RANDOM.normal(size=(90, 3)), RANDOM.normal(size=(40, 3))
    copying.measures(test, test, train, np.random.default_rng(0))
    copying.measures(test, test, train[:30], np.random.default_rng(0))
    assert [len(rows) for rows in seen] == [40, 30] and not np.array_equal(seen[0], train[:40])
