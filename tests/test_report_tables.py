"""The published tables: what is read, when they are shown, and which of our numbers stand where."""

import copy
import itertools

import pytest
import yaml

from stages.report import published

# Two metrics and two tables of made-up numbers, all of them different.
PUBLISHED = """
source: Someone 2020
num_images: 1000
neighbours: 50
columns:
  - {name: MQ0.4, better: lower, protocol: code_sq, threshold: 0.4}
  - {name: FID, better: higher, fid: pytorch_fid}
notes: {all: On everything., first: On the first row., other: On another., never: On the row that is not shown.}
tables:
  - title: Table X, birds
    data: birds
    num_train: 77
    notes: [all]
    rows:
      - {label: {method: Default, K: "1"}, arm: plain, published: [3, 11.36], notes: [first, all]}
      - {label: {method: Extra, K: "2"}, arm: extra, notes: [never]}
      - {label: {method: Absent, K: "3"}, arm: absent, published: [4, 2.5], notes: [other]}
      - {label: {method: Ours, K: "4"}, arm: ours, published: [5, 12345]}
  - title: Table Y
    data: fish
    num_train: 77
    notes: []
    rows:
      - {label: {method: Default}, arm: plain, published: [6, 7]}
      - {label: {method: Ours}, arm: ours, published: [8, 9]}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tables.yaml"
    path.write_text(PUBLISHED, encoding="utf-8")
    return path


def changed(file, old, new):
    assert old in PUBLISHED
    file.write_text(PUBLISHED.replace(old, new, 1), encoding="utf-8")
    return file


def settings(data="birds", arms=("plain", "ours", "mine"), neighbours=50):
    score = {"neighbours": neighbours, "headline": {"protocol": "l2_from_gen", "threshold": 0.5, "weights": "raw"}}
    return {"data": {"name": data}, "arms": {arm: {} for arm in arms}, "score": score}


def at(count, **more):
    return {"count": count, "excess": count - 1, "excess_low": count - 3, "excess_high": count + 2, **more}


METRICS = {
    "plain": {
        "num_images": 1000,
        "raw": {
            "fd_pixels": 0.25,
            "code_sq": {"0.4": at(11), "0.5": at(21)},
            "l2_from_gen": {"0.4": at(31), "0.5": at(41)},
            "fid": {"torch_fidelity": 8.25, "pytorch_fid": 11.377},
        },
        "ema": {"fd_pixels": 0.125, "code_sq": {"0.4": at(12), "0.5": at(22)}},
    },
    "ours": {
        "num_images": 250,
        "raw": {"fd_pixels": 0.5, "fd_pixels_sd": 0.0625, "code_sq": {"0.4": at(13, count_sd=0.5), "0.5": at(23)}},
    },
    "mine": {"num_images": 500},
}


def shown(file, *, num_train=77, metrics=METRICS, **of_settings):
    return published.views(settings(**of_settings), metrics, num_train, published.read(file))


def test_a_view_holds_published_numbers_and_ours(file):
    (view,) = shown(file)
    assert view.title == "Table X, birds"
    plain, absent, ours = view.rows  # a run of ours without published numbers only where its arm is there
    assert plain == {
        "arm": "plain [2, 1]",
        "method": "Default",
        "K": "1",
        "MQ0.4\u00a0↓ published": "3",
        "MQ0.4\u00a0↓ raw": "11",
        "MQ0.4\u00a0↓ ema": "12",
        "FID\u00a0↑ published": "11.36",
        "FID\u00a0↑ raw": "11.38",
        "FID\u00a0↑ ema": "–",
        "excess at 0.5 [95 %] raw": "20 [18, 23]",  # by the protocol of the table, at the threshold of the headline
        "excess at 0.5 [95 %] ema": "21 [19, 24]",
        "fd_pixels raw": "0.25",
        "fd_pixels ema": "0.125",
    }
    assert absent["arm"] == "absent [3] (not run)"
    assert list(absent.values())[3:] == ["4", "–", "–", "2.50", *["–"] * 6]
    # 250 images count four times
    assert list(ours.values()) == [
        "ours", "Ours", "4", "5", "52 ± 2", "–", "12,345", "–", "–", "88 [80, 100]", "–", "0.5 ± 0.0625", "–",
    ]  # fmt: skip
    assert view.notes == ["On everything.", "On the first row.", "On another."]


def test_a_run_without_published_numbers_stands_in_its_row(file):
    metrics = METRICS | {"extra": METRICS["ours"]}
    (view,) = shown(file, metrics=metrics, arms=("plain", "ours", "extra"))
    extra = view.rows[1]
    assert (
        extra["arm"] == "extra [3]" and extra["MQ0.4\u00a0↓ published"] == "–" and extra["MQ0.4\u00a0↓ raw"] == "52 ± 2"
    )
    assert view.notes[2:] == ["On the row that is not shown.", "On another."]


OWN = """
  - title: Table Z
    data: flowers
    num_train: 5
    num_images: 40
    columns:
      - {name: Sim, better: lower, similarity: percentile_95, digits: 3}
      - {name: CLIP, better: higher, clip: used}
      - {name: FID, better: lower, fid: dcr, digits: 1}
    notes: []
    rows:
      - {label: {method: Default}, arm: plain, published: [0.5, 30.123, 18.04]}
      - {label: {method: Ours}, arm: ours, published: [0.25, 31, 16.5]}
"""


def test_a_table_may_have_columns_and_a_number_of_images_of_its_own(file):
    file.write_text(PUBLISHED + OWN, encoding="utf-8")
    metrics = copy.deepcopy(METRICS)
    metrics["plain"]["raw"] |= {
        "similarity": {"percentile_95": 0.61749, "percentile_95_sd": 0.0201, "mean": 0.9},
        "clip": {"original": 11.5, "used": 10.256},
        "fid": {"dcr": 20.06, "pytorch_fid": 9.0},
    }
    (view,) = shown(file, num_train=5, metrics=metrics, data="flowers", neighbours=20)
    plain, ours = view.rows
    nbsp = "\u00a0"
    assert plain == {
        "arm": "plain",
        "method": "Default",
        f"Sim{nbsp}↓ published": "0.500",
        f"Sim{nbsp}↓ raw": "0.617 ± 0.020",
        f"Sim{nbsp}↓ ema": "–",
        f"CLIP{nbsp}↑ published": "30.12",
        f"CLIP{nbsp}↑ raw": "10.26",
        f"CLIP{nbsp}↑ ema": "–",
        f"FID{nbsp}↓ published": "18.0",
        f"FID{nbsp}↓ raw": "20.1",
        f"FID{nbsp}↓ ema": "–",
        "fd_pixels raw": "0.25",
        "fd_pixels ema": "0.125",
    }
    assert ours[f"Sim{nbsp}↓ raw"] == "–" and ours[f"FID{nbsp}↓ published"] == "16.5"
    assert (
        "The published numbers come from the 40 generated images of the paper; we generated 250 or 1,000."
        in view.caption
    )
    assert "scaled" not in view.caption and "neighbours" not in view.caption
    (other,) = shown(file)  # the others keep those of the file
    assert f"MQ0.4{nbsp}↓ published" in other.rows[0] and "scaled to the 1,000" in other.caption
    file.write_text((PUBLISHED + OWN).replace("[0.25, 31, 16.5]", "[0.25, 31]"), encoding="utf-8")
    with pytest.raises(ValueError, match="the row of arm ours in Table Z has 2 published numbers, expected 3"):
        published.read(file)


def test_a_view_needs_its_data_set_and_two_of_its_arms(file):
    assert shown(file, data="cats") == []
    assert shown(file, arms=("plain", "mine")) == []
    assert [view.title for view in shown(file, data="fish")] == ["Table Y"]


def test_the_caption_says_what_does_not_compare(file):
    (alike,) = shown(file, arms=("plain", "ours"), metrics=dict.fromkeys(("plain", "ours"), METRICS["plain"]))
    assert "scaled" not in alike.caption and "trained on" not in alike.caption and "neighbours" not in alike.caption
    assert "Published: Someone 2020, Table X." in alike.caption
    assert "Notes up to number 1 apply to every row." in alike.caption
    (other,) = shown(file, num_train=10, neighbours=20)
    assert "scaled to the 1,000 generated images of the paper; we generated 250 or 1,000" in other.caption
    assert "Our arms are trained on 10 images, the paper's on 77" in other.caption
    assert "over 20 nearest neighbours, the paper's over 50" in other.caption


def test_what_we_have_not_measured_is_a_dash(file):
    metrics = copy.deepcopy(METRICS)
    for cell in metrics["plain"]["raw"]["code_sq"].values():  # no held-out images
        cell.update(excess=None, excess_low=None, excess_high=None)
    del metrics["plain"]["ema"]["code_sq"]["0.4"]  # not among the thresholds of params.yaml
    (view,) = shown(file, metrics=metrics)
    cells = view.rows[0]
    assert cells["excess at 0.5 [95 %] raw"] == cells["MQ0.4\u00a0↓ ema"] == "–"
    assert cells["MQ0.4\u00a0↓ raw"] == "11"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "arm: absent, ",
            "",
            "tables.0.rows.2: 'arm' is a required property, see workflow/schemas/published.schema.yaml",
        ),
        ("data: birds", "dataset: birds", "tables.0: .*'dataset' was unexpected"),
        (
            "[4, 2.5]",
            "[4]",
            "the row of arm absent in Table X, birds has 1 published numbers, expected 2, one per column",
        ),
        (
            "notes: [other]",
            "notes: [others]",
            "the row of arm absent in Table X, birds names the note others, expected one of all,",
        ),
        (
            'Ours, K: "4"',
            'Ours, L: "4"',
            "the row of arm ours in Table X, birds has other labels than the first row, method, K",
        ),
        ("source: Someone", "source: [Someone", "cannot be read: .*line"),
    ],
)
def test_a_wrong_file_is_told_in_one_sentence(file, old, new, told):
    with pytest.raises(ValueError, match=told) as caught:
        published.read(changed(file, old, new))
    assert str(caught.value).startswith(str(file)) and "\n" not in str(caught.value)


def by_arm(tables):
    """The different rows of published numbers that each arm has in some tables: dict of sets."""
    found = {}
    for row in itertools.chain(*tables):
        if "published" in row:
            found.setdefault(row["arm"], set()).add(tuple(row["published"]))
    return found


def test_the_published_tables_agree_with_themselves():
    """The numbers were typed by hand: what the paper repeats must be repeated, and its percentages must come out."""
    content = published.read()
    tables = {table["title"].split(",")[0] + " " + table["data"]: table["rows"] for table in content["tables"]}
    assert list(tables) == [
        "Table I cifar10",
        "Table I cifar100",
        "Table I afhq_dog",
        "Table III cifar10",
        "Table VII cifar10",
        *(f"Table {number} captioned_folder" for number in ("II", "IV", "V", "VI")),
    ]
    numbers = by_arm(tables[name] for name in ("Table I cifar10", "Table III cifar10", "Table VII cifar10"))
    assert {arm: len(found) for arm, found in numbers.items()} == dict.fromkeys(numbers, 1)

    def reduction(table, metric=0):
        of_arm = {row["arm"]: row["published"] for row in tables[table] if "published" in row}
        return round(100 * (1 - of_arm["iet_agc_plus"][metric] / of_arm["ddpm"][metric]), 1)

    # AFHQ as the text of the paper has it; the other two are the tables' own, where the text differs (see the notes)
    assert reduction("Table I afhq_dog") == 91.2
    assert reduction("Table I cifar10") == 91.0 and reduction("Table I cifar100") == 71.1
    text = by_arm(tables[f"Table {number} captioned_folder"] for number in ("II", "IV", "V", "VI"))
    sim = {arm: next(iter(found))[0] for arm, found in text.items()}
    # Table V has more digits: 16.60 and 16.30, the latter as 16.3 everywhere.
    assert {arm for arm, found in text.items() if len(found) > 1} == set()
    # The paper's own percentages: 46.7 % less than Default, and 45.2 % less under GNI.
    assert round(100 * (1 - sim["iet_agc_plus"] / sim["default"]), 1) == 46.7
    assert round(100 * (1 - sim["plus_gni"] / sim["default_gni"]), 1) == 45.2
    assert len(text) == 18 and max(len(found) for found in text.values()) == 1
    assert all(len(yaml.safe_dump(note)) > 20 for note in content["notes"].values())
    used = {name for table in content["tables"] for owner in [table, *table["rows"]] for name in owner.get("notes", [])}
    assert used == set(content["notes"])
