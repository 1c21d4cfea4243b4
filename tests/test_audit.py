"""Audits: planted copies are found and named, whatever the images come in and whichever door is used; nothing else is left or shown."""

import csv
import json
import os
import re
import resource
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, run_stages, tiny_with
from PIL import Image
from test_elsewhere import save_pipeline

from stages import audit, audit_sources, results
from stages.run import files

SIDE = 12
BROUGHT = "All images are brought to {0}x{0} pixels: the shorter side is resized, the middle cut out."
LIST = ["index", "key", "count", "best_ratio", "twin"]
PLANTED = {
    2: 31,
    40: 5,
    7: 31,
    19: 58,
    33: 0,
    41: 17,
}  # generated image -> the training image that it is a copy of; 31 is copied twice


def smooth(seed, num, side=SIDE):
    """[num,side,side,3] uint8: no two alike, and none near another."""
    small = np.random.default_rng(seed).integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in small]
    )


TRAIN, HELDOUT, GENERATED = smooth(1, 60), smooth(2, 25), smooth(3, 44)
for twin, index in PLANTED.items():
    noise = np.random.default_rng(twin).normal(0, 6, TRAIN[index].shape)
    GENERATED[twin] = np.clip(TRAIN[index] + noise, 0, 255).astype(np.uint8)
ARRAYS = {"generated": GENERATED, "train": TRAIN, "heldout": HELDOUT}


def name_of(role, index):
    """Names that sort as the images do, in folders that are no classes of all sides."""
    return f"{'old' if index < 20 else 'young'}/{role} {index:03}.png" if role == "train" else f"{role}{index:03}.png"


def write_folder(root, role, images=None):
    folder = root / role
    for i, image in enumerate(ARRAYS[role] if images is None else images):
        path = folder / name_of(role, i)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return str(folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The same images as folders, zips and array files: dict kind -> dict role -> path."""
    root = tmp_path_factory.mktemp("inputs")
    found = {"folder": {role: write_folder(root, role) for role in ARRAYS}, "zip": {}, "npz": {}, "npy": {}}
    for role, array in ARRAYS.items():
        found["zip"][role], found["npz"][role] = str(root / f"{role}.zip"), str(root / f"{role}.npz")
        found["npy"][role] = str(root / f"{role}.npy")
        with zipfile.ZipFile(found["zip"][role], "w") as archive:
            for path in sorted((root / role).rglob("*.png"), reverse=True):  # not in the order of the names
                archive.write(path, f"mine/{path.relative_to(root / role)}")
            archive.writestr("__MACOSX/mine/._a.png", "no image")
            archive.writestr("mine/notes.txt", "no image")
        np.savez_compressed(found["npz"][role], images=array)
        np.save(found["npy"][role], array)
    return found


@pytest.fixture(scope="module")
def of_arrays():
    return results.audit(**ARRAYS)


def planted_found(leaks):
    """What the list says of the planted copies: index -> (count, twins that it could name)."""
    assert dict(zip(leaks["index"], leaks["count"], strict=True)) == {31: 2, 5: 1, 58: 1, 0: 1, 17: 1}
    assert all(PLANTED[twin] == index for twin, index in zip(leaks.twin, leaks["index"], strict=True))
    assert leaks.best_ratio.is_monotonic_increasing and leaks.best_ratio.max() < 0.3


def test_planted_copies_are_found_and_nothing_else(of_arrays):
    planted_found(of_arrays.leaks)
    assert of_arrays.leaks.key.tolist() == [str(index) for index in of_arrays.leaks["index"]]
    assert of_arrays.num_copies == 6 and (of_arrays.num_generated, of_arrays.num_train, of_arrays.num_heldout) == (
        44,
        60,
        25,
    )
    assert of_arrays.low <= of_arrays.excess <= of_arrays.high and of_arrays.low <= 6 <= of_arrays.high
    images = of_arrays.images
    assert len(images) == 44 and images.nearest_train[list(PLANTED)].tolist() == list(PLANTED.values())
    assert of_arrays.metrics["generated"]["num_images"] == 44


@pytest.mark.parametrize(
    "kinds", [("folder",) * 3, ("zip",) * 3, ("npz",) * 3, ("npy", "folder", "zip"), ("zip", "npz", "npy")]
)
def test_folder_zip_and_array_file_give_the_same_list(inputs, of_arrays, kinds):
    found = results.audit(
        *(inputs[kind][role] for kind, role in zip(kinds, ("generated", "train", "heldout"), strict=True))
    )
    columns = ["index", "count", "best_ratio", "twin"]
    assert found.leaks[columns].equals(of_arrays.leaks[columns])
    assert (found.excess, found.low, found.high) == (of_arrays.excess, of_arrays.low, of_arrays.high)
    named = kinds[1] in ("folder", "zip")
    assert found.leaks.key.tolist() == [name_of("train", i) if named else str(i) for i in found.leaks["index"]]
    names = ["nearest_key", "generated"]  # array files have none of generated images
    pictures = [frame.drop(columns=names, errors="ignore") for frame in (found.images, of_arrays.images)]
    assert pictures[0].equals(pictures[1])


def run_command(cwd, *words):
    return subprocess.run(
        [sys.executable, "-m", "stages.audit", *map(str, words)],
        cwd=cwd, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_command_params_file_and_python_give_the_same_list(tmp_path, monkeypatch):
    """The params file splits one folder; what fell on either side is given to the other two as folders."""
    monkeypatch.chdir(tmp_path)
    pool, generated = np.concatenate([TRAIN, HELDOUT]), write_folder(tmp_path, "generated")
    for i, image in enumerate(pool):
        (tmp_path / "pool").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / f"pool/{i:03}.png")
    experiment = tiny_with(
        data={"name": "image_folder", "root": "pool", "heldout_share": 0.2, "split_seed": 4}, seeds=[0]
    )
    experiment["arms"] = {"theirs": {"generator": {"folder": generated}, "sample": {}}}
    experiment["score"] |= {"neighbours": 34, "grid_step": 0.02, "variants": True}
    run_stages(experiment)
    by_params = files.load_table(files.REPORT / "leaks.parquet")
    curves = files.load_table(files.folder("results/score", "theirs-seed0") / "curves.parquet")
    keys = files.load_json(files.DATA / "keys.json")
    assert len(by_params) >= 3 and len(keys["train"]) == 68 and len(keys["heldout"]) == 17

    for role, names in keys.items():
        (tmp_path / role).mkdir()
        for name in names:
            (tmp_path / role / name).write_bytes((tmp_path / "pool" / name).read_bytes())
    done = run_command(
        tmp_path, "--generated", "generated", "--train", "train", "--heldout", "heldout", "--out", "page"
    )
    assert done.returncode == 0, done.stderr
    with open("page/leaks.csv", encoding="utf-8") as stream:
        by_command = list(csv.DictReader(stream))
    by_python = results.audit("generated", tmp_path / "train", "heldout")

    expected = by_params[LIST].astype(str).to_dict("records")
    assert [{name: row[name] for name in LIST} for row in by_command] == expected
    assert by_python.leaks[LIST].astype(str).to_dict("records") == expected
    at = curves[(curves.protocol == "l2_from_gen") & np.isclose(curves.threshold, 0.5)].iloc[0]
    assert (by_python.excess, by_python.low, by_python.high) == (at.excess, at.excess_low, at.excess_high)
    of_command = json.loads(Path("page/metrics.json").read_text())["generated"]["raw"]["l2_from_gen"]["0.5"]
    assert of_command["excess"] == pytest.approx(at.excess, rel=1e-5) and of_command["count"] == at["count"]
    assert not list(tmp_path.glob(".page*"))  # what it was made in


def test_what_the_command_leaves_says_and_shows(inputs, tmp_path):
    words = [word for role, path in inputs["folder"].items() for word in (f"--{role}", path)]
    done = run_command(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert (
        "5 of 60 training images are given out: 6 of 44 generated images count as copies (l2_from_gen at 0.5, 30 neighbours)"
        in done.stdout
    )
    assert "as 25 held-out images show it" in done.stdout and "95 % interval" in done.stdout
    assert re.search(
        r"^Of planted copies (of \d+ kinds at least half|few or none were found)", done.stdout, re.MULTILINE
    )
    assert "audit/report.html: the page: shows no image, names training images" in done.stdout
    out = tmp_path / "audit"
    assert [path.name for path in tmp_path.iterdir()] == ["audit"]
    assert sorted(path.name for path in out.iterdir()) == ["checksums.json", "leaks.csv", "metrics.json", "report.html"]
    page = (out / "report.html").read_text()
    assert re.findall(r'<a class=file href="([^"]+)"', page) == ["leaks.csv"]  # what lies beside it, and nothing else
    assert "<img" not in page and name_of("train", 31) in page
    assert str(Path(inputs["folder"]["train"]).parent) not in page  # where the images lie is nobody's business
    assert "neighbours: 30" in page and "44 images of a generator" not in page
    assert "An audit of 44 images; the generator was trained on 60 images; 25 images held out." in page

    again = run_command(tmp_path, *words[:4], "--show-images", "3")
    assert again.returncode == 0, again.stderr
    assert "nothing says how many of these hits are chance: each is a candidate" in again.stdout
    page = (out / "report.html").read_text()
    assert page.count("<img") == 2 * 3 and "it is unknown how much of these counts is memorisation" in page
    assert "shows up to 3 pairs of images" in again.stdout

    (out / "notes.txt").write_text("signed: the board")
    refused = run_command(tmp_path, *words)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "audit/notes.txt is not of an earlier audit" in refused.stderr
    assert (out / "notes.txt").exists() and (out / "report.html").read_text() == page
    (out / "notes.txt").unlink()
    (out / "report.html").write_text(f"{page}<!-- my remark -->")
    assert "report.html is not of an earlier audit, or was changed since" in run_command(tmp_path, *words).stderr


def test_without_heldout_images_there_is_no_excess():
    found = results.audit(GENERATED, TRAIN)
    planted_found(found.leaks)
    assert found.excess is found.low is found.high is None and found.num_heldout == 0
    assert "each is a candidate, and no proof of a copy" in "\n".join(audit.told(found, "audit"))


def test_images_of_several_sizes_are_brought_to_that_of_the_generated_ones(tmp_path):
    """Wide training images of twice the size whose middle is what the generator knows; arrays and folders are resized alike."""
    wide = np.stack([np.asarray(Image.fromarray(image).resize((2 * SIDE, 2 * SIDE))) for image in TRAIN])
    wide = np.pad(wide, ((0, 0), (0, 0), (5, 5), (0, 0)))
    folder = results.audit(write_folder(tmp_path, "generated"), write_folder(tmp_path, "train", wide), HELDOUT)
    array = results.audit(GENERATED, wide, HELDOUT)
    assert folder.note == array.note == BROUGHT.format(12)
    assert folder.leaks[["index", "best_ratio", "twin"]].equals(array.leaks[["index", "best_ratio", "twin"]])
    assert set(PLANTED.values()) == set(folder.leaks["index"])
    smaller = results.audit(GENERATED, wide, HELDOUT, size=8)
    assert "brought to 8x8 pixels" in smaller.note and set(PLANTED.values()) == set(smaller.leaks["index"])


def test_settings_fit_the_numbers_of_images(tmp_path):
    def neighbours(num):
        source = audit_sources.Source("train", tmp_path, "train", "folder", num, {(8, 8)})
        generated = audit_sources.Source("generated", tmp_path, "generated", "folder", 9, {(8, 8)})
        return audit.settings({"train": source, "generated": generated}, None, audit.Options())["score"]["neighbours"]

    assert [neighbours(num) for num in (4, 5, 60, 99, 100, 5000)] == [2, 2, 30, 49, 50, 50]


def test_a_few_images_are_enough():
    found = results.audit(np.stack([TRAIN[0], GENERATED[0]]), TRAIN[:4], HELDOUT[:2])
    assert found.leaks["index"].tolist() == [0] and found.num_copies == 1


def test_the_first_generated_images_only():
    found = results.audit(GENERATED, TRAIN, num_images=20)
    assert found.num_generated == 20 and set(found.leaks.twin) <= {2, 7, 19} and 31 in set(found.leaks["index"])


def test_large_images_are_made_as_small_as_the_search_takes(tmp_path):
    """Colour of 209x209 has 131,043 values, of 210x210 more than the 131,071 whose products fit."""

    def brought(**sides):
        sources = {
            role: audit_sources.Source(role, tmp_path, role, "folder", 9, {side}) for role, side in sides.items()
        }
        return audit_sources.to_one_size(sources, None, tmp_path)[1:]

    assert brought(generated=(512, 600), train=(512, 512)) == (209, BROUGHT.format(209))
    assert brought(generated=(300, 150), train=(300, 150)) == (150, BROUGHT.format(150))
    assert brought(generated=(200, 150), train=(200, 150)) == (None, "")


def test_a_saved_pipeline_is_sampled_in_its_own_size(tmp_path):
    pipeline = save_pipeline(tmp_path / "pipe")["pipeline"]
    grey = TRAIN[..., 0]
    found = results.audit(pipeline, grey, num_images=6, num_steps=2)
    assert found.num_generated == 6 and "brought to 8x8 pixels" in found.note
    with pytest.raises(ValueError, match=r"makes images of 8x8 pixels, which are not brought to 10x10 here"):
        results.audit(pipeline, grey, size=10)
    with pytest.raises(ValueError, match=r"is a saved pipeline, expected images \(train\)"):
        results.audit(GENERATED, pipeline)
    (tmp_path / "pipe/unet/config.json").write_text("{}")
    with pytest.raises(ValueError, match="that says the size of its images"):
        results.audit(pipeline, grey)


def test_a_saved_pipeline_is_asked_which_images_it_was_trained_on(tmp_path):
    """Only beside held-out images, and with the remark that there is no untrained network to compare with."""
    pipeline = save_pipeline(tmp_path / "pipe")["pipeline"]
    asked = {"num_images": 6, "num_steps": 2}
    found = results.audit(pipeline, TRAIN[..., 0], HELDOUT[..., 0], out=tmp_path / "page", **asked)
    auc = found.metrics["generated"]["raw"]["membership"]["auc"]
    assert 0 < auc < 1 and f"with an AUC of {auc:.2f} (0.5: not at all" in " ".join(audit.told(found, "page"))
    page = (tmp_path / "page/report.html").read_text()
    assert "25 training images and as many held-out ones" in page and "there is no untrained network to compare" in page
    without = results.audit(pipeline, TRAIN[..., 0], **asked)
    assert "membership" not in without.metrics["generated"]["raw"] and "AUC" not in " ".join(
        audit.told(without, "page")
    )


def linked(tmp_path):
    folder = tmp_path / "linked"
    folder.mkdir()
    os.link(tmp_path / "train" / name_of("train", 3), folder / "copy.png")
    return str(folder)


def cut_short(tmp_path):
    path = Path(write_folder(tmp_path, "heldout"), name_of("heldout", 3))
    path.write_bytes(path.read_bytes()[:150])
    return str(path.parent)


def written(tmp_path, name, data=b"no zip"):
    (tmp_path / name).write_bytes(data)
    return str(tmp_path / name)


def saved(tmp_path, array):
    np.savez(tmp_path / "bad.npz", array)
    return str(tmp_path / "bad.npz")


BAD = {
    "nothing there": (lambda t: {"generated": "nowhere"}, "nowhere does not exist (generated)"),
    "a file": (lambda t: {"train": written(t, "a.txt")}, "a.txt is a file, expected a folder, a .zip, a .npz or a .npy of images (train)"),
    "no image": (lambda t: {"train": str(t / "empty")}, "empty holds no image, expected files that end in"),
    "too few": (lambda t: {"train": TRAIN[:3]}, "train holds 3 images, expected at least 4 (train)"),
    "one held out": (lambda t: {"heldout": HELDOUT[:1]}, "heldout holds 1 image, expected at least 2 (heldout)"),
    "no array": (lambda t: {"generated": GENERATED / 255}, "generated is float64 (44, 12, 12, 3), expected uint8"),
    "a flat array": (lambda t: {"train": saved(t, TRAIN.reshape(60, -1))}, "bad.npz cannot be read as a numpy array (it has 0 arrays of images, expected one)"),
    "four channels": (lambda t: {"train": saved(t, np.zeros((60, 5, 5, 4), np.uint8))}, "images of 4 channels (60, 5, 5, 4), expected 1 or 3"),
    "colour and grey": (lambda t: {"train": TRAIN[..., :1]}, "have 3 channels, but the training images have 1: convert one of them"),
    "twice the same": (lambda t: {"heldout": str(t / "train")}, "train is given twice, as train and as heldout: expected different images"),
    "one in the other": (lambda t: {"heldout": str(t / "train/old")}, "lie one in the other and so share images: move one away"),
    "one file": (lambda t: {"generated": linked(t)}, "are one file, by a link: an image is generated, trained on or held out"),
    "too many asked for": (lambda t: {"num_images": 45}, "generated holds 44 images, but 45 are asked for (num_images)"),
    "too large": (lambda t: {"size": 300}, "size is 300, expected at most 209: the search takes no larger images"),
    "no zip": (lambda t: {"generated": written(t, "a.zip")}, "a.zip cannot be unpacked: File is not a zip file"),
    "cut short": (lambda t: {"heldout": cut_short(t)}, "heldout/heldout003.png is not a readable image"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_sentence_and_leaves_nothing(case, tmp_path):
    write_folder(tmp_path, "train")
    (tmp_path / "empty").mkdir()
    make, told = BAD[case]
    given = {"generated": GENERATED, "train": str(tmp_path / "train")} | make(tmp_path)
    with pytest.raises(ValueError) as error:
        results.audit(**given, out=tmp_path / "out/page")
    sentence = str(error.value)
    assert told in sentence and "\n" not in sentence
    assert not [word for word in ("params.yaml", "data.root", "images/", "-unfinished") if word in sentence], sentence
    assert not list((tmp_path / "out").iterdir())


def test_results_lie_apart_from_the_images(tmp_path):
    train = write_folder(tmp_path, "train")
    for out in (train, tmp_path, Path(train) / "audit"):
        with pytest.raises(ValueError, match="lie in each other: give another"):
            results.audit(GENERATED, train, out=out)
    (tmp_path / ".mine-unfinished").mkdir()
    with pytest.raises(ValueError, match=r"\.mine-unfinished is not of an audit: move it away"):
        results.audit(GENERATED, train, out=tmp_path / "mine")


def test_a_wrong_command_line_is_refused(tmp_path):
    for words in (["--size", "3"], ["--show-images", "25"], ["--num-images", "-1"]):
        done = run_command(tmp_path, "--generated", "a", "--train", "b", *words)
        assert done.returncode == 2 and f"argument {words[0]}: {words[1]} found, expected a whole number" in done.stderr
    assert "the following arguments are required: --train" in run_command(tmp_path, "--generated", "a").stderr


def test_make_audit_hands_on_what_it_is_told(tmp_path):
    words = ["GENERATED=my images", "TRAIN=t.npz", "HELDOUT=h.zip", "SIZE=32", "SHOW_IMAGES=4", "OUT=here"]
    done = subprocess.run(["make", "-n", "-s", "audit", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    command = done.stdout.strip().splitlines()[-1].split()
    assert " ".join(command) == (
        'python -m stages.audit --generated "my images" --train "t.npz" --heldout "h.zip" --out "here" --size "32" --show-images "4"'
    )
    assert subprocess.run(["git", "check-ignore", "-q", "audit/report.html"], cwd=ROOT, check=False).returncode == 0


def test_two_audits_into_one_folder_do_not_meet(tmp_path):
    with audit._work_folder(tmp_path / "a") as work:
        assert (work / ".gitignore").read_text() == "*\n"  # it holds images, wherever it lies
        with pytest.raises(ValueError, match=f"process {os.getpid()} is making an audit in"):
            results.audit(GENERATED, TRAIN, out=tmp_path / "a")
    assert not work.exists()


@pytest.mark.slow
def test_two_hundred_images_take_less_than_twenty_seconds(tmp_path):
    """On the clock, or, where other work slows that down, of processor time: most of an audit runs on one core."""
    arrays = {"generated": smooth(7, 200, 64), "train": smooth(8, 200, 64), "heldout": smooth(9, 60, 64)}
    words = [word for role, array in arrays.items() for word in (f"--{role}", write_folder(tmp_path, role, array))]
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    assert run_command(tmp_path, *words).returncode == 0
    after, taken = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begun
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert min(taken, worked) < 20, (taken, worked)


def test_params_of_an_audit_are_commented_and_valid_yaml(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources = audit_sources.look({**ARRAYS}, tmp_path, None)
    audit._write_experiment(sources, audit.settings(sources, None, audit.Options()), "All is well.")
    text = Path("params.yaml").read_text()
    assert "# All is well.\n" in text and "# score.neighbours is half of the training images, at most 50.\n" in text
    assert yaml.safe_load(text)["arms"] == {"generated": {"generator": {"file": "images/generated.npy"}, "sample": {}}}
