"""Fig. 3: the groups against every way to choose them, the losses against numbers by hand."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages import randomness
from stages.diffusion import ddpm
from stages.measures import image_complexity, loss_profile

ALPHA_BAR = ddpm.alpha_bars(10, 0.01, 0.3).float()


def test_most_similar_by_hand():
    distance = np.array([0.5, np.inf, 0.1, 0.5, 0.2, np.inf])
    assert loss_profile.most_similar(distance, 3).tolist() == [2, 4, 0]  # of the two at 0.5 the first
    assert loss_profile.most_similar(distance, 6).tolist() == [2, 4, 0, 3]  # the others come near no generated image


def test_others_are_as_many_and_none_of_the_chosen():
    chosen = np.array([7, 1, 3])
    drawn = [loss_profile.others(8, chosen, np.random.default_rng(s)) for s in range(200)]
    assert {len(d) for d in drawn} == {3} and all(len(np.unique(d)) == 3 for d in drawn)
    assert set(np.concatenate(drawn)) == {0, 2, 4, 5, 6}
    assert loss_profile.others(6, np.array([5, 1, 3]), np.random.default_rng(0)).tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match=r"^3 of 5 training images were chosen, which leaves 2 .* at most half"):
        loss_profile.others(5, np.array([0, 1, 2]), np.random.default_rng(0))


def check_matched(matched):
    random = np.random.default_rng(0)
    for case in range(60):
        values = random.integers(0, 20, random.integers(1, 5)).astype(float)
        pool = random.integers(0, 20, random.integers(len(values), 7)).astype(float)
        found = matched(values, pool)
        assert len(set(found)) == len(values), f"case {case}: a member twice"
        least = min(np.abs(values - pool[list(p)]).sum() for p in itertools.permutations(range(len(pool)), len(values)))
        assert np.abs(values - pool[found]).sum() == least, f"case {case}"


def test_matched_is_the_best_of_all_ways():
    check_matched(loss_profile.matched)


def with_repeats(values, pool):
    return np.abs(values[:, None] - pool[None]).argmin(axis=1)


def one_after_the_other(values, pool):
    """Greedy: who comes first takes the nearest, the last gets what is left."""
    left, found = list(range(len(pool))), []
    for value in values:
        found.append(left.pop(int(np.abs(pool[left] - value).argmin())))
    return np.array(found)


@pytest.mark.parametrize("wrong", [with_repeats, one_after_the_other])
def test_the_check_tells_wrong_matches_from_the_right_one(wrong):
    with pytest.raises(AssertionError, match="case"):
        check_matched(wrong)


class Network(torch.nn.Module):
    """Predicts `share` of the noised image as its noise."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x, t):
        return SimpleNamespace(sample=self.share * x)


def eps_of(shape, seed, timestep, draw):
    generator = randomness.numpy_generator("loss_noise", seed, timestep, draw)
    return generator.standard_normal(shape, np.float32).astype(np.float64)


def test_losses_by_hand():
    images = torch.tensor([0, 255, 100], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 4, 4).contiguous()
    found = loss_profile.losses(Network(0.5), ddpm.normalise(images), [0, 7], 3, ALPHA_BAR, seed=5, batch_size=2)
    for i, grey in enumerate([-1.0, 1.0, 100 / 127.5 - 1]):
        for s, timestep in enumerate([0, 7]):
            signal = float(ALPHA_BAR[timestep])
            draws = [eps_of((1, 4, 4), 5, timestep, draw) for draw in range(3)]
            each = [((0.5 * (signal**0.5 * grey + (1 - signal) ** 0.5 * e) - e) ** 2).mean() for e in draws]
            assert found[i, s] == pytest.approx(np.mean(each), rel=1e-5)


def test_all_images_see_the_same_noise():
    """A network that predicts nothing has the mean squared noise as its loss: equal for images that see the same."""
    images = torch.randint(256, (7, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = loss_profile.losses(Network(0.0), ddpm.normalise(images), [0, 3, 9], 2, ALPHA_BAR, seed=1, batch_size=3)
    assert (found == found[0]).all() and len(np.unique(found[0])) == 3
    assert found[0, 1] == pytest.approx(np.mean([(eps_of((1, 4, 4), 1, 3, d) ** 2).mean() for d in (0, 1)]), rel=1e-6)


def test_fewer_timesteps_and_other_batches_change_no_loss():
    images = torch.randint(256, (5, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    every = loss_profile.losses(
        Network(0.3), ddpm.normalise(images), list(range(10)), 2, ALPHA_BAR, seed=1, batch_size=5
    )
    some = loss_profile.losses(Network(0.3), ddpm.normalise(images), [0, 4, 8], 2, ALPHA_BAR, seed=1, batch_size=2)
    assert every[:, [0, 4, 8]] == pytest.approx(some, rel=1e-6)
    other = loss_profile.losses(Network(0.3), ddpm.normalise(images), [0, 4, 8], 2, ALPHA_BAR, seed=2, batch_size=2)
    assert (other != some).all()


def test_a_loss_that_is_not_finite_is_refused():
    images = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(FloatingPointError, match="not finite: the model has diverged"):
        loss_profile.losses(Network(float("nan")), ddpm.normalise(images), [0], 1, ALPHA_BAR, seed=0, batch_size=1)


def test_band_by_hand():
    mean, low, high = loss_profile.band(np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [14.0, 5.0]]))
    assert mean.tolist() == [4, 5] and low.tolist() == [1, 5] and high.tolist() == [3, 5]


def test_the_control_is_as_simple_as_the_memorised_images():
    """Memorised images of low variance among varied held-out ones: the random held-out image is far less simple."""
    random = np.random.default_rng(0)
    contrast = random.uniform(5, 120, 200)
    heldout = (128 + contrast[:, None, None, None] * random.uniform(-1, 1, (200, 8, 8, 1))).astype(np.uint8)
    memorised = (128 + 20 * random.uniform(-1, 1, (10, 8, 8, 1))).astype(np.uint8)
    wanted, pool = image_complexity.pixel_variance(memorised), image_complexity.pixel_variance(heldout)
    chosen = loss_profile.matched(wanted, pool)
    assert np.abs(pool[chosen] - wanted).max() < 0.3 * wanted.mean()
    assert np.median(pool) > 5 * wanted.mean()
