"""Membership inference against statistics written out by hand, scikit-learn, and networks of which it is known what they have learnt."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import datasets, metrics

from stages import randomness
from stages.diffusion import ddpm, unet, weights
from stages.measures import membership
from stages.pixels import initial_weights

T, SHARES = 300, [0.01, 0.05, 0.11, 0.2, 0.2001, 0.99]  # a DDIM step of 3; no further step fits after the last
AT = [3, 15, 33, 60]
ALPHA_BARS = ddpm.alpha_bars(T, 1e-3, 0.05)
MODEL = {"block_channels": [8, 16], "attention_levels": [], "layers_per_block": 1, "norm_groups": 4, "dropout": 0.0}


def said(x, t, label):
    """The noise that the stand-in for a network predicts, in numpy and in torch alike: not linear, of one pixel's neighbour too."""
    tanh = torch.tanh if isinstance(x, torch.Tensor) else np.tanh
    moved = torch.roll(x, 1, -1) if isinstance(x, torch.Tensor) else np.roll(x, 1, -1)
    return tanh((1 + t / T) * x - 0.3 * moved) + 0.2 * label


def network(x, t, class_labels):
    return SimpleNamespace(sample=said(x, t.view(-1, 1, 1, 1), class_labels.view(-1, 1, 1, 1)))


def by_hand(x_0, label, seed, num_draws):
    """Statistics of one image [C,H,W] float64, as the papers have them."""
    found = {name: [] for name in membership.ATTACKS}
    a = ALPHA_BARS.numpy()

    def ddim(x, noise, t, to):
        return math.sqrt(a[to]) * (x - math.sqrt(1 - a[t]) * noise) / math.sqrt(a[t]) + math.sqrt(1 - a[to]) * noise

    for t in AT:
        losses = []
        for draw in range(num_draws):
            eps = randomness.numpy_generator("loss_noise", seed, t, draw).standard_normal(x_0.shape, np.float32)
            x_t = math.sqrt(a[t]) * x_0 + math.sqrt(1 - a[t]) * eps
            losses.append(((said(x_t, t, label) - eps) ** 2).mean())
        found["loss"].append(np.mean(losses))
        at_0 = said(x_0, 0, label)
        there = said(math.sqrt(a[t]) * x_0 + math.sqrt(1 - a[t]) * at_0, t, label)
        found["pia"].append((np.abs(at_0 - there) ** 4).sum() ** 0.25)
        found["sima"].append((np.abs(said(x_0, t, label)) ** 4).sum() ** 0.25)
        x = x_0
        for s in range(0, t, 3):
            x = ddim(x, said(x, s, label), s, s + 3)
        further = ddim(x, said(x, t, label), t, t + 3)
        back = ddim(further, said(further, t + 3, label), t + 3, t)
        found["secmi"].append(((back - x) ** 2).sum())
    return found


def test_the_timesteps_are_multiples_of_the_step_with_room_for_one_more():
    assert membership.timesteps(T, SHARES) == AT
    assert membership.timesteps(1000, [0.2, 0.1, 0.05, 0.02]) == [20, 50, 100, 200] and membership.interval(1000) == 10
    assert membership.timesteps(20, [0.02, 0.05, 0.1, 0.2]) == [1, 2, 4]  # none is 0, where an image has no noise
    assert membership.timesteps(20, [0.94]) == [] and membership.timesteps(20, [0.9]) == [18]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_statistics_are_those_of_the_papers(batch_size):
    random = np.random.default_rng(0)
    images, labels = random.uniform(-1, 1, (5, 1, 3, 4)).astype(np.float32), np.array([0, 2, 1, 1, 0])
    told = []
    found = membership.statistics(
        network,
        torch.from_numpy(images),
        AT,
        2,
        ALPHA_BARS,
        7,
        batch_size,
        progress=lambda *done: told.append(done),
        labels=torch.from_numpy(labels),
    )
    assert found.keys() == set(membership.ATTACKS) and told[-1] == (5, 5)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        for name, expected in by_hand(image.astype(np.float64), label, 7, 2).items():
            np.testing.assert_allclose(found[name][i], expected, rtol=2e-4, err_msg=f"{name} of image {i}")


def test_a_network_that_has_diverged_is_refused():
    def diverged(x, t):
        return SimpleNamespace(sample=x / 0 if t[0] in (AT[-1], AT[-1] + 3) else x)

    for at in (AT, AT[:1]):
        if at == AT:
            with pytest.raises(FloatingPointError, match="the model has diverged"):
                membership.statistics(diverged, torch.ones(2, 1, 2, 2), at, 1, ALPHA_BARS, 0, 2)
        else:
            assert np.isfinite(
                membership.statistics(diverged, torch.ones(2, 1, 2, 2), at, 1, ALPHA_BARS, 0, 2)["pia"]
            ).all()


def test_pairs_are_of_the_same_class_and_no_image_is_in_two():
    random = np.random.default_rng(1)
    train, heldout = random.integers(0, 4, 60), random.integers(1, 6, 25)
    most = sum(min((train == c).sum(), (heldout == c).sum()) for c in range(6))
    for asked, expected in ((1000, most), (7, 7)):
        found = membership.pairs(train, heldout, asked, np.random.default_rng(0))
        assert found.shape == (2, expected)
        assert all(len(set(side)) == expected for side in found)
        assert (train[found[0]] == heldout[found[1]]).all()
    drawn = [membership.pairs(train, heldout, 7, np.random.default_rng(s)) for s in range(200)]
    assert {c for found in drawn for c in train[found[0]]} == {1, 2, 3}  # not the first classes only
    assert len({i for found in drawn for i in found[0]}) > 40  # nor the first images
    assert membership.pairs(train, heldout + 9, 7, np.random.default_rng(0)).shape == (2, 0)


def candidates_of(random, num):
    """Attacks that do well on one half and badly on the other, with ties."""
    shift = np.zeros((3, 2, num))
    shift[0, 0, : num // 2], shift[1, 0, num // 2 :], shift[2, 0] = -3, -3, -1
    values = (random.standard_normal((3, 2, num)) + shift).round(1)
    return dict(zip("abc", values, strict=True))


def auc(statistic):
    """By scikit-learn: members score higher where their statistic is lower."""
    members = np.repeat([1, 0], statistic.shape[1])
    return metrics.roc_auc_score(members, -statistic.ravel())


def test_each_half_is_judged_by_what_did_best_on_the_other():
    random = np.random.default_rng(2)
    for num in (40, 41):
        candidates = candidates_of(random, num)
        found = membership.judged(candidates, np.random.default_rng(0))
        assert found.chosen == ["b", "a"]  # best on the second half, best on the first
        halves = [candidates["b"][:, : num // 2], candidates["a"][:, num // 2 :]]
        expected = sum(half.shape[1] / num * auc(half) for half in halves)
        assert found.auc == pytest.approx(expected, abs=1e-12) and found.auc < 0.65
        assert found.contribution.mean() == pytest.approx(expected, abs=1e-12)
        together = np.concatenate(halves, axis=1)
        np.testing.assert_array_equal(found.score, -together.ravel())
        assert found.found == [None, None]  # one percent of twenty images is none


@pytest.mark.parametrize("num", [60, 9])
def test_one_attack_has_the_area_and_the_interval_of_its_halves(num):
    """Also of halves of 4 and 5 pairs, which weigh as many of the images as they have."""
    random = np.random.default_rng(3)
    statistic = random.standard_normal((2, num)) - np.array([[1.0], [0.0]])
    found = membership.judged({"a": statistic}, np.random.default_rng(0))
    halves = [statistic[:, : num // 2], statistic[:, num // 2 :]]
    assert found.auc == pytest.approx(sum(half.shape[1] / num * auc(half) for half in halves))
    variance = 0.0
    for half in halves:
        v = [np.mean((m < half[1]) + 0.5 * (m == half[1])) for m in half[0]]
        w = [np.mean((half[0] < h) + 0.5 * (half[0] == h)) for h in half[1]]
        of_half = (np.var(v, ddof=1) + np.var(w, ddof=1)) / half.shape[1]
        variance += (half.shape[1] / num) ** 2 * of_half
    high = found.auc + 1.959964 * math.sqrt(variance)
    assert found.low == pytest.approx(found.auc - 1.959964 * math.sqrt(variance), rel=1e-6)
    assert found.high == pytest.approx(min(1, high), rel=1e-6)
    if num == 60:  # what the images contribute gives the same interval: of a mean of 120 of them
        assert np.std(found.contribution, ddof=1) / math.sqrt(120) == pytest.approx(math.sqrt(variance), rel=0.05)


def test_the_intervals_hold_the_truth_about_as_often_as_they_say_and_chance_is_half():
    random = np.random.default_rng(4)
    hit, hit_share, runs = {2: 0, 6: 0, 16: 0}, 0, 600
    # The threshold is the third largest of 200 held-out scores of a half, so 3 in 201 of further ones lie above it.
    shares, truth = [], stats.norm.sf(stats.norm.isf(3 / 201) - 1)
    for _ in range(runs):
        for num in hit:
            noise = membership.judged(dict(enumerate(random.standard_normal((num, 2, 60)))), np.random.default_rng(0))
            hit[num] += noise.low <= 0.5 <= noise.high  # whatever was chosen, as the other half chose it
    for _ in range(40):
        statistic = random.standard_normal((2, 400)) - np.array([[1.0], [0.0]])
        found = membership.judged({"a": statistic}, np.random.default_rng(1)).found[0]
        shares.append(found[0])
        hit_share += found[1] <= truth <= found[2]
    # The choice makes the halves err together: without that in the interval it holds 0.5 in about 91 of 100 draws.
    assert all(0.93 * runs <= of_num <= 0.985 * runs for of_num in hit.values()), hit
    assert np.mean(shares) == pytest.approx(truth, abs=0.015) and hit_share >= 33


def test_the_share_found_is_that_of_the_threshold_with_so_many_false_alarms():
    random = np.random.default_rng(5)
    statistic = random.standard_normal((2, 2300)) - np.array([[2.0], [0.0]])
    found = membership.judged({"a": statistic}, np.random.default_rng(0))
    for false_share, (share, low, high) in zip(membership.FALSE_SHARES, found.found, strict=True):
        each = []
        for half in (statistic[:, :1150], statistic[:, 1150:]):
            false, true, _ = metrics.roc_curve([1] * 1150 + [0] * 1150, -half.ravel(), drop_intermediate=False)
            each.append(true[false <= false_share].max())
        assert share == pytest.approx(np.mean(each), abs=1e-12)
        assert low < share < high and high - low < 0.5
    np.testing.assert_allclose(membership.roc_curve(found.score, membership.FALSE_SHARES), [f[0] for f in found.found])
    few = membership.judged({"a": statistic[:, :1999]}, np.random.default_rng(0))
    assert few.found[0] is not None and few.found[1] is None  # 999 images in a half: less than one of them


def test_groups_that_do_not_overlap_have_no_interval():
    found = membership.judged({"a": np.stack([np.arange(10), np.arange(10, 20)])}, np.random.default_rng(0))
    assert (found.auc, found.low, found.high) == (1, None, None)


def digits():
    images = datasets.load_digits().images[:, None] / 8 - 1
    return torch.from_numpy(images.astype(np.float32))


def built(seed):
    net = unet.build(MODEL, (1, 8, 8))
    weights.load(net, initial_weights.initial_weights(net, seed), "round 0")
    return net


def aucs(net, x_0, alpha_bars):
    at = membership.timesteps(len(alpha_bars), [0.02, 0.05, 0.1, 0.2])
    found = membership.statistics(net.eval(), x_0, at, 3, alpha_bars, 0, 256)
    split = {name: {t: v[:, s].reshape(2, -1) for s, t in enumerate(at)} for name, v in found.items()}
    return {name: membership.judged(some, np.random.default_rng(0)) for name, some in split.items()}


def test_an_untrained_network_cannot_tell_images_apart(one_thread):
    order = np.random.default_rng(6).permutation(1700)[:400]
    found = aucs(built(0), digits()[order], ddpm.alpha_bars(1000, 1e-4, 0.02))
    for name, one in found.items():
        assert one.low <= 0.5 <= one.high and one.high - one.low < 0.2, (name, one.auc)


def test_a_network_that_has_learnt_eight_images_by_heart_tells_them_from_others(one_thread):
    """Trained, by the loss; and the network of least loss, which is known: E[x_0 | x_t] of eight images in closed form, by all attacks."""
    alpha_bars = ddpm.alpha_bars(1000, 1e-4, 0.02)
    x_0, net = digits()[:16], built(0).train()
    optimiser = torch.optim.Adam(net.parameters(), 4e-3)
    torch.manual_seed(0)
    for _ in range(200):
        t, eps = torch.randint(0, 500, (32,)), torch.randn(32, 1, 8, 8)
        loss = ddpm.sample_losses(net, x_0[:8].repeat(4, 1, 1, 1), t, eps, alpha_bars.float()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert aucs(net, x_0, alpha_bars)["loss"].auc > 0.9

    class ByHeart(torch.nn.Module):
        def forward(self, x, t):
            a = alpha_bars[t].float().view(-1, 1, 1, 1)
            distance = (x[:, None] - a[:, None].sqrt() * x_0[None, :8]).square().sum(dim=(2, 3, 4))
            share = torch.softmax(-distance / (2 * (1 - a.view(-1, 1))), dim=1)
            mean = (share[:, :, None, None, None] * x_0[None, :8]).sum(dim=1)
            return SimpleNamespace(sample=(x - a.sqrt() * mean) / (1 - a).sqrt())

    for name, one in aucs(ByHeart(), x_0, alpha_bars).items():
        assert one.auc > 0.98, (name, one.auc)


# Networks that were really trained.


def trained_on(x_0, channels, steps):
    """A network that has seen batches of 32 of these images [n,1,8,8], n a multiple or a divisor of 32, at the timesteps below 300."""
    net = unet.build(MODEL | {"block_channels": channels}, (1, 8, 8))
    weights.load(net, initial_weights.initial_weights(net, 0), "round 0")
    optimiser, alpha_bar = torch.optim.Adam(net.train().parameters()), ddpm.alpha_bars(1000, 1e-4, 0.02).float()
    random = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 6e-3 * min(1, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        rows = (32 * step + torch.arange(32)) % len(x_0)
        t, eps = torch.randint(0, 300, (32,), generator=random), torch.randn(32, 1, 8, 8, generator=random)
        loss = ddpm.sample_losses(net, x_0[rows], t, eps, alpha_bar).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def statistics_of(net, x_0, at):
    return membership.statistics(net, x_0, at, 3, ddpm.alpha_bars(1000, 1e-4, 0.02), 0, 256)


@pytest.mark.slow
def test_all_attacks_tell_eight_images_that_were_really_learnt_by_heart(one_thread):
    """At each timestep but the highest, where SecMI may be anywhere. It is the last to get there: after half of the steps it is below one half at
    some timesteps."""
    x_0, at = digits()[:16], [20, 50, 100]
    found = statistics_of(trained_on(x_0[:8], [16, 32], 600), x_0, at)
    assert found.keys() == set(membership.ATTACKS)
    for name, statistic in found.items():
        for s, t in enumerate(at):
            assert auc(statistic[:, s].reshape(2, -1)) > 0.95, (name, t)


def test_a_trained_network_does_not_tell_images_of_one_kind_apart(one_thread):
    """All of them seen, or none: the interval of each attack, and that of the attack chosen among all, holds one half for about 95 in 100 random
    splits."""
    x_0, at, random = digits(), [50, 100], np.random.default_rng(8)
    net = trained_on(x_0[:64], [8, 16], 80)
    seen, unseen = (statistics_of(net, images, at) for images in (x_0[:64], x_0[64:264]))
    for of_kind in (seen, unseen):
        names = [*membership.ATTACKS, "chosen"]
        hits, num = dict.fromkeys(names, 0), len(of_kind["loss"])
        for _ in range(300):
            rows = random.permutation(num).reshape(2, -1)
            split = {(name, t): of_kind[name][rows, s] for name in of_kind for s, t in enumerate(at)}
            for name in names:
                found = membership.judged(split if name == "chosen" else {name: split[name, 50]}, random)
                hits[name] += found.low <= 0.5 <= found.high
        assert all(0.90 * 300 <= hits[name] <= 0.99 * 300 for name in names), hits
    both = {(name, t): np.stack([seen[name][:, s], unseen[name][:64, s]]) for name in seen for s, t in enumerate(at)}
    assert membership.judged(both, random).low > 0.5  # the same network tells the two kinds apart
