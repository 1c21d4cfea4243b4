"""timestep_focus: how often timesteps are drawn, and what their losses count."""

import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import TINY, tiny_with, write_params
from test_methods import SEED, SHARD, T, pictures, step_of
from test_told_augmentation import training

from stages import methods, randomness, rules
from stages.methods import distill_md, loop, timestep_focus

AGC = {"name": "agc", "lambda": 0.5, "eta": 0.8}
TAA = AGC | {"taa": {"R": 2.0, "A": 1.0, "magnitude": 9, "num_ops": 2, "max_level": 30}}


def losses(step, method=None, **settings):
    """Of a step whose timesteps are applied to, by a method."""
    step.t, step.counts = timestep_focus.applied(settings, step.t, T, step.key)
    return methods.method(method or {"name": "ddpm"}).losses(step)


class TellingTime(torch.nn.Module):
    """Answers with the noise and a learnt error that grows with the timestep, so that a loss is known from its timestep alone."""

    def __init__(self, step):
        super().__init__()
        self.error, self.step = torch.nn.Parameter(torch.ones(())), step

    def forward(self, x, t):
        return SimpleNamespace(sample=self.step.eps + (self.error * (t + 1.0)).view(-1, 1, 1, 1))


def told(x, number=0):
    step = step_of(None, x, number=number)
    step.network = TellingTime(step)
    return step


def by_hand(num_timesteps, centre, width):
    density = [math.exp(-((i / num_timesteps - centre) ** 2) / (2 * width**2)) for i in range(num_timesteps)]
    return [d / sum(density) for d in density]


def test_probabilities_by_hand():
    for centre, width in ((0.3, 0.2), (0.0, 0.05), (1.0, 0.5)):
        found = timestep_focus.probabilities(T, centre, width)
        assert found.tolist() == pytest.approx(by_hand(T, centre, width), rel=1e-12)
    assert timestep_focus.probabilities(1000, 0.5, 0.01).sum() == pytest.approx(1)


def test_uniform_numbers_become_timesteps_of_those_probabilities():
    """A fine grid of numbers, as the inverse of the sum turns shares into timesteps; 0 and what is next to 1 stay inside."""
    p = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    grid = torch.arange(4000, dtype=torch.float64) / 4000
    assert torch.bincount(timestep_focus.drawn(p, grid), minlength=6).tolist() == [0, 1000, 0, 2000, 1000, 0]
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    assert timestep_focus.drawn(p, ends).tolist() == [1, 4]


def test_timesteps_are_drawn_as_often_as_that_and_keyed_by_the_step():
    x = pictures(60_000, side=1)
    step = told(x)
    losses(step, centre=0.3, width=0.15)
    share = torch.bincount(step.t, minlength=T) / len(x)
    assert share.tolist() == pytest.approx(by_hand(T, 0.3, 0.15), abs=4 * (0.15 * 0.85 / len(x)) ** 0.5)
    again, other = told(x), told(x, number=1)
    losses(again, centre=0.3, width=0.15)
    losses(other, centre=0.3, width=0.15)
    assert torch.equal(again.t, step.t) and not torch.equal(other.t, step.t)
    uniform = torch.rand(len(x), generator=randomness.torch_generator("cpu", "timestep_focus", SEED, SHARD, 0), dtype=torch.float64)  # fmt: skip
    edges = [sum(by_hand(T, 0.3, 0.15)[: i + 1]) for i in range(T)]
    assert step.t[:500].tolist() == [sum(edge <= float(u) for edge in edges) for u in uniform[:500]]


@pytest.mark.parametrize(
    ("importance_weights", "objective"),
    [
        (True, sum((i + 1) ** 2 for i in range(T)) / T),
        (False, sum(p * (i + 1) ** 2 for i, p in enumerate(by_hand(T, 0.4, 0.2)))),
    ],
)
def test_the_objective_is_that_of_uniform_timesteps_with_importance_weights_alone(importance_weights, objective):
    """The loss at t is (t + 1)^2, and so is half of its gradient: their expectation is a sum over timesteps."""
    step = told(pictures(200_000, side=1))
    found = losses(step, centre=0.4, width=0.2, importance_weights=importance_weights)
    found.minimised.backward()
    assert float(found.minimised.detach()) == pytest.approx(objective, rel=0.01)
    assert float(step.network.error.grad) == pytest.approx(2 * objective, rel=0.01)
    assert found.original.tolist()[:100] == pytest.approx([(t + 1) ** 2 for t in step.t.tolist()[:100]], rel=1e-4)


def test_an_interval_weighs_its_losses_by_hand():
    """t = 4 ... 9 of 20 are [0.2, 0.5), whatever 0.2 * 20 is in floats; the mean is over the batch, and what is told is unweighted."""
    step = told(pictures(T, side=2))
    step.t = torch.arange(T)
    found = losses(step, low=0.2, high=0.5, weight=0.1)
    each = [(i + 1) ** 2 * (0.1 if 4 <= i < 10 else 1) for i in range(T)]
    assert float(found.minimised.detach()) == pytest.approx(sum(each) / T, rel=1e-5)
    assert found.original.tolist() == pytest.approx([(i + 1) ** 2 for i in range(T)], rel=1e-4)
    assert step.t.tolist() == list(range(T)) and not found.original.requires_grad


def test_edges_of_an_interval_are_decimal_fractions():
    """0.07 * 100 is 7.000000000000001, and 0.29 * 100 is 28.999999999999996."""
    t = torch.arange(100)
    assert timestep_focus.in_interval(t, 100, 0.07, 0.29).nonzero().flatten().tolist() == list(range(7, 29))
    inside = timestep_focus.in_interval(torch.arange(1000), 1000, 0.02, 0.2).nonzero().flatten()
    assert inside.tolist() == list(range(20, 200))


def test_weight_one_is_plain_training():
    step, plain = told(pictures(9)), told(pictures(9))
    found = losses(step, low=0.1, high=0.6, weight=1).minimised
    assert torch.equal(found, plain.sample_losses().mean())


# With other methods. A loss at t is (t + 1)^2 here, and so what is minimised is known from the timesteps.


def test_agc_judges_losses_as_they_are_and_weighs_those_that_are_kept():
    """All samples at t = 5 to 9, whose losses count a tenth below 8. The bank is twice the loss: as many are kept as lambda says, whatever they
    count, and the mean is over their number."""
    step, bank = told(pictures(5)), torch.zeros(T)
    step.t, expected = torch.arange(5, 10), torch.tensor([36.0, 49, 64, 81, 100])
    bank[5:10] = expected * torch.tensor([1.5, 2.5, 1.5, 2.5, 1.5])
    step.carried["bank"] = bank.clone()
    found = losses(step, AGC, low=0.0, high=0.4, weight=0.1)
    assert found.skipped.tolist() == [False, True, False, True, False]
    assert float(found.minimised.detach()) == pytest.approx((3.6 + 6.4 + 100) / 3, rel=1e-5)
    assert found.original.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert step.carried["bank"][5:10].tolist() == pytest.approx((0.8 * bank[5:10] + 0.2 * expected).tolist(), rel=1e-5)


def test_the_losses_of_augmented_samples_count_as_the_others_do():
    """The network answers alike whatever it is shown, so a loss that is taken anew is the same. All five are augmented."""
    step, bank = told(pictures(5)), torch.zeros(T)
    step.t = torch.arange(5, 10)
    bank[5:10] = (step.t + 1.0) ** 2 * 1.5
    step.carried["bank"] = bank
    method = methods.method(TAA)
    step.drawn = method.drawn(5, step.key)
    step.t, step.counts = timestep_focus.applied({"low": 0.0, "high": 0.4, "weight": 0.1}, step.t, T, step.key)
    step.network.error.data.fill_(1.0)
    found = method.losses(step)
    assert found.augmented.all()

    def answered(images=None, rows=slice(None)):
        return (step.t[rows] + 1.0) ** 2 * step.network.error

    step.sample_losses = answered
    rest = method.rest(step, found, method.rest_size(5))
    assert float((found.minimised + rest).detach()) == pytest.approx((3.6 + 4.9 + 6.4 + 81 + 100) / 5, rel=1e-5)


@pytest.mark.parametrize(
    "method", [{"name": "ambient_high", "sigma_n": 0.5}, {"name": "added_noise", "variance": 0.1}, {"name": "distill_md", "teacher": "them"}],
)  # fmt: skip
def test_other_methods_weigh_what_they_minimise(method):
    """The mean of their own losses by what each counts, and the same losses as without."""
    x = pictures(T, side=2)
    plain, step = told(x), told(x)
    plain.t = step.t = torch.arange(T)
    made = methods.method(method)
    if isinstance(made, distill_md.Method):
        made.take_teachers([lambda x, t, k=k: SimpleNamespace(sample=k * x) for k in (2, 3)], torch.arange(T) % 2)
    counts = [0.1 if 4 <= i < 10 else 1.0 for i in range(T)]
    step.t, step.counts = timestep_focus.applied({"low": 0.2, "high": 0.5, "weight": 0.1}, step.t, T, step.key)
    before, after = made.losses(plain), made.losses(step)
    assert torch.equal(before.original, after.original)
    expected = sum(c * float(loss) for c, loss in zip(counts, before.original, strict=True)) / T
    assert float(after.minimised.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("settings", [{"centre": 0.9, "width": 0.05, "importance_weights": True}, {"low": 0.1, "high": 0.5, "weight": 0.3}])  # fmt: skip
def test_a_step_of_training_has_them_and_the_noise_of_a_step_without(settings):
    """Through the draws of the loop: timesteps and weights are those of `applied`, of seed, shard and step."""
    plain, whole = (training({"name": "ddpm"}, None, timestep_focus=focus) for focus in (None, settings))
    plain.state.step = whole.state.step = 3
    (_, before), (_, step) = loop._drawn(plain), loop._drawn(whole)
    t, counts = timestep_focus.applied(settings, before.t, 20, (5, 3, 3))
    assert torch.equal(step.t, t) and torch.equal(step.counts, counts) and before.counts is None
    assert torch.equal(before.eps, step.eps) and torch.equal(before.x, step.x)
    assert ("centre" in settings) != torch.equal(before.t, step.t)


def test_what_it_does_not_go_with_is_refused():
    for method, why in (
        ({"name": "ambient", "p": 0.1, "delta": 0.1}, "the method ambient"),
        ({"name": "dp_sgd", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}, "the method dp_sgd"),
        (AGC | {"taa": {"R": math.inf, "magnitude": 5, "authors": True}}, "taa.authors"),
    ):
        experiment = tiny_with()
        experiment["arms"]["ddpm"]["method"] = method
        experiment["train"]["timestep_focus"] = {"low": 0.1, "high": 0.5, "weight": 0.1}
        with pytest.raises(ValueError, match=f"train.timestep_focus of ddpm does not go with {why}"):
            rules.check(experiment)


NO_FORM = "expected either centre and width, or low, high and weight"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, f"arms.a.train.timestep_focus has none of its keys, {NO_FORM}"),
        ({"centre": 0.5}, f"arms.a.train.timestep_focus has centre, {NO_FORM}"),
        ({"low": 0.1, "high": 0.2}, f"arms.a.train.timestep_focus has low and high, {NO_FORM}"),
        ({"centre": 0.5, "width": 0.1, "low": 0.1, "high": 0.2, "weight": 0.1}, f"arms.a.train.timestep_focus has centre, width, low, high and weight, {NO_FORM}"),
        ({"low": 0.2, "high": 0.2, "weight": 0.1}, "train.timestep_focus.low of a is 0.2, expected less than train.timestep_focus.high = 0.2"),
        ({"low": 0.1, "high": 0.2, "weight": 0.1, "importance_weights": True}, "the key arms.a.train.timestep_focus.centre is missing"),
        ({"centre": 1.5, "width": 0.1}, "arms.a.train.timestep_focus.centre is 1.5, expected at least 0 and at most 1"),
        ({"centre": 0.5, "width": 0}, "arms.a.train.timestep_focus.width is 0, expected at least 0.01"),
        ({"low": 0.2, "high": 200, "weight": 0.1}, "arms.a.train.timestep_focus.high is 200, expected at least 0 and at most 1"),
        ({"centre": 0.5, "width": 0.1}, None),
        ({"centre": 0.5, "width": 0.1, "importance_weights": True}, None),
        ({"low": 0.02, "high": 0.2, "weight": 0.1}, None),
    ],
)  # fmt: skip
def test_the_choice_between_the_forms_is_checked_before_anything_runs(tmp_path, monkeypatch, settings, sentence):
    monkeypatch.chdir(tmp_path)
    experiment = yaml.safe_load(TINY)
    train = experiment["arms"]["ddpm"]["train"] | {"timestep_focus": settings}
    experiment["arms"] = {"a": experiment["arms"]["ddpm"] | {"train": train}}
    write_params(experiment)
    if sentence is None:
        assert rules.load()["arms"]["a"]["train"]["timestep_focus"] == settings
        return
    with pytest.raises(ValueError) as refused:
        rules.load()
    assert sentence in str(refused.value)
