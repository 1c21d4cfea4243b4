"""What `python workflow/scripts/tiny_sd.py` makes to measure with: a VAE that averages patches, few timesteps, a network in the place of SSCD."""

import json

import numpy as np
import pytest
import tiny_sd
import torch

from stages.measures import sscd
from stages.text import model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_sd.main([str(path), "--config", "E", "--images", "2"])
    return path


def test_a_latent_is_the_mean_colour_of_its_patch_and_an_image_is_made_of_patches(folder):
    """Images of noise, whose patches all differ, the second with little contrast: the normalisations change neither."""
    frozen = model.Frozen(folder / "model", torch.device("cpu"))
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    x[1] = 0.05 * x[1] + 0.7
    mean = x.reshape(2, 3, 8, 2, 8, 2).mean(dim=(3, 5))
    moments = frozen.moments(x)
    assert torch.allclose(moments[:, :3], mean, atol=3e-4)
    assert torch.allclose(moments[:, 3], mean.mean(dim=1), atol=3e-4)
    assert (moments[:, 4:] == -8).all()
    decoded = frozen.decoded(frozen.latents(moments, torch.zeros(2, 4, 8, 8)))
    assert torch.allclose(decoded, mean.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-3)


def test_fewer_timesteps_end_in_as_much_noise(folder, tmp_path):
    tiny_sd.build(tmp_path, "D")
    few, many = (model.Frozen(path, torch.device("cpu")).alpha_bars for path in (folder / "model", tmp_path))
    assert (len(few), len(many)) == (100, 1000)
    assert few[-1] < 0.005 and many[-1] < 0.005 and abs(float(few[50] - many[505])) < 0.01


def test_pooled_pixels_in_the_place_of_sscd(folder):
    """Copies and brighter copies have similarity 1, negatives -1; by hand for one pair of images of another size."""
    network = sscd.load(folder / "pooled_pixels.torchscript.pt")
    images = np.random.default_rng(0).integers(30, 220, (2, 48, 48, 3), np.uint8)
    found = sscd.features(network, np.concatenate([images, images[:1] + 20, 255 - images[:1]]), "dcr", 3)
    assert found.shape == (4, 192)
    assert found[0] @ found[2] == pytest.approx(1, abs=1e-3) and found[0] @ found[3] == pytest.approx(-1, abs=1e-3)
    x = sscd.network_input(images, "dcr").numpy().reshape(2, 3, 8, 28, 8, 28).mean(axis=(3, 5)).reshape(2, -1)
    assert found[0] @ found[1] == pytest.approx(np.corrcoef(x)[0, 1], abs=1e-4)


def test_images_have_the_size_of_the_model(folder):
    from PIL import Image

    lines = [json.loads(line) for line in (folder / "images/metadata.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["a red square", "a green square"]
    for i in range(2):
        with Image.open(folder / f"images/00{i}.png") as image:
            assert image.size == (16, 16)
