"""The phase copying on planted images: which of them it compares, by which features, and what it writes; and its section of the page."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import report_tree
import torch
import yaml
from conftest import TINY, tiny_with, write_params

from stages import copying, plan, rules
from stages.measures import copying as measures
from stages.measures import dinov2
from stages.run import files

ARM, SEED, RUN = "own", 8, "own-seed8"
RANDOM = np.random.default_rng(2)
TRAIN, HELDOUT = (RANDOM.integers(0, 256, (n, 3, 4, 1), dtype=np.uint8) for n in (60, 91))
SAMPLES = {kind: RANDOM.integers(0, 256, (70, 3, 4, 1), dtype=np.uint8) for kind in ("raw", "ema")}
ARGUMENTS = ["--arm", ARM, "--seed", str(SEED), "--round", "2"]


def draws(*key):
    words = np.random.SeedSequence([31, *key]).generate_state(2, np.uint32)
    return np.random.default_rng(int(words[0]) | int(words[1]) << 32)


@pytest.fixture
def write_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(heldout=HELDOUT, shared=60, **section):
        experiment = yaml.safe_load(TINY) | {"seeds": [3, SEED], "copying": {"features": "pixels", **section}}
        experiment["sample"]["num_images"] = shared
        sample = {"num_images": 70, "batch_size": 20, "parts": 2, "weights": ["ema", "raw"]}
        arm = experiment["arms"]["ddpm"] | {"rounds": 3, "sample_rounds": [1, 2], "sample": sample}
        experiment["arms"] = {"ddpm": experiment["arms"]["ddpm"], ARM: arm}
        write_params(experiment)
        files.save_array(files.DATA / "train.npy", TRAIN)
        files.save_array(files.DATA / "heldout.npy", heldout)
        for part, rows in enumerate((slice(0, 40), slice(40, 70))):
            for kind, images in SAMPLES.items():
                files.save_array(files.folder("samples", RUN, 2, part=part) / f"{kind}.npy", images[rows])
        copying.main(["--reference"])
        copying.main(ARGUMENTS)
        return (
            files.load_json(files.folder("results/copying", *place) / "scores.json")
            for place in (["reference"], [RUN, 2])
        )

    return write


def flat(images):
    return images.reshape(len(images), -1) / 255


@pytest.mark.parametrize(
    ("most", "num_test", "num"), [({}, 45, 45), ({"num_images": 30}, 30, 30), ({"shared": 41}, 45, 41)]
)
def test_an_arm_and_both_references_are_compared_with_half_of_the_held_out_images(write_all, most, num_test, num):
    """91 held-out images are two halves of 45; an arm's first images, as many, or as many as the shared section asks for."""
    reference, scores = write_all(**most)
    order = draws(0).permutation(91)
    test, other = HELDOUT[order[:num_test]], HELDOUT[order[num_test : num_test + num]]
    rng = draws(1)
    copies = TRAIN[rng.integers(60, size=num)] + 5.1 * rng.standard_normal((num, 3, 4, 1))
    copies = np.clip(np.round(copies), 0, 255)
    assert (reference["num_images"], reference["num_test"]) == (num, num_test)
    for found, images in (
        (reference["heldout"], other),
        (reference["copycat"], copies),
        (scores["raw"], SAMPLES["raw"][:num]),
        (scores["ema"], SAMPLES["ema"][:num]),
    ):
        expected = measures.measures(flat(images), flat(test), flat(TRAIN), draws(2))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-3)), name
    assert reference["copycat"]["authenticity"] < 0.1 < reference["heldout"]["authenticity"]


def test_too_few_held_out_images_are_told_of(write_all, capsys):
    reference, scores = write_all(heldout=HELDOUT[:39])
    told = "39 images are held out, expected at least 40 (data.heldout_share)"
    assert reference == scores == {"absent": told}
    assert f"the data-copying measures are left out, as {told}" in capsys.readouterr().err


def test_bad_settings_are_refused_and_the_phase_is_left_out_without_features():
    for section in ({}, {"num_images": 100}):
        assert not copying.wanted(tiny_with(copying=section))
    assert copying.PHASE["left_out"] in plan.left_out(tiny_with(copying={}))
    for section, told in (
        ({"features": "dinov2"}, "the key copying.model is missing"),
        ({"features": "pixels", "model": "x"}, "copying.model has no effect on pixels"),
        ({"features": "inception"}, "the key copying.weights is missing, which copying.features: inception needs"),
        ({"features": "dinov2", "model": "x", "weights": "y"}, "copying.weights has no effect on dinov2"),
    ):
        with pytest.raises(ValueError, match=told):
            rules.check(tiny_with(copying=section))
    names = [name for name in plan.expand(tiny_with(copying={"features": "pixels"})) if name.startswith("copying")]
    assert names == ["copying_reference@reference", "copying@ddpm-seed3-round1", "copying@iet_agc_plus-seed3-round2"]


def test_dinov2_is_read_from_a_folder_and_sees_images_as_its_authors_prepare_them(tmp_path, monkeypatch):
    from transformers import AutoConfig, BitImageProcessor, Dinov2Config, Dinov2Model

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=28)
    model = Dinov2Model(config).eval()
    model.save_pretrained("dino")
    images = RANDOM.integers(0, 256, (3, 8, 6, 3), dtype=np.uint8)
    processor = BitImageProcessor(
        size={"height": 224, "width": 224},
        resample=3,
        do_center_crop=False,
        image_mean=dinov2.MEAN,
        image_std=dinov2.STD,
    )
    pixels = processor(list(images), return_tensors="pt", input_data_format="channels_last").pixel_values
    with torch.no_grad():
        expected = model(pixels).pooler_output.numpy()
    found = dinov2.features(dinov2.load("dino"), images, 2)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    grey = dinov2.features(dinov2.load("dino"), images[..., :1], 2)
    np.testing.assert_allclose(grey, dinov2.features(model, np.repeat(images[..., :1], 3, axis=3), 3), atol=1e-5)
    experiment = tiny_with(copying={"features": "dinov2", "model": "dino"})
    copying.check_files(experiment)
    Path("dino/model.safetensors").unlink()
    with pytest.raises(ValueError, match="there is no dino/model.safetensors"):
        copying.check_files(experiment)
    AutoConfig.for_model("clip").save_pretrained("clip")
    with pytest.raises(ValueError, match="cannot be read as a DINOv2 model of transformers .*kind clip"):
        dinov2.load("clip")


def test_the_page_has_the_arms_between_held_out_images_and_a_copycat(tmp_path):
    def write(place, scores):
        files.write_json(files.folder("results/copying", place) / "scores.json", scores)

    def write_more(settings, levels):
        row = {"authenticity": 0.488, "c_t": -0.06, "fld_gap": -6.6}
        copies = {"authenticity": 0.0, "c_t": -30.1, "fld_gap": -82.0}
        write("reference", {"num_images": 1200, "num_test": 1100, "heldout": row, "copycat": copies})
        for arm, rounds in (("plain", 1), ("iet", 2)):
            write(files.place(f"{arm}-seed0", rounds), {"raw": {"authenticity": 0.559, "c_t": None, "fld_gap": 0.9}})

    sections = {"copying": {"features": "pixels"}}
    with report_tree.built(tmp_path, report_tree.ONE_SEED, sections=sections, write_more=write_more) as (root, metrics):
        html = re.search(r'<h2 id="copying">.*?</section>', (root / "report.html").read_text(), re.DOTALL)[0]
        assert metrics["plain"]["raw"]["copying"] == {"authenticity": 0.559, "c_t": None, "fld_gap": 0.9}
        assert "copying" not in metrics["plain"]["ema"] and "copying" not in json.loads(
            (root / "metrics.json").read_text()
        )
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in re.findall(r"<tr>(<th scope=row>.*?)</tr>", html)]
    assert rows == [
        ["held-out images", "–", "48.8", "−0.06", "−6.6"],
        ["plain", "raw", "55.9", "–", "0.9"],
        ["iet", "raw", "55.9", "–", "0.9"],
        ["copycat", "–", "0.0", "−30.1", "−82"],
    ]
    assert "By pixels, 1,200 images a row" in html and "beside 1,100 held-out images" in html and "no merit" in html
