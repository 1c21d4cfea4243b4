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


def test_what_chance_makes_of_fid_is_told_by_protocol(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert arms._fid() == []
    path = files.folder("results/quality", "reference") / "chance.json"
    files.write_json(path, {})
    assert arms._fid() == []
    files.write_json(path, {"clean": {"num_half": 3000, "distance": 4.25}, "dcr": {"num_half": 2, "distance": 51.0}})
    (told,) = arms._fid()
    assert "are 4.25 (clean, 3,000 each), 51 (dcr, 2 each) apart by chance" in told


def test_the_page_tells_what_chance_makes_of_fid(tmp_path):
    def write_both(settings=None, levels=None):
        write()
        path = files.folder("results/quality", "reference") / "chance.json"
        files.write_json(path, {"clean": {"num_half": 3, "distance": 9.5}})

    with report_tree.built(tmp_path, report_tree.ONE_SEED, write_more=write_both) as (root, _):
        assert "are 9.5 (clean, 3 each) apart by chance" in html.unescape((root / "report.html").read_text())
