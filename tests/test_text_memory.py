"""The memory of a GPU that a text-conditioned model takes: against what torch keeps, and what is said on cards that are too small."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_sd
import torch
from conftest import text_experiment

from stages import detect, models, sample, train
from stages.methods import loop
from stages.run import cli, device, files
from stages.text import generation, memory, model

MIB = 2**20
RUN = ["--arm", "default", "--seed", "0"]
DETECT = {"num_prompts": 3, "images_per_prompt": 2, "num_steps": 4, "guidance": 3.0, "batch_size": 5}


@pytest.fixture(scope="module", params=["C", "D"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / request.param
    tiny_sd.build(path, request.param)
    return path


def test_the_estimate_of_training_is_what_torch_keeps(folder):
    """Storages that the forward pass keeps for the gradient, beside the weights: the estimate, within 10 %."""
    network, size = model.unet(folder), tiny_sd.CONFIGS[folder.name]["size"]
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept, alive = {}, []

    def keep(x):
        alive.append(x)
        if x.untyped_storage().data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        network(torch.ones(3, 4, 8, 8), torch.ones(3), encoder_hidden_states=torch.ones(3, 77, 32))
    found = memory.needed(folder, (3, size, size), "fp32", batch_size=3)
    assert sum(kept.values()) == pytest.approx(3 * found["image"], rel=0.1)
    larger = memory.needed(folder, (3, 2 * size, size), "fp32", batch_size=3)
    assert 1.8 * found["image"] < larger["image"] < 2.2 * found["image"]

    num = sum(parameter.numel() for parameter in network.parameters())
    frozen = model.Frozen(folder, torch.device("cpu"))
    others = sum(p.numel() for part in (frozen.text_encoder, frozen.vae) for p in part.parameters())
    assert (found["weights"], found["frozen"]) == (16 * num, 4 * others)
    averaged = memory.needed(folder, (3, size, size), "bf16", batch_size=3, keeps_ema=True)
    assert averaged["weights"] == 22 * num and averaged["image"] == pytest.approx(found["image"] / 2, abs=1)
    assert memory.needed(folder, (3, size, size), "fp32")["weights"] == 4 * num


def test_the_largest_output_of_a_layer_counts_where_images_are_only_made(folder):
    """That of the VAE's decoder: its last levels have 8 channels (C), or 16 that were just enlarged (D), at full size."""
    size, channels = tiny_sd.CONFIGS[folder.name]["size"], {"C": 8, "D": 16}[folder.name]
    for guidance in (1, 7.5):
        found = memory.needed(folder, (3, size, size), "fp32", guidance=guidance)
        assert found["image"] == 4 * 4 * channels * size**2


def on_a_card_of(num_bytes, monkeypatch):
    """Made up: the stage computes on the CPU."""
    monkeypatch.setattr(device, "memory", lambda _: num_bytes)


@pytest.fixture
def small_images(folder, tmp_path, monkeypatch):
    """small_images(height, width) makes the training images of that size; first they are of the size of the model."""
    monkeypatch.chdir(tmp_path)

    def write(height, width):
        files.save_array(files.DATA / "train.npy", np.zeros((1, height, width, 3), np.uint8))

    write(*[tiny_sd.CONFIGS[folder.name]["size"]] * 2)
    return write


def job_of(folder, phase="train", precision="fp32"):
    experiment = text_experiment()
    experiment["model"]["pipeline"] = str(folder)
    experiment["compute"]["precision"] = precision
    return SimpleNamespace(phase=phase, arm="default", device="cuda", params=experiment)


def test_a_card_that_is_too_small_is_told_with_the_batch_that_fits(folder, small_images, monkeypatch, capsys):
    size = tiny_sd.CONFIGS[folder.name]["size"]
    found = memory.needed(folder, (3, size, size), "fp32", batch_size=4)
    fixed = found["weights"] + found["frozen"]
    on_a_card_of(fixed + 4 * found["image"], monkeypatch)
    models._check_memory(job_of(folder))
    told = models.memory_told(job_of(folder))
    assert told.startswith("by estimate this takes ") and capsys.readouterr().err == ""

    on_a_card_of(fixed + 3 * found["image"] - 1, monkeypatch)
    models._check_memory(job_of(folder))
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"by estimate this takes {files.text_of_size(fixed + 4 * found['image'])} of device memory (weights, gradients and Adam's "
        f"moments {files.text_of_size(found['weights'])}, text encoder and VAE {files.text_of_size(found['frozen'])}, a batch of 4 "
        f"images {files.text_of_size(4 * found['image'])}), and the GPU has {files.text_of_size(fixed + 3 * found['image'] - 1)} for "
        "it: where it does not suffice, try train.batch_size 2, compute.precision: bf16 or a smaller data.size (params.yaml)"
    )
    on_a_card_of(fixed, monkeypatch)
    models._check_memory(job_of(folder))
    assert "try compute.precision: bf16 or a smaller data.size" in capsys.readouterr().err  # not even one image
    models._check_memory(job_of(folder, "sample"))
    assert capsys.readouterr().err == ""

    on_a_card_of(fixed - 1, monkeypatch)
    with pytest.raises(ValueError, match=r"for it: no smaller batch helps, so use another GPU"):
        models._check_memory(job_of(folder))
    with pytest.raises(ValueError, match=r"no smaller batch helps"):
        models._check_memory(job_of(folder, precision="bf16"))
    on_a_card_of(found["frozen"], monkeypatch)
    for phase in ("sample", "detect"):
        with pytest.raises(ValueError, match=r"\(weights .*, one image .*no smaller batch helps"):
            models._check_memory(job_of(folder, phase))


def test_images_that_the_vae_cannot_take_are_told_first(folder, small_images, monkeypatch):
    small_images(64, 30)
    on_a_card_of(1, monkeypatch)
    with pytest.raises(ValueError, match=r"images are 30x64 with 3 channels, .* set data.size"):
        models._check_memory(job_of(folder))


def test_stages_that_share_a_card_share_its_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=10 * MIB))
    assert device.memory(torch.device("cpu")) is None and device.memory("cuda") == 10 * MIB
    monkeypatch.setenv(device.SLOTS, "4")
    assert device.memory("cuda") == 2.5 * MIB


def error_of(main, arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["stage", *arguments])
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_memory_that_runs_out_is_told_with_the_estimate(with_captions, monkeypatch, capsys):
    """In a step, and where the network is put on the device."""

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the manual")

    with_captions(text_experiment(detect=DETECT))
    on_a_card_of(1000 * MIB, monkeypatch)
    arguments = [*RUN, "--round", "1", "--shard", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", full)
        told = error_of(train.main, arguments, monkeypatch, capsys)
    assert told.startswith("error: the memory of cpu does not suffice for train.batch_size = 4 (CUDA out of memory.")
    assert "by estimate this takes " in told and told.endswith("and the GPU has 1000 MiB for it; nothing was written")
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "to", full)
        for main, more in ((train.main, arguments[4:]), (detect.main, [])):
            told = error_of(main, [*RUN, *more], monkeypatch, capsys)
            assert told.startswith(
                "error: the memory does not suffice (CUDA out of memory. Tried to allocate 2.00 GiB.): use a"
            )
    on_a_card_of(1000, monkeypatch)
    assert "no smaller batch helps" in error_of(train.main, arguments, monkeypatch, capsys)
    assert not files.folder("train", "default-seed0", 1, 0).exists()


def test_a_batch_of_images_that_does_not_fit_is_made_in_halves(with_captions, monkeypatch, capsys):
    """Of 4 and 2 images, with guidance, on a card for 2: every image as in whole batches, but for the last bit."""
    with_captions(text_experiment())
    files.save_arrays(files.folder("model", "default-seed0", 1) / "raw.safetensors", model.unet_weights("model"))
    whole = [made(part) for part in (0, 1)]
    load = generation.Source.load

    def watched(source, *weights):
        load(source, *weights)

        def refuse(_, inputs):
            if len(inputs[0]) > 2 * 2:
                raise torch.OutOfMemoryError("CUDA out of memory")

        source.network.register_forward_pre_hook(refuse)

    monkeypatch.setattr(generation.Source, "load", watched)
    capsys.readouterr()
    halves = [made(part) for part in (0, 1)]
    assert capsys.readouterr().err.count("out of memory with 4 images at a time: going on with 2") == 1
    for one, other in zip(whole, halves):
        assert np.abs(one.astype(int) - other).max() <= 1 and one.std() > 1


def made(part):
    sample.main([*RUN, "--round", "1", "--part", str(part)])
    return np.load(files.folder("samples", "default-seed0", 1, part=part) / "raw.npy")
