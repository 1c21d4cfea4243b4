"""The forward process and the loss, against diffusers and against numbers worked by hand."""

import types

import pytest
import torch

from stages.diffusion import ddpm


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def scheduler():
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")


def test_alpha_bars_of_the_paper(scheduler):
    alpha_bars = ddpm.alpha_bars(1000, 1e-4, 0.02)
    assert alpha_bars.shape == (1000,) and alpha_bars.dtype == torch.float64
    printed = {0: (0.9999, 1e-12), 1: (0.99978, 5e-6), 981: (5.79e-5, 5e-8), 999: (4.04e-5, 5e-8)}
    for t, (value, half_a_digit) in printed.items():
        assert abs(float(alpha_bars[t]) - value) <= half_a_digit
    assert (alpha_bars[1:] < alpha_bars[:-1]).all()
    assert torch.allclose(alpha_bars, scheduler.alphas_cumprod.double(), rtol=2e-5, atol=0)  # diffusers: in float32


def test_alpha_bars_by_hand():
    # betas 0.1, 0.2, 0.3: 0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7
    assert ddpm.alpha_bars(3, 0.1, 0.3).tolist() == pytest.approx([0.9, 0.72, 0.504], abs=1e-15)


def test_normalise_maps_bytes_to_minus_one_to_one():
    x = ddpm.normalise(torch.tensor([[[[0, 51, 102, 255]]]], dtype=torch.uint8))
    assert x.dtype == torch.float32
    assert x.flatten().tolist() == pytest.approx([-1, -0.6, -0.2, 1], abs=1e-7)


def test_noised_equals_diffusers(scheduler):
    x_0, eps = random(6, 3, 5, 4, seed=1), random(6, 3, 5, 4, seed=2)
    t = torch.tensor([0, 999, 500, 1, 500, 37])
    x_t = ddpm.noised(x_0, t, eps, ddpm.alpha_bars(1000, 1e-4, 0.02).float())
    assert x_t.dtype == torch.float32
    assert torch.allclose(x_t, scheduler.add_noise(x_0, eps, t), rtol=0, atol=2e-5)  # its tables are in float32


def test_noised_by_hand():
    x_t = ddpm.noised(
        torch.tensor([1.0, 1.0]).view(2, 1, 1, 1),
        torch.tensor([1, 0]),
        torch.tensor([10.0, 100.0]).view(2, 1, 1, 1),
        torch.tensor([0.64, 0.36]),
    )
    assert x_t.flatten().tolist() == pytest.approx([0.6 + 8, 0.8 + 60])


def tripled(x_t, t):
    """A network that is easy to compute by hand: three times its input, plus its timestep."""
    return types.SimpleNamespace(sample=3 * x_t + t.view(-1, 1, 1, 1))


def test_losses_are_one_number_per_sample():
    x_0, eps = random(5, 3, 4, 2, seed=3), random(5, 3, 4, 2, seed=4)
    t, alpha_bar = torch.tensor([3, 0, 2, 2, 1]), torch.tensor([0.9, 0.7, 0.4, 0.1])
    losses = ddpm.sample_losses(tripled, x_0, t, eps, alpha_bar)
    assert losses.shape == (5,) and losses.dtype == torch.float32
    for j in range(5):
        a = float(alpha_bar[t[j]])
        total = 0.0
        for x, e in zip(x_0[j].flatten().tolist(), eps[j].flatten().tolist()):
            total += (3 * (a**0.5 * x + (1 - a) ** 0.5 * e) + int(t[j]) - e) ** 2
        assert float(losses[j]) == pytest.approx(
            total / (3 * 4 * 2), rel=1e-5
        )  # the mean, not the sum, over C, H and W
    x_0[2] = 7.0
    changed = ddpm.sample_losses(tripled, x_0, t, eps, alpha_bar) != losses
    assert changed.tolist() == [False, False, True, False, False]


def test_bf16_runs_the_network_in_bf16_and_the_loss_in_fp32():
    torch.manual_seed(0)
    convolution, seen = torch.nn.Conv2d(3, 3, 3, padding=1), []

    def model(x_t, t):
        seen.append(convolution(x_t))
        return types.SimpleNamespace(sample=seen[-1])

    arguments = (
        random(64, 3, 8, 8, seed=5),
        torch.arange(64),
        random(64, 3, 8, 8, seed=6),
        torch.linspace(0.99, 0.1, 64),
    )
    full = ddpm.sample_losses(model, *arguments, precision="fp32")
    half = ddpm.sample_losses(model, *arguments, precision="bf16")
    assert [out.dtype for out in seen] == [torch.float32, torch.bfloat16]
    assert full.dtype == half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, rtol=0.01, atol=0)
    # Taken in bfloat16, the losses themselves would have 8 bits.
    assert not torch.equal(half, half.bfloat16().float())
