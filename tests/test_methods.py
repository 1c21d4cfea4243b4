"""The training methods beside AGC: each against its definition, with networks that show what they were given."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from stages import methods, randomness
from stages.diffusion import ddpm, unet, weights
from stages.methods import added_noise, ambient, base, dp_sgd
from stages.pixels import initial_weights
from stages.run import declarations

T = 20
SEED, SHARD = 5, 3


def step_of(network, x, ids=None, settings=None, number=0, labels=None):
    """A step on images x [B,C,H,W] uint8."""
    random = torch.Generator().manual_seed(number)
    return base.Step(
        network=network,
        x=x,
        flipped=torch.zeros(len(x), dtype=torch.bool),
        ids=torch.arange(len(x)) if ids is None else ids,
        labels=labels,
        t=torch.randint(T, (len(x),), generator=random),
        eps=torch.randn(x.shape, generator=random),
        alpha_bar=ddpm.alpha_bars(T, 0.005, 0.3).float(),
        carried={},
        settings={"precision": "fp32", "batch_size": 4, "grad_clip_norm": 1.0} | (settings or {}),
        key=(SEED, SHARD, number),
    )


def pictures(count, channels=1, side=8):
    random = torch.Generator().manual_seed(11)
    return torch.randint(256, (count, channels, side, side), generator=random, dtype=torch.uint8)


# What modules say of themselves.


def test_every_method_is_found_by_its_module():
    assert set(declarations.methods()) == {
        "added_noise",
        "agc",
        "ambient",
        "ambient_high",
        "caption_noise",
        "ddpm",
        "distill_md",
        "dp_sgd",
        "text_noise",
        "wen",
    }
    assert [name for name, method in declarations.methods().items() if method["COUNTS_SKIPS"]] == ["agc", "wen"]
    for name in declarations.methods():
        assert issubclass(type(methods.method({"name": name})), base.Method)
        assert (ROOT / declarations.method_source(name)).exists()


def test_what_a_module_says_must_be_plain_data(tmp_path, monkeypatch):
    (tmp_path / "stages/methods").mkdir(parents=True)
    (tmp_path / "stages/methods/mine.py").write_text("SETTINGS = dict(required=[])\n")
    monkeypatch.setattr(declarations, "STAGES", tmp_path / "stages")
    declarations.methods.cache_clear()
    with pytest.raises(ValueError, match=r"SETTINGS in stages/methods/mine.py is computed, expected plain data"):
        declarations.methods()
    monkeypatch.undo()
    declarations.methods.cache_clear()


def test_a_method_of_ones_own_draws_under_the_purpose_for_methods():
    """Keyed by the step: the same whenever the step is made, another in another step, shard or seed."""

    class Dropped(base.Method):
        def images(self, step):
            generator = randomness.torch_generator("cpu", "method", *step.key)
            kept = torch.rand(step.x.shape, generator=generator) < 0.5
            return torch.where(kept, ddpm.normalise(step.x), 0.0)

    x, method = pictures(4), Dropped({"name": "dropped"})
    first, again, other = (method.images(step_of(None, x, number=n)) for n in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert 0.4 < float((first == 0).float().mean()) < 0.6
    keys = [(SEED, SHARD, 0), (SEED + 1, SHARD, 0), (SEED, SHARD + 1, 0), (SEED, SHARD, 1)]
    seeds = {randomness.seed_of(purpose, *key) for purpose in ("method", "added_noise") for key in keys}
    assert len(seeds) == 8


# Added noise.


def test_added_noise_has_its_variance_and_is_drawn_anew():
    method = added_noise.Method({"name": "added_noise", "variance": 0.1})
    x = pictures(64, side=16)
    noise = [method.images(step_of(None, x, number=n)) - ddpm.normalise(x) for n in (0, 1)]
    for draw in noise:
        assert float(draw.var()) == pytest.approx(0.1, rel=0.03) and abs(float(draw.mean())) < 0.01
    assert abs(float(torch.corrcoef(torch.stack([n.flatten() for n in noise]))[0, 1])) < 0.03
    again = method.images(step_of(None, x, number=1)) - ddpm.normalise(x)
    assert torch.equal(again, noise[1])


def test_added_noise_is_on_the_image_not_on_what_the_network_is_scored_by():
    """With eps = 0 the network sees the noised image scaled down, and an answer of 0 has no loss."""
    seen = []

    def network(x, t):
        seen.append(x)
        return SimpleNamespace(sample=torch.zeros_like(x))

    method = added_noise.Method({"name": "added_noise", "variance": 0.25})
    step = step_of(network, pictures(50))
    step.eps = torch.zeros_like(step.eps)
    losses = method.losses(step)
    assert float(losses.minimised) == 0 and losses.skipped is None
    x_0 = seen[0] / step.alpha_bar[step.t].sqrt().view(-1, 1, 1, 1)
    assert float((x_0 - ddpm.normalise(step.x)).var()) == pytest.approx(0.25, rel=0.05)


# DP-SGD.


@pytest.fixture
def attentive():
    """A UNet with attention at a level and in the middle, answering with weights of its own."""
    model = {
        "block_channels": [8, 16],
        "attention_levels": [0],
        "layers_per_block": 2,
        "dropout": 0.0,
        "norm_groups": 4,
    }
    network = unet.build(model, (3, 8, 8), num_classes=3)
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=random))
    return network


def check_per_sample_gradients(network):
    step = step_of(network, pictures(5, channels=3), labels=torch.tensor([0, 2, 1, 2, 0]))
    found, losses = dp_sgd.per_sample_gradients(network, step.sample_losses)
    norms, wrong = [], []
    for j in range(5):
        loss = step.sample_losses(rows=slice(j, j + 1))[0]
        assert float(losses[j]) == pytest.approx(float(loss.detach()), rel=1e-5)
        alone = torch.autograd.grad(loss, list(network.parameters()))
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in alone)))
        for (name, _), one, other in zip(network.named_parameters(), found, alone, strict=True):
            if not torch.allclose(one[j], other, rtol=1e-3, atol=1e-5 * norms[-1]):
                wrong.append(name)
    assert not wrong, sorted(set(wrong))
    assert all(p.grad is None and not hasattr(p, "grad_sample") for p in network.parameters())
    return found, norms


def test_gradients_of_each_sample_equal_a_loop_over_samples(attentive):
    check_per_sample_gradients(attentive)
    check_per_sample_gradients(attentive)  # what opacus hung onto the network is gone


def test_the_trap_of_opacus_would_be_noticed(attentive, monkeypatch):
    """Without putting inputs in order, convolutions behind attention get wrong gradients."""
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda self, *_: self)
    with pytest.raises((AssertionError, RuntimeError)):
        check_per_sample_gradients(attentive)


def test_clipping_by_hand():
    gradients = [torch.tensor([[3.0, 0.0], [0.3, 0.0]]), torch.tensor([[[4.0]], [[0.4]]])]  # norms 5 and 0.5 over both
    first, second = dp_sgd.clipped_sum(gradients, 2.0)
    assert first.tolist() == pytest.approx([3 * 2 / 5 + 0.3, 0.0]) and second.item() == pytest.approx(4 * 2 / 5 + 0.4)
    zero = [torch.zeros(2, 3)]
    assert dp_sgd.clipped_sum(zero, 1.0)[0].tolist() == [0, 0, 0]


def test_a_dp_step_is_the_clipped_sum_and_its_noise_over_the_batch_size(attentive):
    """The batch of 21 is larger than what is held at a time, and the divisor is the expected batch size, not 21."""
    x, labels = pictures(21, channels=3), torch.arange(21) % 3
    settings = {"name": "dp_sgd", "clip": 0.7, "noise_multiplier": 1.5, "delta": 1e-5}
    method = dp_sgd.Method(settings)
    step = step_of(attentive, x, labels=labels, settings={"batch_size": 16, "grad_clip_norm": 1e-9})
    losses = method.gradients(step)
    assert losses.original.shape == (21,)
    noisy = [p.grad.clone() for p in attentive.parameters()]
    found, _ = dp_sgd.per_sample_gradients(attentive, step.sample_losses)
    norms = [math.sqrt(sum(float(g[j].square().sum()) for g in found)) for j in range(21)]
    assert min(norms) < 0.7 < max(norms)  # some are clipped, some are not
    noise = [
        16 * value - sum(g[j] * min(1, 0.7 / norms[j]) for j in range(21))
        for value, g in zip(noisy, found, strict=True)
    ]
    flat = torch.cat([n.flatten() for n in noise])
    generator = randomness.torch_generator("cpu", "dp_noise", *step.key)
    for n in noise:  # to the last gradient: in 10,000 values of noise one that is left out would not show
        assert torch.allclose(n, 1.5 * 0.7 * torch.randn(n.shape, generator=generator), atol=1e-3)
    assert len(flat) > 10_000
    assert float(flat.std()) == pytest.approx(1.5 * 0.7, rel=0.02) and abs(float(flat.mean())) < 0.03


def test_clipping_holds_for_a_network_in_bf16(attentive):
    """The bound on what one sample contributes is what epsilon rests on: it must not be rounded."""
    step = step_of(attentive, pictures(6, channels=3), labels=torch.arange(6) % 3, settings={"precision": "bf16"})
    gradients, _ = dp_sgd.per_sample_gradients(attentive, step.sample_losses)
    for j in range(6):
        alone = dp_sgd.clipped_sum([g[j : j + 1] for g in gradients], 0.3)
        assert all(g.dtype == torch.float32 for g in alone)
        assert math.sqrt(sum(float(g.double().square().sum()) for g in alone)) <= 0.3 * (1 + 1e-5)


def test_an_empty_dp_batch_is_noise_alone(attentive):
    method = dp_sgd.Method({"name": "dp_sgd", "clip": 2.0, "noise_multiplier": 0.5, "delta": 1e-5})
    losses = method.gradients(step_of(attentive, pictures(0, channels=3), settings={"batch_size": 10}))
    assert float(losses.minimised) == 0 and len(losses.original) == 0
    flat = torch.cat([p.grad.flatten() for p in attentive.parameters()])
    assert float(flat.std()) == pytest.approx(0.5 * 2 / 10, rel=0.02)


def test_poisson_batches():
    method = dp_sgd.Method({})
    batches = [method.batch(40, 8, SEED, SHARD, step) for step in range(600)]
    sizes = np.array([len(batch) for batch in batches])
    assert sizes.mean() == pytest.approx(8, rel=0.05)
    assert sizes.var() == pytest.approx(40 * 0.2 * 0.8, rel=0.2)  # binomial; batches of one size would have 0
    visits = np.bincount(np.concatenate(batches), minlength=40)
    assert visits.min() > 80 and visits.max() < 165  # 120 each, standard deviation 9.8
    assert all(len(set(batch)) == len(batch) for batch in batches)


def test_epsilon_is_that_of_opacus_stepping_along():
    from opacus.accountants import RDPAccountant

    method = dp_sgd.Method({"name": "dp_sgd", "clip": 3.0, "noise_multiplier": 0.9, "delta": 1e-4})
    accountant = RDPAccountant()
    for _ in range(250):
        accountant.step(noise_multiplier=0.9, sample_rate=7 / 90)
    assert method.spent(90, 7, 250)["epsilon"] == pytest.approx(accountant.get_epsilon(1e-4), rel=1e-9)
    assert method.spent(90, 7, 500)["epsilon"] > method.spent(90, 7, 250)["epsilon"] > 0


# Ambient.


def test_masks_keep_their_shares_and_stay_with_the_image():
    ids = torch.arange(200)
    outer, inner = ambient.masks(ids, (12, 12), SEED, p=0.3, delta=0.2)
    assert outer.shape == inner.shape == (200, 1, 12, 12)
    assert set(outer.unique().tolist()) == {0.0, 1.0} and bool((inner <= outer).all())
    assert float(outer.mean()) == pytest.approx(0.7, abs=0.01)
    assert float(inner.mean()) == pytest.approx(0.7 * 0.8, abs=0.01)
    some = ambient.masks(torch.tensor([17, 5]), (12, 12), SEED, 0.3, 0.2)
    assert torch.equal(some[0][0], outer[17]) and torch.equal(some[1][1], inner[5])
    assert not torch.equal(ambient.masks(ids, (12, 12), SEED + 1, 0.3, 0.2)[0], outer)


class Seeing(torch.nn.Module):
    """Remembers what it was shown, and answers with a learnt picture."""

    def __init__(self, channels, side):
        super().__init__()
        self.answer = torch.nn.Parameter(torch.linspace(-1, 1, channels * side * side).view(channels, side, side))
        self.shown = []

    def forward(self, x, t, class_labels=None):
        self.shown.append((x, t))
        return SimpleNamespace(sample=self.answer.expand(len(x), *self.answer.shape))


def test_ambient_never_shows_pixels_outside_the_inner_mask_and_scores_none_outside_the_outer():
    method = ambient.Method({"name": "ambient", "p": 0.4, "delta": 0.3})
    x, ids = pictures(3, channels=3, side=6), torch.tensor([8, 2, 5])
    outer, inner = ambient.masks(ids, (6, 6), SEED, 0.4, 0.3)
    for j in range(3):
        network = Seeing(3, 6)
        one = slice(j, j + 1)
        step = step_of(network, x[one], ids=ids[one])
        method.losses(step).minimised.backward()
        ((shown, _),) = network.shown
        assert shown.shape == (1, 6, 6, 6)
        hidden = inner[j].expand(3, 6, 6) == 0
        assert (shown[0, :3][hidden] == 0).all() and (shown[0, :3][~hidden] != 0).all()
        unscored = outer[j].expand(3, 6, 6) == 0
        assert (network.answer.grad[unscored] == 0).all() and (network.answer.grad[~unscored] != 0).all()
        filled_in = (outer[j] - inner[j]).bool().expand(3, 6, 6)
        assert filled_in.any()  # pixels that are scored without having been shown: the heart of the method

        changed = step.x.clone()
        changed[0, :, (inner[j, 0] == 0)] += 7  # a hidden pixel may be anything
        again = Seeing(3, 6)
        method.losses(step_of(again, changed, ids=ids[one]))
        assert torch.equal(again.shown[0][0], shown)


def check_withheld(method, number_of_visits=8):
    """Over many visits, mirrored or not, the network sees of an image what A~ leaves of it and no more."""
    x, ids = pictures(1, side=6), torch.tensor([4])
    _, inner = ambient.masks(ids, (6, 6), SEED, 0.4, 0.3)
    seen = torch.zeros(6, 6, dtype=torch.bool)
    for visit in range(number_of_visits):
        flipped = torch.tensor([visit % 2 == 1])
        network = Seeing(1, 6)
        step = step_of(network, x.flip(-1) if flipped else x, ids=ids, number=visit)
        step.flipped = flipped
        method.losses(step)
        shown = network.shown[0][0][0, 0] != 0
        seen |= shown.flip(-1) if flipped else shown
    assert torch.equal(seen, inner[0, 0].bool())


def test_what_ambient_withholds_stays_withheld_when_images_are_mirrored(monkeypatch):
    method = ambient.Method({"name": "ambient", "p": 0.4, "delta": 0.3})
    check_withheld(method)
    losses = ambient.Method.losses

    def without_mirroring(self, step):
        step.flipped = torch.zeros_like(step.flipped)
        return losses(self, step)

    monkeypatch.setattr(ambient.Method, "losses", without_mirroring)
    with pytest.raises(AssertionError):
        check_withheld(method)


def test_ambient_loss_by_hand():
    """D, weight and loss of EDM, in plain numbers."""
    method = ambient.Method({"name": "ambient", "p": 0.5, "delta": 0.25})
    network, x = Seeing(1, 4), pictures(2, side=4)
    step = step_of(network, x, ids=torch.tensor([3, 9]))
    losses = method.losses(step)
    outer, inner = (m.double() for m in ambient.masks(step.ids, (4, 4), SEED, 0.5, 0.25))
    normal = torch.randn(2, generator=randomness.torch_generator("cpu", "sigma", SEED, SHARD, 0)).double()
    for j in range(2):
        sigma = math.exp(-1.2 + 1.2 * float(normal[j]))
        clean = x[j].double() / 127.5 - 1
        seen = inner[j] * (clean + sigma * step.eps[j].double())
        found = (
            0.25 / (sigma**2 + 0.25) * seen
            + 0.5 * sigma / math.sqrt(sigma**2 + 0.25) * network.answer.detach().double()
        )
        expected = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * float((outer[j] * (found - clean)).square().mean())
        assert float(losses.original[j]) == pytest.approx(expected, rel=1e-4)
        shown, time = network.shown[0]
        assert float(time[j]) == pytest.approx(1000 * math.log(sigma) / 4, rel=1e-4)
        scale = 1 / math.sqrt(sigma**2 + 0.25)
        assert torch.allclose(shown[j].double(), scale * torch.cat([seen, inner[j]]), atol=1e-5)


def test_ambient_noise_levels():
    levels = ambient.noise_levels(18)
    assert len(levels) == 19 and float(levels[0]) == pytest.approx(80) and float(levels[17]) == pytest.approx(0.002)
    assert levels[18] == 0 and (levels[:-1] > levels[1:]).all()
    middle = (80 ** (1 / 7) + 4 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert float(levels[4]) == pytest.approx(middle)


def test_ambient_sampler_finds_the_one_image_there_is(monkeypatch):
    """For a set of one image, the best D is that image whatever is shown: the sampler ends at it, from any noise."""
    image = torch.linspace(-0.9, 0.9, 25).view(1, 1, 5, 5)
    passes = []

    def ideal(network, noisy, mask, sigma, precision, labels):
        passes.append((mask.clone(), float(sigma[0])))
        return image.expand_as(noisy)

    monkeypatch.setattr(ambient, "denoised", ideal)
    method = ambient.Method({"name": "ambient", "p": 0.2, "delta": 0.1})
    x = torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    settings = {"num_steps": 6, "precision": "fp32", "protocol": "paper"}
    made = method.sample(None, x, range(4, 7), SEED, None, None, settings, None)
    assert torch.allclose(made, image.expand_as(made), atol=1e-3)
    assert len(passes) == 2 * 6 - 1
    assert all(torch.equal(mask, passes[0][0]) for mask, _ in passes)  # one mask an image throughout
    alone = method.sample(None, x[1:2], range(5, 6), SEED, None, None, settings, None)
    assert torch.equal(passes[-1][0][0], passes[0][0][1]) and torch.allclose(alone, made[1:2], atol=1e-5)


def test_ambient_samples_with_the_share_of_pixels_that_the_network_was_shown():
    """Of each image (1 - p)(1 - delta) of the pixels: those of a draw of the seed and the image, the same at every step."""
    shown = []

    def network(x, t):
        shown.append((x[:, 2:] > 0).float())  # scaled as its input is
        return SimpleNamespace(sample=torch.zeros_like(x[:, :2]))

    method = ambient.Method({"p": 0.3, "delta": 0.5})
    settings = {"num_steps": 2, "precision": "fp32"}
    method.sample(network, torch.ones(2, 2, 40, 50), range(6, 8), 9, None, None, settings, None)
    assert len(shown) == 3 and all(torch.equal(mask, shown[0]) for mask in shown)
    for mask, image in zip(shown[0], (6, 7), strict=True):
        drawn = randomness.numpy_generator("sample_mask", 9, image).random((40, 50))
        assert np.array_equal(mask[0].numpy(), drawn < 0.35) and torch.equal(mask[0], mask[1])
        assert abs(mask.mean().item() - 0.35) < 4 * (0.35 * 0.65 / 2000) ** 0.5


def test_ambient_network_takes_the_masks_as_channels():
    model = {"block_channels": [8, 8], "attention_levels": [], "layers_per_block": 1, "dropout": 0.0, "norm_groups": 4}
    method = ambient.Method({"name": "ambient", "p": 0.2, "delta": 0.1})
    network = unet.build(model, (3, 8, 8), method.network_channels(3))
    weights.load(network, initial_weights.initial_weights(network, 0), "the initialisation")
    losses = method.losses(step_of(network, pictures(4, channels=3)))
    assert network.config.in_channels == 6 and network.config.out_channels == 3
    assert torch.isfinite(losses.original).all()


# Class conditioning.


def test_a_class_conditional_network_is_told_the_class(attentive):
    x = pictures(6, channels=3)
    losses = [
        base.Method({}).losses(step_of(attentive, x, labels=torch.tensor(labels))).original
        for labels in ([0, 0, 0, 0, 0, 0], [0, 1, 2, 0, 1, 2])
    ]
    differs = (losses[0] != losses[1]).tolist()
    assert differs == [False, True, True, False, True, True]
