"""The leak list: numbers by hand, against a plain loop, and a CSV that spreadsheets cannot be tricked with."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from stages.measures import leaks
from stages.report import entries
from stages.report import leaks as leak_list


def test_by_hand():
    nearest = np.array([7, 2, 7, 2, 7, 5, 9])
    ratio = np.array([0.4, 0.3, 0.1, 0.3, 0.9, 0.8, 0.3])
    memorised = np.array([True, True, True, True, False, False, True])
    found = leaks.given_out(nearest, ratio, memorised)
    # 7: images 0 and 2 of ratio 0.4 and 0.1 (4 does not count); 2: images 1 and 3, both 0.3; 9: image 6, 0.3; 5 has none.
    assert found.index.tolist() == [7, 2, 9] and found.count.tolist() == [2, 2, 1]
    assert found.ratio.tolist() == [0.1, 0.3, 0.3] and found.twin.tolist() == [2, 1, 6]


def test_nothing_memorised():
    found = leaks.given_out(np.array([1, 2]), np.array([0.9, 0.8]), np.zeros(2, bool))
    assert [len(column) for column in found] == [0, 0, 0, 0]


def check_leaks(given_out):
    random = np.random.default_rng(0)
    for case in range(100):
        size = random.integers(1, 80)
        nearest, ratio = random.integers(0, 12, size), random.integers(0, 9, size) / 8
        memorised = ratio <= random.random()
        best = {}
        for image in range(size):
            if memorised[image]:
                count, old, twin = best.get(nearest[image], (0, np.inf, -1))
                better = ratio[image] < old
                best[nearest[image]] = (count + 1, ratio[image] if better else old, image if better else twin)
        expected = sorted((r, twin, index, count) for index, (count, r, twin) in best.items())
        found = given_out(nearest, ratio, memorised)
        got = list(zip(found.ratio, found.twin, found.index, found.count, strict=True))
        assert got == expected, f"case {case}"


def test_equals_a_plain_loop():
    check_leaks(leaks.given_out)


def counts_all(nearest, ratio, memorised):
    """Every generated image of a training image counts, memorised or not."""
    found = leaks.given_out(nearest, ratio, memorised)
    return found._replace(count=np.bincount(nearest, minlength=12)[found.index])


def first_image_is_twin(nearest, ratio, memorised):
    found = leaks.given_out(nearest, ratio, memorised)
    return found._replace(twin=np.array([np.flatnonzero((nearest == i) & memorised)[0] for i in found.index], int))


@pytest.mark.parametrize("wrong", [counts_all, first_image_is_twin])
def test_the_check_tells_wrong_lists_from_the_right_one(wrong):
    with pytest.raises(AssertionError, match="case"):
        check_leaks(wrong)


KEYS = [
    "cats/0001.png", "=1+1", "+49", "-2", "@SUM(A1)", "\t=1+1", "\r=1", "\n=1", " =1+1", "'quoted'", "'=1", "''", "＝1", "－1",
    'a "b", c; d\ne', "NA", "", "=HYPERLINK(\"http://x\",\"y\")", "ä/ü=1.png", "0012", "a=1",
]  # fmt: skip


def frame_of(keys):
    size = len(keys)
    columns = {"arm": "ddpm", "seed": 0, "weights": "raw", "index": range(size), "key": keys, "status": "candidate"}
    columns |= {"confidence": [np.nan, *[0.5] * (size - 1)], "count": 1, "best_ratio": np.linspace(0, 1, size)}
    columns |= {
        "matched_ratio": 0.1,
        "heldout_ratio": np.nan,
        "twin": range(size),
        "generated": keys[::-1],
    }
    return pd.DataFrame(columns | {"variant": "as is", "duplicates": 0})


def check_csv():
    """Read by Python's csv, as a spreadsheet would split it."""
    frame = frame_of(KEYS)
    rows = list(csv.DictReader(io.StringIO(leak_list.csv_text(frame), newline="")))
    assert [list(row) for row in rows] == [leak_list.COLUMNS] * len(KEYS)
    for row in rows:
        for cell in row.values():
            assert not cell.strip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")), "a formula"
    for name, keys in (("key", KEYS), ("generated", KEYS[::-1])):
        assert [row[name].removeprefix("'") for row in rows] == keys, "another key came back"
    assert [row["confidence"] for row in rows] == ["", *["0.5"] * (len(KEYS) - 1)] and rows[1]["heldout_ratio"] == ""
    assert {"cats/0001.png", "ä/ü=1.png", "0012", "a=1", "NA"} <= {row["key"] for row in rows}
    assert [float(row["best_ratio"]) for row in rows] == frame.best_ratio.tolist()
    assert [int(row["twin"]) for row in rows] == frame.twin.tolist()


def test_csv_holds_no_formula_and_every_key_comes_back():
    check_csv()


@pytest.mark.parametrize(
    ("safe_cell", "told"),
    [
        (str, "a formula"),
        (lambda key: f"'{key}" if key[:1] in ("=", "+", "-", "@") else key, "a formula"),  # white space before it
        (
            lambda key: f"'{key}" if key.strip()[:1] in tuple("=+-@＝＋－＠") else key,
            "another key",
        ),  # one with an apostrophe
        (lambda key: f"'{key.lstrip('=+-@')}", "a formula|another key"),
    ],
)
def test_the_check_tells_unsafe_cells(monkeypatch, safe_cell, told):
    monkeypatch.setattr(leak_list, "safe_cell", safe_cell)
    with pytest.raises(AssertionError, match=told):
        check_csv()


def test_images_that_leaked_with_confidence_are_counted_once_by_kind_of_weights(tmp_path):
    """Training image 4 has two copies, of which the clearer one is not sure enough; image 8 has none, however sure."""
    raw = {"nearest_train": [4, 4, 7, 8, 7], "train_code_sq": [0.3, 0.2, 0.45, 0.6, 0.48]}
    raw |= {"confidence": [0.99, 0.94, 0.95, 1.0, 0.2]}
    ema = {"nearest_train": [1, 2], "train_code_sq": [0.9, 0.1], "confidence": [0.99, np.nan]}
    tables = [pd.DataFrame({"weights": w, "nearest_key": "k"} | columns) for w, columns in (("raw", raw), ("ema", ema))]
    table = pd.concat([of_weights.assign(image=range(len(of_weights))) for of_weights in tables], ignore_index=True)
    table.to_parquet(tmp_path / "images.parquet")
    headline = entries.Headline("raw", "code_sq", 0.5)
    assert leak_list.num_leaked(tmp_path, headline) == {"raw": 1, "ema": 0}
