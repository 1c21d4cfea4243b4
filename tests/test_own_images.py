"""A params.yaml for a folder of images: it passes every check for any number and size of images, and runs to a report unedited."""

import json
import subprocess
import sys

import experiment
import hospital
import numpy as np
import own_images
import pytest
import yaml
from conftest import ROOT, TINY, Project
from PIL import Image

from stages import data, phases, rules
from stages.run import params

NUMBERS = [
    *range(60, 130),
    150,
    199,
    200,
    201,
    255,
    256,
    500,
    999,
    1999,
    2000,
    2001,
    5000,
    9999,
    22_223,
    50_000,
    99_999,
    100_000,
]
SIDES = [8, 9, 12, 15, 16, 17, 20, 28, 31, 32, 33, 48, 64, 100, 127, 128, 500, 512, 1000, 1024]


def write_images(folder, num_images, size=(11, 9), mode="L"):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(num_images):
        shape = size[::-1] if mode == "L" else (*size[::-1], 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def experiment_for(num_images, side, name="mine"):
    found = own_images.Found(num_images, side, 3, np.zeros(num_images, np.int64))
    chosen = own_images.choose(num_images, side)
    return chosen, own_images.text(name, "data/my photos", found, chosen)


@pytest.mark.parametrize("num_images", NUMBERS)
def test_it_passes_every_check_for_any_number_of_images(num_images):
    chosen, text = experiment_for(num_images, SIDES[num_images % len(SIDES)])
    found = params.filled(yaml.safe_load(text))
    rules.check(found)
    labels = np.zeros(num_images, np.int64)
    train, heldout = data.split(labels, found["data"], has_test=False)
    assert (len(train), len(heldout)) == (chosen.num_train, chosen.num_heldout)
    phases.check_sizes(found, len(train))
    assert found["score"]["neighbours"] <= len(heldout) and found["analyse"]["group_size"] <= len(heldout)
    assert len(heldout) >= 15 and found["score"]["headline"]["threshold"] in found["score"]["thresholds"]


@pytest.mark.parametrize("num_images", NUMBERS)
def test_all_arms_take_about_the_same_number_of_steps_and_leave_hardly_an_image_out_of_an_epoch(num_images):
    chosen, _ = experiment_for(num_images, 32)
    shard, batch = chosen.num_train // chosen.num_shards, chosen.batch_size
    plain, sharded = chosen.num_train // batch, chosen.num_shards * (shard // batch)
    assert sharded <= plain <= 1.04 * sharded
    assert shard % batch <= shard * 0.05
    visits = 4 * chosen.epochs * chosen.num_train
    assert visits > 59_000 and (visits < 110_000 or chosen.epochs == 1)


@pytest.mark.parametrize("side", [*range(8, 1025, 5), *SIDES])
def test_every_level_of_the_network_divides_the_size(side):
    chosen, text = experiment_for(100, side)
    levels = len(chosen.block_channels)
    assert chosen.size % 2 ** (levels - 1) == 0 and chosen.size >> (levels - 1) >= 4
    assert chosen.size <= max(8, side) and side - chosen.size < 4 or chosen.size == own_images.LARGEST_SIDE
    assert yaml.safe_load(text)["data"]["size"] == chosen.size


@pytest.mark.parametrize("size", [8, 12, 16, 20, 28, 32])
def test_the_network_takes_images_of_every_size_that_is_chosen(size):
    import torch

    from stages.diffusion import unet

    found = params.filled(yaml.safe_load(experiment_for(60, size)[1]))
    network = unet.build(found["model"] | {"dropout": 0.0}, (3, size, size), num_classes=None)
    with torch.no_grad():
        assert network(torch.zeros(2, 3, size, size), torch.tensor([0, 999])).sample.shape == (2, 3, size, size)


def test_every_number_stands_in_a_comment_of_the_file_and_the_arms_are_those_of_the_default_experiment():
    _, text = experiment_for(60, 500)
    lines = text.splitlines()
    for key in (
        "size",
        "heldout_share",
        "block_channels",
        "epochs",
        "batch_size",
        "num_images",
        "neighbours",
        "headline",
        "group_size",
    ):
        assert any(line.strip().startswith(f"{key}:") and " # " in line for line in lines), key
    assert "45 training images" in text and "minutes on two cores" in text
    default = yaml.safe_load((ROOT / "params.yaml").read_text())["arms"]
    assert {a: r["method"]["name"] for a, r in yaml.safe_load(text)["arms"].items()} == {
        a: r["method"]["name"] for a, r in default.items()
    }


@pytest.mark.parametrize("root", ["a  # b", "a: b", 'quo"te', "ü/ä", "- x", "{x}"])
def test_any_path_is_kept_as_it_is(root):
    found = own_images.Found(60, 8, 1, np.zeros(60, np.int64))
    assert yaml.safe_load(own_images.text("a", root, found, own_images.choose(60, 8)))["data"]["root"] == root


def test_what_a_folder_holds(tmp_path):
    write_images(tmp_path / "a", 50, (40, 20), "RGB")
    write_images(tmp_path / "b", 30, (9, 60), "RGB")
    found = own_images.look(str(tmp_path))
    assert (found.num_images, found.side, found.channels) == (80, 20, 3)
    assert np.bincount(found.labels).tolist() == [50, 30]
    assert own_images.look(str(write_images(tmp_path / "grey", 60))).channels == 1


def refused(tmp_path, folder):
    with pytest.raises(ValueError) as caught:
        own_images.look(str(folder))
    return str(caught.value)


def test_too_few_images_and_sub_folders_of_one_image_each(tmp_path):
    assert "few holds 59 images, expected 60 at least" in refused(tmp_path, write_images(tmp_path / "few", 59))
    for patient in range(60):
        write_images(tmp_path / f"patients/{patient}", 1)
    assert "the 60 sub-folders of" in refused(tmp_path, tmp_path / "patients")
    assert "does not exist" in refused(tmp_path, tmp_path / "nowhere")


# The command.


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    made = Project.create(root, TINY)
    write_images(root / "data/photos", 60)
    return made


def command(project, *words):
    done = project.run("python", "workflow/scripts/experiment.py", *words, check=False)
    return done.returncode, done.text


def test_it_writes_params_and_refuses_to_overwrite_edits(project):
    file = project.root / "params.yaml"
    code, told = command(project, "my_images", "data/photos")
    assert code == 0 and "60 images of data/photos, 15 of them held out, at 8x8 pixels" in told
    assert "snakemake" in told.splitlines()[-1]
    written = rules.load(file)
    assert written["data"] == {
        "name": "image_folder",
        "root": "data/photos",
        "size": 8,
        "heldout_share": 0.25,
        "split_seed": 0,
    }
    before = file.read_text()
    assert before.startswith("# my_images: ")
    code, told = command(project, "other", "data/photos")
    assert code == 1 and "params.yaml has edits that are not committed" in told and file.read_text() == before
    project.commit("mine")
    code, told = command(project, "my_images", "data/nothing")
    assert code == 1 and "error: the folder" in told and file.read_text() == before
    code, told = command(project, "cifar10", "data/photos")
    assert code == 1 and "cifar10 is one of experiments/" in told and file.read_text() == before
    assert command(project, "tiny/digits")[0] == 0
    assert "report" in project.run("snakemake", "-n").text


def test_without_git_the_old_file_is_kept(project):
    project.run("rm", "-rf", ".git")
    assert command(project, "my_images", "data/photos")[0] == 0
    assert (project.root / "params.old1.yaml").read_text() == TINY
    code, told = command(project, "again", "data/photos")
    assert code == 0 and "the old one is params.old2.yaml" in told
    assert command(project, "tiny/digits")[0] == 0 and command(project, "tiny/cifar10")[0] == 0
    assert sorted(p.name for p in project.root.glob("params.old*")) == [f"params.old{i}.yaml" for i in (1, 2, 3)]


def test_the_script_says_what_it_does_without_words():
    done = subprocess.run(
        [sys.executable, ROOT / "workflow/scripts/experiment.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "DATA=folder" in done.stderr and experiment.FOLDER.name in ("experiments",)


@pytest.mark.slow
def test_60_tiny_images_run_to_a_report_without_an_edit(project):
    assert command(project, "my_images", "data/photos")[0] == 0
    done = project.run("snakemake", timeout=3600)
    assert "steps (100%) done" in done.text and (project.root / "report.html").exists()
    assert "Nothing to be done" in project.run("snakemake", "-n").text


@pytest.mark.slow
def test_a_hospitals_folder_is_at_a_report_in_two_runs(project):
    """The first names every bad file; without them the second ends with the page. Trained for two epochs a round, to end in minutes."""
    made = hospital.make(project.root / "data/hospital")
    code, told = command(project, "scans", "data/hospital")
    assert code == 1 and all(name in told for name in made.bad) and "Traceback" not in told
    assert (project.root / "params.yaml").read_text() == TINY  # nothing was written
    for name in made.bad:
        (project.root / "data/hospital" / name).unlink()
    assert command(project, "scans", "data/hospital")[0] == 0
    project.edit(train__epochs=2, sample__num_images=32, score__variants=False)
    done = project.run("snakemake", timeout=3600)
    assert "steps (100%) done" in done.text
    page = (project.root / "report.html").read_text()
    assert "<img" not in page and not project.run("git", "status", "--porcelain", "data").text.strip()
    duplicates = json.loads((project.root / "artifacts/results/data/duplicates.json").read_text())["sets"]
    named = {key for one in duplicates for side in one["keys"].values() for key in side}
    assert set(made.twins) <= named
