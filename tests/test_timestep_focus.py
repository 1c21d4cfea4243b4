"""timestep_focus: how often timesteps are drawn, and what their losses count."""

import math
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import TINY, write_params
from test_methods import SEED, SHARD, T, pictures, step_of

from stages import randomness, rules
from stages.methods import timestep_focus


def focus(**settings):
    return timestep_focus.Method({"name": "timestep_focus"} | settings)


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
    focus(centre=0.3, width=0.15).losses(step)
    share = torch.bincount(step.t, minlength=T) / len(x)
    assert share.tolist() == pytest.approx(by_hand(T, 0.3, 0.15), abs=4 * (0.15 * 0.85 / len(x)) ** 0.5)
    again, other = told(x), told(x, number=1)
    focus(centre=0.3, width=0.15).losses(again)
    focus(centre=0.3, width=0.15).losses(other)
    assert torch.equal(again.t, step.t) and not torch.equal(other.t, step.t)
    uniform = torch.rand(len(x), generator=randomness.torch_generator("cpu", "method", SEED, SHARD, 0), dtype=torch.float64)  # fmt: skip
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
    losses = focus(centre=0.4, width=0.2, importance_weights=importance_weights).losses(step)
    losses.minimised.backward()
    assert float(losses.minimised.detach()) == pytest.approx(objective, rel=0.01)
    assert float(step.network.error.grad) == pytest.approx(2 * objective, rel=0.01)
    assert losses.original.tolist()[:100] == pytest.approx([(t + 1) ** 2 for t in step.t.tolist()[:100]], rel=1e-4)


def test_an_interval_weighs_its_losses_by_hand():
    """t = 4 ... 9 of 20 are [0.2, 0.5), whatever 0.2 * 20 is in floats; the mean is over the batch, and what is told is unweighted."""
    step = told(pictures(T, side=2))
    step.t = torch.arange(T)
    losses = focus(low=0.2, high=0.5, weight=0.1).losses(step)
    each = [(i + 1) ** 2 * (0.1 if 4 <= i < 10 else 1) for i in range(T)]
    assert float(losses.minimised.detach()) == pytest.approx(sum(each) / T, rel=1e-5)
    assert losses.original.tolist() == pytest.approx([(i + 1) ** 2 for i in range(T)], rel=1e-4)
    assert step.t.tolist() == list(range(T)) and not losses.original.requires_grad


def test_edges_of_an_interval_are_decimal_fractions():
    """0.07 * 100 is 7.000000000000001, and 0.29 * 100 is 28.999999999999996."""
    t = torch.arange(100)
    assert timestep_focus.in_interval(t, 100, 0.07, 0.29).nonzero().flatten().tolist() == list(range(7, 29))
    inside = timestep_focus.in_interval(torch.arange(1000), 1000, 0.02, 0.2).nonzero().flatten()
    assert inside.tolist() == list(range(20, 200))


def test_weight_one_is_plain_training():
    step, plain = told(pictures(9)), told(pictures(9))
    found = focus(low=0.1, high=0.6, weight=1).losses(step).minimised
    assert torch.equal(found, plain.sample_losses().mean())


NO_FORM = "expected either centre and width, or low, high and weight"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, f"arms.a.method has none of its keys, {NO_FORM}"),
        ({"centre": 0.5}, f"arms.a.method has centre, {NO_FORM}"),
        ({"low": 0.1, "high": 0.2}, f"arms.a.method has low and high, {NO_FORM}"),
        ({"centre": 0.5, "width": 0.1, "low": 0.1, "high": 0.2, "weight": 0.1}, f"arms.a.method has centre, width, low, high and weight, {NO_FORM}"),
        ({"low": 0.2, "high": 0.2, "weight": 0.1}, "arms.a.method.low is 0.2, expected less than arms.a.method.high = 0.2"),
        ({"low": 0.1, "high": 0.2, "weight": 0.1, "importance_weights": True}, "the key arms.a.method.centre is missing"),
        ({"centre": 1.5, "width": 0.1}, "arms.a.method.centre is 1.5, expected at least 0 and at most 1"),
        ({"centre": 0.5, "width": 0}, "arms.a.method.width is 0, expected at least 0.01"),
        ({"low": 0.2, "high": 200, "weight": 0.1}, "arms.a.method.high is 200, expected at least 0 and at most 1"),
        ({"centre": 0.5, "width": 0.1}, None),
        ({"centre": 0.5, "width": 0.1, "importance_weights": True}, None),
        ({"low": 0.02, "high": 0.2, "weight": 0.1}, None),
    ],
)  # fmt: skip
def test_the_choice_between_the_forms_is_checked_before_anything_runs(tmp_path, monkeypatch, settings, sentence):
    monkeypatch.chdir(tmp_path)
    experiment = yaml.safe_load(TINY)
    experiment["arms"] = {"a": experiment["arms"]["ddpm"] | {"method": {"name": "timestep_focus"} | settings}}
    write_params(experiment)
    if sentence is None:
        assert rules.load()["arms"]["a"]["method"] == {"name": "timestep_focus"} | settings
        return
    with pytest.raises(ValueError) as refused:
        rules.load()
    assert sentence in str(refused.value)
