"""When a checkpoint is written, what SIGTERM does during a long step, and a checkpoint that cannot be written or read."""

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT

from stages.run import checkpoint, files


class Clock:
    now = 1000.0


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """begun(settings) -> a checkpoint of every 5 minutes by a clock that stands still; and the clock."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: Clock.now)
    handler = signal.getsignal(signal.SIGTERM)
    job = SimpleNamespace(device="cpu", phase="train", key="a-seed0", params={"checkpoint_minutes": 5})
    Path("input").write_text("1")
    Path("code.py").write_text("x = 1")
    yield lambda settings=(1,): checkpoint.Checkpoint(job, list(settings), ["input"], [Path("code.py")])
    signal.signal(signal.SIGTERM, handler)
    signal.set_wakeup_fd(-1)


def state(step):
    return lambda: {"step": np.array([step])}


def step_of(saved):
    arrays = saved.saved()
    return None if arrays is None else int(arrays["step"][0])


def test_it_is_written_when_the_interval_is_over(begun):
    saved = begun()
    for step in range(1, 8):
        Clock.now += 3  # quick steps
        saved.save_if_due(state(step), f"step {step}")
    assert step_of(saved) is None
    for step in range(8, 203):  # the 100th is the first at 300 s, the 200th the second
        Clock.now += 3
        saved.save_if_due(state(step), f"step {step}")
    assert step_of(begun()) == 200 and saved.where == "step 200"


def test_slow_steps_are_followed_by_one_each_and_quick_ones_again_are_not(begun):
    saved = begun()
    for step, seconds in enumerate([1, 1, 5, 9, 2], start=1):
        Clock.now += seconds
        saved.save_if_due(state(step), f"step {step}")
        assert step_of(begun()) == {1: None, 2: None, 3: 3, 4: 4, 5: 4}[step]


def test_sigterm_at_any_moment_of_the_call_ends_with_the_state_saved(begun):
    """While nothing is due it comes too late for this step, and the next one is saved."""
    saved = begun()
    look = saved.look

    def interrupted():
        due = look()
        signal.raise_signal(signal.SIGTERM)
        return due

    saved.look = interrupted
    saved.save_if_due(state(1), "step 1")
    saved.look = look
    with pytest.raises(SystemExit):
        saved.save_if_due(state(2), "step 2")
    assert step_of(begun()) == 2


def test_slow_passes_of_a_batch_lead_to_one_after_the_batch(begun):
    """A sample stage looks before every pass through the network."""
    saved = begun()
    for seconds in (1, 6, 6):
        Clock.now += seconds
        saved.look()
    Clock.now += 6
    saved.save_if_due(state(20), "image 20")
    assert step_of(begun()) == 20


def test_it_is_of_its_settings_inputs_and_code(begun):
    saved = begun()
    saved.told_to_stop = True
    with pytest.raises(SystemExit):
        saved.save_if_due(state(3), "step 3")
    assert step_of(begun()) == 3
    assert step_of(begun([2])) is None
    Path("input").write_text("2")
    assert step_of(begun()) is None
    Path("input").write_text("1")
    assert step_of(begun()) == 3
    Path("code.py").write_text("x = 2")
    assert step_of(begun()) is None


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "list"])
def test_a_damaged_one_is_told_and_the_stage_begins_anew(begun, capsys, damage):
    saved = begun()
    saved.told_to_stop = True
    with pytest.raises(SystemExit):
        saved.save_if_due(lambda: {"step": np.arange(1000)}, "step 3")
    path = saved.path / "state.safetensors"
    whole = path.read_bytes()
    if damage == "list":
        (saved.path / files.CHECKSUMS).write_text("{")
    elif damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[:-9] if damage == "cut" else whole[:-9] + b"\1" + whole[-8:])
    capsys.readouterr()
    assert begun().saved() is None
    assert capsys.readouterr().err == f"the checkpoint {saved.path} is damaged: the stage begins anew\n"
    assert not saved.path.exists()


def test_a_full_disk_costs_the_checkpoint_and_not_the_stage(begun, monkeypatch, capsys):
    saved, write = begun(), Path.write_bytes

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    Clock.now += 301
    saved.save_if_due(state(1), "step 1")
    monkeypatch.setattr(Path, "write_bytes", full)
    Clock.now += 301
    saved.save_if_due(state(2), "step 2")
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {saved.path} was not written: the disk is full, it needs 0.1 MiB and ")
    assert step_of(begun()) == 1  # the old one is whole
    Clock.now += 301
    monkeypatch.setattr(Path, "write_bytes", write)
    saved.save_if_due(state(3), "step 3")
    assert step_of(begun()) == 3
    monkeypatch.setattr(Path, "write_bytes", full)
    saved.told_to_stop = True
    with pytest.raises(SystemExit) as ended:
        saved.save_if_due(state(4), "step 4")
    assert ended.value.code == 143
    assert "stopped at step 4: the same command goes on from step 3" in capsys.readouterr().err


def test_sigterm_ends_a_stage_within_a_step_that_does_not_end(tmp_path):
    """A step inside C code, where Python runs no handler: what was saved before it stays."""
    code = f"""
import hashlib, sys
sys.path.insert(0, {str(ROOT)!r})
from types import SimpleNamespace
import numpy as np
from stages.run import checkpoint
checkpoint.GRACE_S = 1
job = SimpleNamespace(device="cpu", phase="train", key="a", params=dict(checkpoint_minutes=0))
saved = checkpoint.Checkpoint(job, [], [], [])
saved.save_if_due(lambda: dict(step=np.array([3])), "step 3")
print("begun", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes
"""
    stage = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert stage.stdout.readline() == "begun\n"
    started = time.monotonic()
    stage.send_signal(signal.SIGTERM)
    told = stage.communicate(timeout=30)[1]
    assert 1 <= time.monotonic() - started < 1 + 4
    assert stage.returncode == 128 + signal.SIGTERM
    assert told == "stopped within a step: the same command goes on from step 3\n"
    (kept,) = (tmp_path / "scratch/train/a").iterdir()
    assert files.load_arrays(kept / "state.safetensors")["step"].tolist() == [3]


def test_without_a_listener_such_a_step_is_not_ended(tmp_path):
    """What the test above would miss if Python ran its handlers inside C code: the stage lives on."""
    code = (
        "import hashlib, signal\nsignal.signal(signal.SIGTERM, lambda *_: exit(143))\nprint('begun', flush=True)\n"
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    stage = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert stage.stdout.readline() == "begun\n"
    time.sleep(1)  # until it is within the C code
    stage.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        stage.wait(timeout=2)
    stage.kill()
    stage.communicate()
