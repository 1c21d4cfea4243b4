"""The magnitude detector: noise from either kind of prediction, what is recorded of a sampler, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny_sd
import torch

from stages.text import magnitude_detector as method
from stages.text import prediction


def test_differences_of_v_are_read_as_noise():
    """Each prediction by itself turned into noise, eps = sqrt(a) v + sqrt(1 - a) x, and then subtracted."""
    generator = torch.Generator().manual_seed(0)
    x, cond, uncond = (torch.randn(3, 4, 2, 5, generator=generator) for _ in range(3))
    for alpha_bar in (0.0058, 0.27, 0.99):
        eps = [alpha_bar**0.5 * v + (1 - alpha_bar) ** 0.5 * x for v in (cond, uncond)]
        found = prediction.noise_difference("v_prediction", cond, uncond, alpha_bar)
        torch.testing.assert_close(found, eps[0] - eps[1], atol=1e-6, rtol=1e-4)
    assert torch.equal(prediction.noise_difference("epsilon", cond, uncond, 0.1), cond - uncond)
    with pytest.raises(ValueError, match="the network predicts sample, expected epsilon or v_prediction"):
        prediction.noise_difference("sample", cond, uncond, 0.1)


def test_the_schedule_of_stable_diffusion_has_the_published_factors():
    """sqrt(alpha_bar) is 0.076 at t = 981 and 0.52 at 501: by these the magnitude of a v differs from that of a noise."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bars = np.cumprod(1 - betas)
    one = torch.ones(1, 4, 2, 2)
    for t, factor in ((981, 0.076), (501, 0.52)):
        found = prediction.noise_difference("v_prediction", one, 0 * one, float(alpha_bars[t]))
        assert found[0, 0, 0, 0].item() == pytest.approx(factor, abs=0.006)


def test_magnitudes_by_hand():
    difference = torch.zeros(2, 1, 2, 2)
    difference[0, 0] = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    found = method.magnitudes(difference)
    assert found["raw"].tolist() == [5, 0] and found["rms"].tolist() == [2.5, 0]


class Known(torch.nn.Module):
    """Gives 1 for every value of the empty prompt, and 1 + size for a prompt, of which there is one size an image."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = torch.tensor(sizes)

    def forward(self, x, t, encoder_hidden_states=None):
        output = torch.ones_like(x)
        output[len(x) // 2 :] += self.sizes.view(-1, 1, 1, 1) * (1 if torch.as_tensor(t).max() > 5 else 2)
        return SimpleNamespace(sample=output)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_sampler_is_listened_to(kind):
    alpha_bars = np.array([0.9] * 5 + [0.64] * 5)
    network, x = Known([0.5, 3.0, 0.25]), torch.zeros(6, 4, 2, 2)
    with method.Recorder(network, kind, alpha_bars, guidance=2.0) as recorder:
        for t in (torch.tensor(9), 7, torch.tensor([2] * 6)):
            network(x, t, encoder_hidden_states=None)
    network(x, 1)  # afterwards nothing is recorded
    factors = [0.8, 0.8, 2 * 0.9**0.5] if kind == "v_prediction" else [1, 1, 2]
    expected = np.outer([0.5, 3.0, 0.25], factors)
    np.testing.assert_allclose(recorder.per_step("rms"), expected, rtol=1e-6)
    np.testing.assert_allclose(recorder.per_step("raw"), 4 * expected, rtol=1e-6)  # 16 values


def test_scores_are_means_over_steps_and_images():
    found = method.scores(np.array([[1.0, 2.0, 6.0], [3.0, 4.0, 8.0]]))
    assert found == {"mean": 4.0, "first_step": 2.0, "per_step": [2.0, 3.0, 7.0]}


@pytest.mark.parametrize("guidance", [1, 1.0, 0.0])
def test_without_guidance_there_is_no_magnitude(guidance):
    with pytest.raises(ValueError, match=rf"the guidance is {guidance}, expected more than 1: without classifier-free"):
        method.Recorder(Known([1.0]), "epsilon", [0.5], guidance)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_stock_pipeline_is_listened_to(tmp_path, kind):
    from diffusers import StableDiffusionPipeline

    tiny_sd.build(tmp_path / "model", "D", kind)
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path / "model", local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    x_T = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32))
    alpha_bars = pipeline.scheduler.alphas_cumprod
    with method.Recorder(pipeline.unet, kind, alpha_bars, 3.0) as recorder:
        pipeline(["a red square", ""], latents=x_T, num_inference_steps=5, guidance_scale=3.0, output_type="latent")
    found = recorder.per_step("raw")
    assert found.shape == (2, 5) and found[1].max() < 1e-4 < 1e-2 < found[0].min()  # the empty prompt against itself
    cond, uncond = pipeline.encode_prompt(["a red square"], "cpu", 1, True)
    with torch.no_grad():
        t = pipeline.scheduler.timesteps[0]
        passes = [pipeline.unet(x_T[:1], t, e).sample for e in (cond, uncond)]
    factor = float(alpha_bars[t]) ** 0.5 if kind == "v_prediction" else 1
    assert found[0, 0] == pytest.approx(factor * (passes[0] - passes[1]).norm().item(), rel=1e-4)
