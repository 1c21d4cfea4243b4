"""Images that belong together lie on one side of the split, through the data stage as it is by hand: duplicates, groups, what is dropped."""

import json
from pathlib import Path

import hospital
import numpy as np
import pytest
import yaml
from conftest import TINY
from PIL import Image

from stages import data

DUPLICATES = Path("artifacts/results/data/duplicates.json")


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder_of_persons():
    """images/<site>/p<person>_<i>.png: 60 pictures of 20 persons; 7 equals 31, 12 is 44 with a little noise, 13 is 7 with noise."""
    pictures = [hospital.picture(i, 32, 32) for i in range(60)]
    pictures[31] = pictures[7]
    for i, other in ((44, 12), (13, 7)):
        noise = np.random.default_rng(i).normal(0, 2, (32, 32, 3))
        pictures[i] = np.clip(pictures[other] + noise, 0, 255).astype(np.uint8)
    names = []
    for i, picture in enumerate(pictures):
        name = f"site{i % 3}/p{i // 3:02}_{i:02}.png"
        path = Path("images", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
        names.append(name)
    return names


def run(**section):
    """The data stage with this section data: (names of the training images, of the held-out ones, duplicates.json)."""
    experiment = yaml.safe_load(TINY)
    experiment["data"] = {"name": "image_folder", "root": "images", "split_seed": 0, **section}
    Path("params.yaml").write_text(yaml.safe_dump(experiment))
    data.main([])
    keys = json.loads(Path("artifacts/data/keys.json").read_text())
    for part in ("train", "heldout"):
        pixels = np.load(f"artifacts/data/{part}.npy")
        assert [
            np.array_equal(p, np.asarray(Image.open(f"images/{k}"))) for p, k in zip(pixels, keys[part], strict=True)
        ]
    return keys["train"], keys["heldout"], json.loads(DUPLICATES.read_text())


def in_words(found, train, heldout):
    """The sets of duplicates by the numbers at the end of their names."""
    return sorted(
        (
            one["exact"],
            sorted(
                int(name[-6:-4]) for name in [*(train[i] for i in one["train"]), *(heldout[i] for i in one["heldout"])]
            ),
        )
        for one in found["sets"]
    )


@pytest.mark.parametrize("seed", range(4))
def test_duplicates_lie_on_one_side_and_are_listed(seed):
    folder_of_persons()
    train, heldout, found = run(num_train=31, split_seed=seed)
    assert len(train) == 31 and len(heldout) == 29
    assert in_words(found, train, heldout) == [(False, [7, 13, 31]), (False, [12, 44])]
    assert all(not one["train"] or not one["heldout"] for one in found["sets"])


@pytest.mark.parametrize(
    "group",
    [{"pattern": r"/p(\d+)_"}, {"pattern": r"p\d+"}, {"table": "persons.csv", "column": "person"}],
    ids=["pattern with brackets", "pattern", "table"],
)
def test_images_of_one_person_lie_on_one_side(group):
    names = folder_of_persons()
    rows = ["file_name,site,person", *(f"{name},x,{'née' if i < 3 else i // 3}" for i, name in enumerate(names))]
    Path("images/persons.csv").write_text("\ufeff" + "\n".join(rows), encoding="utf-8")
    train, heldout, _ = run(heldout_share=0.4, group=group)
    persons = [{name.split("/p")[1][:2] for name in part} for part in (train, heldout)]
    assert not persons[0] & persons[1] and len(train) + len(heldout) == 60 and 20 <= len(heldout) <= 30
    sides = [{int(name[-6:-4]) for name in part} for part in (train, heldout)]
    assert {12, 44} <= sides[0] or {12, 44} <= sides[1]  # duplicates join persons


def test_folders_are_groups():
    folder_of_persons()
    for seed in range(3):
        train, heldout, _ = run(heldout_share=0.3, group="folder", deduplicate="near", split_seed=seed)
        assert not {name[:5] for name in train} & {name[:5] for name in heldout}


@pytest.mark.parametrize(("which", "kept"), [("exact", 59), ("near", 57)])
def test_duplicates_are_dropped_but_the_first(which, kept, capsys):
    folder_of_persons()
    train, heldout, found = run(heldout_share=0.4, deduplicate=which)
    numbers = {int(name[-6:-4]) for name in train + heldout}
    gone = {"exact": {31}, "near": {31, 13, 44}}[which]
    assert len(train) + len(heldout) == kept and numbers == set(range(60)) - gone
    assert f"{60 - kept} of 60 images are dropped" in capsys.readouterr().err
    assert in_words(found, train, heldout) == ([(False, [7, 13]), (False, [12, 44])] if which == "exact" else [])


def test_a_packaged_set_is_split_as_ever_and_its_duplicates_are_named():
    experiment = yaml.safe_load(TINY)
    experiment["data"] = {"name": "digits", "num_train": 256, "split_seed": 0}
    Path("params.yaml").write_text(yaml.safe_dump(experiment))
    data.main([])
    keys, found = json.loads(Path("artifacts/data/keys.json").read_text()), json.loads(DUPLICATES.read_text())
    (one,) = found["sets"]
    names = [*(keys["train"][i] for i in one["train"]), *(keys["heldout"][i] for i in one["heldout"])]
    assert not one["exact"] and sorted(names) == ["digit-1585", "digit-1648"] and found["near_distance"] > 5


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"group": {"pattern": "("}}, "data.group.pattern is no regular expression"),
        (
            {"group": {"pattern": "x", "table": "y"}},
            "data.group has pattern, table, expected folder, or pattern, or table and column",
        ),
        ({"group": {"pattern": "zzz"}}, "60 images do not match data.group.pattern zzz: site0/p00_00.png"),
        ({"group": {"pattern": "site"}}, "puts all 60 images into one group, 'site'"),
        ({"group": {"table": "none.csv", "column": "a"}}, "none.csv (data.group.table) cannot be read"),
        (
            {"group": {"table": "p.csv", "column": "b"}},
            "p.csv has the columns file_name, a, expected file_name and b (data.group)",
        ),
        (
            {"group": {"table": "p.csv", "column": "a"}},
            "59 images are not in p.csv (data.group.table, column file_name)",
        ),
        ({"group": "folder", "num_train": 31}, "data.num_train is 31, but images that belong together fill"),
    ],
)
def test_a_group_that_cannot_be_is_refused_before_anything_is_written(section, told):
    names = folder_of_persons()
    Path("images/p.csv").write_text(f"file_name,a\n{names[0]},1\n")
    with pytest.raises(ValueError) as refused:
        run(**section)
    assert told in str(refused.value) and not Path("artifacts/data").exists()
