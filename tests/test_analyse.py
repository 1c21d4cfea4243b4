"""The phase analyse on hand-made counts, scores and samples of real digits, and its part of the report."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY

from stages import analyse, data, rules
from stages.measures import image_complexity, roc, skip_analysis
from stages.report.sections import analyses
from stages.run import files, params

IET, DDPM = "iet_agc_plus-seed3", "ddpm-seed3"
NUM_IMAGES, NUM_SAMPLES = 60, 50
SECTION = {
    "group_size": 12, "noise_draws": 2, "timestep_stride": 4, "batch_size": 16, "select": "l2", "extreme_share": 0.2,
    "rare_skip_rate": 0.3,
}  # fmt: skip
RANDOM = np.random.default_rng(7)
# Generated image g is the nearest to training image NEAREST[g]; ratios at or below 0.5 count: images 0, 1, 4, 9 and 7.
NEAREST = np.concatenate([[4, 4, 9, 1, 0, 9, 7, 33], RANDOM.integers(10, 60, NUM_SAMPLES - 8)])
RATIO = np.concatenate([[0.5, 0.3, 0.2, 0.45, 0.1, 0.35, 0.49, 0.51], np.linspace(0.6, 0.95, NUM_SAMPLES - 8)])
GIVEN_OUT = {0: 1, 1: 1, 4: 2, 7: 1, 9: 2}


def settings(**changes):
    return yaml.safe_load(TINY) | {"analyse": SECTION | changes}


def write_counts(run, shards_by_round, skips_by_round, visits):
    for r, (shards, skips) in enumerate(zip(shards_by_round, skips_by_round, strict=True), start=1):
        for k, index in enumerate(shards):
            tenth = np.full(10, visits * len(index) // 10)
            arrays = {
                "index": index, "skips": skips[index].astype(np.int32), "visits": np.full(len(index), visits, np.int32),
                "augmented": np.zeros(len(index), np.int32), "t_skipped": tenth * np.arange(10) // (10 + k), "t_visited": tenth,
            }  # fmt: skip
            if not skips.any():
                arrays["t_skipped"] = np.zeros(10, np.int64)
            files.save_arrays(files.counts_file(run, r, k), arrays)


def iet_history():
    """Two shards; images 0 to 6 of shard 0 and 30 to 36 of shard 1 change places. Skips of each round, [60]."""
    first = [np.arange(30), np.arange(30, 60)]
    second = [np.r_[7:30, 30:37], np.sort(np.r_[0:7, 37:60])]
    skips = np.stack([np.where(np.arange(60) % 30 < 10, 8, np.arange(60) % 5), np.arange(60) % 7])
    return [first, second], skips


def write_run(run, rounds, train):
    from stages.diffusion import unet
    from stages.pixels import initial_weights

    network = unet.build(yaml.safe_load(TINY)["model"] | {"dropout": 0.1}, (1, 8, 8))
    weights = initial_weights.initial_weights(network, 3)
    random = np.random.default_rng(2)  # fresh weights after a dropout are close to 0, which would hide it
    weights = {n: w + 0.1 * random.standard_normal(w.shape).astype(np.float32) for n, w in weights.items()}
    files.save_arrays(files.folder("model", run, rounds) / "raw.safetensors", weights)
    noise = np.random.default_rng(1).integers(0, 60, (NUM_SAMPLES, 8, 8, 1))
    samples = np.clip(train[NEAREST].astype(int) + noise, 0, 255).astype(np.uint8)
    for part, images in enumerate((samples[:40], samples[40:])):
        files.save_array(files.folder("samples", run, rounds, part=part) / "raw.npy", images)
    scores = pd.concat(
        pd.DataFrame({"weights": weights, "nearest_train": nearest, "train_l2_from_gen": ratio, "image": range(50)})
        for weights, nearest, ratio in (("ema", NEAREST[::-1], 0.01), ("raw", NEAREST, RATIO))
    )
    files.folder("results/score", run, rounds).mkdir(parents=True)
    scores.to_parquet(files.folder("results/score", run, rounds) / "images.parquet")


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """The working folder with all that the phase reads; returns run(arm, **changes of the section) -> (summary, folder)."""
    import torch

    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(yaml.safe_dump(settings()))
    data.main([])
    train = np.load("artifacts/data/train.npy")
    write_run(IET, 2, train)
    write_run(DDPM, 1, train)
    write_counts(IET, *iet_history(), visits=10)
    write_counts(DDPM, [[np.arange(60)]], [np.zeros(60, int)], visits=10)

    def run(arm, **changes):
        Path("params.yaml").write_text(yaml.safe_dump(settings(**changes)))
        analyse.main(["--arm", arm, "--seed", "3"])
        folder = files.folder("results/analyse", f"{arm}-seed3")
        return files.load_json(folder / "summary.json"), folder

    yield run
    torch.set_num_threads(threads)


def test_an_arm_that_skips_and_moves(ready):
    summary, folder = ready("iet_agc_plus")
    images = pd.read_parquet(folder / "train_images.parquet")
    shards, skips = iet_history()
    assert images["index"].tolist() == list(range(60)) and images.skips.tolist() == skips.sum(0).tolist()
    assert set(images.visits) == {20} and images.emitted[images.emitted > 0].to_dict() == GIVEN_OUT
    assert images.lowest_ratio[[4, 9]].tolist() == [0.3, 0.2] and math.isinf(images.lowest_ratio[2])

    total = skips.sum(0)
    found = summary["train_images"]
    assert found["visited"] == 60 and found["never_visited"] == 0
    assert found["rarely_skipped_share"] == (total < 6).mean() != (total <= 6).mean()

    emitted = np.isin(np.arange(60), list(GIVEN_OUT))
    expected = roc.area(total, emitted)
    assert (summary["emission"]["emitted"], summary["emission"]["images"]) == (5, 60)
    for name in ("skips", "rate"):  # all have the same visits here
        assert summary["emission"][name] == expected._asdict() | {"group": 5, "rest": 55}

    most = pd.read_parquet(folder / "extremes.parquet").query("group == 'most'")
    assert len(most) == 12 and most.skips.min() >= np.sort(total)[-12]
    train = np.load("artifacts/data/train.npy")
    pixels = train.reshape(60, -1) / 255
    distance = np.sqrt(((pixels[:, None] - pixels[None]) ** 2).sum(2)) + 1e9 * np.eye(60)
    assert most.nearest_other.to_numpy() == pytest.approx(distance.min(1)[most["index"]])
    assert most.energy.to_numpy() == pytest.approx(pixels.var(axis=1)[most["index"]])
    assert summary["extremes"]["images"] == 12
    assert summary["extremes"]["energy"]["most"] == pytest.approx(np.median(most.energy))

    move = summary["moves"]
    # Moved: 0 to 6 and 30 to 36, all with 8 skips of 10. As many stayed in each shard with 8: 7 to 9 and 37 to 39.
    assert move["moved"] == 14 and move["pairs"] == 6
    assert [move[name] for name in ("before", "pair_before_moved", "pair_before_stayed")] == pytest.approx([0.8] * 3)
    assert move["after"] == pytest.approx(np.mean([skips[1][np.r_[0:7, 30:37]]]) / 10)
    assert move["pair_after_stayed"] == pytest.approx(np.mean(skips[1][np.r_[7:10, 37:40]]) / 10)
    assert len(pd.read_parquet(folder / "moves.parquet")) == 1

    table = pd.read_parquet(folder / "skip_by_timestep.parquet")
    assert table["round"].tolist() == [1] * 10 + [2] * 10 and table.tenth.tolist() == list(range(1, 11)) * 2
    assert summary["skip_by_timestep"]["rate"][9] == pytest.approx(table[table.tenth == 10].skipped.sum() / 120)


def test_an_arm_that_neither_skips_nor_moves_says_so(ready):
    summary, folder = ready("ddpm")
    for name in ("train_images", "extremes", "moves", "skip_by_timestep"):
        assert summary[name] == {"absent": "no image was skipped"}, name
    assert summary["emission"] == {"emitted": 5, "images": 60, "absent": "no image was skipped"}
    assert {path.name for path in folder.iterdir()} == {
        "summary.json", "loss_by_timestep.parquet", "loss_groups.parquet", "train_images.parquet", "checksums.json",
    }  # fmt: skip
    assert pd.read_parquet(folder / "train_images.parquet").emitted.sum() == 7


def test_groups_of_figure_3(ready):
    summary, folder = ready("ddpm")
    groups = pd.read_parquet(folder / "loss_groups.parquet")
    train, heldout = (np.load(f"artifacts/data/{name}.npy") for name in ("train", "heldout"))
    samples = np.concatenate([np.load(f"artifacts/samples/{DDPM}/round1/part{p}/raw.npy") for p in (0, 1)])
    nearest = np.sqrt((((train[:, None] / 255.0 - samples[None] / 255.0) ** 2).sum(axis=(2, 3, 4))).min(axis=1))
    by_group = dict(iter(groups.groupby("group")))
    similar, other, held_out = (by_group[name] for name in ("similar", "other", "heldout"))
    assert similar["index"].tolist() == np.argsort(nearest, kind="stable")[:12].tolist()
    assert similar.closeness.to_numpy() == pytest.approx(np.sort(nearest)[:12])
    assert len(other) == 12 and not np.intersect1d(other["index"], similar["index"]).size
    assert len(set(held_out["index"])) == 12 and held_out.emitted.sum() == 0
    assert held_out.pixel_variance.to_numpy() == pytest.approx(
        image_complexity.pixel_variance(heldout)[held_out["index"]]
    )
    assert held_out.pixel_variance.to_numpy() == pytest.approx(similar.pixel_variance.to_numpy(), rel=0.01)

    curves = pd.read_parquet(folder / "loss_by_timestep.parquet")
    assert curves.timestep.tolist() == [0, 4, 8, 12, 16] * 3
    for name, rows in by_group.items():
        assert curves[curves.group == name]["mean"].mean() == pytest.approx(rows.mean_loss.mean())
        assert summary["loss_by_timestep"][name]["mean_loss"] == pytest.approx(rows.mean_loss.mean())
    lower = np.mean(similar.mean_loss.to_numpy()[:, None] < held_out.mean_loss.to_numpy()[None])
    assert summary["loss_by_timestep"]["heldout"]["similar_is_lower"]["auc"] == pytest.approx(lower)
    assert (curves.low <= curves.high).all()


def test_dropout_is_off_and_the_same_run_gives_the_same_bytes(ready):
    """The tiny network has dropout: were it on, images passed through in other batches would have other losses."""
    _, folder = ready("ddpm")
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    ready("ddpm")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    ready("ddpm", batch_size=5)
    losses = pd.read_parquet(folder / "loss_groups.parquet").mean_loss
    Path("first.parquet").write_bytes(first["loss_groups.parquet"])
    assert losses.to_numpy() == pytest.approx(pd.read_parquet("first.parquet").mean_loss.to_numpy(), rel=1e-5)


def test_images_can_be_chosen_by_ratio(ready):
    summary, folder = ready("ddpm", select="ratio", group_size=5)
    groups = pd.read_parquet(folder / "loss_groups.parquet")
    # Lowest ratios: 0.1 of image 0, 0.2 of 9, 0.3 of 4, 0.45 of 1, 0.49 of 7.
    assert groups[groups.group == "similar"]["index"].tolist() == [0, 9, 4, 1, 7]
    assert summary["loss_by_timestep"]["similar"]["emitted"] == 5


def test_too_few_held_out_images_leave_the_control_out(ready):
    heldout = np.load("artifacts/data/heldout.npy")
    (files.DATA / files.CHECKSUMS).unlink()
    files.save_array(files.DATA / "heldout.npy", heldout[:11])
    summary, folder = ready("ddpm")
    assert summary["loss_by_timestep"]["heldout"] == {"absent": "11 held-out images cannot be matched to 12"}
    assert set(pd.read_parquet(folder / "loss_by_timestep.parquet").group) == {"similar", "other"}


@pytest.mark.parametrize(("threshold", "reason"), [(0.05, "no training image leaked"), (1, "every training")])
def test_an_area_that_is_undefined_says_why(ready, monkeypatch, threshold, reason):
    headline = yaml.safe_load(TINY)["score"] | {
        "headline": {"protocol": "l2_from_gen", "threshold": threshold, "weights": "raw"}
    }
    monkeypatch.setattr(params, "load", lambda *_: settings() | {"score": headline})
    if threshold == 1:
        images = pd.DataFrame(
            {"weights": "raw", "nearest_train": range(60), "train_l2_from_gen": 0.5, "image": range(60)}
        )
        images.to_parquet(files.folder("results/score", IET, 2) / "images.parquet")
    summary, _ = ready("iet_agc_plus")
    assert summary["emission"]["absent"].startswith(reason) and "skips" not in summary["emission"]


def test_images_that_were_never_visited_have_no_rate(ready):
    """Their skip count is 0, which is no sign of anything: they stay out of the rates, and are counted."""
    shards, skips = iet_history()
    for r in (1, 2):
        for k in (0, 1):
            path = files.counts_file(IET, r, k)
            arrays = files.load_arrays(path)
            unseen = np.isin(arrays["index"], [9, 50])
            arrays["visits"], arrays["skips"] = (np.where(unseen, 0, arrays[name]) for name in ("visits", "skips"))
            files.save_arrays(path, arrays)
    summary, _ = ready("iet_agc_plus")
    assert (summary["train_images"]["visited"], summary["train_images"]["never_visited"]) == (58, 2)
    assert (summary["emission"]["rate"]["group"], summary["emission"]["rate"]["rest"]) == (4, 54)
    assert (summary["emission"]["skips"]["group"], summary["emission"]["skips"]["rest"]) == (5, 55)


def test_without_the_section_the_phase_refuses(ready):
    Path("params.yaml").write_text(TINY)
    with pytest.raises(ValueError, match=r"^there is no section analyse: .* \(params\.yaml\)$"):
        analyse.main(["--arm", "ddpm", "--seed", "3"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"group_size": 31}, "analyse.group_size is 31, expected at most half of the 60 training images"),
        ({"timestep_stride": 21}, "analyse.timestep_stride is 21, expected at most diffusion.num_timesteps = 20"),
        ({"select": "l1"}, "analyse.select is 'l1', expected one of l2, ratio"),
        ({"extreme_share": 0.6}, "analyse.extreme_share is 0.6, expected more than 0 and at most 0.5"),
        ({"noise_draw": 2}, "unknown key analyse.noise_draw: did you mean noise_draws?"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, changes, told):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(settings()))
    assert rules.load(path)["analyse"] == SECTION
    path.write_text(yaml.safe_dump(settings(**changes)))
    with pytest.raises(ValueError, match=re.escape(told)):
        rules.load(path)


# What the page says.


@pytest.fixture
def page(ready):
    """Blocks of both arms, by title; the numbers are those of `ready`."""
    ready("ddpm")
    ready("iet_agc_plus")
    return {block.title: block for block in analyses.blocks(rules.load())}


def test_the_page_has_every_analysis_and_names_arms_without_one(page):
    assert len(page) == 6
    for title, block in page.items():
        if not title.startswith(("Loss", "Does")):
            assert block.text.endswith("None for ddpm: no image was skipped."), title
            assert [row["arm"] for row in block.rows] == ["iet_agc_plus"]
        assert all(len({tuple(row) for row in rows}) <= 1 for rows in (block.rows, block.details))  # one set of columns
        assert all(isinstance(cell, str) for row in block.rows + block.details for cell in row.values())
        assert all(svg.startswith("<svg") and "nan" not in svg for svg, _ in block.panels)
        assert "None" not in json.dumps([block.rows, [caption for _, caption in block.panels]])
    panels = {title: len(block.panels) for title, block in page.items()}
    assert list(panels.values()) == [2, 2, 1, 0, 0, 1]


def test_the_page_says_when_a_group_is_too_small(page):
    moved = next(block for title, block in page.items() if "moved" in title)
    assert moved.rows[0]["so"] == "6 pairs are too few for a conclusion"
    assert moved.rows[0]["all moved, skipped %"].startswith("80 → ")
    emission = next(block for title, block in page.items() if title.startswith("Does"))
    assert [row["leaked images were skipped"] for row in emission.rows] == [
        "not known: no image was skipped",
        "not known: a group of 5 is too small for a conclusion",
    ]
    assert [row["leaked"] for row in emission.rows] == ["5 of 60", "5 of 60"]


def area(auc, low, high, group=50, rest=70):
    return {"auc": auc, "low": low, "high": high, "group": group, "rest": rest}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (area(0.8, 0.7, 0.9), "more"),
        (area(0.2, 0.1, 0.3), "less"),
        (area(0.6, 0.45, 0.75), "neither clearly more nor clearly less"),
        (area(0.6, 0.5, 0.7), "neither clearly more nor clearly less"),
        (area(1.0, None, None), "more without exception"),
        (area(0.0, None, None), "less without exception"),
        (area(0.9, 0.8, 1.0, group=9), "not known: a group of 9 is too small for a conclusion"),
        (area(0.9, 0.8, 1.0, rest=3), "not known: a group of 3 is too small for a conclusion"),
        (None, "not known, as one of the groups is empty"),
    ],
)
def test_what_an_area_says(found, told):
    assert analyses._verdict(found, "more", "less") == told


def test_what_moves_say():
    def told(**found):
        return analyses._moved_verdict({"pairs": 40} | found)

    assert told(low=-0.2, high=-0.1) == "moved images are skipped less"
    assert told(low=0.1, high=0.2) == "moved images are skipped more"
    assert told(low=-0.1, high=0.2) == "no difference is shown"
    assert told(pairs=9, low=-0.2, high=-0.1) == "9 pairs are too few for a conclusion"


def test_one_pair_has_no_interval():
    one = skip_analysis.Move(np.array([0.5]), np.array([0.2]), np.array([[0.5, 0.5]]), np.array([[0.2, 0.4]]))
    cells = analyses._move_cells(skip_analysis.premise([one]))
    assert cells["difference [95 %]"] == "−20" and cells["stayed of the pairs"] == "50 → 40"
    none = skip_analysis.Move(np.empty(0), np.empty(0), np.empty((0, 2)), np.empty((0, 2)))
    assert set(analyses._move_cells(skip_analysis.premise([none])).values()) == {"0", "–", "– → –"}
