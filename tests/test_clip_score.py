"""CLIP score: embeddings against transformers' own model call, preprocessing, equal prompts, and folders that are refused."""

import shutil

import numpy as np
import pytest
import tiny_clip
import torch
from conftest import random_images

from stages.measures import clip_score as method
from stages.measures import sscd

PROMPTS = ["a red square", "the blue circle on the cross", "a red square", "purple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip") / "tiny"
    tiny_clip.build(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return method.load(folder)


def images(seed, num, side=40, channels=3):
    return random_images(seed, num, side, channels)


def test_scores_are_those_of_the_whole_model(folder, clip):
    """transformers' CLIPProcessor and one call of the model: its matrix of cosines over the temperature, of which the diagonal."""
    from transformers import CLIPModel, CLIPProcessor

    shown = images(0, 4)
    inputs = CLIPProcessor.from_pretrained(folder)(
        text=PROMPTS, images=list(shown), return_tensors="pt", padding="max_length", max_length=77, truncation=True
    )
    model = CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        cosines = model(**inputs).logits_per_image / model.logit_scale.exp()
    found = method.scores(method.image_embeddings(clip, shown, "clip", 3), method.text_embeddings(clip, PROMPTS, 2))
    np.testing.assert_allclose(found, cosines.diagonal().numpy(), atol=1e-5)
    assert abs(cosines - cosines.diagonal()).max() > 1e-2  # another image's prompt would be seen


def test_embeddings_are_unit_and_in_the_order_of_the_prompts(clip):
    found = method.text_embeddings(clip, PROMPTS, 2)
    alone = np.concatenate([method.text_embeddings(clip, [prompt], 1) for prompt in PROMPTS])
    np.testing.assert_allclose(found, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)
    assert np.array_equal(found[0], found[2]) and np.abs(found[0] - found[1]).max() > 1e-2
    told = []
    method.image_embeddings(clip, images(1, 5), "clip", 2, lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_grey_images_are_colour_with_three_equal_channels(clip):
    grey = images(2, 3, channels=1)
    found = method.image_embeddings(clip, grey, "clip", 3)
    assert np.array_equal(found, method.image_embeddings(clip, grey.repeat(3, axis=3), "clip", 3))


def test_long_prompts_are_cut_at_77_tokens(clip):
    # 75 words beside the two that mark start and end: what comes after changes nothing, what comes before does.
    texts = ["red " * 75, "red " * 75 + "blue", "red " * 74 + "blue"]
    found = method.text_embeddings(clip, texts, 3)
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2], atol=1e-4)


def test_dcr_shows_the_network_what_sscd_is_shown(tmp_path, clip):
    tiny_clip.build(tmp_path / "clip", image_size=224)
    large, shown = method.load(tmp_path / "clip"), images(3, 3)
    found = method.image_embeddings(large, shown, "dcr", 2)
    with torch.no_grad():
        features = large.model.get_image_features(pixel_values=sscd.network_input(shown, "dcr"))
    expected = torch.nn.functional.normalize(features.pooler_output, dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - method.image_embeddings(large, shown, "clip", 3)).max() > 1e-3
    with pytest.raises(ValueError, match="^preprocess is dcr, which gives images of 224 px, but .* takes 32 px"):
        method.image_embeddings(clip, shown, "dcr", 2)


def test_scores_by_hand():
    found = method.scores(np.array([[1, 0], [0.6, 0.8]], np.float32), np.array([[-1, 0], [0.8, 0.6]], np.float32))
    assert found == pytest.approx([-1, 0.96])  # no clamp at 0


def test_folders_that_are_no_clip_model_are_refused(tmp_path, folder):
    with pytest.raises(
        ValueError, match=r"the folder .*gone does not exist: put a CLIP model in transformers' layout there$"
    ):
        method.load(tmp_path / "gone")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    for name in ("config.json", "model.safetensors"):
        (broken / name).rename(broken / f"{name}.away")
    with pytest.raises(ValueError, match=r"is no CLIP model .*: it lacks config.json, \*.safetensors"):
        method.load(broken)
    (broken / "config.json.away").rename(broken / "config.json")
    (broken / "model.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="broken cannot be read as a CLIP model"):
        method.load(broken)
