"""What the report says of membership inference: cells and sentences from planted results, one and several seeds, with and without control."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import report_tree
from conftest import text_experiment

from stages.report import trade_off
from stages.report.sections import in_short, membership
from stages.run import files

SECTION = {"membership": {"num_images": 4}}
AUCS = {"plain": [0.9, 0.89, 0.91, 0.5], "iet": [0.75, 0.65, 0.7, 0.6]}
COUNTS = {"plain": 1, "iet": 2}  # rounds


def entry(auc):
    told = {"auc": auc, "auc_low": auc - 0.04, "auc_high": auc + 0.03, "found_at_1_percent": auc / 2}
    told |= {"found_at_1_percent_low": auc / 4, "found_at_1_percent_high": auc / 2 + 0.2}
    told |= dict.fromkeys(("found_at_01_percent", "found_at_01_percent_low", "found_at_01_percent_high"))
    each = {"auc_loss": auc - 0.1, "auc_pia": auc - 0.05, "auc_secmi": auc - 0.2, "auc_sima": auc}
    attacks = {
        name.removeprefix("auc_"): {"auc": area, "auc_low": area - 0.05, "auc_high": area + 0.04}
        for name, area in each.items()
    }
    return {"num_images": 40, "chosen": ["sima_50", "pia_100"], "attacks": attacks, **told, **each}


def write(place, weights, auc):
    folder = files.folder("results/membership", place)
    files.write_json(folder / "scores.json", {weights: entry(auc)})
    random = np.random.default_rng(0)
    member = np.repeat([True, False], 40)
    table = {"weights": weights, "member": member, "score": random.normal(size=80) + 3 * member, "contribution": auc}
    files.save_table(folder / "images.parquet", pd.DataFrame(table))


def writer(control=0.51, left_out=()):
    def write_more(settings, levels):
        if control:
            write("reference", "untrained", control)
        for arm, aucs in AUCS.items():
            for seed in settings["seeds"]:
                place = files.place(f"{arm}-seed{seed}", COUNTS[arm])
                if arm in left_out:
                    path = files.folder("results/membership", place) / "scores.json"
                    files.write_json(path, {"absent": "its network does not predict the noise"})
                else:
                    write(place, "raw", aucs[seed])

    return write_more


def built(root, seeds=(0,), **options):
    levels = {"plain": [60, 50, 55, 52], "iet": [15, 12, 13, 14]}
    return report_tree.built(root, levels, seeds, sections=SECTION, write_more=writer(**options))


def section_of(page):
    return re.search(r'<h2 id="membership">.*?</section>', page, re.DOTALL)[0]


def cells(html):
    rows = re.findall(r"<tr>(<th scope=row>.*?)</tr>", html)
    return [re.findall(r"<t[hd][^>]*>([^<]*)", row) for row in rows]


def test_one_seed_has_the_intervals_of_its_images_on_the_page_in_the_tables_and_in_metrics_json(tmp_path):
    with built(tmp_path) as (root, metrics):
        found = metrics["plain"]["raw"]["membership"]
        assert (found["auc"], found["auc_low"], found["auc_high"]) == pytest.approx((0.9, 0.86, 0.93))
        assert found["found_at_1_percent"] == 0.45 and found["found_at_01_percent"] is None
        assert "membership" not in metrics["plain"]["ema"]
        page = (root / "report.html").read_text()
        html = section_of(page)
        plain, iet, untrained = cells(html)
        assert plain == ["plain", "0.9 [0.86, 0.93]", "45.0 [22.5, 65.0]", "–", "0.8 [0.75, 0.84]", "0.85 [0.8, 0.89]", "0.7 [0.65, 0.74]", "0.9 [0.85, 0.94]", "sima, t = 50 and pia, t = 100"]  # fmt: skip
        assert iet[:2] == ["iet", "0.75 [0.71, 0.78]"] and untrained[:2] == ["untrained network", "0.51 [0.47, 0.54]"]
        assert "40 training images and as many held-out ones of the same classes" in html
        assert "never trained cannot tell the images apart (AUC 0.51 [0.47, 0.54])" in html
        assert html.count("<svg") == 2 and "training images found (%)" in html and "membership AUC (0.5" in html
        assert "45.0 % of its training images, with 1 % false alarms (AUC 0.9)" in page  # first page
        of_arms = re.search(r'<h2 id="arms">.*?</section>', page, re.DOTALL)[0]
        assert "membership AUC" in of_arms and "0.75" in str(cells(of_arms))
        assert json.loads((root / "metrics.json").read_text())["arms"]["iet"]["membership_auc"] == 0.75


def test_several_seeds_have_their_mean_and_an_interval_of_images_and_seeds(tmp_path):
    """The images are the same for all seeds, so their error stays: 0.04 down and 0.03 up, beside the t-interval of three seeds."""
    with built(tmp_path, (0, 1, 2)) as (root, metrics):
        found = metrics["plain"]["raw"]["membership"]
        half = 4.302653 * 0.01 / np.sqrt(3)  # t with 2 degrees of freedom; 0.9, 0.89 and 0.91
        assert [found["auc"], found["auc_low"], found["auc_high"]] == pytest.approx(
            [0.9, 0.9 - np.hypot(half, 0.04), 0.9 + np.hypot(half, 0.03)], abs=1e-5
        )
        assert found["found_at_1_percent_low"] == pytest.approx(0.45 - np.hypot(half / 2, 0.9 / 4), abs=1e-5)
        assert found["auc_loss_high"] == pytest.approx(0.8 + np.hypot(half, 0.04), abs=1e-5)
        assert found["auc_sd"] == pytest.approx(0.01) and found["found_at_01_percent_low"] is None
        assert "intervals are over the images, and the seeds" in section_of((root / "report.html").read_text())


def test_an_interval_over_seeds_ends_at_0_and_1(tmp_path):
    with built(tmp_path, (0, 3)) as (_, metrics):
        found = metrics["plain"]["raw"]["membership"]
        assert (found["auc_low"], found["auc_high"]) == (0, 1) and found["auc"] == pytest.approx(0.7)


def test_of_a_text_model_the_control_is_the_pretrained_one_which_may_have_seen_the_images():
    """Whatever it tells of the images, it was trained on others, so nothing is said of a network that was never trained."""
    for told in (membership._of_text("0.6 [0.56, 0.63]", False), membership._of_text("0.51 [0.47, 0.54]", True)):
        assert told.startswith("The pretrained model") and "never trained" not in told
    assert "it has seen some of them before" in membership._of_text("0.6", False)
    assert "nor what the model has seen before" in membership._of_text("0.51", True)
    report = SimpleNamespace(settings=text_experiment(), arms=["default"])
    assert membership._before(report) == "pretrained model"
    told = membership._control(report, {"untrained": entry(0.6)}, [])
    assert told == [membership._of_text("0.6 [0.56, 0.63]", False)]


def test_a_split_that_tells_itself_apart_is_said_so_and_so_is_what_is_missing(tmp_path):
    with built(tmp_path, control=0.6, left_out=["iet"]) as (root, metrics):
        html = section_of((root / "report.html").read_text())
        assert (
            "tells the images apart too (AUC 0.6 [0.56, 0.63]): training and held-out images differ by themselves"
            in html
        )
        assert "iet is left out, as its network does not predict the noise." in html
        assert "membership" not in metrics["iet"]["raw"] and len(cells(html)) == 2
        assert "not measured" in (root / "report.html").read_text()


def test_without_the_section_nothing_is_said(tmp_path):
    with report_tree.built(tmp_path, report_tree.ONE_SEED) as (root, metrics):
        page = (root / "report.html").read_text()
        assert 'id="membership"' not in page and "recognised</th>" not in page
        assert "membership" not in metrics["plain"]["raw"]


def test_a_pipeline_from_elsewhere_has_no_control():
    report = type("Report", (), {"settings": {"arms": {"pipe": {"generator": {"pipeline": "p"}}}}})
    (told,) = membership._control(report, {}, {"pipe": entry(0.7)})
    assert told.startswith("Of pipe, trained elsewhere, there is no untrained network to compare with")


VERDICTS = {"less": (-0.1, -0.12, -0.08), "more": (0.1, 0.08, 0.12), "not told apart": (-0.01, -0.05, 0.03)}


@pytest.mark.parametrize("verdict", VERDICTS)
def test_the_verdict_on_copies_goes_with_the_one_on_membership(verdict):
    copies = {"verdict": "less", "difference": -0.05, "low": -0.06, "high": -0.04, "best": 1.0, "worst": 2.0}
    found = {"verdict": verdict, **dict(zip(("difference", "low", "high"), VERDICTS[verdict], strict=True))}
    both = {"against_training_less": copies, trade_off.OF_MEMBERSHIP: found}
    settings = {
        "arms": {"plain": {}, "ours": {}},
        "score": {"headline": {"weights": "ema", "protocol": "p", "threshold": 0.5}},
    }
    metrics = {"plain": {"ema": {}}, "ours": {"ema": both}}
    sentence = trade_off.sentence(settings, metrics, "ours", "ema")
    numbers = {
        "less": "−0.100 [−0.120, −0.080]",
        "more": "+0.100 [+0.080, +0.120]",
        "not told apart": "−0.010 [−0.050, +0.030]",
    }
    assert "ours memorises less than training less" in sentence and f"membership AUC {numbers[verdict]}." in sentence
    words = {"less": "tells less of which", "more": "tells more of which", "not told apart": "tells as much of which"}
    assert words[verdict] in sentence
    warned = in_short._of_membership(settings, metrics)
    assert bool(warned) == (verdict != "less") and all("ours gives out fewer copies" in told for told in warned)
