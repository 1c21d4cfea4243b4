"""The report on a tree in which no two numbers are alike: each number of metrics.json, of the tables of the page and of the plots is
traced to the one that was planted for its arm, seed, weights, protocol, threshold and column.

Means, deviations and intervals are computed here by statistics and scipy.
"""

import base64
import functools
import io
import itertools
import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import report_tree
import scipy.stats
import yaml
from PIL import Image

from stages import report
from stages.run import files, params

SEEDS, WEIGHTS, PROTOCOLS = [4, 7], ["ema", "raw"], ["code_sq", "l2_from_gen", "carlini"]
THRESHOLDS, GRID = [0.3, 0.45, 0.6], [0.15, 0.3, 0.45, 0.6, 0.75]
COUNTED = ["count", "distinct", "excess", "simplicity"]
ARMS = {"plain": 400, "iet": 1000}  # generated images of each
NUM_TRAIN, NUM_HELDOUT = 8, 31
SETTINGS = {
    "seeds": SEEDS,
    "data": {"name": "digits", "num_train": NUM_TRAIN, "split_seed": 0},
    "compute": {"device": "cpu", "threads": 1},
    "sample": {"weights": WEIGHTS},
    "score": {
        "neighbours": 5,
        "thresholds": THRESHOLDS,
        "headline": {"weights": "ema", "protocol": "code_sq", "threshold": 0.45},
    },
    "arms": {
        "plain": {"rounds": 1, "shard": {"num_shards": 1}, "train": {"epochs": 2}, "redistribute": {}, "sample": {}},
        "iet": {
            "rounds": 2,
            "shard": {"num_shards": 3},
            "train": {"epochs": 2},
            "redistribute": {"share": 0.5, "select": "memory"},
            "sample": {},
        },
    },
}


def planted_numbers():
    """dict (arm, seed, weights, protocol, threshold, column) -> even number that no other key has."""
    keys = [*itertools.product(ARMS, SEEDS, WEIGHTS, PROTOCOLS, GRID, [*COUNTED, "excess_low", "excess_high"])]
    values = 100 + 2 * np.random.default_rng(0).permutation(len(keys))
    return dict(zip(keys, map(int, values), strict=True))


NUMBERS = planted_numbers()
DISTANCES = {
    key: round(0.1 + 0.013 * i, 3)
    for i, key in enumerate(itertools.product(ARMS, SEEDS, WEIGHTS, ["fd_pixels", "fd_pixels_heldout"]))
}
# By arm the rounds, each of them its shards: index, skips, augmented, visits; by epoch loss, skipped, augmented, visited; forward, steps.
NOT_VISITED = ([6, 7], [0, 0], [0, 0], [0, 0], [0.0, 0.0], [0, 0], [0, 0], [0, 0], 0, 0)  # a third shard
COUNTS = {
    "plain": [[([0, 1, 2, 3, 4, 5, 6, 7], [0] * 8, [0] * 8, [3] * 8, [1.5, 0.9], [0, 0], [0, 0], [11, 7], 18, 5)]],
    "iet": [
        [
            ([0, 2, 4, 5], [3, 0, 1, 0], [0, 1, 1, 0], [4, 3, 5, 3], [2.0, 1.0], [3, 1], [0, 2], [8, 7], 17, 6),
            ([1, 3], [2, 5], [1, 0], [7, 6], [4.0, 3.0], [4, 3], [1, 0], [7, 6], 14, 9),
            NOT_VISITED,
        ],
        [
            ([0, 1, 3, 5], [1, 0, 0, 2], [0, 0, 3, 0], [3, 3, 4, 2], [0.5, 0.4], [1, 2], [2, 1], [5, 7], 15, 4),
            ([2, 4], [0, 6], [0, 0], [9, 8], [0.7, 0.6], [2, 4], [0, 0], [9, 8], 19, 8),
            NOT_VISITED,
        ],
    ],
}
# Images 0 to 7 of a run: ratio and nearest training image; 0.45 itself does not count under code_sq.
NEAREST = {"ema": ([0.9, 0.2, 0.45, 0.4, 0.1, 0.46, 0.8, 0.7], [0, 5, 3, 5, 2, 2, 1, 0]), "raw": ([0.9, 0.9, 0.3, 0.9, 0.9, 0.5, 0.6, 0.7], [0, 5, 4, 5, 2, 2, 1, 0])}  # fmt: skip


# Of each image; the clearest copy of training image 2 is less sure than that of image 5, which has a higher ratio.
CONFIDENCE = [0.1, 0.95, 0.2, 0.3, 0.7, 0.4, 0.5, 0.6]


def write_counts(run, rounds, seed):
    """The second seed has one skip more, of training image 0 in the first round."""
    for r, shards in enumerate(rounds, start=1):
        for k, (index, skips, augmented, visits, loss, skipped, augmented_e, visited, forward, steps) in enumerate(
            shards
        ):
            more = int(seed == SEEDS[1] and r == 1 and k == 0 and sum(skips) > 0)
            arrays = {
                "index": index, "skips": [skips[0] + more, *skips[1:]], "augmented": augmented, "visits": visits,
                "epoch_skipped": skipped, "epoch_augmented": augmented_e, "epoch_visited": visited, "t_skipped": [0] * 10,
                "t_visited": [0] * 10, "forward_images": [forward], "optimizer_steps": [steps],
            }  # fmt: skip
            arrays = {name: np.array(values, np.int64) for name, values in arrays.items()}
            arrays["epoch_loss"] = np.array(loss)
            if (
                len(rounds) > 1
            ):  # 9 and 8 after the first round, 2.5 and 4.5 after the second; of the second seed 1 more
                arrays["spent.epsilon"] = np.array([[9.0, 8.0, 7.0], [2.5, 4.5, 3.5]][r - 1][k : k + 1]) + (
                    seed == SEEDS[1]
                )
            files.save_arrays(files.counts_file(run, r, k), arrays)


def ratios_of(ratios, seed):
    """Of the second seed image 5 is a copy with either kind of weights, of training image 2."""
    return ratios if seed == SEEDS[0] else [*ratios[:5], 0.35, *ratios[6:]]


def grey_of(arm, seed, side):
    """The grey level of the pictures of a run."""
    return 20 * (2 * list(ARMS).index(arm) + SEEDS.index(seed)) + 100 * (side == "train")


def write_scores(arm, seed):
    folder, num_images = files.folder("results/score", f"{arm}-seed{seed}", len(COUNTS[arm])), ARMS[arm]
    rows = [
        {"weights": w, "protocol": p, "threshold": t}
        | {column: float(NUMBERS[arm, seed, w, p, t, column]) for column in (*COUNTED, "excess_low", "excess_high")}
        | {"share": NUMBERS[arm, seed, w, p, t, "count"] / num_images}
        for w in WEIGHTS
        for p in PROTOCOLS
        for t in GRID
    ]
    files.save_table(folder / "curves.parquet", pd.DataFrame(rows))
    distances = {
        w: {name: DISTANCES[arm, seed, w, name] for name in ("fd_pixels", "fd_pixels_heldout")} for w in WEIGHTS
    }
    sizes = {"num_images": num_images, "num_train": NUM_TRAIN, "num_heldout": NUM_HELDOUT}
    sizes |= {"num_compared": NUM_TRAIN, "largest_hits": [1.0, 1.0], "fd_mean_image": 9.0}
    files.write_json(folder / "scores.json", sizes | distances)
    images = [
        {"weights": w, "image": i, "nearest_train": n, "nearest_key": f"{arm}{seed}{w}{n}", "train_code_sq": ratio, "train_l2_from_gen": 0.01, "excess": 0.0, "influence": 0.0,
         "confidence": CONFIDENCE[i], "matched_ratio": i / 9, "heldout_code_sq": i / 7, "heldout_l2_from_gen": 0.02, "generated": f"{arm}/{i}.png", "variant": f"shift {i}"}
        for w, (ratios, nearest) in NEAREST.items()
        for i, (ratio, n) in enumerate(zip(ratios_of(ratios, seed), nearest, strict=True))
    ]  # fmt: skip
    files.save_table(folder / "images.parquet", pd.DataFrame(images))
    pictures = {side: np.full((2, 4, 4, 1), grey_of(arm, seed, side), np.uint8) for side in ("generated", "train")}
    gallery = {**pictures, "image": np.array([4, 1]), "nearest_train": np.array([2, 5])}
    files.save_arrays(folder / "gallery.safetensors", gallery | {"ratio": np.array([0.1, 0.2])})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root := tmp_path_factory.mktemp("report"))
        patch.setattr(params, "check", lambda *_: None)  # this params.yaml holds what the report reads, no more
        (root / "params.yaml").write_text(yaml.safe_dump(SETTINGS, sort_keys=False))
        report_tree.write_self_test(root)
        twins = {"exact": True, "train": [1, 5, 7], "heldout": [], "keys": {"train": ["a", "b", "c"], "heldout": []}}
        report_tree.write_duplicates(root, [twins])
        for arm, seed in itertools.product(ARMS, SEEDS):
            write_counts(f"{arm}-seed{seed}", COUNTS[arm], seed)
            write_scores(arm, seed)
        report.main([])
        yield json.loads((root / "artifacts/report/summary.json").read_text()), (root / "report.html").read_text()


def of_seeds(numbers, *key):
    """The planted values of both seeds; key: arm and what comes after the seed."""
    arm, *rest = key
    return [numbers[arm, seed, *rest] for seed in SEEDS]


def at_headline(arm, weights, column, threshold=0.45):
    return of_seeds(NUMBERS, arm, weights, "code_sq", threshold, column)


def six_digits(value):
    return float(f"{value:.6g}")


def test_metrics_hold_the_mean_and_deviation_of_each_planted_number(built):
    metrics = built[0]
    assert list(metrics) == ["plain", "iet"]
    for arm, num_images in ARMS.items():
        assert (metrics[arm]["num_images"], metrics[arm]["num_seeds"]) == (num_images, 2)
        assert set(metrics[arm]) == {"num_images", "num_seeds", "fd_mean_image", "ema", "raw", "training"}
        assert metrics[arm]["fd_mean_image"] == 9
        for weights in WEIGHTS:
            entry = metrics[arm][weights]
            assert (
                list(entry["code_sq"]) == list(entry["l2_from_gen"]) == ["0.3", "0.45", "0.6"]
                and "carlini" not in entry
            )
            for name in ("fd_pixels", "fd_pixels_heldout"):
                values = of_seeds(DISTANCES, arm, weights, name)
                assert entry[name] == six_digits(statistics.mean(values))
                assert entry[f"{name}_sd"] == six_digits(statistics.stdev(values))
            for protocol, threshold in itertools.product(PROTOCOLS[:2], THRESHOLDS):
                cell = entry[protocol][f"{threshold}"]
                assert set(cell) == {*COUNTED, *(f"{name}_sd" for name in COUNTED), "excess_low", "excess_high"}
                for name in COUNTED:
                    values = of_seeds(NUMBERS, arm, weights, protocol, threshold, name)
                    assert cell[name] == statistics.mean(values), (arm, weights, protocol, threshold, name)
                    assert cell[f"{name}_sd"] == six_digits(statistics.stdev(values))
                values = of_seeds(NUMBERS, arm, weights, protocol, threshold, "excess")
                scale = statistics.stdev(values) / math.sqrt(2)
                low, high = scipy.stats.t.interval(0.95, 1, statistics.mean(values), scale)
                assert (cell["excess_low"], cell["excess_high"]) == pytest.approx((low, high), rel=1e-5)


def test_what_training_came_to(built):
    """iet: 20 skips of the first seed and 21 of the second in 57 visits; 6 augmented; images 1 and 3 moved from shard 1 to shard 0,
    2 and 4 the other way."""
    training = built[0]["iet"]["training"]
    assert training["skipped_share"] == six_digits(20.5 / 57)
    assert training["skipped_share_sd"] == six_digits(1 / 57 / math.sqrt(2))
    assert training["augmented_share"] == six_digits(6 / 57)
    assert (training["moved"], training["optimizer_steps"], training["forward_images"]) == (4, 27, 65)
    plain = built[0]["plain"]["training"]
    assert [plain[name] for name in ("skipped_share", "augmented_share", "moved")] == [0, 0, 0]
    assert (plain["optimizer_steps"], plain["forward_images"]) == (5, 18)
    assert training["spent"] == {"epsilon": 5.5} and "spent" not in plain  # what holds for every image and seed


def of_table(page, anchor, which=0):
    """The rows of a table of a section: list of dicts of texts by head."""
    section = page[page.index(f'<h2 id="{anchor}"') :].partition("</section>")[0]
    table = re.findall(r"<table.*?</table>", section, flags=re.DOTALL)[which]
    heads = re.findall(r"<th scope=col>([^<]*)", table)
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)", line) for line in table.splitlines() if line.startswith("<tr>")]
    return [dict(zip(heads, row, strict=True)) for row in rows]


def tally(value):
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.1f}"


def with_sd(values, show=tally):
    mean, deviation = six_digits(statistics.mean(values)), six_digits(statistics.stdev(values))
    return f"{show(mean)} ± {show(deviation)}" if deviation else show(mean)


def three_digits(value):
    return f"{value:.3g}"


def interval(values):
    scale = statistics.stdev(values) / math.sqrt(2)
    low, high = scipy.stats.t.interval(0.95, 1, statistics.mean(values), scale)
    return f"{tally(statistics.mean(values))} [{tally(low)}, {tally(high)}]".replace("-", "−")


def test_the_table_of_arms_has_each_number_in_its_own_column(built):
    rows = of_table(built[1], "arms")
    assert [(row["arm"], row["weights"]) for row in rows] == [(arm, w) for arm in ARMS for w in ("raw", "ema")]
    for row in rows:
        arm, weights = row["arm"], row["weights"]
        values = functools.partial(at_headline, arm, weights)
        expected = {f"MQ\u00a0{t}": with_sd(values("count", t)) for t in THRESHOLDS}
        expected |= {"excess at 0.45 [95 %]": interval(values("excess"))}
        expected |= {f"{name} at 0.45": with_sd(values(name)) for name in ("simplicity", "distinct")}
        for title, name in (("fd_pixels", "fd_pixels"), ("fd_pixels held out", "fd_pixels_heldout")):
            expected[title] = with_sd(of_seeds(DISTANCES, arm, weights, name), three_digits)
        base = of_seeds(NUMBERS, "plain", weights, "code_sq", 0.45, "excess")
        change = (sum(values("excess")) / 1000) / (sum(base) / 400) - 1  # per generated image
        expected["excess against baseline"] = "–" if arm == "plain" else f"{100 * change:+.0f} %".replace("-", "−")
        assert {name: row[name] for name in expected} == expected and len(row) == len(expected) + 2


def test_the_table_of_all_protocols_has_each_number_in_its_own_place(built):
    rows = of_table(built[1], "arms", 1)
    places = [*itertools.product(ARMS, ("raw", "ema"), PROTOCOLS[:2], THRESHOLDS)]
    assert [(row["arm"], row["weights"], row["protocol"], float(row["threshold"])) for row in rows] == places
    for row, (arm, *place) in zip(rows, places, strict=True):
        for title, column in (("MQ", "count"), ("simplicity", "simplicity"), ("distinct", "distinct")):
            assert row[title] == with_sd(of_seeds(NUMBERS, arm, *place, column)), (arm, place, title)
        assert row["excess [95 %]"] == interval(of_seeds(NUMBERS, arm, *place, "excess"))


def test_the_table_of_seeds_has_the_numbers_of_each_run(built):
    rows = of_table(built[1], "seeds")
    places = [*itertools.product(ARMS, SEEDS, WEIGHTS)]
    assert [(row["arm"], int(row["seed"]), row["weights"]) for row in rows] == places
    for row, place in zip(rows, places, strict=True):
        at = {name: tally(NUMBERS[*place, "code_sq", 0.45, name]) for name in [*COUNTED, "excess_low", "excess_high"]}
        assert row["MQ\u00a00.45"] == at["count"] and row["distinct"] == at["distinct"]
        assert row["excess at 0.45 [95 %]"] == f"{at['excess']} [{at['excess_low']}, {at['excess_high']}]"
        assert row["fd_pixels"] == three_digits(DISTANCES[*place, "fd_pixels"])
        assert row["fd_pixels held out"] == three_digits(DISTANCES[*place, "fd_pixels_heldout"])
        skipped = {"plain": 0, "iet": 20 + (place[1] == SEEDS[1])}[place[0]] / 57
        assert row["skipped\u00a0%"] == f"{100 * skipped:.1f}"
        assert (row["augmented\u00a0%"], row["moved"]) == {"plain": ("0.0", "0"), "iet": ("10.5", "4")}[place[0]]


def test_the_table_of_training(built):
    rows = of_table(built[1], "training")
    assert rows == [
        {
            "arm": "plain", "rounds": "1", "shards": "1", "a round": "2 epochs", "optimiser steps": "5", "forward images": "18",
            "against baseline": "1.00 ×", "skipped\u00a0%": "0.0", "augmented\u00a0%": "0.0", "moved": "0", "epsilon": "–",
        },
        {
            "arm": "iet", "rounds": "2", "shards": "3", "a round": "2 epochs", "optimiser steps": "27", "forward images": "65",
            "against baseline": "3.61 ×", "skipped\u00a0%": "36.0", "augmented\u00a0%": "10.5", "moved": "4", "epsilon": "5.5",
        },
    ]  # fmt: skip


def test_metrics_of_dvc_are_those_of_the_headline(built):
    summary, found = built[0], json.loads(Path("metrics.json").read_text())
    assert found["headline"] == {"weights": "ema", "protocol": "code_sq", "threshold": 0.45}
    assert list(found["arms"]) == list(ARMS)
    for arm, numbers in found["arms"].items():
        cell = summary[arm]["ema"]["code_sq"]["0.45"]
        expected = {"memorised": cell["count"]} | {n: cell[n] for n in ("excess", "excess_low", "excess_high")}
        expected |= {n: summary[arm]["ema"][n] for n in ("fd_pixels", "fd_pixels_heldout")}
        told = summary[arm]["ema"].get("against_training_less")
        assert (told is None) == (arm == "plain")
        if told:
            expected["against_training_less"] = {"verdict": told["verdict"], "difference": told.get("difference")}
        assert numbers == expected


def test_the_plots_have_the_planted_numbers_of_each_run(built):
    curve = pd.read_csv("plots/mq_curve.csv")
    assert list(curve.columns) == ["arm", "seed", "weights", "protocol", "threshold", "share", "excess_share"]
    assert len(curve) == len(NUMBERS) / 6
    for row in curve.itertuples(index=False):
        key, num_images = (row.arm, row.seed, row.weights, row.protocol, row.threshold), ARMS[row.arm]
        assert row.share == pytest.approx(NUMBERS[*key, "count"] / num_images, rel=1e-5)
        assert row.excess_share == pytest.approx(NUMBERS[*key, "excess"] / num_images, rel=1e-5)

    rounds = pd.read_csv("plots/trade_off.csv")
    assert len(rounds) == len(ARMS) * len(SEEDS) * 2
    for row in rounds.itertuples(index=False):
        expected = at_headline(row.arm, row.weights, "excess")[SEEDS.index(row.seed)]
        assert row.excess == pytest.approx(expected, rel=1e-5)

    training = pd.read_csv("plots/training.csv")
    iet = training[(training.arm == "iet") & (training.seed == 4)]
    assert iet.epoch.tolist() == [1, 2, 3, 4]
    losses = [(2 * 8 + 4 * 7) / 15, (1 * 7 + 3 * 6) / 13, (0.5 * 5 + 0.7 * 9) / 14, (0.4 * 7 + 0.6 * 8) / 15]
    assert iet.loss.tolist() == pytest.approx(losses, rel=1e-5)
    assert iet.skipped_share.tolist() == pytest.approx([7 / 15, 4 / 13, 3 / 14, 6 / 15], rel=1e-5)
    assert iet.augmented_share.tolist() == pytest.approx([1 / 15, 2 / 13, 2 / 14, 1 / 15], rel=1e-5)

    histogram = pd.read_csv("plots/skip_histogram.csv")
    for seed, expected in ((4, {0: 3, 2: 2, 4: 1, 5: 1, 7: 1}), (7, {0: 3, 2: 2, 5: 2, 7: 1})):
        rows = histogram[(histogram.arm == "iet") & (histogram.seed == seed)]
        assert dict(zip(rows.skips, rows.images, strict=True)) == expected


def test_results_have_every_protocol_and_the_training_of_their_own_run(built):
    frame = pd.read_parquet("artifacts/report/results.parquet")
    assert len(frame) == len(NUMBERS) / 6 and set(frame.protocol) == set(PROTOCOLS)
    for row in frame.itertuples(index=False):
        key = (row.arm, row.seed, row.weights)
        for name in [*COUNTED, "excess_low", "excess_high"]:
            assert getattr(row, name) == NUMBERS[*key, row.protocol, row.threshold, name]
        assert (row.fd_pixels, row.fd_pixels_heldout) == tuple(
            DISTANCES[*key, n] for n in ("fd_pixels", "fd_pixels_heldout")
        )
        assert (row.num_images, row.num_train, row.num_heldout) == (ARMS[row.arm], NUM_TRAIN, NUM_HELDOUT)
        skips = 0 if row.arm == "plain" else 20 + (row.seed == SEEDS[1])
        assert row.skipped_share == pytest.approx(skips / 57) and row.moved == {"plain": 0, "iet": 4}[row.arm]


LEAKS = {  # by seed: weights, training image, status, copies, lowest ratio, number of that copy; the most confident first
    4: [("ema", 5, "leaked", 2, 0.2, 1), ("ema", 2, "candidate", 1, 0.1, 4), ("raw", 4, "candidate", 1, 0.3, 2)],
    7: [
        ("ema", 5, "leaked", 2, 0.2, 1),
        ("ema", 2, "candidate", 2, 0.1, 4),
        ("raw", 2, "candidate", 1, 0.35, 5),
        ("raw", 4, "candidate", 1, 0.3, 2),
    ],
}


def test_the_leak_list_has_the_copies_of_each_run(built):
    """By the headline's protocol, which counts what lies below its threshold: image 2 lies on it."""
    leaks = pd.read_parquet("artifacts/report/leaks.parquet")
    assert leaks.values.tolist() == [
        [
            arm,
            seed,
            weights,
            index,
            f"{arm}{seed}{weights}{index}",
            status,
            CONFIDENCE[twin],
            count,
            ratio,
            twin / 9,
            twin / 7,
        ]
        + [twin, f"{arm}/{twin}.png", f"shift {twin}", 2 if index == 5 else 0]
        for arm, seed in itertools.product(ARMS, SEEDS)
        for weights, index, status, count, ratio, twin in LEAKS[seed]
    ]
    gallery = built[1][built[1].index('<h2 id="gallery"') :]
    told = "generated images count as copies of 2 of the 8 training images: 1 leaked, 1 candidates."
    assert f"3 of 400 {told}" in gallery and f"3 of 1,000 {told}" in gallery
    captions = re.findall(r"<figcaption>(0\.\d+ · [^<]*)<", gallery)
    sure = ["candidate, confidence 0.70", "leaked, confidence 0.95"]
    shown = [[f"0.100 · 1 copy · {sure[0]} · {arm}4ema2", f"0.200 · 2 copies · {sure[1]} · {arm}4ema5"] for arm in ARMS]
    assert captions == sum(shown, [])
    pairs = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="(generated|training) image ([^"]*)"', gallery)
    assert [(side, name) for _, side, name in pairs] == [
        of_pair
        for arm in ARMS
        for image, index in ((4, 2), (1, 5))
        for of_pair in (("generated", f"{image}"), ("training", f"{arm}4ema{index}"))
    ]
    greys = [int(np.array(Image.open(io.BytesIO(base64.b64decode(png))).convert("L"))[0, 0]) for png, *_ in pairs]
    assert greys == [grey_of(arm, 4, side) for arm in ARMS for side in 2 * ("generated", "train")]


def test_the_text_table_has_the_numbers_of_the_headline(built, capsys):
    capsys.readouterr()
    report.main(["--table"])
    told, heads, _, *rows = capsys.readouterr().out.splitlines()[:5]
    assert told == "code_sq, ema weights; excess and distinct at 0.45"
    heads, *rows = (re.split(" {2,}", line.strip()) for line in (heads, *rows))
    for arm, row in zip(ARMS, rows, strict=True):
        found = dict(zip(heads, row, strict=True))
        values = functools.partial(at_headline, arm, "ema")
        fidelity = statistics.mean(of_seeds(DISTANCES, arm, "ema", "fd_pixels"))
        assert found == {
            "arm": arm,
            **{f"MQ {t}": tally(statistics.mean(values("count", t))) for t in THRESHOLDS},
            "excess [95 %]": interval(values("excess")),
            "simplic.": tally(statistics.mean(values("simplicity"))),
            "distinct": tally(statistics.mean(values("distinct"))),
            "fd_pixels": three_digits(fidelity),
            "skip %": {"plain": "0.0", "iet": "36.0"}[arm],
            "augm %": {"plain": "0.0", "iet": "10.5"}[arm],
            "moved": {"plain": "0", "iet": "4"}[arm],
            "seeds": "2",
        }
