"""Images of generators from elsewhere: what is read as what, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.diffusion import saved_pipeline
from stages.image_sets import elsewhere
from stages.image_sets.parts import silent

RNG = np.random.default_rng(6)
SHAPE = (8, 8, 1)
ALL = {"num_images": None}


def pixels(count, *shape):
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def read(generator, shape=SHAPE, sample=ALL):
    if "pipeline" in generator:
        source = saved_pipeline.Source(Path(generator["pipeline"]), shape, 0, sample["num_steps"], "cpu")
        starts = range(0, sample["num_images"], sample["batch_size"])
        stops = [min(start + sample["batch_size"], sample["num_images"]) for start in starts]
        found = np.concatenate([source.generate(*ends) for ends in zip(starts, stops)])
    else:
        found = elsewhere.images(generator, shape, sample["num_images"], silent)
    assert found.dtype == np.uint8 and found.shape[1:] == shape
    return found


def folder_of(path, images):
    path.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(path / f"{i:03}.png")
    return {"folder": str(path)}


def test_a_folder_an_array_and_an_archive_hold_the_same_images(tmp_path):
    images = pixels(7, 8, 8, 1)
    np.save(tmp_path / "a.npy", images)
    np.save(tmp_path / "grey.npy", images[..., 0])
    np.savez(tmp_path / "a.npz", arr_0=images, labels=np.arange(7))
    np.savez_compressed(tmp_path / "b.npz", images=images)
    for generator in [folder_of(tmp_path / "png", images)] + [
        {"file": str(tmp_path / name)} for name in ("a.npy", "grey.npy", "a.npz", "b.npz")
    ]:
        assert np.array_equal(read(generator), images), generator
        assert np.array_equal(read(generator, sample={"num_images": 3}), images[:3]), generator


def test_grey_becomes_colour_but_colour_becomes_grey_only_if_it_is(tmp_path):
    grey = pixels(3, 8, 8, 1)
    np.save(tmp_path / "grey.npy", grey)
    np.save(tmp_path / "rgb.npy", np.repeat(grey, 3, axis=3))
    np.save(tmp_path / "colour.npy", pixels(3, 8, 8, 3))
    assert np.array_equal(read({"file": str(tmp_path / "grey.npy")}, (8, 8, 3)), np.repeat(grey, 3, axis=3))
    assert np.array_equal(read({"file": str(tmp_path / "rgb.npy")}), grey)
    with pytest.raises(ValueError, match="have 3 channels, but the training images have 1: convert one of them"):
        read({"file": str(tmp_path / "colour.npy")})


def test_images_are_resized_only_when_asked_for(tmp_path):
    generator = folder_of(tmp_path / "png", pixels(2, 16, 12, 1))
    with pytest.raises(
        ValueError, match=r"are 12x16 pixels, but the training images are 8x8: set generator.resize: true"
    ):
        read(generator)
    assert read(generator | {"resize": True}).shape == (2, 8, 8, 1)


def test_sentences_about_a_folder_name_its_own_keys(tmp_path):
    generator = folder_of(tmp_path / "png", pixels(2, 8, 8, 1))
    Image.fromarray(pixels(1, 9, 9)[0]).save(tmp_path / "png/other.png")
    with pytest.raises(ValueError, match=r"several sizes .*: set generator.resize: true \(params.yaml\)$"):
        read(generator)
    whole = (tmp_path / "png/001.png").read_bytes()
    (tmp_path / "png/001.png").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match=r"001.png is not a readable image .* remove it from generator.folder"):
        read(generator | {"resize": True})


@pytest.mark.parametrize(
    ("name", "array", "told"),
    [
        ("float.npy", np.zeros((2, 8, 8, 1), np.float32), "holds float32 (2, 8, 8, 1), expected uint8"),
        ("flat.npy", np.zeros((2, 64), np.uint8), "holds uint8 (2, 64), expected uint8 [images, height, width, channels]"),
        ("first.npy", np.zeros((2, 1, 8, 8), np.uint8), "are 8x1 pixels, but the training images are 8x8"),
        ("object.npy", np.array([{"a": 1}], object), "cannot be read as a numpy array"),
        ("text.npy", b"no array", "cannot be read as a numpy array"),
        ("text.npz", b"no archive", "cannot be read as a numpy array"),
        ("two.npz", {"a": np.zeros((2, 8, 8), np.uint8), "b": np.zeros((2, 8, 8), np.uint8)}, "it has 2 arrays of images"),
        ("empty.npy", np.zeros((0, 8, 8, 1), np.uint8), "holds uint8 (0, 8, 8, 1), expected uint8"),
        ("none.npz", {"a": np.zeros(3, np.uint8)}, "it has 0 arrays of images"),
        ("pickled.npz", {"a": np.array([[[None]]], object)}, "cannot be read as a numpy array"),
    ],
)  # fmt: skip
def test_array_files_that_are_refused(tmp_path, name, array, told):
    path = tmp_path / name
    if isinstance(array, bytes):
        path.write_bytes(array)
    elif isinstance(array, dict):
        np.savez(path, **array)
    else:
        np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError) as error:
        read({"file": str(path)})
    assert told in str(error.value) and str(path) in str(error.value)


def test_cut_short_files_never_end_in_anything_but_a_sentence(tmp_path):
    images = pixels(5, 8, 8, 1)
    for name, save in (("a.npy", np.save), ("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        save(tmp_path / name, images)
        whole = (tmp_path / name).read_bytes()
        for length in RNG.integers(0, len(whole) - 1, 40):
            damaged = tmp_path / f"cut-{length}{name}"
            damaged.write_bytes(whole[:length])
            with pytest.raises(ValueError, match="cannot be read as a numpy array|expected"):
                read({"file": str(damaged)})


def test_too_few_images_for_what_is_asked(tmp_path):
    generator = folder_of(tmp_path / "png", pixels(4, 8, 8, 1))
    with pytest.raises(ValueError, match=r"holds 4 images, but sample.num_images of the arm asks for 5"):
        read(generator, sample={"num_images": 5})


def save_pipeline(path, channels=1, kind="DDPMPipeline"):
    import diffusers
    import torch

    torch.manual_seed(3)
    network = diffusers.UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, block_out_channels=(8, 8), layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=4,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler() if kind == "DDIMPipeline" else diffusers.DDPMScheduler()
    getattr(diffusers, kind)(network, scheduler).save_pretrained(path)
    return {"pipeline": str(path)}


SAMPLE = {"num_images": 5, "batch_size": 2, "num_steps": 3}


@pytest.mark.parametrize("kind", ["DDPMPipeline", "DDIMPipeline"])
def test_a_pipeline_makes_images_whatever_the_batch(tmp_path, kind):
    generator = save_pipeline(tmp_path / "pipe", kind=kind)
    images = read(generator, sample=SAMPLE)
    assert len(images) == 5 and len(np.unique(images, axis=0)) == 5
    assert np.abs(read(generator, sample=SAMPLE | {"batch_size": 5}).astype(int) - images).max() <= 1
    again = read(generator, sample=SAMPLE)
    assert np.array_equal(again, images)


def test_folders_that_are_no_pipeline_for_us(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no saved pipeline of diffusers: it has no model_index.json"):
        read({"pipeline": str(tmp_path / "empty")}, sample=SAMPLE)
    save_pipeline(tmp_path / "pipe")
    index = tmp_path / "pipe/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="is a StableDiffusionPipeline, expected one of DDPMPipeline, DDIMPipeline"):
        read({"pipeline": str(tmp_path / "pipe")}, sample=SAMPLE)
    index.write_text("{")
    with pytest.raises(ValueError, match="model_index.json cannot be read"):
        read({"pipeline": str(tmp_path / "pipe")}, sample=SAMPLE)


@pytest.mark.parametrize(
    "entry",
    [{"unet": ["evil", "UNet2DModel"]}, {"unet": ["evil", "Mine"]}, {"scheduler": ["evil", "DDPMScheduler"]},
     {"unet": None}, {"scheduler": {"a": 1}}],
)  # fmt: skip
def test_code_beside_a_pipeline_is_not_run(tmp_path, monkeypatch, entry):
    generator = save_pipeline(tmp_path / "pipe")
    index = tmp_path / "pipe/model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | entry))
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    for place in ("pipe", "pipe/unet", "pipe/scheduler"):
        (tmp_path / place / "evil.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "pipe")
    with pytest.raises(ValueError, match="expected UNet2DModel and a scheduler of diffusers"):
        read(generator, sample=SAMPLE)
    assert not (tmp_path / "ran").exists()


def test_a_pipeline_whose_weights_are_a_pickle_is_refused(tmp_path):
    generator = save_pipeline(tmp_path / "pipe")
    weights = tmp_path / "pipe/unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        read(generator, sample=SAMPLE)


def test_a_pipeline_for_images_of_another_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="are 8x8 pixels, but the training images are 16x16"):
        read(save_pipeline(tmp_path / "pipe"), (16, 16, 1), SAMPLE)
