"""The similarity phase: preprocessing by its formula, neighbours by brute force, the summary by hand, the stage and the doors."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import report_tree
import tiny_sscd
import torch
import yaml
from conftest import (
    TINY,
    check_missing_file,
    check_turned_off_and_on,
    item_of_round,
    random_images,
    seen_by_dvc,
    small_project,
    tiny_with,
    with_six_images,
    write_params,
    write_samples,
)

from stages import experiments, phases, plan, report, rules, similarity
from stages.measures import sscd as method
from stages.run import files


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("sscd") / "sscd_tiny.torchscript.pt"
    tiny_sscd.save(path)
    return path


def units(seed, num, size=5):
    vectors = np.random.default_rng(seed).normal(size=(num, size))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


# The network and what it is shown.


def resized(image, height, width):
    """Bilinear with pixel centres in plain numpy, as Pillow enlarges: pixel i looks at (i + 1/2) old / new - 1/2."""

    def weights(old, new):
        at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        low = np.minimum(at.astype(int), old - 2)
        matrix = np.zeros((new, old))
        matrix[np.arange(new), low], matrix[np.arange(new), low + 1] = 1 - (at - low), at - low
        return matrix

    old_height, old_width = image.shape[:2]
    return np.einsum("yh,hwc,xw->yxc", weights(old_height, height), image.astype(float), weights(old_width, width))


def check_input(found, image, preprocess):
    """8x11 pixels: the short side, 8, comes to 256 or 288 and the long one to 352 or 396."""
    if preprocess == "dcr":
        expected = (resized(image, 256, 352)[16:240, 64:288] / 255 - 0.5) / 0.5
    else:
        expected = (resized(image, 288, 396) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert found.shape == (3, *expected.shape[:2])
    levels = np.abs(found.numpy().transpose(1, 2, 0) - expected) * 255 * (0.5 if preprocess == "dcr" else 0.229)
    assert levels.max() < 1.1  # Pillow rounds to whole grey levels after each direction


@pytest.mark.parametrize("preprocess", ["dcr", "sscd"])
@pytest.mark.parametrize("channels", [1, 3])
def test_input_by_its_formula(preprocess, channels):
    shown = random_images(0, 2, channels=channels)
    found = method.network_input(shown, preprocess)
    for picture, image in zip(found, shown):
        check_input(picture, image, preprocess)


def test_the_check_tells_the_two_inputs_apart():
    shown = random_images(0, 1, channels=3)
    with pytest.raises(AssertionError):
        check_input(method.network_input(shown, "sscd")[0], shown[0], "dcr")
    with pytest.raises(AssertionError):  # the same crop, normalised with the other numbers
        crop = torch.from_numpy(resized(shown[0], 256, 352)[16:240, 64:288]).permute(2, 0, 1) / 255
        check_input((crop - 0.485) / 0.229, shown[0], "dcr")


def test_features_are_those_of_the_network_and_batches_change_nothing(weights_file):
    plain, shown, told = tiny_sscd.save(weights_file.with_name("again.pt")), random_images(1, 5), []
    network = method.load(weights_file)
    found = method.features(network, shown, "dcr", 2, lambda done, total: told.append((done, total)))
    with torch.no_grad():
        expected = plain(method.network_input(shown, "dcr")).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(found, method.features(network, shown, "dcr", 5), atol=1e-6)
    assert found.shape == (5, tiny_sscd.NUM_FEATURES) and found.dtype == np.float32 and told[-1] == (5, 5)
    assert np.abs(found - method.features(network, shown, "sscd", 5)).max() > 1e-3


def test_features_are_made_unit_where_the_network_does_not():
    found = method.features(torch.nn.Sequential(Tail(), torch.nn.Linear(2, 3)), random_images(2, 4), "dcr", 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


class Tail(torch.nn.Module):
    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], dim=1)


@pytest.mark.parametrize(
    "wrong", [random_images(4, 2, channels=2), random_images(4, 2).astype(np.float32), random_images(4, 2)[0]]
)
def test_images_that_the_network_cannot_take_are_refused(weights_file, wrong):
    with pytest.raises(ValueError, match=r"expected uint8 \[N, H, W, 1 or 3\]"):
        method.features(method.load(weights_file), wrong, "dcr", 2)


def test_networks_of_another_kind_are_refused():
    flat = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 5, stride=50))
    with pytest.raises(ValueError, match=r"gives \(2, 2, 5, 5\) for 2 images, expected \[B, D\]"):
        method.features(flat, random_images(5, 2), "dcr", 2)
    with pytest.raises(ValueError, match="not finite"):
        broken = torch.nn.Sequential(Tail(), torch.nn.Linear(2, 3))
        broken[1].weight.data[0] = torch.nan
        method.features(broken, random_images(5, 2), "dcr", 2)


def test_a_file_that_is_no_torchscript(tmp_path):
    (tmp_path / "a.pt").write_text("no weights")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "b.pt")
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ValueError, match=f"{name} cannot be read as a TorchScript network"):
            method.load(tmp_path / name)


# Neighbours and their summary.


def test_nearest_is_brute_force():
    sample, train = units(0, 70), units(1, 40)
    similarity_, index = method.nearest(sample, train)
    matrix = sample.astype(float) @ train.astype(float).T
    np.testing.assert_allclose(similarity_, matrix.max(axis=1), atol=1e-6)
    assert np.array_equal(index, matrix.argmax(axis=1))
    assert index.max() > 30 and len(similarity_) == 70


def test_training_images_are_compared_with_all_but_themselves():
    """An image that is there three times has a twin at 1: taking the second of the two nearest would give the image itself."""
    train = units(2, 40)
    train[[7, 30]] = train[3]
    similarity_, index = method.nearest_other(train)
    matrix = train.astype(float) @ train.astype(float).T
    np.fill_diagonal(matrix, -2)
    np.testing.assert_allclose(similarity_, matrix.max(axis=1), atol=1e-6)
    assert not (index == np.arange(40)).any()
    assert {index[3], index[7], index[30]} <= {3, 7, 30} and similarity_[7] == pytest.approx(1)
    twins = np.arange(40)
    twins[[7, 30]] = 3  # which of the three is as good as another
    assert np.array_equal(np.delete(twins[index], [3, 7, 30]), np.delete(twins[matrix.argmax(axis=1)], [3, 7, 30]))
    with pytest.raises(ValueError, match="there are 1 training images, expected 2 at least"):
        method.nearest_other(train[:1])


def test_summary_by_hand():
    # 21 values 0, 0.05, ..., 1 without order: rank 0.95 * 20 = 19 is exactly 0.95; ten of them are above 0.5, which is not.
    values = np.random.default_rng(0).permutation(21) / 20
    found = method.summary(values, interval=False)
    assert found == pytest.approx(
        {
            "percentile_95": 0.95,
            "mean": 0.5,
            "sd": np.sqrt((21**2 - 1) / 12) / 20,
            "percentile_75": 0.75,
            "percentile_90": 0.9,
            "share_above": 10 / 21,
        }
    )
    assert method.summary([0.0, 1.0])["percentile_95"] == pytest.approx(0.95)  # straight between neighbours
    with pytest.raises(ValueError, match="there are no similarities"):
        method.summary([])


def test_the_interval_is_over_prompts_where_images_have_them():
    """20 prompts of 40 images each that are all equal: known to be wide. As 800 images it would be narrow."""
    prompts = np.arange(800) % 20
    values = np.random.default_rng(3).random(20)[prompts]
    found, without = method.summary(values, prompts), method.summary(values)
    assert found["high"] == 1.0  # 20 values do not bound the 95th percentile from above
    assert found["low"] < found["percentile_95"] and without["high"] - without["low"] < 0.2
    assert {"low", "high"} <= found.keys() and not {"low", "high"} & method.summary(values, interval=False).keys()


# Which weights.


def with_similarity(**section):
    return tiny_with(similarity=section)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"weights": "a.pt", "preprocess": "dcr"}, "the key similarity.batch_size is missing"),
        ({"weights": "a.pt", "preprocess": "sccd", "batch_size": 8}, "did you mean sscd?"),
        ({"weight": "a.pt"}, "unknown key similarity.weight: did you mean weights?"),
        ({"weights": "a.pt", "preprocess": "dcr", "batch_size": 8, "show_images": -1}, "similarity.show_images is -1"),
    ],
)
def test_a_wrong_section_is_refused(section, told):
    with pytest.raises(ValueError, match=told.replace("?", r"\?")):
        rules.check(with_similarity(**section))


def test_the_file_is_checked_before_anything_runs(tmp_path, monkeypatch, weights_file):
    monkeypatch.chdir(tmp_path)
    settings = {"weights": str(weights_file), "preprocess": "dcr", "batch_size": 4}
    similarity.check_files({"similarity": settings | {"sha256": hashlib.sha256(weights_file.read_bytes()).hexdigest()}})
    for wrong, told in [
        ({"weights": "gone.pt"}, "the file similarity.weights = gone.pt does not exist: put the SSCD weights there"),
        ({"sha256": "ab" * 32}, "has the sha256 .* expected abab.*mend similarity.sha256"),
        ({"weights": "artifacts/a.pt"}, "similarity.weights = artifacts/a.pt lies in artifacts/"),
    ]:
        with pytest.raises(ValueError, match=told):
            phases.check_files(with_similarity(**settings | wrong))


# The phase.


@pytest.mark.parametrize(
    ("experiment", "sentences"), [(yaml.safe_load(TINY), 0), (with_similarity(preprocess="dcr", batch_size=8), 1)]
)
def test_without_weights_the_phase_is_left_out(experiment, sentences):
    rules.check(experiment)
    found = plan.expand(experiment)
    assert found == plan.expand(yaml.safe_load(TINY))
    assert not [name for name in found if name.startswith("similarity")]
    assert phases.left_out(experiment).count(similarity.PHASE["left_out"]) == sentences


def test_instances_of_the_phase_by_hand():
    section = {"weights": "my/sscd.pt", "preprocess": "dcr", "batch_size": 8}
    found = plan.expand(with_similarity(**section) | {"seeds": [3, 4]})
    runs = [f"{arm}-seed{seed}-round{r}" for arm, r in (("ddpm", 1), ("iet_agc_plus", 2)) for seed in (3, 4)]
    names = [name for name in found if name.startswith("similarity")]
    assert names == ["similarity_reference@reference", *(f"similarity@{run}" for run in runs)]
    assert found["similarity_reference@reference"].item() == {"run": "reference", "network": "my/sscd.pt"}
    assert found["similarity@ddpm-seed4-round1"].item() == item_of_round("ddpm", 4, 1)


@pytest.fixture
def made(tmp_path, monkeypatch, weights_file):
    """The working folder with 5 training images and the samples of one run: 6 images in parts of 4 and 2, of two kinds. Images 1
    and 5 of raw are copies of training image 3."""
    monkeypatch.chdir(tmp_path)
    tiny = with_six_images(with_similarity(weights=str(weights_file), preprocess="dcr", batch_size=4))
    write_params(tiny)
    files.save_array(files.DATA / "train.npy", TRAIN)
    files.write_json(files.DATA / "keys.json", {"train": [f"{c}.png" for c in "abcde"], "heldout": []})
    write_samples("ddpm-seed3", SAMPLES)
    return tiny


TRAIN = random_images(20, 5)
SAMPLES = {"raw": random_images(21, 6), "ema": random_images(22, 6, brightest=100)}
SAMPLES["raw"][[1, 5]] = TRAIN[3]


def test_the_stage_finds_copies_and_names_what_it_used(made, weights_file, capfd):
    similarity.main(["--reference"])
    similarity.main(["--arm", "ddpm", "--seed", "3", "--round", "1"])
    folder = files.folder("results/similarity", "ddpm-seed3", 1)
    table, scores = pd.read_parquet(folder / "nearest.parquet"), json.loads((folder / "scores.json").read_text())
    assert [scores[key] for key in ("weights", "preprocess")] == ["sscd_tiny.torchscript.pt", "dcr"]
    assert scores["sha256"] == hashlib.sha256(weights_file.read_bytes()).hexdigest()

    network = method.load(weights_file)
    train = method.features(network, TRAIN, "dcr", 5).astype(float)
    for weights, array in SAMPLES.items():
        rows = table[table.weights == weights]
        matrix = method.features(network, array, "dcr", 6).astype(float) @ train.T
        np.testing.assert_allclose(rows.similarity, matrix.max(axis=1), atol=1e-6)
        assert list(rows.nearest_train) == list(matrix.argmax(axis=1)) and list(rows.image) == list(range(6))
        assert scores[weights]["percentile_95"] == pytest.approx(np.percentile(matrix.max(axis=1), 95), abs=1e-6)
        assert scores[weights]["low"] <= scores[weights]["percentile_95"] <= scores[weights]["high"]
    raw = table[table.weights == "raw"].set_index("image")
    assert list(raw.nearest_key[[1, 5]]) == ["d.png", "d.png"] and raw.similarity[1] == pytest.approx(1)

    reference = files.folder("results/similarity", "reference")
    others = train @ train.T - 3 * np.eye(5)
    found = pd.read_parquet(reference / "nearest.parquet")
    np.testing.assert_allclose(found.similarity, others.max(axis=1), atol=1e-6)
    assert list(found.nearest_key) == ["abcde"[i] + ".png" for i in others.argmax(axis=1)]
    own = json.loads((reference / "scores.json").read_text())["train"]
    assert own["percentile_95"] == pytest.approx(np.percentile(others.max(axis=1), 95), abs=1e-6)
    assert not (folder / "pictures.safetensors").exists()  # only keys
    assert "deprecated" not in capfd.readouterr().err

    # Again without the file, and with pictures: a run takes the network of the reference.
    made["similarity"] |= {"weights": "gone.pt", "show_images": 2}
    write_params(made)
    before = (folder / "nearest.parquet").read_bytes()
    similarity.main(["--arm", "ddpm", "--seed", "3", "--round", "1"])
    assert (folder / "nearest.parquet").read_bytes() == before
    pictures = files.load_arrays(folder / "pictures.safetensors")
    shown = pictures["raw.copy_image"]
    assert shown[0] == 1 and pictures["raw.copy_train"][0] == 3 and 5 not in shown and len(shown) == 2
    assert np.array_equal(pictures["raw.originals"][0], TRAIN[3])
    assert np.array_equal(pictures["raw.copies"][1], SAMPLES["raw"][shown[1]])
    assert np.array_equal(pictures["ema.first"], SAMPLES["ema"][:2])


@pytest.mark.parametrize("arguments", [["--reference"], ["--arm", "ddpm", "--seed", "3", "--round", "1"]])
def test_a_stage_of_a_phase_that_is_left_out_says_how_to_turn_it_on(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TINY)
    with pytest.raises(ValueError, match=r"similarity phase .* is left out, .*: add a section similarity with weights"):
        similarity.main(arguments)


def test_where_images_have_prompts_each_is_compared_with_the_image_of_its_own(made):
    keys = ["a.png", "e.png", "a.png", "b.png", "d.png", "d.png"]
    asked = [
        {"index": i, "prompt_used": f"used {i}", "prompt_original": f"line\n{i}", "train_key": key, "seed": 3}
        for i, key in enumerate(keys)
    ]
    write_samples("ddpm-seed3", SAMPLES, asked)
    made["similarity"]["show_images"] = 3
    write_params(made)
    similarity.main(["--reference"])
    similarity.main(["--arm", "ddpm", "--seed", "3", "--round", "1"])
    folder = files.folder("results/similarity", "ddpm-seed3", 1)
    table = pd.read_parquet(folder / "nearest.parquet")
    raw = table[table.weights == "raw"].set_index("image")
    assert list(raw.own_train) == [0, 4, 0, 1, 3, 3] and raw.prompt[4] == "line\n4"
    assert raw.own_similarity[5] == pytest.approx(1) and raw.own_similarity[1] < raw.similarity[1] == pytest.approx(1)
    pictures = files.load_arrays(folder / "pictures.safetensors")
    # One image a prompt: image 2 is asked for with the caption of image 0 again.
    assert np.array_equal(pictures["raw.first_originals"], TRAIN[[0, 4, 1]]) and list(pictures["raw.first_image"]) == [
        0,
        1,
        3,
    ]


# The report.


@pytest.fixture
def built(tmp_path):
    """built(levels, seeds, show_images) -> the report of a made-up tree with the similarity phase, as current folder."""

    def run(levels, seeds=(0,), show_images=0):
        section = {"weights": "sscd.pt", "preprocess": "dcr", "batch_size": 8, "show_images": show_images}
        return report_tree.built(
            tmp_path, levels, seeds, sections={"similarity": section}, write_more=write_similarity_phase
        )

    return run


def write_similarity_phase(settings, levels):
    used = {"weights": "sscd.pt", "sha256": "ab" * 32, "preprocess": "dcr"}
    reference = files.folder("results/similarity", "reference")
    files.write_json(reference / "scores.json", used | {"train": {"percentile_95": 0.333}})
    files.write_bytes(
        reference / "nearest.parquet", pd.DataFrame({"similarity": np.linspace(0.1, 0.4, 5)}).to_parquet()
    )
    show_images = settings["similarity"]["show_images"]
    for arm, seed in ((arm, seed) for arm in settings["arms"] for seed in settings["seeds"]):
        write_similarities(
            files.folder("results/similarity", f"{arm}-seed{seed}", settings["arms"][arm]["rounds"]),
            used,
            levels[arm][seed],
            show_images,
        )


def write_similarities(folder, used, level, show_images):
    """percentile_95 of raw weights is level / 100; the most similar image is number 2, of the training image <3>.png."""
    entry = dict.fromkeys(["mean", "percentile_75", "percentile_90"], 0.125) | {"share_above": 0.25, "sd": 0.1}
    entry |= {"low": level / 100 - 0.01, "high": level / 100 + 0.02, "percentile_95": level / 100}
    files.write_json(folder / "scores.json", used | {"raw": entry, "ema": entry | {"percentile_95": 0.99}})
    rows = [
        {
            "weights": w,
            "image": i,
            "similarity": s,
            "nearest_train": 3,
            "nearest_key": "<3>.png",
            "prompt": "a & b",
            "own_similarity": o,
        }
        for w in ("ema", "raw")
        for i, (s, o) in enumerate([(0.2, 0.1), (0.5, 0.25), (0.875, 0.25 if w == "raw" else 0.7)])
    ]
    files.write_bytes(folder / "nearest.parquet", pd.DataFrame(rows).to_parquet())
    if show_images:
        grey = np.full((2, 4, 4, 1), level, np.uint8)
        shown = {"copies": grey[:1], "originals": grey[:1], "first": grey, "first_originals": grey}
        numbers = {
            "first_image": np.array([0, 2]),
            "copy_image": np.array([2]),
            "copy_train": np.array([3]),
            "copy_similarity": np.array([0.875]),
        }
        arrays = {f"{w}.{name}": array for w in ("raw", "ema") for name, array in (shown | numbers).items()}
        files.save_arrays(folder / "pictures.safetensors", arrays)


def of_page(root):
    page = (root / "report.html").read_text()
    return page[page.index('id="similarity"') : page.index('id="curves"')]


def test_report_with_similarity(built, capsys):
    with built({"plain": [60], "iet": [15]}) as (root, metrics):
        found = metrics["iet"]["raw"]["similarity"]
        assert found["percentile_95"] == 0.15 and (found["low"], found["high"]) == (0.14, 0.17)
        assert found["share_above"] == 0.25 and metrics["iet"]["ema"]["similarity"]["percentile_95"] == 0.99
        frame = pd.read_parquet(root / "artifacts/report/results.parquet")
        assert set(frame[(frame.arm == "plain") & (frame.weights == "raw")].similarity_percentile_95) == {0.6}
        section = of_page(root)
        assert "<th scope=row>iet</th><td>raw</td><td>0.15 [0.14, 0.17]</td>" in section
        assert "sscd.pt" in section and "abababab" in section and "95th percentile is 0.333" in section
        assert "<td>2</td><td>0.875</td><td>&lt;3&gt;.png</td>" in section and section.count("<svg") == 1
        assert "<img" not in section and "similarity.show_images sets how many" in section  # keys only
        page = (root / "report.html").read_text()
        assert "<p>Similarity to the nearest training image, 95th percentile: iet 0.15, plain 0.6.</p>" in page
        assert "own training image" not in section and "own_mean" not in found  # there are no prompts

        capsys.readouterr()
        report.main(["--table"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith("; Sim: 95th percentile") and max(map(len, lines)) <= 120
        rows = {cells[0]: cells for cells in (re.split(" {2,}", line.strip()) for line in lines)}
        at = rows["arm"].index("Sim")
        assert rows["iet"][at] == "0.150" and rows["plain"][at] == "0.600"


def test_report_with_pictures_that_were_asked_for(built):
    with built({"plain": [60], "iet": [15]}, show_images=2) as (root, _):
        section = of_page(root)
        # A row an image: its training image and one picture of each arm, then a pair an arm.
        assert section.count("<img") == 2 * (1 + 2) + 2 * 2 and section.count("a &amp; b") == 2
        assert "<th scope=col>training image</th><th scope=col>plain</th><th scope=col>iet</th>" in section


def test_report_of_two_seeds(built):
    with built({"plain": [60, 70], "iet": [15, 35]}, seeds=(0, 1)) as (_, metrics):
        found = metrics["iet"]["raw"]["similarity"]
        assert found["percentile_95"] == 0.25 and found["percentile_95_sd"] == pytest.approx(0.1 * 2**0.5, rel=1e-5)
        # t with one degree of freedom, 12.7062, times the standard error 0.1
        assert found["high"] == pytest.approx(0.25 + 1.27062, rel=1e-4)


def test_report_without_similarity(tmp_path):
    with report_tree.built(tmp_path, report_tree.ONE_SEED) as (root, metrics):
        assert "similarity" not in metrics["iet"]["raw"]
        assert "similarity_mean" not in pd.read_parquet(root / "artifacts/report/results.parquet")
        assert 'id="similarity"' not in (root / "report.html").read_text()


@pytest.mark.parametrize("show_images", [0, 2])
def test_where_there_are_captions_no_training_image_is_shown_unless_asked_for(built, monkeypatch, show_images):
    monkeypatch.setattr(experiments, "is_text", lambda settings: True)
    monkeypatch.setattr(phases, "left_out", lambda settings: [])
    with built({"plain": [60], "iet": [15]}, show_images=show_images) as (root, metrics):
        assert metrics["iet"]["raw"]["similarity"]["own_mean"] == 0.2  # of 0.1, 0.25 and 0.25
        assert metrics["iet"]["ema"]["similarity"]["own_mean"] == 0.35
        assert "<th scope=col>mean to own training image</th>" in of_page(root)
        page = (root / "report.html").read_text()
        gallery = page[page.index('id="gallery"') :]
        assert gallery.count("<img") == (2 * 2 if show_images else 0) and gallery.count("0.123 · 2 copies") == 2


# Through the doors.


def settings_of(weights):
    return {"weights": str(weights), "preprocess": "dcr", "batch_size": 6}


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # of a package of DVC's
def test_dvc_knows_what_each_instance_reads_and_writes(tmp_path, weights_file, monkeypatch):
    project = small_project(tmp_path / "project", similarity=settings_of(weights_file))
    monkeypatch.chdir(project.root)
    waits_for, reads, commands, outs = seen_by_dvc(project)
    reference = "similarity_reference@reference"
    assert waits_for[reference] == {"data"} and str(weights_file) in reads[reference]
    assert waits_for["similarity@ddpm-seed3-round1"] == {"data", reference, "sample@ddpm-seed3-round1-part0"}
    assert {reference, "similarity@ddpm-seed3-round1"} < waits_for["report"]
    assert commands[reference] == "python -m stages.similarity --reference"
    assert commands["similarity@ddpm-seed3-round1"] == "python -m stages.similarity --arm ddpm --seed 3 --round 1"
    assert {path for i in plan.expand(project.params()).values() for path in i.outputs()} <= outs


def test_a_missing_file_is_told_by_both_doors(tmp_path):
    project = small_project(tmp_path / "project", similarity=settings_of("gone.pt"))
    check_missing_file(project, "error: the file similarity.weights = gone.pt does not exist")


@pytest.mark.slow
def test_the_phase_through_snakemake_turned_off_and_on_again(tmp_path, weights_file):
    project = small_project(tmp_path / "project", similarity=settings_of(weights_file))
    project.run("snakemake")
    kept = json.loads((project.root / "artifacts/report/summary.json").read_text())
    assert 0 < kept["ddpm"]["raw"]["similarity"]["percentile_95"] <= 1
    assert (
        "similarity@ddpm-seed3-round1 ema: 6/6 images"
        in (project.root / "logs/similarity/ddpm-seed3-round1.log").read_text()
    )
    assert "Nothing to be done" in project.run("snakemake", "-n").text
    check_turned_off_and_on(project, "similarity", similarity.PHASE["left_out"], "similarity")
