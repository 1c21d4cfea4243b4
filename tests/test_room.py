"""The room that an experiment needs: against the real network, a real run, and numbers worked out by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from conftest import TINY, text_experiment

from stages import plan, rules
from stages import quality as quality_phase
from stages.diffusion import unet
from stages.run import files, instance, room

EXPERIMENT = yaml.safe_load(TINY)
IET = "iet_agc_plus-seed3"
GIB = 2**30


def sizes_of(experiment):
    """What each stage is expected to write: name -> (path, bytes)."""
    return plan.sizes(experiment, plan.expand(experiment))


@pytest.mark.parametrize("num_classes", [None, 10])
@pytest.mark.parametrize(("widths", "levels"), [([8], []), ([8, 24], [1]), ([16, 8, 24], [0, 2]), ([8, 8, 16, 16], [])])
@pytest.mark.parametrize(("layers", "channels"), [(1, 3), (2, 1), (3, 3)])
def test_parameters_are_those_of_the_network(widths, levels, layers, channels, num_classes):
    model = {
        "block_channels": widths,
        "attention_levels": levels,
        "layers_per_block": layers,
        "dropout": 0.0,
        "norm_groups": 8,
    }
    network = unet.build(model, (channels, 16, 16), num_classes=num_classes)
    assert unet.num_parameters(model, channels, num_classes or 0) == sum(p.numel() for p in network.parameters())


def test_the_network_of_the_paper_has_its_published_size():
    """35.7 million parameters (CIFAR-10), and 0.57 GB a shard and round."""
    experiment = rules.load("experiments/cifar10.yaml")
    assert round(unet.num_parameters(experiment["model"], 3) / 1e6, 1) == 35.7
    made = sizes_of(experiment)
    (size,) = {size for name, (_, size) in made.items() if name.startswith("train")}
    assert round(size / 1e9, 2) == 0.57


def test_what_a_real_run_left_is_what_was_estimated(finished, monkeypatch):
    """Each stage that settings can make large, and the sum, within 15 %: names of images and headers are guessed."""
    made, sizes = sizes_of(EXPERIMENT), {}
    for name, (path, estimate) in made.items():
        sizes[name] = sum(
            file.stat().st_size for file in [finished.root / path, *(finished.root / path).rglob("*")] if file.is_file()
        )
        assert sizes[name] > 0, name
        if name.startswith(("train", "aggregate@", "data")):
            assert 0.85 * sizes[name] < estimate < 1.15 * sizes[name], (name, sizes[name], estimate)
    assert made.keys() == finished.lock().keys()
    pixels = 25 * 2 * 64  # images of a part, raw and ema, 8x8: some whole batches more in one part than in the other
    assert made["sample@ddpm-seed3-round1-part0"][1] == pixels
    assert (
        sum(s for _, s in made.values()) > 0.85 * sum(sizes.values()) - 20 * 4096
    )  # tables of a few rows are mostly headers


@pytest.mark.parametrize(("ema_decay", "kept", "averaged"), [(0.0, 3, 1), (0.5, 4, 2)])
def test_a_model_with_captions_takes_its_own_weights(tmp_path, monkeypatch, ema_decay, kept, averaged):
    """Of a round 3 copies of them without averaged weights, 4 with; a variant that lies beside the weights is not counted."""
    from PIL import Image
    from safetensors.numpy import save_file

    monkeypatch.chdir(tmp_path)
    Path("model/unet").mkdir(parents=True)
    weights = Path("model/unet/diffusion_pytorch_model-00001-of-00002.safetensors")
    arrays = {
        "a.weight": np.zeros((30, 7), np.float32),
        "a.bias": np.zeros(30, np.float16),
        "scale": np.array(1.0, np.float32),
    }
    save_file(arrays, weights, metadata={"format": "pt"})
    for name in ("diffusion_pytorch_model-00002-of-00002.safetensors", "diffusion_pytorch_model.fp16.safetensors"):
        save_file({"b": np.zeros((11, 5), np.float32)}, weights.with_name(name))
    num = 30 * 7 + 30 + 1 + 11 * 5
    Path("images").mkdir()
    for i in range(12):
        Image.new("L", (16, 16)).save(f"images/{i}.png")
    experiment = text_experiment()
    experiment["data"]["root"], experiment["train"]["ema_decay"] = "images", ema_decay
    made = sizes_of(experiment)
    assert made["train@default-seed0-round1-shard0"][1] == kept * 4 * num
    assert made["aggregate@default-seed0-round1"][1] == averaged * 4 * num
    assert made["sample@default-seed0-round1-part0"][1] == 3 * 16 * 16 * 3
    weights.write_bytes(b"\xff" * 100)
    with pytest.raises(
        ValueError,
        match=r"unet/diffusion_pytorch_model-00001-of-00002.safetensors is no safetensors file \(it is shorter than",
    ):
        sizes_of(experiment)


def test_rounds_and_checkpoints_by_hand():
    made = {
        f"train@a-seed0-round{r}-shard{k}": (files.folder("train", "a-seed0", r, k), 10 * r)
        for r in (1, 2, 3)
        for k in (0, 1)
    }
    made["aggregate@a-seed0-round1"] = (files.folder("model", "a-seed0", 1), 7)
    stages = list(made)
    assert room.needed(made, stages, slots=1) == {"train": 120, "aggregate": 7, "checkpoints": 2 * 30}
    assert room.needed(made, stages, slots=3) == {"train": 120, "aggregate": 7, "checkpoints": 2 * (30 + 30 + 20)}
    assert room.needed(made, stages, slots=1, rounds_kept=2)["train"] == 2 * 30 + 2 * 20
    assert room.needed(made, stages[:2], slots=5) == {"train": 20, "checkpoints": 40}


def disk_of(free, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free, total=2**60))


def test_too_little_room_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    cifar10 = rules.load("experiments/cifar10.yaml")
    monkeypatch.chdir(tmp_path)
    made = sizes_of(cifar10)
    total = sum(room.needed(made, made, 1).values())
    disk_of(int(0.8 * total), monkeypatch)
    with pytest.raises(ValueError) as caught:
        room.check(sizes_of(cifar10))
    told = str(caught.value)
    assert told.startswith(
        f"this run writes about {files.text_of_size(total)} (train 1252 GiB, aggregate 70 GiB, sample "
    )
    assert f"are free on the disk of {tmp_path}: make room, ask for fewer rounds" in told and "\n" not in told
    room.check(sizes_of(cifar10), dry_run=True)
    assert "this run writes about" in capsys.readouterr().err
    monkeypatch.setenv(room.ANYWAY, "1")
    room.check(sizes_of(cifar10))
    assert "this run writes about" in capsys.readouterr().err


def test_a_run_that_is_pruned_as_it_goes_on_needs_two_rounds_of_each_arm(tmp_path, monkeypatch):
    cifar10 = rules.load("experiments/cifar10.yaml")
    monkeypatch.chdir(tmp_path)
    made = sizes_of(cifar10)
    pruned, kept = (sum(room.needed(made, made, 1, rounds).values()) for rounds in (2, None))
    disk_of(2 * pruned, monkeypatch)
    assert 2 * pruned < kept / 2, "the check is blind"
    with pytest.raises(ValueError, match="or set REDISTRIBUTE_KEEP=needed in the environment"):
        room.check(sizes_of(cifar10))
    monkeypatch.setenv(room.KEEP, "needed")
    room.check(sizes_of(cifar10))
    monkeypatch.setenv(room.KEEP, "some")
    with pytest.raises(ValueError, match="REDISTRIBUTE_KEEP is 'some' in the environment, expected all or needed"):
        room.check(sizes_of(cifar10))


def test_enough_room_is_not_spoken_of_and_what_is_there_does_not_count(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made = sizes_of(EXPERIMENT)
    needed = sum(room.needed(made, made, 1).values())
    disk_of(3 * needed, monkeypatch)
    room.check(sizes_of(EXPERIMENT))
    assert capsys.readouterr().err == ""
    disk_of(needed // 2, monkeypatch)
    with pytest.raises(ValueError, match="this run writes about"):
        room.check(sizes_of(EXPERIMENT))
    for path, _ in made.values():
        path.mkdir(parents=True)
    room.check(sizes_of(EXPERIMENT))
    room.check(sizes_of(EXPERIMENT), ["report"])
    assert capsys.readouterr().err == ""


def test_a_folder_of_images_is_looked_at(tmp_path):
    from PIL import Image

    for i in range(5):
        Image.fromarray(np.zeros((6, 10, 3), np.uint8)).save(tmp_path / f"{i}.png")
    data = {"name": "image_folder", "root": str(tmp_path), "split_seed": 0}
    made = sizes_of(EXPERIMENT | {"data": data})
    assert made["data"][1] == 5 * (6 * 10 * 3 + 38)
    assert sizes_of(EXPERIMENT | {"data": data | {"size": 4}})["data"][1] == 5 * (4 * 4 * 3 + 38)
    assert sizes_of(EXPERIMENT | {"data": data | {"root": str(Path(tmp_path, "none"))}}) is None


def test_the_reference_of_the_quality_phase_counts_with_its_features(tmp_path):
    """Of 60 training images: 2,048 float32 features, mean and covariance for each protocol, and the weights of the network."""
    quality = {
        "weights": str(tmp_path / "inception.pth"),
        "protocols": ["pytorch_fid", "torch_fidelity"],
        "batch_size": 8,
    }
    made = sizes_of(EXPERIMENT | {"quality": quality})
    assert made["quality_reference@reference"] == (
        files.folder("results/quality", "reference"),
        2 * (4 * 2048 * 60 + 2 * 8 * 2048**2) + quality_phase.INCEPTION_BYTES,
    )
    assert made[f"quality@{IET}-round2"] == (files.folder("results/quality", IET, 2), instance.LIGHT_BYTES)
