"""A made-up measure that only says in plain data what it measures: what the report makes of it, with numbers by hand."""

import copy
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import report_tree

from stages import phases, report
from stages.report import columns, figures, results
from stages.report.sections import measures
from stages.run import params

GRAIN = {
    "per": "run",
    "title": "Grain & dust",
    "columns": {
        "sharp": {"title": "sharpness", "meaning": "How <sharp> it is.", "show": "number", "short": "sharp"},
        "blobs": {"title": "blobs", "meaning": "Blobs an image.", "show": "tally"},
        "torn": {"title": "torn %", "meaning": "Share of torn images.", "show": "percent", "short": "torn"},
    },
    "figures": [{"kind": "histogram", "file": "images.parquet", "column": "dust", "label": "dust (grains)"}],
}
LEVELS = {"plain": [60, 70], "iet": [15, 21]}
# By arm, seed and weights: sharp, blobs, torn. iet has no EMA weights here; theirs one seed; others is not measured at all.
SCORES = {
    "plain": [
        {"raw": (1.0, 4, 0.25), "ema": (10.0, 40, 0.5)},
        {"raw": (3.0, 7, 0.75), "ema": (20.0, 50, 0.5)},
    ],
    "iet": [{"raw": (2.0, 1200, 0.03)}, {"raw": (None, 1200, 0.05)}],
    "theirs": [{"raw": (8.0, 3, 1.0), "ema": (9.0, 2, 0.0)}],
}
DUST = {"plain": [1.0, 2.0, math.nan], "iet": [5.0], "theirs": [4.0, 3.0]}  # of raw weights and the first seed


def folder(arm, seed):
    return Path(f"artifacts/results/grain/{arm}-seed{seed}")


def write_grain(settings, levels):
    for arm in ("theirs", "others"):  # generators from elsewhere: the same images for each seed, no training
        report_tree.write_scores(Path("."), f"{arm}-seed0", 30)
    for arm, seeds in SCORES.items():
        for seed, by_weights in enumerate(seeds):
            folder(arm, seed).mkdir(parents=True)
            scores = {weights: dict(zip(GRAIN["columns"], row, strict=True)) for weights, row in by_weights.items()}
            (folder(arm, seed) / "scores.json").write_text(json.dumps({"made_by": "grain 1.0"} | scores))
            rows = [{"weights": "raw", "image": i, "dust": value + 100 * seed} for i, value in enumerate(DUST[arm])]
            rows.append({"weights": "ema", "image": 0, "dust": 1000.0})
            pd.DataFrame(rows).to_parquet(folder(arm, seed) / "images.parquet")


def declare(patch, declared):
    """As if stages/grain.py had this PHASE, and ran before quality."""
    names, of_phase = phases.names(), phases.declared
    at = names.index("quality")
    patch.setattr(phases, "names", lambda: [*names[:at], "grain", *names[at:]])
    patch.setattr(phases, "declared", lambda phase: declared if phase == "grain" else of_phase(phase))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Root, metrics and page of the report, as current folder. Tests change nothing in it."""
    theirs = {arm: {"generator": {"folder": arm}, "sample": {}} for arm in ("theirs", "others")}
    sections = {"arms": copy.deepcopy(report_tree.SETTINGS["arms"]) | theirs}
    with pytest.MonkeyPatch.context() as patch:
        declare(patch, GRAIN)
        root = tmp_path_factory.mktemp("grain")
        with report_tree.built(root, LEVELS, (0, 1), sections=sections, write_more=write_grain) as (_, metrics):
            yield root, metrics, (root / "report.html").read_text()


def test_metrics_hold_means_and_sd_of_each_column(built):
    _, metrics, _ = built
    # sd with n - 1: 1 and 3 have sqrt(2), 4 and 7 have 3 / sqrt(2), 0.25 and 0.75 have 0.5 / sqrt(2)
    assert metrics["plain"]["raw"]["grain"] == {
        "sharp": 2.0, "sharp_sd": 1.41421, "blobs": 5.5, "blobs_sd": 2.12132, "torn": 0.5, "torn_sd": 0.353553
    }  # fmt: skip
    assert metrics["plain"]["ema"]["grain"]["sharp"] == 15.0 and metrics["plain"]["ema"]["grain"]["torn_sd"] == 0.0
    iet = metrics["iet"]["raw"]["grain"]  # one of two seeds is not known, so the mean is not
    assert (iet["sharp"], iet["sharp_sd"], iet["blobs"], iet["torn"]) == (None, None, 1200.0, 0.04)
    assert metrics["theirs"]["raw"]["grain"] == {"sharp": 8.0, "blobs": 3.0, "torn": 1.0}  # one seed: no _sd
    assert "grain" not in metrics["iet"]["ema"] and "grain" not in metrics["others"]["raw"]
    assert "made_by" not in json.dumps(metrics)


def cells_of(html):
    lines = [line for line in html.splitlines() if line.startswith("<tr>")]
    return [re.findall(r"<t[hd][^>]*>([^<]*)", line) for line in lines]


def test_the_page_has_a_section_with_table_legend_and_figure(built):
    _, _, page = built
    assert '<a href="#grain">Grain &amp; dust</a> · <a href="#curves">' in page
    section = page[page.index('<h2 id="grain">Grain &amp; dust</h2>') : page.index('<h2 id="seeds">')]
    heads = ["arm", "weights", "sharpness", "blobs", "torn %"]
    assert re.findall(r"<th scope=col>([^<]*)", section) == heads
    assert cells_of(section) == [
        ["plain", "raw", "2 ± 1.41", "5.5 ± 2.1", "50.0 ± 35.4"],
        ["plain", "ema", "15 ± 7.07", "45 ± 7.1", "50.0"],
        ["iet", "raw", "–", "1,200", "4.00 ± 1.41"],
        ["theirs", "raw", "8", "3", "100.0"],
        ["theirs", "ema", "9", "2", "0.0"],
    ]
    assert "<dt>sharpness</dt><dd>How &lt;sharp&gt; it is.</dd><dt>blobs</dt><dd>Blobs an image.</dd>" in section
    assert (
        section.count("<svg") == 1 and "Share of an arm&#x27;s images by dust (grains), raw weights, seed 0." in section
    )
    words = re.findall(r"<text[^>]*>([^<]*)</text>", section)
    assert [words.count(arm) for arm in ("plain", "iet", "theirs", "others")] == [1, 1, 1, 0]


def test_short_columns_stand_in_the_table_of_arms_too(built):
    _, _, page = built
    section = page[page.index('<h2 id="arms">') : page.index("All protocols and thresholds")]
    heads = re.findall(r"<th scope=col>([^<]*)", section)
    assert heads[-4:] == ["fd_pixels", "fd_pixels held out", "sharpness", "torn %"] and "blobs" not in section
    rows = {tuple(row[:2]): row[-2:] for row in cells_of(section)}
    assert rows["plain", "raw"] == ["2 ± 1.41", "50.0 ± 35.4"] and rows["theirs", "ema"] == ["9", "0.0"]
    assert rows["iet", "ema"] == rows["others", "raw"] == ["–", "–"]
    assert section.index("<dt>sharpness</dt>") > section.index("<dt>fd_pixels held out</dt>")


def test_short_columns_stand_in_the_text_table(built, capsys):
    report.main(["--table"])
    lines = [re.split(" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    heads, _, *rows = lines[1:7]
    at = heads.index("sharp")
    assert heads[at - 1 : at + 3] == ["fd_pixels", "sharp", "torn", "skip %"] and "blobs" not in heads
    assert {row[0]: row[at : at + 2] for row in rows} == {
        "plain": ["2", "50.0"], "iet": ["–", "4.00"], "theirs": ["8", "100.0"], "others": ["–", "–"]
    }  # fmt: skip


def test_a_histogram_is_of_the_first_seed_and_the_headlines_weights(built, monkeypatch):
    root, metrics, _ = built
    drawn = []
    monkeypatch.setattr(figures, "histogram", lambda *arguments: drawn.append(arguments))
    settings = params.load(root / "params.yaml")
    of_report = results.read(settings)
    of_report.metrics = metrics
    measures.Measure("grain").section(of_report)
    ((values, arms, label),) = drawn
    assert {arm: found.tolist() for arm, found in values.items()} == {
        "plain": [1.0, 2.0], "iet": [5.0], "theirs": [4.0, 3.0]
    }  # fmt: skip
    assert arms == ["plain", "iet", "theirs", "others"] and label == "dust (grains)"


def test_a_histogram_without_values_is_not_drawn():
    assert figures.histogram({"a": np.array([])}, ["a"], "dust") is None
    svg = figures.histogram({"a": np.array([]), "b": np.array([1.0, 1.0])}, ["a", "b"], "dust <grains>")
    assert "<title>dust &lt;grains&gt;</title>" in svg and ">a</text>" not in svg
    assert "var(--arm-2)" in svg and "var(--arm-1)" not in svg  # an arm keeps its colour


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda scores: None, "scores.json is missing: "),
        (
            lambda scores: scores["raw"].pop("blobs") and scores,
            "scores.json has no blobs for raw weights: run its grain",
        ),
        (
            lambda scores: scores.pop("ema") and scores,
            "scores.json has no ema weights, as other seeds have: run its grain",
        ),
    ],
)
def test_a_seed_without_its_numbers_is_named(built, change, told):
    path = folder("plain", 1) / "scores.json"
    text = path.read_text()
    changed = change(json.loads(text))
    path.unlink() if changed is None else path.write_text(json.dumps(changed))
    try:
        with pytest.raises(ValueError, match=f"^{re.escape(str(path.parent))}/{told}"):
            report.main([])
    finally:
        path.write_text(text)


def test_a_measure_that_has_not_run_leaves_no_trace(tmp_path, monkeypatch):
    declare(monkeypatch, GRAIN)
    with report_tree.built(tmp_path, report_tree.ONE_SEED) as (root, metrics):
        page = (root / "report.html").read_text()
        assert "grain" not in json.dumps(metrics) and "Grain" not in page and "sharpness" not in page


def test_a_figure_of_an_unknown_kind_is_our_own_mistake(built, monkeypatch):
    root, metrics, _ = built
    pie = GRAIN | {"figures": [GRAIN["figures"][0] | {"kind": "pie"}]}
    monkeypatch.setattr(phases, "declared", lambda phase: pie if phase == "grain" else {})
    of_report = results.read(params.load(root / "params.yaml"))
    of_report.metrics = metrics
    with pytest.raises(AssertionError, match="PHASE of grain has a figure of kind pie, expected histogram"):
        measures.Measure("grain").section(of_report)


def test_phases_with_a_section_of_their_own_are_not_shown_twice():
    assert {"score", "quality", "similarity", "clip", "detect"}.isdisjoint(columns.generic())
    assert all(columns.of(phase) for phase in ("score", "quality", "similarity", "clip", "detect"))


def test_every_column_declares_what_the_report_reads():
    for phase in phases.names():
        for name, column in columns.of(phase).items():
            assert {"title", "meaning", "show"} <= column.keys() <= {"title", "meaning", "show", "short", "digits"}, (
                name
            )
            assert column["show"] in columns.SHOW, name
