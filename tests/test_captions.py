"""Folders of images with captions: three layouts, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from stages import image_sets

KEYS = ["b/one.png", "a/b/one.png", "two.jpg"]  # of different depths, one the end of another


@pytest.fixture
def root(tmp_path):
    for i, key in enumerate(KEYS):
        path = tmp_path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 60 * i, np.uint8)).save(path)
    return tmp_path


def load(root, **more):
    return image_sets.load({"name": "captioned_folder", "root": str(root), "split_seed": 0, **more})


def by_key(images):
    return dict(zip(images.pool.keys, images.pool.captions, strict=True))


def test_json_made_elsewhere_is_matched_by_the_longest_end_of_its_paths(root):
    alt = [f"caption {i}" for i in range(21)]
    given = {
        "/fs/other/machine/a/b/one.png": alt,
        "/fs/other/machine/b/one.png": "of the shallow one",
        "C:\\data\\two.jpg": ["with\na newline", "second"],
    }
    (root / "captions.json").write_text(json.dumps(given))
    images = load(root)
    assert by_key(images) == {
        "a/b/one.png": alt,
        "b/one.png": ["of the shallow one"],
        "two.jpg": ["with\na newline", "second"],
    }
    assert images.shape == (8, 8, 3) and images.classes == [] and not images.pool.labels.any()  # grey images too
    array = dict(zip(images.pool.keys, images.pool.images(range(3)), strict=True))
    assert [int(array[key][0, 0, 0]) // 50 for key in KEYS] == [0, 1, 2]


def test_json_of_another_name(root):
    (root / "mine.json").write_text(json.dumps({key: key for key in KEYS}))
    (root / "metadata.jsonl").write_text("is not read")
    assert by_key(load(root, captions="mine.json")) == {key: [key] for key in KEYS}


def test_metadata_lines(root):
    lines = [json.dumps({"file_name": key, "text": f"ünï {key}", "other": 1}) for key in reversed(KEYS)]
    (root / "metadata.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    assert by_key(load(root)) == {key: [f"ünï {key}"] for key in KEYS}


def test_texts_beside_the_images(root):
    for key in KEYS:
        (root / key).with_suffix(".txt").write_text(f"of {key}")
    assert by_key(load(root)) == {key: [f"of {key}"] for key in KEYS}


def test_what_does_not_match_is_counted_both_ways_and_named(root):
    given = {f"x/missing{i}.png": "text" for i in range(7)} | {"b/one.png": "there"}
    (root / "captions.json").write_text(json.dumps(given))
    with pytest.raises(ValueError) as told:
        load(root)
    assert "2 images have no caption (a/b/one.png, two.jpg)" in str(told.value)
    missing = ", ".join(f"x/missing{i}.png" for i in range(5))
    assert f"7 captions have no image ({missing}, ...)" in str(told.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"b/one.png": "  ", "a/b/one.png": "x", "two.jpg": "x"}, "the caption of b/one.png in .* is empty"),
        ({"b/one.png": ["x", ""], "a/b/one.png": "x", "two.jpg": "x"}, "the caption of b/one.png in .* is empty"),
        (
            {"b/one.png": [7], "a/b/one.png": "x", "two.jpg": "x"},
            "the caption of b/one.png in .* is 7, expected a text",
        ),
        (
            {"b/one.png": [], "a/b/one.png": "x", "two.jpg": "x"},
            r"an empty list of captions for 1 images \(b/one.png\)",
        ),
        ({"x/two.jpg": "x", "y/two.jpg": "x"}, "two captions for the image two.jpg: x/two.jpg and y/two.jpg"),
        (["x"], "holds a list, expected an object"),
    ],
)
def test_captions_that_cannot_be_used(root, content, told):
    (root / "captions.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=told):
        load(root)


def test_no_captions_and_two_layouts(root):
    with pytest.raises(ValueError, match="has no captions: put your images under data.root, with captions.json"):
        load(root)
    with pytest.raises(ValueError, match=r"mine.json \(data.captions\) does not exist"):
        load(root, captions="mine.json")
    (root / "metadata.jsonl").write_text('{"file_name": "two.jpg"}\n')
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 1: expected"):
        load(root)
    (root / "two.txt").write_text("x")
    with pytest.raises(ValueError, match=r"several layouts \(metadata.jsonl, a .txt beside each image\)"):
        load(root)
