"""Folders of the user's own: what is read and how, what is told, and what is refused before anything runs."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import types
import warnings
from pathlib import Path

import hospital
import numpy as np
import pytest
import tiny_dicom
import yaml
from conftest import TINY, Project, tiny_with
from PIL import Image

from stages import data, image_sets
from stages.image_sets import dicom, elsewhere, looks
from stages.image_sets.parts import silent
from stages.run import repository

RNG = np.random.default_rng(4)
GREY = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def pydicom(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", tiny_dicom.module())


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def load(root, **section):
    return image_sets.load({"name": "image_folder", "root": str(root), **section})


def by_key(found):
    return dict(zip(found.pool.keys, found.pool.images(range(len(found.pool.keys))), strict=True))


def aged(root):
    """Files as they are when nobody has written to them for an hour."""
    for path in Path(root).rglob("*"):
        os.utime(path, (1e9, 1e9 + path.stat().st_size))


# The hospital's folder


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A project and the hospital's folder in its data/, as handed over."""
    project = Project.create(tmp_path_factory.mktemp("given") / "project", TINY)
    section = {"name": "image_folder", "root": "data/hospital", "size": 32, "heldout_share": 0.2, "split_seed": 0}
    project.edit(data=section)
    return project, hospital.make(project.root / "data/hospital")


def test_every_bad_file_is_named_at_once_through_every_door(given):
    project, made = given
    told = (
        "error: 3 files under data/hospital cannot be used: cut.jpg is not a readable image (image file is truncated (10 bytes not "
        "processed)), empty.png is not a readable image (it is empty), letter.png is not a readable image (its content is no image): mend "
        "them or remove them from data.root"
    )
    for command in ("snakemake -n", "dvc repro", "python -m stages.data"):
        done = project.run(*command.split(), check=False)
        assert done.returncode and done.text.count(told) == 1 and "Traceback" not in done.text, (command, done.text)
        assert "Running stage 'data'" not in done.text
    assert not (project.root / "artifacts/data").exists()


def test_the_rest_is_read_and_what_is_passed_over_is_told(given, tmp_path):
    project, made = given
    project = project.copy(tmp_path / "copy")
    for name in made.bad:
        (project.root / "data/hospital" / name).unlink()
    aged(project.root / "data/hospital")
    done = project.run("python", "-m", "stages.data")
    notes = [line.removeprefix("data.root: ") for line in done.text.splitlines() if line.startswith("data.root: ")]
    assert notes == [
        "5 hidden files are not read (names that begin with a dot, __MACOSX, Thumbs.db, desktop.ini)",
        "not read, as no image of a kind that is known here: 1 .heic, 1 .txt; HEIC is read where pillow-heif is installed: pip install "
        "pillow-heif",
        "20 images have more than 8 bits, with values from 0 to 65,535: 0 to 65,535 becomes 0 to 255 (data.range sets another range), so "
        "that 10 of them come out dark, below 64",
        "only the first picture is read of files that hold several: 1 .gif, 1 .tiff",
    ]
    keys = json.loads((project.root / "artifacts/data/keys.json").read_text())
    assert sorted(keys["train"] + keys["heldout"]) == made.images and len(keys["train"]) == 94
    train = np.load(project.root / "artifacts/data/train.npy")
    assert train.shape == (94, 32, 32, 3)
    assert json.loads((project.root / "artifacts/data/range.json").read_text()) == [0, 65535]
    looked = json.loads((project.root / "scratch/looks.json").read_text())["looks"]
    assert len(looked) == 117
    for path in (project.root / "artifacts").rglob("*"):
        assert path.is_dir() or hospital.WHO.encode() not in path.read_bytes()
    project.edit(score__neighbours=95)
    done = project.run("snakemake", "-n", check=False)
    assert "error: params.yaml: score.neighbours is 95, more than the 94 training images" in done.text


# Where the folder lies


def git(folder, *words):
    subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def ours(tmp_path, monkeypatch):
    """A repository in which two private images lie in photos/ and data/ is ignored."""
    folder = tmp_path / "ours"
    save(folder / "photos/a.png", GREY)
    save(folder / "photos/ward/b.png", GREY)
    (folder / ".gitignore").write_text("/data/\n")
    git(folder, "init", "-q")
    monkeypatch.chdir(folder)
    return folder


def test_images_that_git_would_commit_are_refused(ours, tmp_path):
    told = (
        "data.root = photos lies in the git repository and is not ignored, so `git add -A` would commit 2 files of it: move it to data/, "
        "which git ignores, or add the line /photos/ to .gitignore"
    )
    for path in ("photos", "./data/../photos", str(ours / "photos")):
        Path("data").mkdir(exist_ok=True)
        with pytest.raises(ValueError) as caught:
            repository.check_not_committed([path], "data.root = photos")
        assert str(caught.value) == told
    os.symlink(ours, tmp_path / "elsewhere")
    for link in (tmp_path / "elsewhere/photos", "data/link"):
        if link == "data/link":
            os.symlink("../photos", link)
        with pytest.raises(ValueError, match="would commit 2 files"):
            repository.check_not_committed([link], "it")


def test_images_that_git_has_are_refused_even_where_they_are_ignored_now(ours):
    git(ours, "add", "photos/a.png")
    Path(".gitignore").write_text("/photos/\n")
    with pytest.raises(
        ValueError, match=r"^it holds 1 files that are in the git repository already, such as photos/a.png"
    ):
        repository.check_not_committed(["photos"], "it")


def test_images_that_git_will_not_commit_are_read(ours, tmp_path, monkeypatch):
    shutil.copytree("photos", "data/photos")
    shutil.copytree("photos", tmp_path / "outside")
    os.symlink(tmp_path / "outside", "link")
    repository.check_not_committed(["data/photos", tmp_path / "outside", "link"], "it")
    Path(".gitignore").write_text("*.png\n")  # every file, though not the folder
    repository.check_not_committed(["photos"], "it")
    Path(".gitignore").write_text("")
    monkeypatch.setenv("PATH", "/none")
    repository.check_not_committed(["photos"], "it")  # without git nothing is committed
    monkeypatch.undo()
    monkeypatch.chdir(ours)
    shutil.rmtree(".git")
    repository.check_not_committed(["photos"], "it")


def test_a_folder_in_the_project_is_refused_through_every_door(given, tmp_path):
    project = given[0].copy(tmp_path / "copy")
    (project.root / "data/hospital").rename(project.root / "photos")
    project.edit(data__root="photos")
    for command in ("snakemake -n", "dvc repro", "python -m stages.data"):
        done = project.run(*command.split(), check=False)
        assert "error: data.root = photos lies in the git repository and is not ignored" in done.text, done.text
        assert done.returncode and not (project.root / "artifacts/data").exists()


def test_a_link_inside_the_folder_counts_too(ours, tmp_path, monkeypatch):
    save(ours / "data/x/c.png", GREY)
    os.symlink("../../photos", "data/x/more")
    section = {"name": "image_folder", "root": "data/x", "split_seed": 0}
    with pytest.raises(ValueError, match="would commit 2 files of it"):
        data.check_files(yaml.safe_load(TINY) | {"data": section})


# What is known from the number of images and their size


@pytest.fixture
def sixty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(60):
        save(tmp_path / f"images/{i:02}.png", RNG.integers(0, 256, (16, 16), dtype=np.uint8))
    section = {"name": "image_folder", "root": "images", "heldout_share": 0.2, "split_seed": 0}

    def refused(**sections):
        experiment = tiny_with(**sections)
        experiment["data"] = section | sections.get("data", {})
        with pytest.raises(ValueError) as caught:
            data.check_files(experiment)
        return str(caught.value)

    data.check_files(tiny_with(data=section))
    return refused


def test_settings_that_do_not_go_with_the_images_are_refused_before_anything_runs(sixty):
    score = yaml.safe_load(TINY)["score"]
    assert (
        sixty(score=score | {"neighbours": 49})
        == "params.yaml: score.neighbours is 49, more than the 48 training images"
    )
    assert sixty(data={"size": 15}) == (
        "params.yaml: images are 15x15 pixels, expected multiples of 2 for the 2 levels of model.block_channels: set data.size to one, or "
        "use fewer levels"
    )
    assert "num_shards is 49, more than the 48 training images" in sixty(
        arms={"a": yaml.safe_load(TINY)["arms"]["ddpm"] | {"shard": {"num_shards": 49}}}
    )
    both = sixty(score=score | {"neighbours": 50}, data={"size": 15})
    assert "neighbours is 50" in both and "15x15" in both
    assert "2 of them have a class of training images" in sixty(data={"heldout_share": 0.02})
    assert "data leaves 0 training images of 60" in sixty(data={"heldout_share": 0.999})
    model = yaml.safe_load(TINY)["model"] | {"class_conditional": True}
    assert "the images of data.name image_folder have no classes" in sixty(model=model)


def test_a_network_that_is_not_trained_asks_for_no_size(sixty):
    section = {"name": "image_folder", "root": "images", "heldout_share": 0.2, "split_seed": 0, "size": 15}
    Path("theirs").mkdir()
    audit = {"theirs": {"generator": {"folder": "theirs"}, "sample": {}}}
    model = yaml.safe_load(TINY)["model"] | {"class_conditional": True}
    data.check_files(tiny_with(data=section, arms=audit, model=model))


def test_levels_are_counted_for_a_packaged_set_too():
    model = yaml.safe_load(TINY)["model"] | {"block_channels": [8] * 5, "attention_levels": []}
    with pytest.raises(ValueError, match="images are 8x8 pixels, expected multiples of 16 for the 5 levels"):
        data.check_files(tiny_with(model=model))


# What was found out is kept


def test_a_file_is_decoded_once_and_again_when_it_changes(root, monkeypatch):
    for i in range(5):
        save(root / f"{i}.png", GREY)
    aged(root)
    seen = []
    look = looks._look
    monkeypatch.setattr(looks, "KNOWN", {})
    monkeypatch.setattr(looks, "_look", lambda path: seen.append(path.name) or look(path))
    load(root)
    load(root)
    assert sorted(seen) == [f"{i}.png" for i in range(5)]
    os.utime(root / "3.png", (1e9, 1e9 + 77))
    load(root)
    assert seen[5:] == ["3.png"]
    (root / "2.png").write_bytes(b"cut")
    os.utime(root / "2.png", (1e9, 1e9))
    with pytest.raises(ValueError, match="2.png is not a readable image"):
        load(root)
    save(root / "1.png", GREY)  # changed just now: may change again at the same time
    save(root / "2.png", GREY)
    load(root)
    load(root)
    assert sorted(seen[6:]) == ["1.png", "1.png", "2.png", "2.png", "2.png"]


def test_what_is_kept_holds_for_the_same_code_only(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(root / "a.png", GREY)
    (root / "b.png").write_bytes(b"text")
    aged(root)
    paths = sorted(root.iterdir())
    monkeypatch.setattr(looks, "KNOWN", {})
    with data._looks_kept(root):
        first = looks.look(paths, silent)
    assert first[0].fault is None and first[1].fault

    def found_again():
        monkeypatch.setattr(looks, "KNOWN", {})
        with data._looks_kept(root):
            return dict(looks.KNOWN)

    again = found_again()
    assert [again[str(path)][2] for path in paths] == first
    monkeypatch.setattr(looks, "KNOWN", {})
    save(tmp_path / "other/c.png", GREY)
    aged(tmp_path / "other")
    with data._looks_kept(tmp_path / "other"):
        looks.look([tmp_path / "other/c.png"], silent)
    assert list(found_again()) == [str(tmp_path / "other/c.png")]  # names of other folders are kept no longer
    with data._looks_kept(root):
        looks.look(paths, silent)
    kept = Path("scratch/looks.json").read_text()
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99" if name == "pillow" else version(name))
    assert found_again() == {}
    monkeypatch.setattr(importlib.metadata, "version", version)
    for broken in ("", "{", "[]", kept.replace("8", "{"), '{"made_by": 1}'):
        Path("scratch/looks.json").write_text(broken)
        assert found_again() == {}


def test_long_looks_say_how_far_they_are_and_short_ones_nothing(capsys, monkeypatch):
    progress = data.PatientProgress("looking at the images", "images", every_s=0)
    progress.update(1, 3)
    assert capsys.readouterr().err == ""
    progress.start -= 3
    progress.update(2, 3)
    assert capsys.readouterr().err.startswith("looking at the images: 2/3 images (67%)")


def test_of_very_many_bad_files_twenty_are_named(root):
    for i in range(23):
        (root / f"{i:02}.png").write_bytes(b"")
    with pytest.raises(ValueError) as caught:
        load(root)
    told = str(caught.value)
    assert told.startswith(
        f"23 files under {root} cannot be used: 00.png is not a readable image (it is empty), 01.png"
    )
    assert "19.png" in told and "20.png" not in told and "and 3 more: mend them" in told


# Kinds of files


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.avif", "a.jp2", "a.tga", "a.ico", "a.PNG", "a.apng", "a.pcx"])
def test_all_that_pillow_reads_is_read(root, name):
    save(root / name, np.kron(COLOUR, np.ones((8, 8, 1), np.uint8)), **({"format": "PNG"} if name == "a.apng" else {}))
    found = load(root)
    assert found.pool.keys == [name] and found.notes == []


def test_postscript_is_run_by_nobody(root, monkeypatch):
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    (root / "a.png").write_bytes(content)
    (root / "b.eps").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png is not a readable image \(its content is no image\)"):
        load(root)
    (root / "a.png").unlink()
    with pytest.raises(
        ValueError, match=r"holds no image, .* \(not read, as no image of a kind that is known here: 1 \.eps\)"
    ):
        load(root)


def test_a_plug_in_for_heic_is_used_where_there_is_one(root, monkeypatch):
    asked = []
    stand_in = types.ModuleType("pillow_heif")
    stand_in.register_heif_opener = lambda: asked.append(1)
    monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
    looks._pillow.cache_clear()
    looks.suffixes()
    assert asked == [1]
    looks._pillow.cache_clear()


def test_hidden_folders_are_no_classes(root):
    for key in ("cat/1.png", "dog/1.png", ".trash/1.png", "cat/.ipynb_checkpoints/1.png", "__MACOSX/cat/1.png"):
        save(root / key, GREY)
    (root / "cat/._1.png").write_bytes(b"\0\5\26\7")
    (root / "cat/THUMBS.DB").write_bytes(b"")
    found = load(root)
    assert found.pool.keys == ["cat/1.png", "dog/1.png"] and found.classes == ["cat", "dog"]
    assert found.notes == [
        "5 hidden files are not read (names that begin with a dot, __MACOSX, Thumbs.db, desktop.ini)"
    ]


def test_a_folder_below_a_hidden_one_is_read(tmp_path):
    save(tmp_path / ".private/images/a.png", GREY)
    assert load(tmp_path / ".private/images").pool.keys == ["a.png"]


# More than 8 bits


@pytest.mark.parametrize(
    ("highest", "range_"),
    [(255, (0, 255)), (256, (0, 1023)), (1024, (0, 4095)), (4095, (0, 4095)), (4096, (0, 16383)), (16384, (0, 65535))],
)
def test_the_range_is_the_smallest_that_holds_all_values_of_the_set(root, highest, range_):
    low = np.array([[0, 5], [17, 200]], np.uint16)
    save(root / "a.png", low)
    save(root / "b.tif", np.where(low == 200, np.uint16(highest), low))
    found = load(root)
    assert found.value_range == range_
    shift = (range_[1] + 1).bit_length() - 9
    images = by_key(found)
    assert images["a.png"][..., 0].tolist() == (low >> shift).tolist()
    assert images["b.tif"].max() == highest >> shift
    dark = sum(value >> shift < 64 for value in (200, highest))
    assert found.notes == [
        f"2 images have more than 8 bits, with values from 0 to {highest:,}: 0 to {range_[1]:,} becomes 0 to 255 (data.range sets another "
        f"range){f', so that {dark} of them come out dark, below 64' if dark else ''}"
    ]


def test_12_bits_are_not_black(root):
    save(root / "a.png", RNG.integers(0, 4096, (40, 40), dtype=np.uint16))
    assert 120 < next(load(root).pool.images([0])).mean() < 135
    assert next(load(root, range="full").pool.images([0])).mean() < 8


def test_every_value_of_16_and_12_bits_loses_its_low_bits(root):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(looks.in_8_bits(values, 0, 65535), (values >> 8).astype(np.uint8))
    twelve = values[:16]
    assert np.array_equal(looks.in_8_bits(twelve, 0, 4095), (twelve >> 4).astype(np.uint8))


def test_a_range_of_ones_own(root):
    save(root / "a.png", np.array([[0, 1000, 1001], [1500, 2000, 40000]], np.uint16))
    found = load(root, range=[1000, 2000])
    assert next(found.pool.images([0]))[..., 0].tolist() == [[0, 0, 0], [128, 255, 255]] and found.value_range == (
        1000,
        2000,
    )
    save(root / "a.png", GREY)
    with pytest.raises(
        ValueError, match=r"^data\.range has no effect, as no image under .* has more than 8 bits: remove it"
    ):
        load(root, range=[0, 5])


def test_8_bits_beside_more_stay_as_they_are(root):
    save(root / "a.png", GREY)
    save(root / "b.png", GREY.astype(np.uint16) * 16)
    images = by_key(load(root))
    assert np.array_equal(images["a.png"], images["b.png"]) and np.array_equal(images["a.png"][..., 0], GREY)


def test_colours_of_16_bits_are_told_of(root):
    """Pillow reads such a PNG, of which it cannot write any, by the upper 8 bits of each value."""
    import struct
    import zlib

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in COLOUR)
    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    (root / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    found = load(root)
    assert np.array_equal(next(found.pool.images([0])), COLOUR)
    assert found.notes == [
        "1 images have colours of 16 bits: the upper 8 are read, and data.range has no effect on them"
    ]


def test_generated_images_have_the_range_of_the_training_images(root):
    """They need not reach the highest values: by a range of their own they would be brighter, and no copy would be found."""
    save(root / "a.png", np.full((6, 8), 1000, np.uint16))
    generator = {"folder": str(root)}
    assert elsewhere.images(generator, (6, 8, 1), None, silent, [0, 4095])[0, 0, 0, 0] == 1000 >> 4
    assert elsewhere.images(generator, (6, 8, 1), None, silent)[0, 0, 0, 0] == 1000 >> 2
    save(root / "a.png", GREY)
    assert np.array_equal(elsewhere.images(generator, (6, 8, 1), None, silent, [0, 4095])[0, ..., 0], GREY)


# Channels


def test_grey_stored_as_colour_is_one_channel(root):
    save(root / "a.png", np.repeat(GREY[..., None], 3, axis=2))
    Image.fromarray(GREY).convert("P").save(root / "b.gif")
    save(root / "c.png", GREY)
    found = load(root)
    assert found.shape == (6, 8, 1) and all(np.array_equal(image[..., 0], GREY) for image in by_key(found).values())
    assert found.notes == [
        "all images are grey, 2 of them stored as colour: one channel is read (data.channels: 3 for three)"
    ]
    assert load(root, channels=3).shape == (6, 8, 3) and load(root, channels=3).notes == []
    assert load(root, channels="auto").shape == (6, 8, 1)
    almost = np.repeat(GREY[..., None], 3, axis=2)
    almost[3, 4, 2] ^= 1
    save(root / "d.png", almost)
    assert load(root).shape == (6, 8, 3)
    grey = load(root, channels=1)
    assert grey.shape == (6, 8, 1) and grey.notes == ["1 images in colour become grey (data.channels)"]


# DICOM


CT = np.array([[0, 924, 1024], [1064, 1124, 4000]], np.int16)  # stored; minus 1024 in Hounsfield units


def test_a_window_says_what_is_black_and_white(root, pydicom):
    """Centre 40 and width 400: by the formula of DICOM PS3.3, C.11.2.1.2.1, within rounding."""
    tiny_dicom.write(root / "a.dcm", CT, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    units = CT.astype(float) - 1024
    expected = [
        [0 if x <= 39.5 - 199.5 else 255 if x > 39.5 + 199.5 else ((x - 39.5) / 399 + 0.5) * 255 for x in row]
        for row in units
    ]
    found = load(root)
    image = next(found.pool.images([0]))[..., 0]
    assert (
        np.abs(image - np.array(expected)).max() <= 1
        and 0 < image[0, 1] < image[0, 2] < image[1, 0] < image[1, 1] < 255
    )
    assert found.notes == ["1 DICOM images are shown by their own window"] and found.shape == (2, 3, 1)
    tiny_dicom.write(
        root / "a.dcm", CT, "MONOCHROME1", RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400
    )
    assert np.array_equal(next(load(root).pool.images([0]))[..., 0], 255 - image)
    several = {"WindowCenter": [40, 600], "WindowWidth": [400, 2800]}  # the first is the one
    tiny_dicom.write(root / "a.dcm", CT, RescaleSlope=1, RescaleIntercept=-1024, **several)
    assert np.array_equal(next(load(root).pool.images([0]))[..., 0], image)
    tiny_dicom.write(
        root / "a.dcm",
        CT,
        RescaleSlope=2,
        RescaleIntercept=-2048,
        WindowCenter=80.5,
        WindowWidth=800,
        VOILUTFunction="LINEAR_EXACT",
    )
    exact = next(load(root).pool.images([0]))[..., 0].astype(int)
    assert np.abs(exact - [[0, 38.1, 101.8], [127.3, 165.6, 255]]).max() <= 1  # (x + 319.5) / 800 * 255


@pytest.mark.parametrize(("function", "expected"), [("LINEAR", [0, 255, 255]), ("LINEAR_EXACT", [0, 128, 255])])
def test_a_window_of_two_values_tells_the_two_linear_functions_apart(root, pydicom, function, expected):
    pixels = np.array([[39, 40, 41]], np.uint16)
    tiny_dicom.write(root / "a.dcm", pixels, WindowCenter=40, WindowWidth=2, VOILUTFunction=function)
    assert next(load(root).pool.images([0])).ravel().tolist() == expected


def test_a_range_of_ones_own_goes_over_windows(root, pydicom):
    tiny_dicom.write(root / "a.dcm", CT, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    found = load(root, range=[-1024, 2976])
    assert np.abs(next(found.pool.images([0]))[..., 0] - CT / 4000 * 255).max() <= 1
    assert found.notes == ["1 DICOM images have a window of their own, in whose place data.range is used"]


def test_without_a_window_the_values_of_the_set_are_the_range(root, pydicom):
    tiny_dicom.write(root / "a.dcm", CT, RescaleSlope=1, RescaleIntercept=-1024)
    tiny_dicom.write(
        root / "series/1.2.840.7", CT // 2, RescaleSlope=1, RescaleIntercept=-1024
    )  # dotted numbers are no suffix
    found = load(root)
    assert found.pool.keys == ["a.dcm", "series/1.2.840.7"] and found.value_range == (-1024, 2976)
    images = by_key(found)
    assert images["a.dcm"].max() == 255 and images["series/1.2.840.7"].max() == 128


def test_files_without_a_suffix_are_dicom_by_their_first_bytes(root, pydicom):
    tiny_dicom.write(root / "IM0001", CT)
    (root / "README").write_text("x" * 500)
    found = load(root)
    assert found.pool.keys == ["IM0001"]
    assert found.notes[0] == "not read, as no image of a kind that is known here: 1 without a suffix"


def test_the_first_of_several_frames_is_read_and_colour_too(root, pydicom):
    tiny_dicom.write(root / "a.dcm", np.stack([CT, CT[::-1]]), WindowCenter=2000, WindowWidth=4000)
    first = next(load(root).pool.images([0]))
    assert load(root).notes[-1] == "only the first picture is read of files that hold several: 1 .dcm"
    tiny_dicom.write(root / "a.dcm", CT, WindowCenter=2000, WindowWidth=4000)
    assert np.array_equal(next(load(root).pool.images([0])), first)
    tiny_dicom.write(root / "a.dcm", COLOUR, "RGB")
    assert np.array_equal(next(load(root).pool.images([0])), COLOUR)


@pytest.mark.parametrize(
    ("photometric", "attributes", "told"),
    [
        (
            "PALETTE COLOR",
            {},
            "has the photometric interpretation PALETTE COLOR, expected MONOCHROME1, MONOCHROME2, or RGB of 8 bits",
        ),
        ("Doe^Jane", {}, "has the photometric interpretation another one, expected"),
        (
            "MONOCHROME2",
            {"WindowCenter": 4, "WindowWidth": 9, "VOILUTFunction": "SIGMOID"},
            "has a window that is not linear: export",
        ),
        ("MONOCHROME2", {"WindowCenter": 4, "WindowWidth": 0}, "has a window that is not linear"),
    ],
)
def test_what_dicom_files_are_refused(root, pydicom, photometric, attributes, told):
    tiny_dicom.write(root / "a.dcm", CT, photometric, **attributes)
    with pytest.raises(ValueError) as caught:
        load(root)
    assert str(caught.value).startswith(f"{root}/a.dcm {told}") and "Doe" not in str(caught.value)


def test_no_attribute_of_a_patient_is_passed_on(root, tmp_path, monkeypatch, capsys, pydicom):
    """Neither into what is written, nor into what is said of a file that pydicom quotes while it complains."""
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        tiny_dicom.write(
            root / f"{i:02}.dcm", RNG.integers(0, 4096, (8, 8), dtype=np.uint16), WindowCenter=2048, WindowWidth=4096
        )
    experiment = yaml.safe_load(TINY)
    experiment["data"] = {"name": "image_folder", "root": "images", "heldout_share": 0.2, "split_seed": 0}
    Path("params.yaml").write_text(yaml.safe_dump(experiment))
    data.main([])
    (root / "00.dcm").write_bytes(b"Doe^Jane" * 100)
    with pytest.raises(ValueError) as caught:
        data.main([])
    assert "00.dcm is not a readable DICOM image (pydicom: KeyError): mend it, or install" in str(caught.value)
    written = [path for name in ("artifacts", "scratch", "logs") for path in Path(name).rglob("*") if path.is_file()]
    assert len(written) > 8
    assert all(b"Doe" not in path.read_bytes() for path in written)
    assert "Doe" not in str(caught.value) + "".join(capsys.readouterr())


def test_without_pydicom_it_is_said_how_to_read_dicom(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)  # import fails
    tiny_dicom.write(root / "a.dcm", CT)
    tiny_dicom.write(root / "IM7", CT)
    with pytest.raises(
        ValueError,
        match=r"holds no image, .* \(2 DICOM files are not read; DICOM is read where pydicom is installed: pip",
    ):
        load(root)
    save(root / "b.png", GREY)
    assert load(root).notes == [f"2 DICOM files are not read; {dicom.INSTALL}"]


def test_the_warnings_of_pydicom_are_not_shown(root, monkeypatch):
    stand_in = tiny_dicom.module()

    def dcmread(path):
        warnings.warn("Invalid value for VR PN: 'Doe^Jane'", UserWarning, stacklevel=2)
        return tiny_dicom.dcmread(path)

    stand_in.dcmread = dcmread
    monkeypatch.setitem(sys.modules, "pydicom", stand_in)
    tiny_dicom.write(root / "a.dcm", CT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(by_key(load(root))) == 1
