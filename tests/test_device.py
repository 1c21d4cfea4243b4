"""Which GPU a stage gets, with made-up GPUs: locks know nothing of the hardware."""

import os
import signal
import stat
import subprocess
import sys

import pytest
from conftest import ROOT

from stages.run import device

AUTO, CPU, CUDA = ({"device": name, "threads": 1} for name in ("auto", "cpu", "cuda"))
CLAIMER = (
    f"import sys, time, pathlib; sys.path.insert(0, {str(ROOT)!r}); from stages.run import device\n"
    "gpu, lock = device.claim_gpu(sys.argv[2].split(','), pathlib.Path(sys.argv[1]), int(sys.argv[3]))\n"
    "print(gpu, flush=True); time.sleep(60)"
)


@pytest.fixture
def held():
    """held.append(lock) releases it after the test."""
    locks = []
    yield locks
    for lock in locks:
        lock.release()


@pytest.fixture
def no_gpu(monkeypatch, tmp_path):
    """A machine without GPUs, whatever this one has; claims go to a folder of the test's own."""
    for name in ("CUDA_VISIBLE_DEVICES", device.SLOTS, device.TOLD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device, "_claimed", [])
    monkeypatch.setattr(device.claim_gpu, "__defaults__", (tmp_path / "gpus", 1, 0.0))
    monkeypatch.setattr(device.shutil, "which", lambda _: None)
    return monkeypatch


def torch_finds(monkeypatch, usable):
    """torch sees GPUs or not; returns what CUDA_VISIBLE_DEVICES was each time it was asked."""
    import torch

    asked = []

    def is_available():
        asked.append(os.environ.get("CUDA_VISIBLE_DEVICES"))
        return usable

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return asked


def test_each_claim_gets_another_gpu_and_one_too_many_says_what_to_do(tmp_path, held):
    got = []
    for _ in range(3):
        gpu, lock = device.claim_gpu(["0", "1", "2"], tmp_path)
        got.append(gpu)
        held.append(lock)
    assert sorted(got) == ["0", "1", "2"]
    with pytest.raises(TimeoutError) as caught:
        device.claim_gpu(["0", "1", "2"], tmp_path, wait_s=0.6)
    assert str(caught.value) == (
        "all 3 GPUs (0, 1, 2, 1 stages each) are taken: give snakemake --resources gpu=3, or set REDISTRIBUTE_GPU_SLOTS to "
        "let more stages share one"
    )
    held[1].release()
    gpu, lock = device.claim_gpu(["0", "1", "2"], tmp_path)
    held.append(lock)
    assert gpu == got[1]


def test_free_gpus_are_taken_before_second_slots(tmp_path, held):
    got = []
    for _ in range(4):
        gpu, lock = device.claim_gpu(["0", "1"], tmp_path, slots=2)
        got.append(gpu)
        held.append(lock)
    assert sorted(got[:2]) == sorted(got[2:]) == ["0", "1"]
    with pytest.raises(
        TimeoutError, match=r"all 2 GPUs \(0, 1, 2 stages each\) are taken: give snakemake --resources gpu=4"
    ):
        device.claim_gpu(["0", "1"], tmp_path, slots=2)


def test_claims_of_processes_exclude_each_other_and_end_with_a_kill(tmp_path, held):
    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIMER, str(tmp_path), "0,1", "1"], stdout=subprocess.PIPE, text=True
        )
        return process, process.stdout.readline().strip()

    claims = [start(), start()]
    try:
        assert sorted(gpu for _, gpu in claims) == ["0", "1"]
        with pytest.raises(TimeoutError):
            device.claim_gpu(["0", "1"], tmp_path)
        claims[0][0].send_signal(signal.SIGKILL)
        claims[0][0].wait()
        gpu, lock = device.claim_gpu(["0", "1"], tmp_path)
        held.append(lock)
        assert gpu == claims[0][1]
    finally:
        for process, _ in claims:
            process.kill()
            process.wait()
            process.stdout.close()


def test_ids_with_slashes_and_uuids_can_be_claimed(tmp_path, held):
    for gpu in ("GPU-8a5c", "MIG-GPU-8a5c/1/0"):
        got, lock = device.claim_gpu([gpu], tmp_path)
        held.append(lock)
        assert got == gpu
    assert all(path.parent == tmp_path for path in tmp_path.rglob("*.lock"))


def test_other_users_can_claim_too(tmp_path, held):
    """The folder in /tmp is one for all users; with the usual umask only the first of them could lock anything in it."""
    before = os.umask(0o022)
    try:
        held.append(device.claim_gpu(["0"], tmp_path / "gpus")[1])
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "gpus").stat().st_mode) == 0o777
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "gpus").iterdir()} == {0o666}


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ("", []),
        ("-1", []),
        ("0", ["0"]),
        ("0,2", ["0", "2"]),
        (" 3 , 1 ", ["3", "1"]),
        ("GPU-8a5c,MIG-77", ["GPU-8a5c", "MIG-77"]),
        ("0,-1,2", ["0"]),  # CUDA sees none behind the first that is not valid
    ],
)
def test_cuda_visible_devices_decides(monkeypatch, named, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert device.visible_gpus() == expected


def test_without_it_all_gpus_of_nvidia_smi_are_visible(no_gpu):
    assert device.visible_gpus() == []
    listed = (
        "GPU 0: NVIDIA H100 (UUID: GPU-1)\n  MIG 1g.10gb Device 0: (UUID: MIG-2)\nGPU 1: NVIDIA H100 (UUID: GPU-3)\n"
    )
    no_gpu.setattr(device.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    no_gpu.setattr(device.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, listed, ""))
    assert device.visible_gpus() == ["0", "1"]
    no_gpu.setattr(
        device.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 9, "NVIDIA-SMI has failed", "")
    )
    assert device.visible_gpus() == []

    def hangs(*_, **__):
        raise subprocess.TimeoutExpired("nvidia-smi", 60)

    no_gpu.setattr(device.subprocess, "run", hangs)
    with pytest.raises(TimeoutError, match="^nvidia-smi -L gave no answer"):
        device.visible_gpus()


def test_cuda_without_a_gpu_is_an_error_with_advice(no_gpu):
    torch_finds(no_gpu, usable=False)
    with pytest.raises(ValueError) as caught:
        device.claim(CUDA)
    assert str(caught.value) == (
        "compute.device is cuda, but no GPU is visible: set it to auto or cpu (params.yaml), or look at nvidia-smi, the "
        "driver and CUDA_VISIBLE_DEVICES"
    )


def test_cuda_with_a_gpu_that_torch_cannot_use_is_an_error_too(no_gpu):
    """A driver too old, or a torch for the CPU: once a KeyError, where CUDA_VISIBLE_DEVICES was not set."""
    torch_finds(no_gpu, usable=False)
    no_gpu.setattr(device, "visible_gpus", lambda: ["0", "1"])
    with pytest.raises(
        ValueError, match=r"^compute\.device is cuda, but torch \S+ cannot use GPU 0 here: set it to auto or cpu"
    ):
        device.claim(CUDA)
    device.claim_gpu(["0"])[1].release()  # not kept


def test_auto_without_a_gpu_says_so_once_and_not_where_it_was_said_already(no_gpu, capsys):
    torch_finds(no_gpu, usable=False)
    assert device.claim(AUTO).type == "cpu"
    out, err = capsys.readouterr()
    assert (out, err) == ("", "compute.device is auto and there is no GPU: this stage runs on the CPU\n")
    no_gpu.setenv(device.TOLD, "1")
    assert device.claim(AUTO).type == "cpu"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("compute", [AUTO, CUDA])
def test_a_claimed_gpu_is_named_to_cuda_before_torch_asks_for_gpus(no_gpu, compute):
    """CUDA reads the variable when it is first asked. Set later it has no effect, and all stages end up on the first GPU."""
    asked = torch_finds(no_gpu, usable=True)
    no_gpu.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    taken = device.claim_gpu(["4"])[1]
    assert device.claim(compute).type == "cuda"
    assert asked == ["5"] and os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    with pytest.raises(TimeoutError):  # kept for the life of the process
        device.claim_gpu(["4", "5"])
    for lock in (taken, *device._claimed):
        lock.release()


def test_the_cpu_is_never_a_gpu(no_gpu, capsys):
    asked = torch_finds(no_gpu, usable=True)
    no_gpu.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert device.claim(CPU).type == "cpu"
    assert asked == [] and capsys.readouterr().err == ""


def test_threads_are_those_of_params_yaml(no_gpu):
    import torch

    before = torch.get_num_threads()
    try:
        device.claim({"device": "cpu", "threads": 2})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("text", ["x", "", "0", "-1", "1.5", "2 "])
def test_slots_that_are_no_number_are_told(monkeypatch, text):
    monkeypatch.setenv(device.SLOTS, text)
    with pytest.raises(
        ValueError, match=r"^REDISTRIBUTE_GPU_SLOTS is '.*' in the environment, expected a whole number"
    ):
        device.slots()
    monkeypatch.setenv(device.SLOTS, "12")
    assert device.slots() == 12


def test_a_second_stage_of_the_same_process_has_the_same_gpu(monkeypatch):
    """An audit samples a pipeline and searches in one process: it must not wait for the GPU that it holds itself."""
    monkeypatch.setattr(device, "_claimed", [object()])
    monkeypatch.setattr(device, "claim_gpu", None)
    assert device.claim({"device": "auto", "threads": 1}).type == "cuda"
    assert device.claim({"device": "cpu", "threads": 1}).type == "cpu"
