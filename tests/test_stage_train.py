"""The phase train on planted weights, moments, banks and lists: which of them it reads, what it makes of them, and where it puts that.

What is expected is a loop written out here: the draws as stages/randomness.py promises them, AGC image by image, Adam by its formulas.
"""

import math

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, write_params

from stages import train
from stages.diffusion import unet
from stages.pixels import initial_weights
from stages.run import files, live

pytestmark = pytest.mark.usefixtures("one_thread")

ARM, SEED, SHARD, RUN = "iet", 6, 1, "iet-seed6"
SHAPE, NUM_CLASSES, TIMESTEPS, BATCH = (4, 6, 2), 3, 20, 3
MODEL = {
    "block_channels": [4, 8],
    "attention_levels": [],
    "layers_per_block": 1,
    "norm_groups": 4,
    "class_conditional": True,
}
LAMBDA, ETA, DECAY, RATE, WARMUP, CLIP = 0.8, 0.7, 0.6, 1e-3, 20, 0.5
RANDOM = np.random.default_rng(1)
IMAGES = RANDOM.integers(0, 256, (17, *SHAPE), dtype=np.uint8)
LABELS = RANDOM.integers(0, NUM_CLASSES, 17)
# Shard 1 has seven images in round 1, and others afterwards; shard 0 has the rest.
LISTS = {
    1: [0, 3, 4, 8, 9, 12, 16],
    2: [1, 3, 4, 8, 10, 12, 16],
    3: [1, 2, 4, 7, 10, 12, 15],
    4: [1, 2, 5, 7, 10, 11, 15],
}
STEP = {1: 4, 2: 7, 3: 11}  # of shard 1 after a round
CASES = {  # schedule, round: folder of the weights, round of the state, round of the list
    ("joint", 1): (None, None, 1),
    ("joint", 3): (("model", RUN, 2), 2, 3),
    ("alternating", 2): (("train", RUN, 1, SHARD), 1, 2),
    ("alternating", 3): (("model", RUN, 2), 2, 2),
}


def network():
    return unet.build(MODEL | {"dropout": 0.3}, (SHAPE[2], *SHAPE[:2]), num_classes=NUM_CLASSES)


def shapes():
    return {name: tuple(p.shape) for name, p in network().named_parameters()}


def planted(*key, low=-0.3, high=0.3):
    """Named arrays that no other key has."""
    random = np.random.default_rng([len(repr(key)), *repr(key).encode()])
    return {name: random.uniform(low, high, shape).astype(np.float32) for name, shape in shapes().items()}


def planted_state(round_, shard):
    """Moments of the size of gradients; a bank whose odd cells skip all and whose others skip nothing."""
    bank = np.random.default_rng([round_, shard]).uniform(0.1, 0.2, TIMESTEPS) + 9 * (np.arange(TIMESTEPS) % 2)
    return {
        **{f"exp_avg.{n}": 0.1 * value for n, value in planted("m", round_, shard).items()},
        **{f"exp_avg_sq.{n}": value for n, value in planted("v", round_, shard, low=0.01, high=0.02).items()},
        "carried.bank": bank.astype(np.float32),
        "step": np.array([STEP[round_] + 5 * (1 - shard)], np.int64),
    }


def write_experiment(schedule, method=None, length=None, **own):
    """The section train says otherwise where the arm has settings of its own; there are models of other rounds, seeds and shards."""
    experiment = yaml.safe_load(TINY)
    experiment |= {"seeds": [3, SEED], "model": MODEL}
    experiment["train"] |= {
        "batch_size": 2,
        "learning_rate": 0.5,
        "grad_clip_norm": 9.0,
        "ema_decay": 0.1,
        "flip": False,
        "warmup_steps": WARMUP,
        "dropout": 0.3,
    }
    settings = (
        (length or {"epochs": 2})
        | {"batch_size": BATCH, "learning_rate": RATE, "grad_clip_norm": CLIP, "ema_decay": DECAY, "flip": True}
        | own
    )
    arm = {
        "rounds": 4,
        "method": method or {"name": "agc", "lambda": LAMBDA, "eta": ETA},
        "shard": {"num_shards": 2},
        "train": settings,
        "redistribute": {"share": 0.3, "select": "memory" if method is None else "random", "schedule": schedule},
        "sample": {"weights": ["raw"]},
    }
    experiment["arms"] = {"ddpm": experiment["arms"]["ddpm"], ARM: arm}
    write_params(experiment)
    files.save_array(files.DATA / "train.npy", IMAGES)
    files.save_array(files.DATA / "train_labels.npy", LABELS)
    files.save_array(files.DATA / "heldout.npy", IMAGES[::-1])
    files.write_json(files.DATA / "classes.json", [f"class {i}" for i in range(NUM_CLASSES)])
    for r, index in LISTS.items():
        files.save_array(files.folder("shards", RUN, r) / "shard0.npy", np.setdiff1d(np.arange(17), index))
        files.save_array(files.folder("shards", RUN, r) / "shard1.npy", np.array(index))
    for r in (1, 2, 3):
        for place in (("model", RUN, r), ("train", RUN, r, 0), ("train", RUN, r, 1)):
            for kind in ("raw", "ema"):
                files.save_arrays(files.folder(*place) / f"{kind}.safetensors", planted(place, kind))
        for shard in (0, 1):
            files.save_arrays(files.folder("train", RUN, r, shard) / "state.safetensors", planted_state(r, shard))


def seed_of(purpose, *key):
    words = np.random.SeedSequence([purpose, *key]).generate_state(2, np.uint32)
    return int(words[0]) | int(words[1]) << 32


def torch_draws(purpose, step):
    return torch.Generator().manual_seed(seed_of(purpose, SEED, SHARD, step))


ORDER, NOISE, FLIP, DROPOUT = 4, 5, 6, 7  # purposes of draws, see stages/randomness.py
ALPHA_BAR = np.cumprod([1 - (0.005 + 0.395 * s / 19) for s in range(TIMESTEPS)])


def expected(raw, ema, state, index, num_steps=4):
    """The round by hand. Returns named arrays as the files have them, and the record of what happened."""
    net, index = network().train(), np.array(index)
    parameters = dict(net.named_parameters())
    net.load_state_dict({n: torch.from_numpy(w) for n, w in raw.items()})
    ema = {n: w.astype(np.float64) for n, w in ema.items()}
    m, v = ({n: state[f"{kind}.{n}"].astype(np.float64) for n in raw} for kind in ("exp_avg", "exp_avg_sq"))
    bank, first = state["carried.bank"].astype(np.float64), int(state["step"][0])
    record = {
        "skips": np.zeros(len(index)), "visits": np.zeros(len(index)), "epoch_loss": np.zeros(2), "epoch_skipped": np.zeros(2),
        "epoch_visited": np.zeros(2), "t_skipped": np.zeros(10), "t_visited": np.zeros(10),
    }  # fmt: skip
    for step in range(first, first + num_steps):
        epoch, batch = divmod(step, len(index) // BATCH)
        order = np.random.default_rng(seed_of(ORDER, SEED, SHARD, epoch)).permutation(len(index))
        places = order[batch * BATCH : (batch + 1) * BATCH]
        pixels = IMAGES[index[places]]
        mirrored = (torch.rand(BATCH, generator=torch_draws(FLIP, step)) < 0.5).numpy()
        pixels = np.where(mirrored[:, None, None, None], pixels[:, :, ::-1], pixels)
        x = torch.from_numpy(pixels.transpose(0, 3, 1, 2) / 127.5 - 1).float().contiguous()
        noise = torch_draws(NOISE, step)
        t = torch.randint(TIMESTEPS, (BATCH,), generator=noise)
        eps = torch.randn(x.shape, generator=noise)
        signal = torch.from_numpy(ALPHA_BAR).float()[t].view(-1, 1, 1, 1)
        torch.manual_seed(seed_of(DROPOUT, SEED, SHARD, step))
        said = net(
            signal.sqrt() * x + (1 - signal).sqrt() * eps, t, class_labels=torch.from_numpy(LABELS[index[places]])
        ).sample
        loss = ((said - eps) ** 2).mean(dim=(1, 2, 3))
        values = loss.detach().double().numpy()
        skipped = values < LAMBDA * bank[t.numpy()]
        for i in range(BATCH):
            bank[t[i]] = ETA * bank[t[i]] + (1 - ETA) * values[i]
            record["visits"][places[i]] += 1
            record["skips"][places[i]] += skipped[i]
            record["t_visited"][t[i] // 2] += 1
            record["t_skipped"][t[i] // 2] += skipped[i]
        of_round = (step - first) // 2
        record["epoch_loss"][of_round] += values.sum() / (2 * BATCH)
        record["epoch_skipped"][of_round] += skipped.sum()
        record["epoch_visited"][of_round] += BATCH
        kept = loss[torch.from_numpy(~skipped)]
        net.zero_grad()
        (kept.sum() / max(1, len(kept))).backward()
        gradients = {n: p.grad.double().numpy() for n, p in parameters.items()}
        norm = math.sqrt(sum((g**2).sum() for g in gradients.values()))
        rate = RATE * min(1, (step + 1) / WARMUP)
        for n, parameter in parameters.items():
            g = gradients[n] * min(1, CLIP / (norm + 1e-6))
            m[n] = 0.9 * m[n] + 0.1 * g
            v[n] = 0.999 * v[n] + 0.001 * g**2
            moved = rate * (m[n] / (1 - 0.9 ** (step + 1))) / (np.sqrt(v[n] / (1 - 0.999 ** (step + 1))) + 1e-8)
            with torch.no_grad():
                parameter.sub_(torch.from_numpy(moved).float())
            ema[n] = DECAY * ema[n] + (1 - DECAY) * parameter.detach().double().numpy()
    state = {f"exp_avg.{n}": a for n, a in m.items()} | {f"exp_avg_sq.{n}": a for n, a in v.items()}
    weights = {n: p.detach().numpy() for n, p in parameters.items()}
    return weights, ema, state | {"carried.bank": bank, "step": [first + num_steps]}, record


def run(round_):
    train.main(["--arm", ARM, "--seed", str(SEED), "--round", str(round_), "--shard", str(SHARD)])
    folder = files.folder("train", RUN, round_, SHARD)
    return {path.stem: files.load_arrays(path) for path in folder.glob("*.safetensors")}


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("schedule", "round_"), CASES)
def test_a_round_goes_on_from_its_own_weights_state_and_list(tmp_path, monkeypatch, schedule, round_):
    monkeypatch.chdir(tmp_path)
    write_experiment(schedule)
    place, of_state, of_list = CASES[schedule, round_]
    if place:
        raw, ema = planted(place, "raw"), planted(place, "ema")
        state = planted_state(of_state, SHARD)
    else:  # what round 1 starts from: the EMA is the weights, and nothing was seen
        raw = ema = initial_weights.initial_weights(network(), SEED)
        zeros = {f"{kind}.{n}": np.zeros_like(w) for kind in ("exp_avg", "exp_avg_sq") for n, w in raw.items()}
        state = zeros | {"carried.bank": np.zeros(TIMESTEPS, np.float32), "step": np.array([0])}
    weights, averaged, passed_on, record = expected(raw, ema, state, LISTS[of_list])

    found = run(round_)
    assert set(found) == {"raw", "ema", "state"}
    check(found["raw"], weights)
    check(found["ema"], averaged)
    check(found["state"], passed_on)
    assert {array.dtype for kind in ("raw", "ema") for array in found[kind].values()} == {np.dtype(np.float32)}

    counts = files.load_arrays(files.folder("results/counts", RUN, round_, SHARD) / "counts.safetensors")
    skips = record["skips"].sum()
    assert set(counts) == {
        "index", "skips", "augmented", "visits", "epoch_loss", "epoch_skipped", "epoch_augmented", "epoch_visited", "t_skipped",
        "t_visited", "carried.bank", "forward_images", "optimizer_steps",
    }  # fmt: skip
    assert counts["index"].tolist() == LISTS[of_list]
    for name in ("skips", "visits", "epoch_skipped", "epoch_visited", "t_skipped", "t_visited"):
        assert counts[name].tolist() == record[name].tolist(), name
    assert counts["epoch_loss"] == pytest.approx(record["epoch_loss"], rel=1e-4)
    assert not counts["augmented"].any() and not counts["epoch_augmented"].any()
    np.testing.assert_allclose(counts["carried.bank"], passed_on["carried.bank"], rtol=1e-4)
    assert (counts["forward_images"].tolist(), counts["optimizer_steps"].tolist()) == ([12], [4])
    if round_ > 1:
        assert 0 < skips < 12


def test_a_round_of_steps_has_that_many(tmp_path, monkeypatch):
    """Three steps are an epoch and a half of seven images in batches of three."""
    monkeypatch.chdir(tmp_path)
    write_experiment("joint", length={"steps": 3})
    found = run(3)
    assert found["state"]["step"].tolist() == [STEP[2] + 3]
    counts = files.load_arrays(files.counts_file(RUN, 3, SHARD))
    assert (counts["epoch_visited"].tolist(), counts["optimizer_steps"].tolist()) == ([6, 3], [3])


def test_a_method_that_carries_nothing_passes_nothing_on_and_without_ema_there_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment("joint", {"name": "ddpm"}, ema_decay=0.0)
    found = run(1)
    assert set(found) == {"raw", "state"}
    assert {name.split(".")[0] for name in found["state"]} == {"exp_avg", "exp_avg_sq", "step"}
    counts = files.load_arrays(files.counts_file(RUN, 1, SHARD))
    assert counts["visits"].sum() == 12 and not counts["skips"].any() and "carried.bank" not in counts


def curves(folder):
    """What TensorBoard reads: dict name -> list of (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder)).Reload()
    return {name: [(point.step, point.value) for point in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_curves_are_written_where_they_are_asked_for_and_change_nothing(tmp_path, monkeypatch):
    """A point a step, and of a round that is trained again only the later ones."""
    monkeypatch.chdir(tmp_path)
    write_experiment("joint")
    without = run(3)
    assert not live.FOLDER.exists()
    monkeypatch.setenv(live.VARIABLE, "1")
    monkeypatch.setattr(live, "EVERY_S", 0)
    for _ in range(2):
        shown = run(3)
    for name, arrays in without.items():
        for key, array in arrays.items():
            assert np.array_equal(array, shown[name][key]), key
    found, steps = curves(live.FOLDER / RUN / f"shard{SHARD}"), [STEP[2] + n for n in (1, 2, 3, 4)]
    names = {"loss", "learning_rate", "skipped_share", "augmented_share", "steps_per_s"}
    assert set(found) == names and all([step for step, _ in points] == steps for points in found.values())
    assert [value for _, value in found["learning_rate"]] == pytest.approx([RATE * min(1, n / WARMUP) for n in steps])
    counts = files.load_arrays(files.counts_file(RUN, 3, SHARD))
    assert found["skipped_share"][-1][1] == pytest.approx(counts["skips"].sum() / counts["visits"].sum())


def test_points_are_as_far_apart_as_is_said_and_the_last_is_there(tmp_path, monkeypatch):
    """The loss is that which is minimised: of plain DDPM the mean over a batch, and batches are of one size."""
    monkeypatch.chdir(tmp_path)
    write_experiment("joint", {"name": "ddpm"})
    monkeypatch.setenv(live.VARIABLE, "1")
    for every_s, expected_steps in ((0, [1, 2, 3, 4]), (3600, [1, 4])):
        monkeypatch.setattr(live, "EVERY_S", every_s)
        run(1)
        steps, losses = zip(*curves(live.FOLDER / RUN / f"shard{SHARD}")["loss"], strict=True)
        assert list(steps) == expected_steps
        if every_s == 0:
            counts = files.load_arrays(files.counts_file(RUN, 1, SHARD))
            assert np.mean(losses) == pytest.approx(np.mean(counts["epoch_loss"]), rel=1e-4)
