"""The split of an image set, and the data stage run as it is by hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import TINY, text_experiment, write_params
from PIL import Image

from stages import data, image_sets
from stages.image_sets import parts


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(**section):
    """The data stage on the tiny experiment with this section data; returns name -> array, and the keys."""
    experiment = yaml.safe_load(TINY)
    experiment["data"] = {"split_seed": 0, **section}
    Path("params.yaml").write_text(yaml.safe_dump(experiment))
    data.main([])
    names = ("train", "train_labels", "heldout", "heldout_labels")
    arrays = {name: np.load(f"artifacts/data/{name}.npy") for name in names}
    return arrays, json.loads(Path("artifacts/data/keys.json").read_text())


def folder_of(counts, size=4):
    """images/<class>/<i>.png, each image of one grey level of its own."""
    level = 0
    for name, count in counts.items():
        for i in range(count):
            path = Path("images", name, f"{i:03}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((size, size), level, np.uint8)).save(path)
            level += 1


def test_digits_split_into_training_images_and_all_others():
    arrays, keys = run(name="digits", num_train=256)
    assert arrays["train"].shape == (256, 8, 8, 1) and arrays["heldout"].shape == (1541, 8, 8, 1)
    assert not set(keys["train"]) & set(keys["heldout"])
    assert len(set(keys["train"]) | set(keys["heldout"])) == 1797
    whole = np.bincount(image_sets.load({"name": "digits"}).pool.labels)
    drawn = np.bincount(arrays["train_labels"])
    assert drawn.sum() == 256
    assert np.abs(drawn - 256 * whole / 1797).max() <= 1  # the class mix of the set
    assert np.array_equal(drawn + np.bincount(arrays["heldout_labels"]), whole)


def test_captions_stay_with_their_images():
    folder_of({"a": 9, "b": 8}, size=8)
    keys = [f"{name}/{i:03}.png" for name, count in (("a", 9), ("b", 8)) for i in range(count)]
    Path("images/captions.json").write_text(json.dumps({key: [f"of {key}", f"also of {key}"] for key in keys}))
    section = {"name": "captioned_folder", "root": "images", "num_train": 7, "split_seed": 0}
    write_params(text_experiment(data=section))
    data.main([])
    found, captions = (json.loads(Path(f"artifacts/data/{name}.json").read_text()) for name in ("keys", "captions"))
    assert sorted(found["train"] + found["heldout"]) == keys and (len(found["train"]), len(found["heldout"])) == (7, 10)
    assert found["train"] != keys[:7]
    for part in ("train", "heldout"):
        assert captions[part] == [[f"of {key}", f"also of {key}"] for key in found[part]]
        images = np.load(f"artifacts/data/{part}.npy")
        assert images[:, 0, 0, 0].tolist() == [keys.index(key) for key in found[part]]


def test_images_labels_and_keys_stay_together():
    arrays, keys = run(name="digits", num_train=100)
    pool = image_sets.load({"name": "digits"}).pool
    for part in ("train", "heldout"):
        indices = [int(key.removeprefix("digit-")) for key in keys[part]]
        assert indices == sorted(indices)
        assert np.array_equal(arrays[part], np.stack(list(pool.images(indices))))
        assert np.array_equal(arrays[f"{part}_labels"], pool.labels[indices])


def test_two_runs_write_the_same_bytes_and_another_seed_draws_others():
    def contents():
        return {path.name: path.read_bytes() for path in Path("artifacts/data").iterdir()}

    run(name="digits", num_train=256)
    first = contents()
    run(name="digits", num_train=256)
    assert first == contents() and len(first) == 7
    run(name="digits", num_train=256, split_seed=1)
    assert first["keys.json"] != contents()["keys.json"]


def test_a_share_is_held_out_of_every_class():
    folder_of({"a": 40, "b": 20, "c": 10})
    arrays, keys = run(name="image_folder", root="images", heldout_share=0.1)
    assert np.bincount(arrays["train_labels"]).tolist() == [36, 18, 9]
    assert np.bincount(arrays["heldout_labels"]).tolist() == [4, 2, 1]
    level = {f"a/{i:03}.png": i for i in range(40)} | {f"b/{i:03}.png": 40 + i for i in range(20)}
    level |= {f"c/{i:03}.png": 60 + i for i in range(10)}
    for part in ("train", "heldout"):
        assert arrays[part][:, 0, 0, 0].tolist() == [level[key] for key in keys[part]]
    assert json.loads(Path("artifacts/data/classes.json").read_text()) == ["a", "b", "c"]


def test_without_num_train_and_share_all_images_train():
    folder_of({"": 30})
    arrays, keys = run(name="image_folder", root="images")
    assert arrays["train"].shape == (30, 4, 4, 1)
    assert arrays["heldout"].shape == (0, 4, 4, 1) and arrays["heldout"].dtype == np.uint8
    assert arrays["heldout_labels"].shape == (0,) and keys["heldout"] == []
    assert json.loads(Path("artifacts/data/classes.json").read_text()) == []


def test_of_a_set_with_a_test_part_that_part_is_held_out(monkeypatch):
    """CIFAR-10 has one; what num_train leaves of the 50,000 is then not held out."""
    images = np.arange(50, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 2, 4, 1), np.uint8)
    two = [
        parts.Part([f"{n}/{i}" for i in indices], np.zeros(len(indices), np.int64), lambda at, x=images[indices]: iter(x[at]))
        for n, indices in (("train", np.arange(40)), ("test", np.arange(40, 50)))
    ]  # fmt: skip
    monkeypatch.setattr(image_sets, "load", lambda *_: parts.ImageSet((2, 4, 1), ["a"], *two))
    arrays, keys = run(name="cifar10", root="x", num_train=25)
    assert len(keys["train"]) == 25 and all(key.startswith("train/") for key in keys["train"])
    assert arrays["heldout"][:, 1, 2, 0].tolist() == list(range(40, 50)) and keys["heldout"][0] == "test/40"


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (
            {"name": "digits", "num_train": 1798},
            "data leaves 1798 training images of 1797, expected 1 to 1797 (params.yaml)",
        ),
        (
            {"name": "image_folder", "root": "images", "heldout_share": 0.99},
            "data leaves 0 training images of 30, expected 1 to 30 (params.yaml)",
        ),
        (
            {"name": "image_folder", "root": "images", "heldout_share": 0.5},
            "params.yaml: arms.iet_agc_plus: 15 training images in 2 shards leave a shard of 7, fewer than one batch (train.batch_size = 10); "
            "score.neighbours is 20, more than the 15 training images",
        ),
    ],
)
def test_too_few_images(section, told):
    folder_of({"": 30})
    with pytest.raises(ValueError) as caught:
        run(**section)
    assert str(caught.value) == told
    assert not Path("artifacts").exists()


def test_more_shards_than_images_of_a_folder():
    folder_of({"": 30})
    experiment = yaml.safe_load(TINY)
    experiment["data"] = {"name": "image_folder", "root": "images", "split_seed": 0}
    experiment["arms"]["iet_agc_plus"]["shard"]["num_shards"] = 31
    Path("params.yaml").write_text(yaml.safe_dump(experiment))
    with pytest.raises(
        ValueError,
        match=r"^params\.yaml: arms\.iet_agc_plus\.shard\.num_shards is 31, more than the 30 training images$",
    ):
        data.main([])


def test_an_image_that_breaks_off_leaves_the_old_data_and_nothing_half_written():
    folder_of({"": 30}, size=32)
    before, _ = run(name="image_folder", root="images")
    os.truncate("images/029.png", Path("images/029.png").stat().st_size - 30)
    with pytest.raises(ValueError, match=r"^images/029\.png is not a readable image"):
        run(name="image_folder", root="images")
    assert np.array_equal(np.load("artifacts/data/train.npy"), before["train"])
    assert list(Path("scratch/unfinished").iterdir()) == []


def test_the_full_disk_is_told_with_the_final_name(monkeypatch):
    """Nothing is written through a memory map: where the disk is full, that ends in SIGBUS and without a word."""
    run(name="digits", num_train=60)
    monkeypatch.setattr(np.lib.format, "open_memmap", lambda *_, **__: pytest.fail("a memory map is written"))

    def full(stream, header):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(OSError) as caught:
        run(name="digits", num_train=70)
    assert caught.value.strerror.startswith("artifacts/data was not written: the disk is full")
    assert len(np.load("artifacts/data/train.npy")) == 60
    assert list(Path("scratch/unfinished").iterdir()) == []
