"""The sample stage where memory runs out or it is ended: every image is still its own."""

import signal

import numpy as np
import pytest
import torch
from conftest import TINY, written_anew
from safetensors.numpy import load_file

from stages import sample
from stages.run import device, pieces, progress

IET = "iet_agc_plus-seed3"


def limited(limit, error=None):
    """A generator of images that bear their own number, with memory for `limit` of them; and the list of its calls."""
    calls = []

    def generated(start, stop):
        calls.append((start, stop))
        if stop - start > limit:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return np.arange(start, stop, dtype=np.uint8).reshape(-1, 1, 1, 1)

    return generated, calls


@pytest.mark.parametrize(("limit", "largest"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (9, 5), (10, None)])
def test_batches_that_do_not_fit_are_generated_in_pieces(limit, largest, capsys):
    generated, calls = limited(limit)
    in_pieces = pieces.InPieces(generated)
    found = np.concatenate([in_pieces(start, min(start + 10, 24)) for start in (0, 10, 20)])
    assert found[:, 0, 0, 0].tolist() == list(range(24))
    assert in_pieces.largest == largest
    failed = [call for call in calls if call[1] - call[0] > limit]
    assert len(failed) == {1: 4, 2: 3, 3: 2, 4: 2, 5: 1, 9: 1, 10: 0}[limit]  # 10, 5, 3, 2; never tried again
    assert capsys.readouterr().err.count("out of memory with") == len(failed)


def test_one_image_too_many_and_other_errors_end_it():
    with pytest.raises(ValueError, match=r"does not suffice to generate one image \(CUDA out of memory"):
        pieces.InPieces(limited(0)[0])(0, 8)
    with pytest.raises(RuntimeError, match="another reason"):
        pieces.InPieces(limited(0, RuntimeError("another reason"))[0])(0, 8)


def test_what_torch_says_when_memory_is_full():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert device.is_out_of_memory(caught.value)
    assert device.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not device.is_out_of_memory(RuntimeError("shapes do not match"))
    assert not device.is_out_of_memory(ValueError("can't allocate memory"))


@pytest.fixture
def interrupted(finished, tmp_path, monkeypatch):
    """Part 1 of the finished run's samples, of 20 and 10 images with each kind of weights, to be generated again.

    Returns start(minutes between checkpoints, function called with the images done), which gives the numbers it was called with
    """
    project = finished.copy(tmp_path / "project")
    monkeypatch.chdir(project.root)
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)

    def start(minutes, after_batch=lambda done: None):
        (project.root / "params.yaml").write_text(f"checkpoint_minutes: {minutes}\n{TINY}")
        told = []

        def update(self, done, total, note=None):
            assert total == 60
            told.append(done)
            after_batch(done)

        monkeypatch.setattr(progress.Progress, "update", update)
        try:
            sample.main(["--arm", "iet_agc_plus", "--seed", "3", "--round", "2", "--part", "1"])
        finally:
            start.told = told

    start.checkpoints = lambda: list((project.root / "scratch/sample").rglob("*.safetensors"))
    start.output = project.root / f"artifacts/samples/{IET}/round2/part1"
    yield start
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


class Killed(BaseException):
    pass


def test_a_killed_stage_goes_on_after_its_last_checkpoint(interrupted, finished):
    before = {file.name: file.read_bytes() for file in interrupted.output.iterdir()}
    assert set(before) == {"raw.npy", "ema.npy", "checksums.json"}

    def kill(done):
        if done == 50:
            raise Killed

    with pytest.raises(Killed):
        interrupted(0, kill)
    assert interrupted.told == [20, 30, 50]
    (checkpoint,) = interrupted.checkpoints()
    assert int(load_file(checkpoint)["done"][0]) == 30  # what came after it is lost
    interrupted(60)
    assert interrupted.told == [50, 60]
    assert {file.name: file.read_bytes() for file in interrupted.output.iterdir()} == before
    assert interrupted.checkpoints() == []


def test_sigterm_writes_a_checkpoint_in_the_middle_of_a_batch(interrupted, capsys):
    before = {file.name: file.read_bytes() for file in interrupted.output.iterdir()}

    def warn(done):
        if done == 30:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        interrupted(60, warn)
    assert ended.value.code == 128 + signal.SIGTERM and interrupted.told == [20, 30]
    assert "stopped at image 30 of 60: the same command goes on from there" in capsys.readouterr().err
    (checkpoint,) = interrupted.checkpoints()
    assert int(load_file(checkpoint)["done"][0]) == 30
    interrupted(60)
    assert interrupted.told == [50, 60]
    assert {file.name: file.read_bytes() for file in interrupted.output.iterdir()} == before


def test_a_checkpoint_of_other_settings_or_weights_is_not_taken_up(interrupted, finished):
    def kill(done):
        if done == 50:
            raise Killed

    with pytest.raises(Killed):
        interrupted(0, kill)
    model = interrupted.output.parents[3] / f"model/{IET}/round2/raw.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    written_anew(model, bytes(content))
    interrupted(60)
    assert interrupted.told == [20, 30, 50, 60]
