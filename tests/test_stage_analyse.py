"""The phase analyse on planted weights, samples, scores and counts, with a headline that is none of the defaults: a class-conditional
model, EMA weights, the public code's ratio. What is expected comes from loops, scikit-learn and scipy."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
import torch
import yaml
from conftest import TINY, plant_images, write_params
from sklearn import metrics

from stages import analyse
from stages.diffusion import unet
from stages.run import files

pytestmark = pytest.mark.usefixtures("one_thread")

ARM, SEED, RUN = "iet", 5, "iet-seed5"
SHAPE, NUM_CLASSES, SIZE, DRAWS, STRIDE = (4, 6, 1), 3, 4, 2, 6
MODEL = {"block_channels": [4, 8], "attention_levels": [], "layers_per_block": 1, "norm_groups": 4, "class_conditional": True}  # fmt: skip
RANDOM = np.random.default_rng(3)
TRAIN = RANDOM.integers(0, 256, (24, *SHAPE), dtype=np.uint8)
HELDOUT = (RANDOM.random((9, 1, 1, 1)) * RANDOM.integers(0, 256, (9, *SHAPE))).astype(np.uint8)
LABELS, HELDOUT_LABELS = RANDOM.integers(0, NUM_CLASSES, 24), RANDOM.integers(0, NUM_CLASSES, 9)
SAMPLES = {kind: RANDOM.integers(0, 256, (7, *SHAPE), dtype=np.uint8) for kind in ("raw", "ema")}
NEAREST = [3, 8, 3, 11, 20, 8, 8]
RATIO = [0.1, 0.4, 0.3, 0.39, 0.9, 0.2, 0.05]  # below 0.4 of 24 images 3, 3, 11, 8 and 8; image 1 lies on the threshold
EMITTED, LOWEST = {3: 2, 8: 2, 11: 1}, {3: 0.1, 8: 0.05, 11: 0.39, 20: 0.9}
SHARDS = [[np.arange(12), np.arange(12, 24)], [np.r_[3:12, 12:15], np.r_[0:3, 15:24]]]
SKIPS = np.array([[0, 1, 1, 2, 1, 1, 4, 2, 1, 6, 0, 3] * 2, [1, 0, 2, 1, 3, 0, 1, 1, 0, 2, 4, 1, 0, 0, 5, 1, 2, 2, 0, 1, 1, 3, 0, 2]])  # fmt: skip
VISITS = np.array([[8] * 24, [9] * 12 + [7] * 12])
VISITS[:, 19] = SKIPS[:, 19] = 0  # never visited


def seed_of(purpose, *key):
    words = np.random.SeedSequence([purpose, SEED, *key]).generate_state(2, np.uint32)
    return int(words[0]) | int(words[1]) << 32


def draws(purpose, *key):
    return np.random.default_rng(seed_of(purpose, *key))


LOSS_NOISE, OTHERS, TIES, PAIRS = 19, 20, 21, 22  # purposes of draws, see stages/randomness.py


def network():
    return unet.build(MODEL | {"dropout": 0.5}, (SHAPE[2], *SHAPE[:2]), num_classes=NUM_CLASSES)


def planted(number):
    random = np.random.default_rng(number)
    return {n: (0.3 * random.standard_normal(p.shape)).astype(np.float32) for n, p in network().named_parameters()}


def write_all(select):
    experiment = yaml.safe_load(TINY)
    experiment |= {"seeds": [3, SEED], "model": MODEL}
    experiment["train"]["dropout"] = 0.5
    experiment["score"]["headline"] = {"protocol": "code_sq", "threshold": 0.4, "weights": "ema"}
    experiment["analyse"] = {
        "group_size": SIZE, "noise_draws": DRAWS, "timestep_stride": STRIDE, "batch_size": 5, "select": select, "extreme_share": 0.25,
        "rare_skip_rate": 0.2,
    }  # fmt: skip
    arm = experiment["arms"]["iet_agc_plus"] | {"sample": {"num_images": 7, "batch_size": 2, "parts": 3}}
    experiment["arms"] = {"ddpm": experiment["arms"]["ddpm"], ARM: arm}
    write_params(experiment)
    plant_images((TRAIN, LABELS), (HELDOUT, HELDOUT_LABELS))
    files.write_json(files.DATA / "classes.json", ["a", "b", "c"])
    for round_ in (1, 2):
        for kind in ("raw", "ema"):
            files.save_arrays(
                files.folder("model", RUN, round_) / f"{kind}.safetensors", planted(10 * round_ + (kind == "ema"))
            )
    for kind, images in SAMPLES.items():
        for part, rows in enumerate((slice(0, 2), slice(2, 4), slice(4, 7))):
            files.save_array(files.folder("samples", RUN, 2, part=part) / f"{kind}.npy", images[rows])
    ema = pd.DataFrame({"weights": "ema", "nearest_train": NEAREST, "train_code_sq": RATIO, "train_l2_from_gen": 0.1})
    raw = pd.DataFrame(
        {"weights": "raw", "nearest_train": NEAREST[::-1], "train_code_sq": 0.01, "train_l2_from_gen": 0.1}
    )
    files.save_table(files.folder("results/score", RUN, 2) / "images.parquet", pd.concat([raw, ema]))
    for r, shards in enumerate(SHARDS):
        for k, index in enumerate(shards):
            tenths = {"t_skipped": np.arange(10) * (r + 1) + k, "t_visited": np.arange(10) + 30 + 10 * r + k}
            of_images = {"skips": SKIPS[r, index], "visits": VISITS[r, index], "augmented": 2 * (index % 3) + r}
            files.save_arrays(files.counts_file(RUN, r + 1, k), {"index": index} | of_images | tenths)


@pytest.fixture(scope="module")
def analysed(tmp_path_factory, one_thread):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("analyse"))
        write_all("l2")
        analyse.main(["--arm", ARM, "--seed", str(SEED)])
        folder = files.folder("results/analyse", RUN)
        yield files.load_json(folder / "summary.json"), {p.stem: pd.read_parquet(p) for p in folder.glob("*.parquet")}


def closeness():
    """Of each training image to the nearest image generated with EMA weights, in grey levels of [0, 1]."""
    difference = (TRAIN[:, None] / 255 - SAMPLES["ema"][None] / 255) ** 2
    return np.sqrt(difference.sum(axis=(2, 3, 4)).min(axis=1))


def groups():
    """Group -> images and their pixels and classes, in order."""
    similar = sorted(range(24), key=closeness().__getitem__)[:SIZE]
    rest = [i for i in range(24) if i not in similar]
    other = np.sort(draws(OTHERS).choice(rest, SIZE, replace=False))
    ours, theirs = ((images / 255).reshape(len(images), -1).var(axis=1) for images in (TRAIN[similar], HELDOUT))
    heldout = scipy.optimize.linear_sum_assignment(np.abs(ours[:, None] - theirs[None]))[1]
    return {
        "similar": (similar, TRAIN[similar], LABELS[similar]),
        "other": (other, TRAIN[other], LABELS[other]),
        "heldout": (heldout, HELDOUT[heldout], HELDOUT_LABELS[heldout]),
    }


@torch.no_grad()
def loss(pixels, label, timestep):
    """Of one image with the final EMA weights, a mean over the noise draws."""
    net = network().eval()
    net.load_state_dict({n: torch.from_numpy(w) for n, w in planted(21).items()})
    signal = math.prod(1 - (0.005 + 0.395 * s / 19) for s in range(timestep + 1))
    x_0 = torch.from_numpy(pixels.transpose(2, 0, 1)[None] / 127.5 - 1).float()
    total = 0
    for draw in range(DRAWS):
        eps = torch.from_numpy(draws(LOSS_NOISE, timestep, draw).standard_normal(x_0.shape[1:], np.float32))[None]
        x_t = math.sqrt(signal) * x_0 + math.sqrt(1 - signal) * eps
        said = net(x_t, torch.tensor([timestep]), class_labels=torch.tensor([label])).sample
        total += ((said - eps) ** 2).mean().item()
    return total / DRAWS


def auc(of_group, of_rest):
    return metrics.roc_auc_score([1] * len(of_group) + [0] * len(of_rest), [*of_group, *of_rest])


def test_losses_of_figure_3_are_those_of_the_groups_own_images_classes_and_weights(analysed):
    summary, tables = analysed
    table, curves, of_similar = tables["loss_groups"], tables["loss_by_timestep"], None
    assert list(table.group) == ["similar"] * SIZE + ["other"] * SIZE + ["heldout"] * SIZE
    timesteps = [0, 6, 12, 18]
    for name, (index, images, labels) in groups().items():
        rows, curve, told = table[table.group == name], curves[curves.group == name], summary["loss_by_timestep"][name]
        assert rows["index"].tolist() == list(index), name
        losses = np.array(
            [[loss(image, label, t) for t in timesteps] for image, label in zip(images, labels, strict=True)]
        )
        assert rows.mean_loss.tolist() == pytest.approx(losses.mean(axis=1), rel=1e-4)
        assert curve.timestep.tolist() == timesteps
        assert curve["mean"].tolist() == pytest.approx(losses.mean(axis=0), rel=1e-4)
        for column, share in (("low", 0.25), ("high", 0.75)):
            assert curve[column].tolist() == pytest.approx(np.quantile(losses, share, axis=0), rel=1e-4)
        variance = (images / 255).reshape(SIZE, -1).var(axis=1)
        assert rows.pixel_variance.tolist() == pytest.approx(variance)
        emitted = [0] * SIZE if name == "heldout" else [EMITTED.get(i, 0) for i in index]
        assert rows.emitted.tolist() == emitted
        assert (told["images"], told["emitted"]) == (SIZE, sum(n > 0 for n in emitted))
        assert told["mean_loss"] == pytest.approx(losses.mean(), rel=1e-4)
        assert told["pixel_variance"] == pytest.approx(variance.mean())
        if name == "heldout":
            assert rows.closeness.isna().all()
        else:
            assert rows.closeness.tolist() == pytest.approx(closeness()[index])
        of_similar = losses.mean(axis=1) if of_similar is None else of_similar
        if name != "similar":
            assert told["similar_is_lower"]["auc"] == pytest.approx(auc(-of_similar, -losses.mean(axis=1)))
            assert (told["similar_is_lower"]["group"], told["similar_is_lower"]["rest"]) == (SIZE, SIZE)
    assert (summary["loss_by_timestep"]["select"], summary["loss_by_timestep"]["noise_draws"]) == ("l2", DRAWS)


def test_every_training_image_has_its_own_counts_and_copies(analysed):
    summary, tables = analysed
    table = tables["train_images"]
    assert table["index"].tolist() == list(range(24))
    assert table.skips.tolist() == SKIPS.sum(0).tolist() and table.visits.tolist() == VISITS.sum(0).tolist()
    assert table.augmented.tolist() == [4 * (i % 3) + 1 for i in range(24)]
    assert table.emitted[table.emitted > 0].to_dict() == EMITTED
    assert table.lowest_ratio[np.isfinite(table.lowest_ratio)].to_dict() == LOWEST
    seen = np.arange(24) != 19
    rates = SKIPS.sum(0)[seen] / VISITS.sum(0)[seen]
    assert summary["train_images"] == {
        "visited": 23, "never_visited": 1, "rare_skip_rate": 0.2, "rarely_skipped_share": pytest.approx(np.mean(rates < 0.2)),
    }  # fmt: skip


def test_skips_foretell_leaks_as_far_as_sklearn_says(analysed):
    emission = analysed[0]["emission"]
    leaked = np.isin(np.arange(24), list(EMITTED))
    skips, seen = SKIPS.sum(0), np.arange(24) != 19
    rates = skips / np.maximum(VISITS.sum(0), 1)
    assert (emission["emitted"], emission["images"]) == (3, 24)
    assert emission["skips"]["auc"] == pytest.approx(auc(skips[leaked], skips[~leaked]))
    assert emission["rate"]["auc"] == pytest.approx(auc(rates[leaked], rates[~leaked & seen]))
    assert [emission[name][side] for name in ("skips", "rate") for side in ("group", "rest")] == [3, 21, 3, 20]


def test_the_extremes_are_those_of_the_most_and_the_least_skips(analysed):
    """Equal counts in the order of a draw of the seed."""
    summary, tables = analysed
    skips, table = SKIPS.sum(0), tables["extremes"]
    order = sorted(draws(TIES).permutation(24), key=skips.__getitem__)
    distance = np.sqrt(((TRAIN[:, None] / 255 - TRAIN[None] / 255) ** 2).sum(axis=(2, 3, 4)))
    np.fill_diagonal(distance, np.inf)
    across, down = np.meshgrid(np.fft.fftfreq(6), np.fft.fftfreq(4))
    frequency = np.hypot(across, down)
    for name, index in (("most", sorted(order[-6:])), ("least", sorted(order[:6]))):
        rows = table[table.group == name]
        assert rows["index"].tolist() == index and rows.skips.tolist() == skips[index].tolist(), name
        assert rows.nearest_other.tolist() == pytest.approx(distance.min(axis=1)[index])
        grey = TRAIN[index][..., 0] / 255
        spectrum = np.abs(np.fft.fft2(grey)) ** 2 / 24
        assert rows.energy.tolist() == pytest.approx(grey.reshape(6, -1).var(axis=1))
        assert rows.energy_with_dc.tolist() == pytest.approx((grey**2).mean(axis=(1, 2)))
        high = spectrum[:, frequency > 0.125].sum(axis=1) / spectrum[:, frequency > 0].sum(axis=1)
        assert rows.high_share.tolist() == pytest.approx(high)
    for name in ("skips", "nearest_other", "energy", "energy_with_dc", "high_share"):
        most, least = (table[table.group == group][name].to_numpy(float) for group in ("most", "least"))
        assert summary["extremes"][name]["most"] == pytest.approx(np.median(most))
        assert summary["extremes"][name]["least"] == pytest.approx(np.median(least))
        if name != "skips":
            assert summary["extremes"][name]["most_is_lower"]["auc"] == pytest.approx(auc(-most, -least))


def test_moved_images_are_compared_with_those_of_their_shard_and_count_that_stayed(analysed):
    """Images 0 to 2 left shard 0 and 12 to 14 shard 1. Of equal candidates the draw of the seed takes one."""
    summary, tables = analysed
    moved, shard = [0, 1, 2, 12, 13, 14], np.arange(24) // 12
    rates = SKIPS / np.maximum(VISITS, 1)
    generator, pairs = draws(PAIRS), []
    for k, count in sorted({(shard[i], SKIPS[0, i]) for i in moved}):
        alike = [i for i in range(24) if (shard[i], SKIPS[0, i]) == (k, count) and i != 19]
        sides = [[i for i in alike if (i in moved) == side] for side in (True, False)]
        if all(sides):
            left, stayed = (generator.permutation(side) for side in sides)
            pairs += zip(left, stayed, strict=False)
    left, stayed = np.transpose(pairs)
    change = (rates[1, left] - rates[0, left]) - (rates[1, stayed] - rates[0, stayed])
    low, high = scipy.stats.t.interval(0.95, len(pairs) - 1, change.mean(), scipy.stats.sem(change))
    expected = {
        "moved": 6, "before": rates[0, moved].mean(), "after": rates[1, moved].mean(), "pairs": len(pairs),
        "pair_before_moved": rates[0, left].mean(), "pair_after_moved": rates[1, left].mean(),
        "pair_before_stayed": rates[0, stayed].mean(), "pair_after_stayed": rates[1, stayed].mean(),
        "difference": change.mean(), "low": low, "high": high,
    }  # fmt: skip
    assert summary["moves"] == pytest.approx(expected)
    assert tables["moves"].to_dict("records") == [pytest.approx({"after_round": 1} | expected)]


def test_skips_by_round_and_tenth_of_the_timesteps(analysed):
    summary, tables = analysed
    table = tables["skip_by_timestep"]
    tenth = np.arange(10)
    assert table["round"].tolist() == [1] * 10 + [2] * 10 and table.tenth.tolist() == [*range(1, 11)] * 2
    assert table.skipped.tolist() == [*(2 * tenth + 1), *(4 * tenth + 1)]
    assert table.visited.tolist() == [*(2 * tenth + 61), *(2 * tenth + 81)]
    assert summary["skip_by_timestep"]["rate"] == pytest.approx((6 * tenth + 2) / (4 * tenth + 142))


def test_images_of_figure_3_by_ratio(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_all("ratio")
    analyse.main(["--arm", ARM, "--seed", str(SEED)])
    table = pd.read_parquet(files.folder("results/analyse", RUN) / "loss_groups.parquet")
    similar = table[table.group == "similar"]
    assert similar["index"].tolist() == [8, 3, 11, 20] and similar.closeness.tolist() == [0.05, 0.1, 0.39, 0.9]
