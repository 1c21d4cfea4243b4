"""What the page says of the number of images behind the fidelity to held-out images, and of what is chance in it."""

import html
from types import SimpleNamespace

import pandas as pd
import report_tree

from stages.report.sections import arms
from stages.run import files


def write(settings=None, levels=None):
    path = files.folder("results/score", "reference") / "fidelity.json"
    files.write_json(path, {"num_half": 4, "distance": 0.02})


def test_the_page_tells_how_many_images_are_compared_and_how_much_is_chance(tmp_path):
    with report_tree.built(tmp_path, report_tree.ONE_SEED, write_more=write) as (root, _):
        page = html.unescape((root / "report.html").read_text())
    assert "fd_pixels_heldout compares 100 generated images with all 7 held-out ones." in page
    assert "two halves of the held-out images, 4 each, are 0.02 apart by chance" in page
    assert "about 0.00611 of each value" in page  # 4 * 0.02 / 2 * (1 / 100 + 1 / 7)
    assert "It is the same for all arms" in page


def test_arms_with_other_numbers_of_images_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write()
    results = pd.DataFrame({"num_heldout": [8, 8]})
    metrics = {"one": {"num_images": 50}, "two": {"num_images": 100}}
    (told,) = arms._fidelity(SimpleNamespace(results=results, metrics=metrics))
    # 0.04 * (1 / 50 + 1 / 8) and 0.04 * (1 / 100 + 1 / 8)
    assert "compares 50 or 100 generated images" in told and "0.0058 or 0.0054" in told
    assert "Arms with other numbers of images have another bias" in told


def test_without_held_out_images_nothing_is_said(tmp_path):
    with report_tree.built(tmp_path, report_tree.ONE_SEED, held_out=False) as (root, _):
        assert "two halves of the held-out images" not in (root / "report.html").read_text()


def report_of(num_train, num_heldout, *generated):
    results = pd.DataFrame({"num_heldout": [num_heldout, num_heldout]})
    metrics = {f"arm{number}": {"num_images": num} for number, num in enumerate(generated)}
    return SimpleNamespace(results=results, metrics=metrics, num_train=num_train)


def test_what_chance_makes_of_fid_is_told_by_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = report_of(2500, 6000, 100)
    assert arms._fid(report) == []
    path = files.folder("results/quality", "reference") / "chance.json"
    files.write_json(path, {})
    assert arms._fid(report) == []
    files.write_json(path, {"clean": {"num_half": 3000, "distance": 4.25}, "dcr": {"num_half": 2, "distance": 51.0}})
    (told,) = arms._fid(report)
    assert "are 4.25 (clean, 3,000 each), 51 (dcr, 2 each) apart by chance" in told


def test_the_numbers_of_images_that_each_fid_compares_are_told(tmp_path, monkeypatch):
    """As many held-out images as training images, or all where there are fewer or no more."""
    monkeypatch.chdir(tmp_path)
    files.write_json(
        files.folder("results/quality", "reference") / "chance.json", {"clean": {"num_half": 9, "distance": 4.25}}
    )
    (told,) = arms._fid(report_of(2500, 6000, 1000, 50_000, 1000))
    assert "FID compares 1,000 or 50,000 generated images with the 2,500 training images, and FID held out compares them with 2,500 of the 6,000 held-out ones, as many as there are training images" in told  # fmt: skip
    for num_heldout in (2500, 1999):
        (told,) = arms._fid(report_of(2500, num_heldout, 80))
        assert f"FID compares 80 generated images with the 2,500 training images, and FID held out compares them with all {num_heldout:,} held-out ones. " in told  # fmt: skip


def test_the_page_tells_what_chance_makes_of_fid(tmp_path):
    def write_both(settings=None, levels=None):
        write()
        path = files.folder("results/quality", "reference") / "chance.json"
        files.write_json(path, {"clean": {"num_half": 3, "distance": 9.5}})

    with report_tree.built(tmp_path, report_tree.ONE_SEED, write_more=write_both) as (root, _):
        page = html.unescape((root / "report.html").read_text())
    assert "are 9.5 (clean, 3 each) apart by chance" in page
    assert "FID compares 100 generated images with the 5 training images, and FID held out compares them with 5 of the 7 held-out ones" in page  # fmt: skip
