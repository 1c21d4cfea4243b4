"""DDIM against diffusers, noise that belongs to an image, and parts that together are the whole."""

import types

import numpy as np
import pytest
import torch

from stages import randomness
from stages.diffusion import ddpm, sampling, unet

SCHEDULE = {"beta_start": 1e-4, "beta_end": 0.02}


def test_timesteps_of_the_paper():
    assert sampling.timesteps(1000, 50) == list(range(981, 0, -20))
    assert sampling.timesteps(1000, 1) == [1]
    assert sampling.timesteps(10, 3) == [7, 4, 1]  # stride 3, the remainder at the noisy end is left out


def analytic(x, t):
    """A network whose answer depends on image and timestep, without weights."""
    return types.SimpleNamespace(sample=torch.sin(2 * x + t.view(-1, 1, 1, 1) / 100) + 0.1 * x)


@pytest.fixture(scope="module")
def network():
    model = {
        "block_channels": [8, 16],
        "attention_levels": [1],
        "layers_per_block": 1,
        "dropout": 0.5,
        "norm_groups": 4,
    }
    torch.manual_seed(0)
    return unet.build(model, (1, 8, 8)).eval()  # PyTorch's own random weights: an output that is not about 0


def diffusers_ddim(model, x, num_timesteps, num_steps, set_alpha_to_one):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        num_train_timesteps=num_timesteps, **SCHEDULE, beta_schedule="linear", clip_sample=True,
        set_alpha_to_one=set_alpha_to_one, steps_offset=1, timestep_spacing="leading", prediction_type="epsilon",
    )  # fmt: skip
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, num_timesteps, dtype=torch.float64), 0)
    assert torch.allclose(scheduler.alphas_cumprod.double(), table, rtol=2e-5, atol=0)
    scheduler.alphas_cumprod = table  # its own is in float32, and a random network is no contraction
    scheduler.final_alpha_cumprod = torch.tensor(1.0) if set_alpha_to_one else table[0]
    scheduler.set_timesteps(num_steps)
    assert scheduler.timesteps.tolist() == sampling.timesteps(num_timesteps, num_steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.expand(len(x))).sample, t, x, eta=0.0).prev_sample
    return x


@pytest.mark.parametrize(("num_timesteps", "num_steps"), [(1000, 50), (1000, 7), (100, 33), (40, 20)])
@pytest.mark.parametrize(("protocol", "set_alpha_to_one"), [("paper", False), ("clean", True)])
def test_ddim_equals_diffusers(num_timesteps, num_steps, protocol, set_alpha_to_one):
    x_T = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(1))
    alpha_bars = ddpm.alpha_bars(num_timesteps, **SCHEDULE)
    x = sampling.ddim(analytic, x_T, alpha_bars, num_steps, protocol)
    expected = diffusers_ddim(analytic, x_T, num_timesteps, num_steps, set_alpha_to_one)
    other = diffusers_ddim(analytic, x_T, num_timesteps, num_steps, not set_alpha_to_one)
    assert x.dtype == torch.float32
    assert torch.allclose(x, expected, rtol=0, atol=1e-5)
    assert (other - expected).abs().max() > 1e-3, "the protocols would not be told apart"


@pytest.mark.parametrize(("protocol", "set_alpha_to_one"), [("paper", False), ("clean", True)])
def test_ddim_equals_diffusers_with_a_network(network, protocol, set_alpha_to_one):
    x_T = sampling.starting_noise(0, 3, (1, 8, 8), 5)
    x = sampling.ddim(network, x_T, ddpm.alpha_bars(1000, **SCHEDULE), 50, protocol)
    assert torch.allclose(x, diffusers_ddim(network, x_T, 1000, 50, set_alpha_to_one), rtol=0, atol=1e-5)
    assert not x.requires_grad


def test_paper_leaves_noise_of_a_hundredth_on_the_clean_image():
    x_T = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    alpha_bars = ddpm.alpha_bars(1000, **SCHEDULE)
    answers = []

    def model(x, t):
        answers.append(analytic(x, t).sample)
        return types.SimpleNamespace(sample=answers[-1])

    paper = sampling.ddim(model, x_T, alpha_bars, 50, "paper")
    clean = sampling.ddim(analytic, x_T, alpha_bars, 50, "clean")
    assert clean.abs().max() <= 1
    assert torch.allclose(paper, 0.9999**0.5 * clean + 0.01 * answers[-1], rtol=0, atol=1e-6)


def test_unknown_protocol_is_refused():
    with pytest.raises(KeyError):
        sampling.ddim(analytic, torch.zeros(1, 1, 2, 2), ddpm.alpha_bars(10, **SCHEDULE), 5, "pure")


def test_bf16_samples_are_float32_and_near_the_fp32_ones(network):
    x_T = sampling.starting_noise(0, 4, (1, 8, 8), 6)
    alpha_bars = ddpm.alpha_bars(1000, **SCHEDULE)
    full = sampling.ddim(network, x_T, alpha_bars, 2, "clean")
    half = sampling.ddim(network, x_T, alpha_bars, 2, "clean", "bf16")
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    assert (full - half).abs().mean() < 0.03


def test_starting_noise_belongs_to_the_image():
    whole = sampling.starting_noise(3, 11, (2, 3, 5), seed=4)
    assert whole.shape == (8, 2, 3, 5) and whole.dtype == torch.float32 and whole.device.type == "cpu"
    parts = [sampling.starting_noise(a, b, (2, 3, 5), seed=4) for a, b in [(3, 4), (4, 9), (9, 11)]]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, sampling.starting_noise(3, 11, (2, 3, 5), seed=5))
    assert not torch.equal(whole, sampling.starting_noise(4, 12, (2, 3, 5), seed=4))


def test_starting_noise_is_standard_normal_and_uncorrelated():
    x = sampling.starting_noise(0, 500, (1, 8, 8), seed=0).flatten(1).double()
    assert abs(float(x.mean())) < 5 / x.numel() ** 0.5
    assert abs(float(x.var()) - 1) < 5 * (2 / x.numel()) ** 0.5
    correlation = (x @ x.T / 64).fill_diagonal_(0)
    assert correlation.abs().max() < 6.5 / 8


@pytest.mark.parametrize(("seed", "image", "other"), [(2, 26486, 38679), (3, 35, 33430)])
def test_no_two_images_start_from_the_same_noise(seed, image, other):
    # torch's CPU generator reads only the low 32 bits of a seed, and these two agree in them: among 65,536 images there
    # is such a pair with probability 0.39.
    a, b = (randomness.seed_of("sample", seed, i) for i in (image, other))
    assert a != b and a % 2**32 == b % 2**32
    x_a, x_b = (sampling.starting_noise(i, i + 1, (1, 8, 8), seed) for i in (image, other))
    assert not torch.equal(x_a, x_b)


@pytest.mark.parametrize(
    ("num_images", "batch_size"), [(1, 1), (1, 64), (64, 64), (65, 64), (2048, 64), (1000, 7), (999, 128), (13, 5)]
)
def test_parts_are_whole_batches_and_cover_every_image_once(num_images, batch_size):
    whole = [list(range(a, min(a + batch_size, num_images))) for a in range(0, num_images, batch_size)]
    for num_parts in range(1, len(whole) + 1):
        batches, sizes = [], []
        for part in range(num_parts):
            first, last = sampling.part_of(num_images, batch_size, part, num_parts)
            batches += [list(range(a, min(a + batch_size, last))) for a in range(first, last, batch_size)]
            sizes.append(-(-(last - first) // batch_size))
        assert batches == whole, f"{num_parts} parts"
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_stored_clamps_rounds_and_puts_channels_last():
    levels = torch.tensor([-1.5, -1.0, -1 + 0.49 / 127.5, -1 + 0.51 / 127.5, 0.999, 1.0, 1.02, 0.3])
    x = levels.view(1, 2, 2, 2)
    images = sampling.stored(x)
    assert images.dtype == np.uint8 and images.shape == (1, 2, 2, 2) and images.flags.c_contiguous
    expected = [0, 0, 0, 1, 255, 255, 255, 166]  # 0.3: 1.3 * 127.5 = 165.75
    for c in range(2):
        assert images[0, :, :, c].ravel().tolist() == expected[4 * c : 4 * c + 4]


def test_stored_is_the_inverse_of_normalise():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert np.array_equal(sampling.stored(ddpm.normalise(every))[0, :, :, 0], every[0, 0].numpy())
