"""What the page shows of private images: by default no picture of somebody's own, and for others neither pictures nor names."""

import copy
import re

import pandas as pd
import pytest
import report_tree
from report_tree import ONE_SEED, SETTINGS, built

from stages import report
from stages.report import privacy

OWN = {
    "name": "image_folder",
    "root": "/home/jane.doe/ward 7",
    "num_train": 5,
    "group": {"pattern": "ward"},
    "split_seed": 0,
}
PICTURE, NAME = "data:image/png", "&lt;b&gt;3&amp;7.png"


def text_of(root, name="report.html"):
    return (root / name).read_text()


def test_own_images_are_named_and_not_shown_and_public_ones_are_shown(tmp_path, capsys):
    for name in ("own", "public"):
        (tmp_path / name).mkdir()
    with built(tmp_path / "own", ONE_SEED, sections={"data": OWN}) as (root, _):
        report.print_table(SETTINGS | {"data": OWN})
        assert PICTURE not in text_of(root) and NAME in text_of(root)
    told = capsys.readouterr().out
    assert "report.html shows no image, but may name images; artifacts/report/leaks.csv" in told
    assert "make report-for-others" in told
    with built(tmp_path / "public", ONE_SEED) as (root, _):
        report.print_table(SETTINGS)
        assert PICTURE in text_of(root)
    assert "report-for-others" not in capsys.readouterr().out


def test_pictures_and_names_are_as_asked_for(tmp_path, capsys):
    asked = {"show_images": 1, "names": "pseudonym"}
    with built(tmp_path, ONE_SEED, sections={"data": OWN, "report": asked}) as (root, _):
        page = text_of(root)
        assert page.count(PICTURE) == 2 * len(SETTINGS["arms"])  # a pair an arm
        assert NAME not in page and "7.png" not in page
        listed = pd.read_parquet("artifacts/report/leaks.parquet")
        assert re.search(r"· image \d+<", page)
        assert listed.key.tolist() == [f"image {i}" for i in listed["index"]] and len(listed) > 0
        assert "7.png" not in text_of(root, "artifacts/report/leaks.csv")


def test_the_page_for_others_neither_shows_nor_names_an_image_nor_a_path(tmp_path, monkeypatch, capsys):
    with built(tmp_path, ONE_SEED, sections={"data": OWN, "report": {"show_images": 24}}) as (root, _):
        before = text_of(root)
        report.main(["--for-others"])
        page = text_of(root, "report-for-others.html")
        assert text_of(root) == before and PICTURE in before and "jane.doe" in before
    assert (
        PICTURE not in page
        and NAME not in page
        and "jane.doe" not in page
        and "ward 7" not in page
        and "7.png" not in page
    )
    assert "Training images are given out by" in page and "· image " in page and "num_train: 5" in page
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith("report-for-others.html neither shows nor names an image")
    )
    same = re.compile(r"<section id=arms.*?</section>|<h2 id=\"arms\">.*?</section>", re.DOTALL)
    assert same.search(page)[0] == same.search(before)[0]  # the numbers are the same


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, 24),
        ({"data": OWN}, 0),
        ({"data": OWN, "similarity": {"show_images": 3}}, 24),
        ({"data": OWN, "report": {"show_images": 5}}, 5),
        ({"report": {"show_images": 0}, "similarity": {"show_images": 3}}, 0),
        ({"data": {"name": "a_set_of_ones_own"}}, 0),
    ],
)
def test_how_many_pictures(sections, expected):
    settings = copy.deepcopy(SETTINGS) | sections
    assert privacy.num_pictures(settings) == expected
    assert privacy.num_pictures(privacy.for_others(settings)) == 0


def test_no_path_is_left_in_the_settings():
    arms = {"theirs": {"generator": {"folder": "/secret/out"}}, "wen": {"generator": {"pipeline": "/secret/model"}}}
    settings = {
        "data": OWN,
        "arms": arms,
        "quality": {"weights": "/secret/w.pth"},
        "seeds": [0],
        "sample": {"weights": ["raw"]},
    }
    text = privacy.without_paths(settings)
    assert "secret" not in text and "jane" not in text and "raw" in text and "theirs" in text


def test_duplicates_are_named_where_they_are_and_who_gives_them_out_is_told(tmp_path):
    """Image 3 is leaked by both arms with raw weights; 1 and 4 are not. The leak list counts the others of a set."""

    def write(settings, levels):
        sets = [
            {
                "exact": True,
                "train": [0, 3, 4],
                "heldout": [2],
                "keys": {"train": ["a<.png", "b.png", "c.png"], "heldout": ["h.png"]},
            },
            {"exact": False, "train": [1], "heldout": [5], "keys": {"train": ["d.png"], "heldout": ["i.png"]}},
        ]
        report_tree.write_duplicates(tmp_path, sets)

    with built(tmp_path, ONE_SEED, write_more=write) as (root, _):
        page, listed = text_of(root), pd.read_parquet("artifacts/report/leaks.parquet")
        report.main(["--for-others"])
        others = text_of(root, "report-for-others.html")
    raw = listed[listed.weights == "raw"]["index"].unique().tolist()
    section = page[page.index('id="duplicates"') : page.index('id="training"')]
    assert "2 sets of images" in section and "1 with several training images, 2 with images on both sides" in section
    arms = [
        arm
        for arm in ("plain", "iet")
        if {0, 3, 4} & set(listed[(listed.arm == arm) & (listed.weights == "raw")]["index"])
    ]
    cells = re.findall(r"<tr><th scope=row>(.*?)</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", section)
    assert cells == [
        ("exact", "a&lt;.png, b.png, c.png", "h.png", ", ".join(arms) or "–"),
        ("near", "d.png", "i.png", "–"),
    ], raw
    expected = {0: 2, 3: 2, 4: 2, 1: 0, 2: 0}
    assert listed.duplicates.tolist() == [expected[i] for i in listed["index"]]
    assert "b.png" not in others and "image 0, image 3, image 4" in others
