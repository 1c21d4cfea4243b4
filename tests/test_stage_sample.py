"""The phase sample on planted weights: each image is what its own weights make of its own noise, by a loop over single images."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, write_params

from stages import sample
from stages.diffusion import unet
from stages.methods import compiling
from stages.run import device, files

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, NUM_CLASSES, SEED = (4, 6, 2), 5, 9
MODEL = {"block_channels": [4, 8], "attention_levels": [], "layers_per_block": 1, "norm_groups": 4}
SAMPLE, NOISE, CLASS = "sample", 10, 12  # purposes of draws, see stages/randomness.py


def planted(number, num_classes=None, num_told=0):
    """Weights that no other number has, large enough that the images of two of them differ."""
    random = np.random.default_rng(number)
    network = unet.build(MODEL | {"dropout": 0.5}, (SHAPE[2], *SHAPE[:2]), None, num_classes, num_told)
    return {n: (0.2 * random.standard_normal(p.shape)).astype(np.float32) for n, p in network.named_parameters()}


def write_experiment(**changes):
    """Seven images in batches of 2: parts of 2, 2 and 3. The section sample says 50 in two parts, by DDIM in 5 steps."""
    experiment = yaml.safe_load(TINY)
    experiment |= {"seeds": [SEED, 3], "model": MODEL | changes.get("model", {})}
    own = {"num_images": 7, "parts": 3, "batch_size": 2, "num_steps": 3, "weights": ["ema", "raw"]} | changes.get(
        "sample", {}
    )
    experiment["train"]["dropout"] = 0.5
    arm = experiment["arms"]["iet_agc_plus"] | {"rounds": 3, "sample": own} | changes.get("arm", {})
    num_told = 2 if changes.get("told") else 0
    if num_told:
        arm["train"] = arm["train"] | {"told_augmentation": {"p": 0.5, "kinds": ["shift"]}}
    experiment["arms"] = {
        "first": experiment["arms"]["ddpm"] | {"method": {"name": "ambient", "p": 0.3, "delta": 0.1}},
        "iet": arm,
        "copied": {"generator": {"arm": "iet"}, "sample": own},
    }
    write_params(experiment)
    files.save_array(files.DATA / "train.npy", np.zeros((11, *SHAPE), np.uint8))
    files.write_json(files.DATA / "classes.json", [f"class {i}" for i in range(NUM_CLASSES)])
    classes = NUM_CLASSES if experiment["model"].get("class_conditional") else None
    for run, rounds in ((f"iet-seed{SEED}", 3), ("iet-seed3", 3), (f"first-seed{SEED}", 1)):
        for round_ in range(1, rounds + 1):
            for kind in ("raw", "ema"):
                folder = files.folder("model", run, round_)
                files.save_arrays(
                    folder / f"{kind}.safetensors", planted(number_of(run, round_, kind), classes, num_told)
                )


def number_of(run, round_, kind):
    return [f"iet-seed{SEED}", "iet-seed3", f"first-seed{SEED}"].index(run) * 100 + 10 * round_ + (kind == "ema")


def drawn(purpose, image):
    """A generator as stages/randomness.py promises it: of the seed and the number of the image alone."""
    words = np.random.SeedSequence([purpose, SEED, image]).generate_state(2, np.uint32)
    return np.random.default_rng(int(words[0]) | int(words[1]) << 32)


@torch.no_grad()
def expected(image, kind, num_steps, protocol="paper", conditional=False, round_=3):
    """One image by itself: DDIM with 20 timesteps."""
    network = unet.build(
        MODEL | {"dropout": 0.5}, (SHAPE[2], *SHAPE[:2]), num_classes=NUM_CLASSES if conditional else None
    )
    network.load_state_dict(
        {
            n: torch.from_numpy(w)
            for n, w in planted(
                number_of(f"iet-seed{SEED}", round_, kind), NUM_CLASSES if conditional else None
            ).items()
        }
    )
    network.eval()
    noise_left = [math.prod(1 - (0.005 + (0.4 - 0.005) * s / 19) for s in range(t + 1)) for t in range(20)]
    stride = 20 // num_steps
    x = torch.from_numpy(drawn(NOISE, image).standard_normal((1, SHAPE[2], *SHAPE[:2]), np.float32))
    label = {"class_labels": torch.tensor([drawn(CLASS, image).integers(NUM_CLASSES)])} if conditional else {}
    for t in range(1 + stride * (num_steps - 1), 0, -stride):
        eps = network(x, torch.tensor([t]), **label).sample
        clean = ((x - math.sqrt(1 - noise_left[t]) * eps) / math.sqrt(noise_left[t])).clamp(-1, 1)
        after = noise_left[t - stride] if t > stride else noise_left[0] if protocol == "paper" else 1
        x = math.sqrt(after) * clean + math.sqrt(1 - after) * eps
    return (127.5 * (x[0].clamp(-1, 1) + 1)).round().permute(1, 2, 0).numpy().astype(int)


def check(found, kind, images, **how):
    """Rounding may turn the other way where a batch is summed in another order."""
    assert found.dtype == np.uint8 and found.shape == (len(images), *SHAPE)
    for array, image in zip(found, images, strict=True):
        difference = np.abs(array.astype(int) - expected(image, kind, **how))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.05, (kind, image)


def part(run, number, round_=3):
    return files.folder("samples", run, round_, part=number)


@pytest.mark.parametrize(("number", "images"), [(0, [0, 1]), (1, [2, 3]), (2, [4, 5, 6])])
def test_a_part_has_its_own_images_of_the_last_round_with_each_kind_of_weights(tmp_path, monkeypatch, number, images):
    monkeypatch.chdir(tmp_path)
    write_experiment()
    sample.main(["--arm", "iet", "--seed", str(SEED), "--round", "3", "--part", str(number)])
    folder = part(f"iet-seed{SEED}", number)
    assert {path.name for path in folder.iterdir()} == {"raw.npy", "ema.npy", "checksums.json"}
    for kind in ("raw", "ema"):
        check(np.load(folder / f"{kind}.npy"), kind, images, num_steps=3)
    assert np.abs(expected(images[0], "raw", 3) - expected(images[0], "ema", 3)).mean() > 5
    assert np.abs(expected(images[0], "raw", 3) - expected(images[1], "raw", 3)).mean() > 5


def test_a_part_of_an_earlier_round_has_the_images_of_that_rounds_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment(arm={"sample_rounds": [1, 3]})
    sample.main(["--arm", "iet", "--seed", str(SEED), "--round", "1", "--part", "1"])
    for kind in ("raw", "ema"):
        check(np.load(part(f"iet-seed{SEED}", 1, 1) / f"{kind}.npy"), kind, [2, 3], num_steps=3, round_=1)
    assert np.abs(expected(2, "raw", 3, round_=1) - expected(2, "raw", 3)).mean() > 5
    assert not part(f"iet-seed{SEED}", 1).exists()


def test_the_protocol_and_the_steps_are_those_of_the_arm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment(sample={"protocol": "clean", "num_steps": 4, "weights": ["raw"]})
    sample.main(["--arm", "iet", "--seed", str(SEED), "--round", "3", "--part", "1"])
    assert not (part(f"iet-seed{SEED}", 1) / "ema.npy").exists()
    check(np.load(part(f"iet-seed{SEED}", 1) / "raw.npy"), "raw", [2, 3], num_steps=4, protocol="clean")
    assert np.abs(expected(2, "raw", 4, "clean") - expected(2, "raw", 4)).max() > 1


def test_the_class_of_each_image_is_asked_for_and_written_down(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment(model={"class_conditional": True})
    sample.main(["--arm", "iet", "--seed", str(SEED), "--round", "3", "--part", "2"])
    folder = part(f"iet-seed{SEED}", 2)
    labels = np.load(folder / "labels.npy")
    assert labels.dtype == np.int64 and labels.tolist() == [
        drawn(CLASS, image).integers(NUM_CLASSES) for image in (4, 5, 6)
    ]
    assert len(set(labels.tolist())) > 1
    check(np.load(folder / "ema.npy"), "ema", [4, 5, 6], num_steps=3, conditional=True)


def test_an_arm_that_samples_from_another_arms_model_has_that_arms_images_under_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment()
    sample.main(["--arm", "copied", "--seed", str(SEED), "--round", "3", "--part", "0"])
    for kind in ("raw", "ema"):
        check(np.load(part(f"copied-seed{SEED}", 0) / f"{kind}.npy"), kind, [0, 1], num_steps=3)
    assert not part(f"iet-seed{SEED}", 0).exists()


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
def test_images_are_the_same_where_each_pass_is_a_graph_and_weights_change_in_between(
    tmp_path, monkeypatch, conditional, told
):
    """Batches of 2, 2 and 1 of two kinds of weights: two graphs, by a stand-in for those of CUDA. Bit for bit. A network that is told of an
    augmentation is told that there is none."""
    monkeypatch.chdir(tmp_path)
    write_experiment(model={"class_conditional": conditional}, sample={"num_images": 5, "parts": 1}, told=told)
    words = ["--arm", "iet", "--seed", str(SEED), "--round", "3", "--part", "0"]
    sample.main(words)
    folder, captured, replayed = part(f"iet-seed{SEED}", 0), [], []
    plain = {kind: np.load(folder / f"{kind}.npy") for kind in ("raw", "ema")}
    shutil.rmtree(folder)

    def capture(body):
        found = body()
        captured.append(len(found))

        def replay():
            replayed.append(len(found))
            found.copy_(body())

        return replay, found, "its memory"

    monkeypatch.setattr(device, "compile_mode", lambda *_: "graph")
    monkeypatch.setattr(compiling.by_graph, "__defaults__", (capture,))
    sample.main(words)
    assert captured == [2, 1] and replayed == 2 * [2, 2, 2, 2, 2, 2, 1, 1, 1]
    for kind, images in plain.items():
        assert np.array_equal(images, np.load(folder / f"{kind}.npy"))
    assert not np.array_equal(plain["raw"], plain["ema"])


class Card:
    """A made-up GPU: what torch.cuda says of its memory, in GB."""

    type = "cuda"

    def __init__(self, monkeypatch, before, peak, has):
        monkeypatch.setattr(torch, "device", lambda device: device)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: int(before * 1e9))
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: int(peak * 1e9))
        properties = SimpleNamespace(total_memory=int(has * 1e9))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_a_gpu_that_holds_much_larger_batches_is_told_of(monkeypatch):
    """0.9 * (80 - 2) GB / (3 GB / 128) = 2995 images; of two stages on the card, 0.9 * (40 - 2) / (3 / 128) = 1459."""
    monkeypatch.delenv(device.SLOTS, raising=False)
    card = Card(monkeypatch, before=2, peak=5, has=80)
    assert device.LargestBatch(card).told(128) == (
        "a batch of 128 images takes 3 GB of the 80 GB that this stage may have: about 2995 would fit, which may be faster "
        "(sample.batch_size)"
    )
    monkeypatch.setenv(device.SLOTS, "2")
    assert "about 1459 would fit" in device.LargestBatch(card).told(128)
    assert device.LargestBatch(Card(monkeypatch, before=2, peak=44, has=80)).told(128) == ""
    monkeypatch.undo()
    assert device.LargestBatch("cpu").told(128) == ""
