"""Folders of images with captions: three layouts, and what is refused."""

import csv
import json
import unicodedata

import numpy as np
import pandas as pd
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


def write_lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path, rows):
    pd.DataFrame(rows).to_parquet(path, index=False)


TABLES = [("metadata.jsonl", write_lines), ("metadata.csv", write_csv), ("metadata.parquet", write_parquet)]


@pytest.mark.parametrize(("name", "write"), TABLES)
def test_tables_hold_the_same_captions(root, name, write):
    texts = ['a "quoted", caption', "two\nlines", "NA"]  # none of which pandas or csv may read as something else
    rows = [{"file_name": key, "text": text, "other": i} for i, (key, text) in enumerate(zip(KEYS, texts))]
    write(root / name, rows)
    assert by_key(load(root)) == {key: [text] for key, text in zip(KEYS, texts)}
    write(root / name, [{"file_name": key, "caption": text} for key, text in zip(KEYS, texts)])
    assert by_key(load(root)) == {key: [text] for key, text in zip(KEYS, texts)}
    both = [{"file_name": key, "text": "short", "long": text} for key, text in zip(KEYS, texts)]
    write(root / name, both)
    assert by_key(load(root)) == {key: ["short"] for key in KEYS}
    assert by_key(load(root, caption_column="long")) == {key: [text] for key, text in zip(KEYS, texts)}
    with pytest.raises(ValueError, match=rf'{name}, (line|row) [12]: expected {{"file_name": ..., "finding": ...}}$'):
        load(root, caption_column="finding")
    write(root / name, [*both, both[1]])
    with pytest.raises(ValueError, match=r"a/b/one.png occurs twice: put its captions into one list"):
        load(root)


@pytest.mark.parametrize(("name", "write"), [TABLES[0], TABLES[2]])
def test_tables_may_hold_lists(root, name, write):
    write(root / name, [{"file_name": key, "text": [f"one of {key}", "two"]} for key in KEYS])
    assert by_key(load(root)) == {key: [f"one of {key}", "two"] for key in KEYS}
    write(root / name, [{"file_name": key, "text": ["x"] if key != KEYS[2] else []} for key in KEYS])
    with pytest.raises(ValueError, match=r"(line|row) 3: expected"):
        load(root)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_caption_may_hold_what_some_call_a_line_end(root, separator):
    write_lines(root / "metadata.jsonl", [{"file_name": key, "text": f"left{separator}right"} for key in KEYS])
    assert by_key(load(root)) == {key: [f"left{separator}right"] for key in KEYS}


@pytest.mark.parametrize("layout", ["captions.json", "metadata.jsonl", "metadata.csv", ".txt", ".caption"])
def test_a_byte_order_mark_and_line_ends_are_no_part_of_a_caption(root, layout):
    rows = [{"file_name": key, "text": f"of {key}\n"} for key in KEYS]
    content = {
        "captions.json": json.dumps({key: [f"of {key}\r\n", "more\n\n"] for key in KEYS}),
        "metadata.jsonl": "\r\n".join(map(json.dumps, rows)) + "\r\n",
        "metadata.csv": "file_name,text\r\n" + "".join(f'{key},"of {key}\n"\r\n' for key in KEYS),
    }
    if layout in content:
        (root / layout).write_bytes(b"\xef\xbb\xbf" + content[layout].encode())
    else:
        for key in KEYS:
            (root / key).with_suffix(layout).write_bytes(b"\xef\xbb\xbf" + f"of {key}\r\n\n".encode())
    more = ["more"] if layout == "captions.json" else []
    assert by_key(load(root)) == {key: [f"of {key}", *more] for key in KEYS}


@pytest.mark.parametrize("layout", ["captions.json", "metadata.jsonl", "metadata.csv", ".txt"])
def test_accents_are_the_same_however_they_are_encoded(tmp_path, layout):
    name = "Müller é.png"
    composed, apart = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    assert composed != apart
    for key, spelling in ((composed, apart), (apart, composed)):
        root = tmp_path / ("nfc" if key == composed else "nfd")
        root.mkdir()
        Image.new("L", (8, 8)).save(root / key)
        match layout:
            case "captions.json":
                (root / layout).write_text(json.dumps({f"/elsewhere/{spelling}": "text"}))
            case "metadata.jsonl":
                write_lines(root / layout, [{"file_name": spelling, "text": "text"}])
            case "metadata.csv":
                write_csv(root / layout, [{"file_name": spelling, "text": "text"}])
            case _:
                (root / spelling).with_suffix(".txt").write_text("text")
        assert by_key(load(root)) == {key: ["text"]}


def test_two_images_whose_names_differ_in_the_encoding_of_accents_only(tmp_path):
    for form in ("NFC", "NFD"):
        Image.new("L", (8, 8)).save(tmp_path / unicodedata.normalize(form, "ü.png"))
    (tmp_path / "captions.json").write_text("{}")
    with pytest.raises(ValueError, match=r"have one name but for its spelling: rename one of them") as caught:
        load(tmp_path)
    assert "\\xfc" in str(caught.value) and "u\\u0308" in str(caught.value)


@pytest.mark.parametrize("spelling", ["./b/one.png", "b\\one.png", ".\\b\\one.png", "b//one.png", "a/../b/one.png"])
def test_paths_in_other_spellings(root, spelling):
    rows = [{"file_name": spelling if key == KEYS[0] else key, "text": key} for key in KEYS]
    write_lines(root / "metadata.jsonl", rows)
    assert by_key(load(root)) == {key: [key] for key in KEYS}


def test_a_table_may_lie_in_the_folder_of_its_images(root):
    write_lines(root / "b/metadata.jsonl", [{"file_name": "one.png", "text": "in b"}])
    write_lines(root / "a/metadata.jsonl", [{"file_name": "b\\one.png", "text": "in a/b"}])
    write_lines(root / "metadata.jsonl", [{"file_name": "two.jpg", "text": "at the top"}])
    assert by_key(load(root)) == {"b/one.png": ["in b"], "a/b/one.png": ["in a/b"], "two.jpg": ["at the top"]}
    write_lines(root / ".hidden/metadata.jsonl", [{"file_name": "one.png", "text": "of nobody"}])
    assert len(load(root).pool.captions) == 3
    write_lines(root / "metadata.jsonl", [{"file_name": key, "text": "again"} for key in KEYS])
    with pytest.raises(ValueError, match=r"metadata.jsonl, line 1: .*one.png occurs twice"):
        load(root)


def test_two_images_with_one_text_are_named(root):
    for key in KEYS:
        (root / key).with_suffix(".txt").write_text("x")
    Image.new("L", (8, 8)).save(root / "two.png")
    with pytest.raises(ValueError) as caught:
        load(root)
    assert str(caught.value) == (
        f"images under {root} share a file of captions: two.jpg and two.png (two.txt): rename one of each, or use captions.json"
    )
    (root / "captions.json").write_text(json.dumps({key: key for key in [*KEYS, "two.png"]}))
    assert len(by_key(load(root, captions="captions.json"))) == 4


def test_captions_in_files_of_that_suffix_and_texts_of_no_image(root):
    for key in [*KEYS, "b/old.png"]:
        (root / key).with_suffix(".caption").write_text(f"of {key}")
    images = load(root)
    assert by_key(images) == {key: [f"of {key}"] for key in KEYS}
    assert images.notes == ["1 .caption files have no image of their name and are not read"]
    (root / "two.txt").write_text("x")
    with pytest.raises(ValueError, match=r"several layouts \(a .txt beside each image, a .caption beside each image\)"):
        load(root)
    (root / "two.txt").unlink()
    with pytest.raises(
        ValueError, match=r"data.caption_column has no effect, as captions stand in a .caption beside each"
    ):
        load(root, caption_column="text")


def test_all_empty_captions_are_named_at_once(root):
    write_lines(
        root / "metadata.jsonl", [{"file_name": key, "text": "\n" if key != KEYS[0] else ["x", 7]} for key in KEYS]
    )
    with pytest.raises(ValueError) as caught:
        load(root)
    assert str(caught.value) == (
        f"the captions of 3 images in {root} are empty or no text: a/b/one.png (empty), b/one.png (7), two.jpg (empty): mend them or remove the "
        "images"
    )


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("metadata.csv", "file_name,text\none.png\n", r"metadata.csv, line 2: expected 2 columns: mend it"),
        ("metadata.csv", "file_name,text\none.png,a,b\n", r"metadata.csv, line 2: expected 2 columns: mend it"),
        ("metadata.csv", 'file_name,text\n"one.png,a\n', r"metadata.csv, line \d: unexpected end of data: mend it"),
        ("metadata.csv", "name,text\none.png,a\n", r'metadata.csv, line 2: expected {"file_name": ..., "text": ...}'),
        ("metadata.csv", "", r"3 images have no caption"),
        ("metadata.parquet", "no table", r"metadata.parquet is not readable as Parquet \("),
        ("metadata.jsonl", "[1]", r'metadata.jsonl, line 1: expected {"file_name": ..., "text": ...}'),
        ("metadata.jsonl", '{"file_name": "a\u2028b"', r"metadata.jsonl, line 1: expected"),
    ],
)
def test_tables_that_cannot_be_read(root, name, content, told):
    (root / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=told) as caught:
        load(root)
    assert "\n" not in str(caught.value)


def test_captions_are_checked_before_anything_runs(root, monkeypatch):
    from conftest import text_experiment

    from stages import data

    monkeypatch.chdir(root)
    section = {"name": "captioned_folder", "root": ".", "split_seed": 0}
    with pytest.raises(ValueError, match="has no captions"):
        data.check_files(text_experiment(data=section))
