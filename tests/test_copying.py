"""Measures of data copying against loops, published formulas and a copycat."""

import math

import numpy as np
import pytest
from scipy import stats
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


def planted():
    """120 test, 130 generated and 150 training images of five features, in three heaps of unequal size; 40 generated ones are nearly copies."""
    images = np.sin(np.arange(1, 2001) ** 1.3).reshape(400, 5) * np.arange(1, 6)
    images[:, 0] += 30 * (np.arange(400) ** 2 % 7 % 3)
    train, test, generated = images[:150], images[150:270], images[270:].copy()
    generated[:40] = train[:40] + 0.1 * generated[:40]
    return generated, test, train


@pytest.mark.parametrize(("in_a_step", "expected"), [(10_000, -60.5561450605), (64, -60.0735334166)])
def test_the_gap_is_what_its_authors_code_finds(monkeypatch, in_a_step, expected):
    """Numbers of marcojira/fld at 245ac7c, MoG.py and FLD.py, run in float64 on these features (in float32: -60.55607); and with 64 images in a step."""
    monkeypatch.setattr(copying, "IN_A_STEP", in_a_step)
    assert copying.fld_gap(*planted()) == pytest.approx(expected, rel=1e-7)


def test_authenticity_and_c_t_are_what_dgm_eval_finds():
    """Numbers of layer6ai-labs/dgm-eval at d57a6d2, authpct.py and ct.py, run on these features. The smallest heap has too few images for C_T."""
    generated, test, train = planted()
    assert 100 * copying.authenticity(generated, train) == pytest.approx(37.692307, abs=1e-5)
    assert copying.c_t(generated, test, train, np.random.default_rng(0)) == pytest.approx(0.97226168730, rel=1e-7)


@pytest.mark.parametrize("value", [0.0, 0.1])  # the standard deviation of equal numbers that are rounded is not 0
def test_a_feature_that_the_test_images_share_is_not_scaled(value):
    generated, test, train = (np.hstack([images, np.full((len(images), 1), value)]) for images in planted())
    whole = copying.fld_gap(generated, test, train)
    generated[:, 5] += 0.0001  # which is far away only for a scale of next to nothing
    assert whole < -50 and copying.fld_gap(generated, test, train) == pytest.approx(whole, abs=0.1)


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


def test_the_gap_is_of_all_training_images_in_random_order_or_of_the_most_that_it_takes(monkeypatch):
    seen = []
    monkeypatch.setattr(copying, "fld_gap", lambda generated, test, train: seen.append(train) or 0.0)
    train, test = RANDOM.normal(size=(90, 3)), RANDOM.normal(size=(40, 3))
    copying.measures(test, test, train, np.random.default_rng(0))
    assert not np.array_equal(seen[0], train)
    assert np.array_equal(np.sort(seen[0], axis=0), np.sort(train, axis=0))
    monkeypatch.setattr(copying, "MOST", 30)
    copying.measures(test, test, train, np.random.default_rng(0))
    assert np.array_equal(seen[1], seen[0][:30])
