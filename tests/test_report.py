"""The report on a small made-up tree of artifacts, with numbers worked out by hand."""

import copy
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import report_tree
from report_tree import ONE_SEED, SETTINGS, built, write_scores

from stages import report
from stages.measures import intervals
from stages.report import excess, figures, html, published, results, sections, table
from stages.report.sections import gallery, headline


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    """For tests that change nothing in it, as building it takes a second."""
    with built(tmp_path_factory.mktemp("one_seed"), ONE_SEED) as tree:
        yield tree


@pytest.fixture
def own(tmp_path):
    with built(tmp_path, ONE_SEED) as tree:
        yield tree


@pytest.fixture
def metrics_copy(one_seed):
    return copy.deepcopy(one_seed[1])


def test_numbers_of_one_seed(one_seed):
    _, metrics = one_seed
    assert list(metrics) == ["plain", "iet"]
    cell = metrics["iet"]["raw"]["l2_from_gen"]["0.5"]
    assert cell == {"count": 25, "distinct": 3, "excess": 15, "excess_low": 11, "excess_high": 20, "simplicity": 12.5}
    assert metrics["iet"]["ema"]["code_sq"]["0.6"]["excess"] == 15 + 1 + 10 + 20
    assert metrics["iet"]["raw"]["fd_pixels"] == 0.348333  # 1/3 + 0.015 to 6 digits
    assert metrics["iet"]["num_seeds"] == 1 and "_sd" not in json.dumps(metrics)
    # 3 + 4 skips in round 1 and 1 + 2 in round 2 of 20 visits; one image augmented in each of 4 shards;
    # images 3 and 4 moved; 2 epochs x 1 step x 4 shards; (3 + 2) images x 2 epochs x 2 rounds
    training = {"skipped_share": 0.5, "augmented_share": 0.2, "moved": 2, "optimizer_steps": 8, "forward_images": 20}
    assert metrics["iet"]["training"] == training
    plain = {"skipped_share": 0.0, "augmented_share": 0.0, "moved": 0, "optimizer_steps": 3, "forward_images": 15}
    assert metrics["plain"]["training"] == plain


def test_epochs_are_weighted_by_visits(one_seed):
    root, _ = one_seed
    frame = pd.read_csv(root / "plots/training.csv")
    assert list(frame.columns) == ["arm", "seed", "epoch", "loss", "skipped_share", "augmented_share"]
    iet = frame[frame.arm == "iet"]
    assert iet.epoch.tolist() == [1, 2, 3, 4]  # counted over rounds
    # (3 * 1.0 + 2 * 3.0) / 5 = 1.8, and so on; shards weighed alike would give 2.0
    assert iet.loss.tolist() == pytest.approx([1.8, 1.3, 0.4, 0.3])
    assert iet.skipped_share.tolist() == pytest.approx(
        [0.6, 0.8, 0.2, 0.4]
    )  # mean of the shards' shares: 0.67 at first


def test_skips_are_summed_by_index_in_the_training_set(one_seed):
    root, _ = one_seed
    frame = pd.read_csv(root / "plots/skip_histogram.csv")
    iet = frame[frame.arm == "iet"]
    # image 0: 0, 1: 0, 2: 1 + 0, 3: 4 + 1, 4: 2 + 2. Summed by place in the shard: 0, 1, 3 and 0, 6.
    assert dict(zip(iet.skips, iet.images, strict=True)) == {0: 2, 1: 1, 4: 1, 5: 1}
    assert iet.images.sum() == 5
    assert frame[frame.arm == "plain"][["skips", "images"]].values.tolist() == [[0, 5]]


def test_two_seeds_mean_sd_and_interval(tmp_path):
    with built(tmp_path, {"plain": [60, 70], "iet": [15, 21]}, seeds=(0, 1)) as (root, metrics):
        cell = metrics["iet"]["raw"]["l2_from_gen"]["0.5"]
        assert cell["count"] == 28 and cell["excess"] == 18 and cell["simplicity_sd"] == 0
        assert cell["count_sd"] == cell["excess_sd"] == pytest.approx(math.sqrt(18), rel=1e-5)  # n - 1: 2 * 3^2 / 1
        # standard error sqrt(18) / sqrt(2) = 3, t with 1 degree of freedom 12.7062; the paired intervals would give 14 to 23
        assert (cell["excess_low"], cell["excess_high"]) == pytest.approx(
            (18 - 3 * 12.7062, 18 + 3 * 12.7062), abs=1e-3
        )
        assert "excess_low_sd" not in cell
        assert metrics["iet"]["num_seeds"] == 2
        assert metrics["iet"]["training"]["moved"] == 2 and metrics["iet"]["training"]["moved_sd"] == 0

        frame = pd.read_parquet(root / "artifacts/report/results.parquet")
        chosen = frame[(frame.arm == "iet") & (frame.weights == "raw") & (frame.protocol == "l2_from_gen")]
        at = chosen[np.isclose(chosen.threshold, 0.5)]
        assert at.excess.tolist() == [15, 21] and at.excess_low.tolist() == [11, 17] and at.seed.tolist() == [0, 1]
        assert len(frame) == 2 * 2 * 2 * 2 * 5
        page = (root / "report.html").read_text()
        assert 'id="seeds"' in page and "15 [11, 20]" in page and "21 [17, 26]" in page


def test_t_interval_of_three_values():
    # mean 2, sd 1, t with 2 degrees of freedom 4.302653
    assert intervals.t_interval([1, 2, 3]) == pytest.approx((2 - 4.302653 / math.sqrt(3), 2 + 4.302653 / math.sqrt(3)))


def test_same_artifacts_give_the_same_bytes(own):
    root, _ = own
    tracked = ["metrics.json", *(str(path.relative_to(root)) for path in (root / "plots").iterdir())]
    assert len(tracked) == 1 + 4 * 2
    names = ("summary.json", "results.parquet", "body.html", "leaks.parquet", "leaks.csv")
    tracked += [f"artifacts/report/{name}" for name in names]
    first = {name: (root / name).read_bytes() for name in tracked}
    (root / "logs/timing/report/report.json").unlink()
    report.main([])
    assert {name: (root / name).read_bytes() for name in tracked} == first
    assert str(root).encode() not in b"".join(first.values())


def test_page_needs_nothing_from_outside_and_escapes_keys(one_seed):
    root, _ = one_seed
    page = (root / "report.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;3&amp;7.png" in page
    assert "://" not in page and "@import" not in page and not re.search(r"\bsrc=(?!.data:)", page)
    assert re.findall(r"<script[^>]*>", page) == ["<script>"]  # the page's own, which loads nothing
    assert {url.split(",")[0] for url in re.findall(r'src="?([^">]+)', page)} == {"data:image/png;base64"}
    assert page.count("<svg") == 11 and "nothing was skipped: plain" in page
    text = re.sub(r"<style.*?</style>|<script.*?</script>|<pre>.*?</pre>", "", page, flags=re.DOTALL)
    assert "{" not in text and "None" not in text  # every f-string has its f
    ids = re.findall(r' id="([^"]+)"', re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL))
    assert len(ids) == len(set(ids))


def test_the_leak_list_of_both_arms_and_weights(one_seed):
    root, _ = one_seed
    frame = pd.read_parquet(root / "artifacts/report/leaks.parquet")
    assert frame.values.tolist() == [
        [arm, 0, *row, "as is", 0]
        for arm in ("plain", "iet")
        for row in (
            ["ema", 3, "=other", "candidate", 0.93, 1, 0.5, 0.3, 0.375, 3, "3"],
            ["raw", 2, "<b>3&7.png", "candidate", 0.89, 2, 0.123, 0.7, 0.875, 7, "7"],
        )
    ]
    assert frame.columns.tolist() == [
        "arm", "seed", "weights", "index", "key", "status", "confidence", "count", "best_ratio", "matched_ratio", "heldout_ratio",
        "twin", "generated", "variant", "duplicates",
    ]  # fmt: skip
    lines = (root / "artifacts/report/leaks.csv").read_text().splitlines()
    assert lines[1:3] == [
        '"plain",0,"ema",3,"\'=other","candidate",0.93,1,0.5,0.3,0.375,3,"3","as is",0',
        '"plain",0,"raw",2,"<b>3&7.png","candidate",0.89,2,0.123,0.7,0.875,7,"7","as is",0',
    ]


def test_the_gallery_says_what_counts_as_given_out(one_seed):
    root, _ = one_seed
    page = (root / "report.html").read_text()
    told = "2 of 100 generated images count as copies of 1 of the 5 training images: 0 leaked, 1 candidates."
    assert page.count(told) == 2  # both arms
    captions = re.findall(r"<figcaption>(0\.\d+ · [^<]*)<", page)
    assert (
        captions == ["0.123 · 2 copies · candidate, confidence 0.89 · &lt;b&gt;3&amp;7.png"] * 2
    )  # that of ratio 0.55 does not count
    assert "analyses" not in page  # params.yaml has no such section


def test_few_held_out_images_make_the_confidence_too_high_and_the_page_says_so():
    told = [gallery._how_sure(SimpleNamespace(results=pd.DataFrame({"num_heldout": [n]}))) for n in (49, 50)]
    assert "With 49 held-out images alone, values of 0.3 to 0.7 are too high." in told[0] and "alone" not in told[1]


def test_a_gallery_without_leaks_says_how_many_there_may_still_be(one_seed):
    """Nothing that does not count is shown. 100 (1 - 0.05^(1/100)) = 2.95."""
    num_images = one_seed[1]["plain"]["num_images"]
    listed = pd.DataFrame({"count": [6, 3, 2, 1], "status": ["leaked", "leaked", "candidate", "leaked"]})
    html = gallery.of_arm("plain", [], listed[:0], num_images, num_train=5)
    assert "figure" not in html and "No images" not in html
    html += gallery.of_arm("iet", [PAIR], listed, num_images, num_train=5)
    assert (
        "None of 100 generated images counts as a copy of a training image: at most about 3 in 100 may still be copies (95 % limit)."
        in html
    )
    told = "12 of 100 generated images count as copies of 4 of the 5 training images: 3 leaked, 1 candidates. The 1 clearest:"
    assert told in html and "0.100 · 1 copy · leaked, confidence 0.95 · a" in html  # 0.959 is not rounded up


PAIR = gallery.Pair(
    generated="data:", train="data:", image=3, key="a", ratio=0.1, copies=1, status="leaked", confidence=0.959
)


def test_every_reference_inside_the_drawings_has_its_target(one_seed):
    root, _ = one_seed
    for svg in re.findall(r"<svg.*?</svg>", (root / "report.html").read_text(), flags=re.DOTALL):
        targets = set(re.findall(r' id="([^"]+)"', svg))
        assert set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg)) <= targets


def test_without_any_skipping_no_axes_are_drawn():
    histogram = pd.DataFrame({"arm": ["a"], "seed": [0], "skips": [0], "images": [5]})
    assert figures.skip_histogram(histogram, ["a"]) is None
    epochs = pd.DataFrame({"arm": ["a"], "epoch": [1], "round": [1], "skipped_share": [0.0]})
    assert figures.over_epochs(epochs, ["a"], "skipped_share", "skipped") is None


def rounds_of(arms, weights="raw"):
    """One row an arm, seed and round: arms maps a name to lists, one a seed, of (fidelity, excess of 200 images) per round."""
    rows = [
        {"arm": arm, "seed": seed, "round": r, "weights": weights, "fd_pixels": x, "fd_pixels_heldout": 1000 * x}
        | {"excess": y, "excess_low": y - 3, "excess_high": y + 3, "count": y + 20, "num_images": 200}
        for arm, seeds in arms.items()
        for seed, points in enumerate(seeds)
        for r, (x, y) in enumerate(points, start=1)
    ]
    return pd.DataFrame(rows)


CURVES = {"plain": [[(3, 2), (2, 50)], [(3.5, 10), (2.5, 40)]], "ours": [[(4, 1), (2.2, 12), (1.9, 50)]]}


def drawn(fidelity="fd_pixels", rounds=None, weights="raw"):
    rounds = rounds_of(CURVES) if rounds is None else rounds
    return figures.excess_against_fidelity(rounds, list(CURVES), weights, 0.5, "code_sq", fidelity, "the label")


def test_the_trade_off_names_each_arm_once_and_draws_a_line_a_run():
    svg = drawn()
    words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert [words.count(word) for word in ("plain", "ours", "undominated", "the label, lower = more faithful")] == [
        1
    ] * 4
    assert "excess at 0.5 (% of generated images)" in words and drawn(weights="ema") is None


def test_the_trade_off_is_drawn_against_the_fidelity_that_is_asked_for():
    numbers = {
        fidelity: {float(word) for word in re.findall(r">([0-9.,]+)</text>", drawn(fidelity).replace(",", ""))}
        for fidelity in ("fd_pixels", "fd_pixels_heldout")
    }
    assert max(numbers["fd_pixels"]) <= 30 and max(numbers["fd_pixels_heldout"]) >= 2000  # shares go up to 26.5 %


def test_the_trade_off_has_intervals_in_both_directions_where_both_are_known():
    rounds = rounds_of(CURVES)
    assert len(rounds) == 7
    both = drawn("fd_pixels_heldout", rounds.assign(fd_pixels_heldout_error=50.0))
    assert (
        both.count("<path") - drawn("fd_pixels_heldout", rounds).count("<path") == 7 + 2
    )  # a bar a point and in the legend
    assert drawn("fd_pixels", rounds.assign(fd_pixels_heldout_error=50.0)) == drawn("fd_pixels", rounds)


def test_without_held_out_images_the_trade_off_has_counts():
    rounds = rounds_of(CURVES)
    rounds[["excess", "excess_low", "excess_high"]] = np.nan
    assert "memorised, MQ at 0.5" in drawn(rounds=rounds)


def test_points_that_no_other_beats_by_hand():
    x, y = np.array([3, 2, 2, 1, 4, 1]), np.array([1, 5, 4, 9, 1, 9])
    assert figures.undominated(x, y).tolist() == [True, False, True, True, False, True]


def test_the_page_holds_the_published_tables_of_its_data_set(tmp_path, monkeypatch):
    rows = [
        {"label": {"method": "<i>Default</i>"}, "arm": "plain", "published": [1234.5]},
        {"label": {"method": "Ours"}, "arm": "iet", "published": [77], "notes": ["why"]},
    ]
    tables = {"source": "Someone", "num_images": 100, "neighbours": 50, "notes": {"why": "Because <b>."}}
    tables["columns"] = [{"name": "MQ0.5", "better": "lower", "protocol": "l2_from_gen", "threshold": 0.5}]
    tables["tables"] = [{"title": "Table X", "data": "digits", "num_train": 5, "notes": [], "rows": rows}]
    monkeypatch.setattr(published, "read", lambda: tables)
    with built(tmp_path, ONE_SEED) as (root, _):
        page = (root / "report.html").read_text()
    section = page[page.index('<h2 id="published">') : page.index('<h2 id="curves">')]
    assert "Table X" in section and "<ol class=quiet><li>Because &lt;b&gt;.</li></ol>" in section
    found = [re.findall(r"<t[hd][^>]*>([^<]*)", line) for line in section.splitlines() if line.startswith("<tr>")]
    assert found == [
        ["plain", "&lt;i&gt;Default&lt;/i&gt;", "1,234.50", "70", "71", "60 [56, 65]", "61 [57, 66]", "0.393", "0.393"],
        ["iet [1]", "Ours", "77", "25", "26", "15 [11, 20]", "16 [12, 21]", "0.348", "0.348"],
    ]
    assert '<a href="#published">' in page


def test_the_page_has_no_section_of_published_numbers_where_none_match(one_seed):
    page = (one_seed[0] / "report.html").read_text()
    assert "#published" not in page and 'id="published"' not in page
    assert "a curve needs two rounds" in page[page.index('id="trade_off"') :]


def test_the_links_at_the_top_lead_to_the_sections_there_are(tmp_path):
    theirs = {"theirs": {"generator": {"folder": "theirs"}, "sample": {}}}

    def write_theirs(settings, levels):
        write_scores(tmp_path, "theirs-seed0", 30)

    with built(tmp_path, ONE_SEED, sections={"arms": theirs}, write_more=write_theirs) as (root, _):
        page = (root / "report.html").read_text()
    links = re.findall(r'<a href="#([^"]+)">', page[page.index("<nav>") : page.index("</nav>")])
    # Nothing is trained here, so there is no section of the training, and a point is no curve; the wall time is added to the page last.
    assert links == ["arms", "quality", "curves", "gallery", "blind_spots", "duplicates", "settings", "machines"]
    assert links == re.findall(r'<h2 id="([^"]+)">', page)


def test_every_file_of_a_section_is_on_the_page():
    files_of_sections = {path.stem for path in Path(sections.__file__).parent.glob("*.py")}
    shown = {section.__name__.rpartition(".")[2] for section in sections.of_page()}
    assert files_of_sections - {"__init__", "in_short", "headline", "measures"} == shown


def test_page_and_table_start_without_what_only_the_whole_report_needs():
    code = "import sys, stages.report; print([name for name in ('pandas', 'matplotlib') if name in sys.modules])"
    root = Path(__file__).parents[1]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_headline_says_less_more_and_overlap(metrics_copy):
    metrics = metrics_copy
    told = " ".join(headline.sentences(SETTINGS, metrics))
    assert "iet has an excess of 15 [11, 20] images of 100, the baseline plain has an excess of 60 [56, 65]" in told
    assert "75 % less" in told and "below the baseline's for iet" in told and "no less faithful" in told

    cell = metrics["iet"]["raw"]["l2_from_gen"]["0.5"]
    cell.update(excess=90, excess_low=80, excess_high=99)
    metrics["iet"]["raw"]["fd_pixels"] = 9.0
    told = " ".join(headline.sentences(SETTINGS, metrics))
    assert "50 % more" in told and "above the baseline's for iet" in told and "is less faithful" in told

    cell.update(excess=55, excess_low=45, excess_high=57)
    assert "so no clear difference, for iet" in " ".join(headline.sentences(SETTINGS, metrics))


def test_no_hit_is_told_as_what_may_still_be_there(metrics_copy):
    """100 (1 - 0.05^(1/100)) = 2.95, and half that share of the images of two seeds together."""
    metrics_copy["iet"]["raw"]["l2_from_gen"]["0.5"] |= {
        "count": 0,
        "excess": 0.0,
        "excess_low": -3.7,
        "excess_high": 3.7,
    }
    told = headline.sentences(SETTINGS, metrics_copy)[0]
    limit = "at most about 3 in {} may still be copies (95 % limit)"
    assert told.startswith(
        f"iet has no image of 100 that counts as a copy ({limit.format(100)}), the baseline plain has an excess of 60"
    )
    metrics_copy["iet"]["num_seeds"] = 2
    assert limit.format(200) in headline.sentences(SETTINGS, metrics_copy)[0]


def test_the_same_excess_in_all_seeds_leaves_doubt(tmp_path):
    """Each seed has 15 [11, 20]: their mean is 15 [15 - 4 / sqrt 2, 15 + 5 / sqrt 2], and not [15, 15]."""
    with built(tmp_path, {"plain": [60, 66], "iet": [15, 15]}, seeds=(0, 1)) as (_, metrics):
        cell = metrics["iet"]["raw"]["l2_from_gen"]["0.5"]
        found = cell["excess_low"], cell["excess_high"]
        assert found == pytest.approx((15 - 4 / math.sqrt(2), 15 + 5 / math.sqrt(2)), rel=1e-5)


def test_the_page_says_what_the_measure_cannot_see(one_seed, own):
    """On top and in a section of its own, by what was planted: of four each, one mirrored copy and half of the blurred ones were found."""
    page = (one_seed[0] / "report.html").read_text()
    top, section = page.split('<h2 id="blind_spots">')[0], page.split('<h2 id="blind_spots">')[1].split("</section>")[0]
    assert "few or none were found that were mirrored, 1 of 4: this measure cannot see such copies." in top
    assert "<th scope=row>mirrored</th><td>4</td><td>1</td><td>25.0</td>" in section
    assert "&lt;blurred&gt;</th><td>4</td><td>2</td><td>50.0</td>" in section
    assert "takes 29 times as many searches" in section and "without variants" not in section
    found = copy.deepcopy(report_tree.SELF_TEST) | {"variants": True}
    for row, number in zip(found["alterations"], (4, 4, 3), strict=True):
        row |= {"found": number, "found_as_is": row["found"]}
    Path("artifacts/results/score/reference/self_test.json").write_text(json.dumps(found))
    report.main([])
    page = Path("report.html").read_text()
    assert "Of planted copies of 3 kinds at least half of each were found; other alterations may go unseen." in page
    assert "<th scope=row>mirrored</th><td>4</td><td>4</td><td>100.0</td><td>1</td>" in page and "29 times" not in page


def test_a_verdict_on_one_seed_says_so(one_seed, metrics_copy, capsys):
    """On top of the page before the intervals, in the table, and not where there are two seeds."""
    told = headline.sentences(SETTINGS, metrics_copy)
    caveat = [
        i for i, sentence in enumerate(told) if "this holds for these models, not yet for the methods" in sentence
    ]
    assert caveat == [2] and told[3].startswith("95 % intervals: ")
    report.main(["--table"])
    assert "one seed: an interval holds for this one model" in capsys.readouterr().out
    two = " ".join(headline.sentences(SETTINGS | {"seeds": [0, 1]}, metrics_copy))
    assert "95 % intervals: " in two and "not yet for the methods" not in two


def test_the_page_says_which_training_images_the_excess_is_of(one_seed):
    """Four of the five in the made-up scores: the class of the fifth has no held-out image."""
    page = (one_seed[0] / "report.html").read_text()
    assert (
        "It is the number for 4 of the 5 training images, as no held-out image has the class of the others, however"
        in page
    )


def test_without_held_out_images_all_are_candidates_and_it_is_said_why(tmp_path):
    with built(tmp_path, ONE_SEED, held_out=False) as (root, _):
        frame = pd.read_parquet(root / "artifacts/report/leaks.parquet")
        assert set(frame.status) == {"candidate"} and len(frame) == 4
        assert frame[["confidence", "matched_ratio", "heldout_ratio"]].isna().all(axis=None)
        assert '"candidate","",1,0.5,"","",3,"3","as is",0' in (root / "artifacts/report/leaks.csv").read_text()
        page = (root / "report.html").read_text()
        assert "there is no confidence, and all are candidates. data.heldout_share holds some out." in page
        assert (
            "0.123 · 2 copies · candidate · &lt;b&gt;" in page
            and "nan" not in page.split('id="gallery"')[1].split("</section>")[0]
        )


def test_without_held_out_images(tmp_path):
    with built(tmp_path, ONE_SEED, held_out=False) as (root, metrics):
        cell = metrics["iet"]["raw"]["l2_from_gen"]["0.5"]
        assert cell["count"] == 25 and cell["excess"] is None and metrics["iet"]["raw"]["fd_pixels_heldout"] is None
        page = (root / "report.html").read_text()
        assert "There is no held-out set" in page and "nan" not in re.sub(r"base64,[^\"]*", "", page)


@pytest.mark.parametrize(
    "missing",
    [
        "artifacts/results/counts/iet-seed0/round2/shard1/counts.safetensors",
        "artifacts/results/score/plain-seed0/round1/curves.parquet",
        "artifacts/results/score/iet-seed0/round2/scores.json",
        "artifacts/results/score/iet-seed0/round2/images.parquet",
    ],
)
def test_a_missing_file_is_named(one_seed, missing):
    path = one_seed[0] / missing
    path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(ValueError, match=f"^{re.escape(missing)} is missing: [^.]*$"):
            report.main([])
    finally:
        path.with_suffix(".away").rename(path)


@pytest.mark.parametrize(
    ("losses", "shown"), [([1.11, 0.62], {"0.75", "0.9", "1.05"}), ([0.9, 0.02], {"0.02", "0.1", "0.5"})]
)
def test_a_logarithmic_axis_has_numbers_however_short_it_is(losses, shown):
    epochs = pd.DataFrame({"arm": "a", "epoch": [1, 2], "round": 1, "loss": losses})
    svg = figures.over_epochs(epochs, ["a"], "loss", "loss", log=True)
    assert shown <= set(re.findall(r">([0-9.]+)</text>", svg))


def test_table_fits_a_terminal(one_seed, capsys):
    report.main(["--table"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120 and lines[-1] == "report.html"
    verdict = "iet: no verdict against training plain less, as a curve needs two rounds that are each more faithful"
    assert verdict in " ".join(lines) and "plain: no verdict" not in " ".join(lines)
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("plain ", "iet "))}
    assert list(rows) == ["plain", "iet"]
    assert " ".join(rows["iet"]) == "15 25 35 15 [11, 20] 12.5 3 0.348 50.0 20.0 2 1"


def test_table_of_older_metrics_is_refused(one_seed):
    settings = SETTINGS | {"arms": {**SETTINGS["arms"], "new": {}}}
    with pytest.raises(ValueError, match="artifacts/report/summary.json has no 'new', which params.yaml names"):
        report.print_table(settings)


def test_long_names_are_cut_in_the_table(one_seed):
    _, metrics = one_seed
    name = "iet_" + 120 * "x"
    settings = SETTINGS | {"arms": {"plain": {}, name: {}}}
    text = table.text_table(settings, {"plain": metrics["plain"], name: metrics["iet"]})
    assert max(map(len, text.splitlines())) <= 120 and "x…" in text


@pytest.mark.parametrize(
    ("length", "left_out", "cut"),
    [
        (20, set(), False),
        (21, {"simplic."}, False),
        (40, {"simplic.", "distinct"}, False),
        (41, {"simplic.", "distinct"}, True),
    ],
)
def test_columns_give_way_before_names_are_cut(one_seed, length, left_out, cut):
    _, metrics = one_seed
    name = "iet_" + (length - 4) * "x"
    settings = SETTINGS | {"arms": {"plain": {}, name: {}}}
    lines = table.text_table(settings, {"plain": metrics["plain"], name: metrics["iet"]}).splitlines()
    assert {"simplic.", "distinct"} - set(lines[1].split()) == left_out
    assert ("and distinct" in lines[0]) == ("distinct" not in left_out)
    assert ("…" in lines[4], name in lines[4]) == (cut, not cut) and max(map(len, lines)) <= 120


def test_page_alone_takes_what_records_there_are(own):
    root, _ = own
    body = (root / "artifacts/report/body.html").read_bytes()
    record = {
        "phase": "train",
        "arm": "iet",
        "seed": 0,
        "device": "cpu",
        "threads": 1,
        "machine": "<i>slow</i>, 2 cores",
    }
    record |= {"versions": {"torch": "2.0"}, "finished": "2026-01-02T03:04:05+00:00", "seconds": 100.0}
    folder = root / "logs/timing/train"
    folder.mkdir(parents=True)
    for key in [
        "iet-seed0-round1-shard0",
        "iet-seed0-round2-shard1",
        "iet-seed0-round9-shard0",
    ]:  # the last left the plan
        (folder / f"{key}.json").write_text(json.dumps(record | {"key": key}))
    (folder / "torn.json").write_text('{"phase": "tr')
    report.main(["--page"])
    page = (root / "report.html").read_text()
    section = page[page.index('id="machines"') :]
    assert "<td>2 of 4</td>" in section and "<td>3 min</td>" in section and "1 records could not be read" in section
    assert "&lt;i&gt;slow" in section and "torch 2.0" in section and "<td>–</td>" in section
    assert (root / "artifacts/report/body.html").read_bytes() == body


def test_arms_that_generate_unlike_many_images_are_compared_by_share(metrics_copy):
    metrics_copy["iet"]["num_images"] = 25  # 15 of 25 images is as much as 60 of 100
    told = " ".join(headline.sentences(SETTINGS, metrics_copy))
    assert "15 [11, 20] images of 25, the baseline plain has an excess of 60 [56, 65] images of 100: the same" in told
    assert "so no clear difference, for iet" in told


def test_the_arm_that_memorises_least_is_the_one_with_the_lowest_share(metrics_copy):
    """few has 5 in 10 images, iet 15 in 100: fewer, but a larger share."""
    metrics_copy["few"] = copy.deepcopy(metrics_copy["iet"]) | {"num_images": 10}
    metrics_copy["few"]["raw"]["l2_from_gen"]["0.5"] |= {"excess": 5, "excess_low": 3, "excess_high": 7}
    settings = SETTINGS | {"arms": dict.fromkeys(("plain", "few", "iet"), SETTINGS["arms"]["plain"])}
    assert headline.sentences(settings, metrics_copy)[0].startswith("iet has an excess of 15 [11, 20] images of 100")


def test_curves_without_a_threshold_of_the_table_are_refused(tmp_path):
    write_scores(tmp_path, "iet-seed0", 15, 2)
    with pytest.raises(ValueError, match="no single row for raw weights, code_sq at 0.45: run its score phase again"):
        results.read_scores(tmp_path / "artifacts/results/score/iet-seed0/round2", [0.4, 0.45])


def test_each_figure_with_numbers_and_the_leak_list_have_a_link_to_a_file_that_is_there(one_seed):
    root, _ = one_seed
    links = re.findall(r'<a class=file href="([^"]+)">([^<]+)</a>', (root / "report.html").read_text())
    assert {path for path, _ in links} == {
        "plots/mq_curve.csv", "plots/trade_off.csv", "plots/training.csv", "plots/skip_histogram.csv", "artifacts/report/leaks.csv",
    }  # fmt: skip
    assert all((root / path).exists() for path, _ in links)


def test_a_page_whose_files_stay_behind_has_no_link_to_them():
    page = f"<p>One. {html.link('plots/a.csv', 'Its numbers.')}</p><p>{html.link('a&b.csv', 'The list.')} Two.</p>"
    assert html.without_links(page) == "<p>One.</p><p> Two.</p>"
    kept = html.without_links(page, {"plots/a.csv": "a.csv"})
    assert kept == '<p>One. <a class=file href="a.csv">Its numbers.</a></p><p> Two.</p>'


def test_the_band_of_the_excess_is_its_interval_as_a_share():
    rows = [
        {"weights": w, "protocol": p, "arm": arm, "seed": seed, "threshold": t, "num_images": n, "excess": e, "excess_low": e - 4, "excess_high": e + 6}
        for w, p, arm, seed, t, n, e in [
            ("ema", "code_sq", "a", 0, 0.4, 200, 10.0), ("ema", "code_sq", "a", 0, 0.5, 200, 30.0),
            ("ema", "code_sq", "b", 0, 0.4, 50, 5.0), ("ema", "code_sq", "b", 1, 0.4, 50, 7.0),
            ("raw", "code_sq", "a", 0, 0.4, 200, 90.0), ("ema", "l2_from_gen", "a", 0, 0.4, 200, 80.0),
        ]
    ]  # fmt: skip
    bands = excess.bands(pd.DataFrame(rows), "ema", "code_sq")
    found = {(row.arm, row.threshold): (row.low, row.high) for row in bands.itertuples()}
    assert found["a", 0.4] == (0.03, 0.08) and found["a", 0.5] == (0.13, 0.18)
    half = 12.706 * 2**0.5 / 2**0.5  # t of one degree of freedom, deviation of 5 and 7, two seeds
    assert found["b", 0.4] == pytest.approx(((6 - half) / 50, (6 + half) / 50), rel=1e-3) and len(found) == 3
