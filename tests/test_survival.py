"""A running experiment that is killed, warned, started three times at once, on a full disk, or whose files are damaged."""

import contextlib
import importlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, Project
from kill_harness import GONE_S, Harness, Watch, check_aftermath, processes_in

from stages import experiments, shard
from stages.run import cli, files, lock

IET = "iet_agc_plus-seed3"


@pytest.fixture
def inside(finished, tmp_path, monkeypatch):
    """Runs stages of a copy of the finished experiment in this process; gives the copy."""
    import torch

    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    project = finished.copy(tmp_path / "project")
    for name in ("DVC_STAGE", "REDISTRIBUTE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(project.root)
    yield project
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)
    signal.set_wakeup_fd(-1)
    files.own_unfinished("other")


def run_stage(command):
    module, *arguments = command.split()
    importlib.import_module(f"stages.{module}").main(arguments)


def same_results(project, reference, arm):
    found = {path: md5 for path, md5 in project.results().items() if arm in path}
    assert len(found) >= 6
    assert found == {path: md5 for path, md5 in reference.results().items() if arm in path}


@pytest.mark.slow
def test_kills_and_a_warning_change_no_result_and_leave_nothing_behind(finished, tmp_path):
    """The short form of `make kills`: DVC, then the whole group get SIGKILL, then snakemake SIGTERM, in the middle of training."""
    project = Project.create(tmp_path / "project", TINY)
    project.keep_arm("ddpm")
    project.edit(checkpoint_minutes=0)
    watch = Watch(project.root)
    watch.start()
    harness = Harness(project, seed=0, log=io.StringIO(), longest_wait_s=0.2)
    for number, victim in (("SIGKILL", "dvc"), ("SIGKILL", "group"), ("SIGTERM", "snakemake")):
        if harness.snakemake:
            harness.snakemake.wait()
        while not (entry := harness.kill_once(signal.Signals[number], (victim,))):
            assert harness.snakemake.poll() is None, "it ended before it was killed"
        assert entry["computing"] and entry["stage"].startswith("train"), entry
    told = time.monotonic()
    harness.snakemake.wait(timeout=30)
    while processes_in(project.root):
        assert time.monotonic() - told < GONE_S
        time.sleep(0.1)
    assert re.search(
        r"stopped at step \d+ of 60: the same command goes on from there",
        (project.root / "logs/train/ddpm-seed3-round1-shard0.log").read_text(),
    )
    assert harness.finish() == 1
    check_aftermath(project, harness, watch)
    same_results(project, finished, "ddpm-seed3")


@pytest.mark.slow
def test_what_was_finished_when_everything_was_killed_is_not_trained_again(tmp_path):
    """Between the end of a stage and the folding of its record: by `snakemake`, nor by a `dvc repro` that comes first."""
    project = Project.create(tmp_path / "project", TINY)
    project.keep_arm("ddpm")
    train = "train@ddpm-seed3-round1-shard0"
    harness = Harness(project, seed=0, log=io.StringIO())
    harness.start()
    record = project.root / lock.RECORDS / train
    while not record.exists():
        assert harness.snakemake.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.killpg(harness.snakemake.pid, signal.SIGKILL)
    harness.snakemake.wait()
    while processes_in(project.root):
        time.sleep(0.1)
    assert record.exists() and (not (project.root / "dvc.lock").exists() or train not in project.lock())

    other = project.copy(tmp_path / "other")
    said = other.run("dvc", "repro", train).text
    assert f"Stage '{train}' is cached - skipping run" in said and train not in other.stages_run(said)
    listed = project.run("snakemake", "-n").text
    assert not list(record.parent.iterdir()) and train in project.lock()
    assert project.lock()[train] == other.lock()[train]
    assert "train ddpm" not in listed and "aggregate ddpm" in listed, listed
    assert "train ddpm" not in other.run("snakemake", "-n").text  # which folds the records that are left


@pytest.mark.slow
def test_three_doors_at_once_on_one_stage(finished, tmp_path):
    """One runs it; the others wait for it, or say who holds it. No two compute it at a time, and the result is one."""
    project = finished.copy(tmp_path / "project")
    project.edit(arms__ddpm__train__epochs=11, checkpoint_minutes=0)
    key = "ddpm-seed3-round1-shard0"
    by_hand = [sys.executable, "-m", "stages.train", *["--arm", "ddpm", "--seed", "3", "--round", "1", "--shard", "0"]]
    doors = [by_hand, ["dvc", "repro", f"train@{key}"], ["snakemake", "--cores", "2"], ["snakemake", "--cores", "2"]]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "DVC_NO_ANALYTICS": "1",
    }
    watch = Watch(project.root)
    watch.start()
    running = [
        subprocess.Popen(
            door, cwd=project.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for door in doors
    ]
    said = [door.communicate(timeout=300)[0] for door in running]
    watch.stop()
    assert watch.two_at_once == [] and watch.most == 1
    holders = (
        r"is held by process \d+: waiting for it|is busy, it is being blocked by|Unable to acquire lock|"
        r"another snakemake \(process \d+\) is at work in this folder"
    )
    assert any(door.returncode == 0 for door in running), said
    assert running[0].returncode == 0, said[0]  # a stage by hand waits
    for door, text in zip(running, said):
        assert "Traceback" not in text
        assert door.returncode == 0 or re.search(holders, text), text
    assert sorted(door.returncode for door in running[2:])[1] != 0  # of two snakemake one was turned away
    result = [
        (project.root / f"artifacts/train/ddpm-seed3/round1/shard0/{n}.safetensors").read_bytes()
        for n in ("raw", "state")
    ]
    project.run("snakemake")
    project.run(*by_hand)
    again = [
        (project.root / f"artifacts/train/ddpm-seed3/round1/shard0/{n}.safetensors").read_bytes()
        for n in ("raw", "state")
    ]
    assert result == again
    assert "up to date" in project.run("dvc", "status").text


DAMAGED = {
    "artifacts/data/train.npy": "train --arm ddpm --seed 3 --round 1 --shard 0",
    "artifacts/data/train_labels.npy": "shard --arm ddpm --seed 3",
    "artifacts/data/keys.json": "score --arm ddpm --seed 3 --round 1",
    "artifacts/data/heldout.npy": "score --arm ddpm --seed 3 --round 1",
    f"artifacts/shards/{IET}/round2/shard1.npy": "train --arm iet_agc_plus --seed 3 --round 2 --shard 1",
    f"artifacts/shards/{IET}/round1/shard1.npy": "redistribute --arm iet_agc_plus --seed 3 --round 1",
    f"artifacts/train/{IET}/round1/shard0/state.safetensors": "train --arm iet_agc_plus --seed 3 --round 2 --shard 0",
    f"artifacts/train/{IET}/round1/shard1/ema.safetensors": "aggregate --arm iet_agc_plus --seed 3 --round 1",
    f"artifacts/results/counts/{IET}/round1/shard1/counts.safetensors": "redistribute --arm iet_agc_plus --seed 3 --round 1",
    f"artifacts/model/{IET}/round1/raw.safetensors": "train --arm iet_agc_plus --seed 3 --round 2 --shard 0",
    f"artifacts/model/{IET}/round2/raw.safetensors": "sample --arm iet_agc_plus --seed 3 --round 2 --part 0",
    "artifacts/samples/ddpm-seed3/round1/part1/raw.npy": "score --arm ddpm --seed 3 --round 1",
    "artifacts/results/score/ddpm-seed3/round1/images.parquet": "report",
    "artifacts/results/score/ddpm-seed3/round1/gallery.safetensors": "report",
    "artifacts/results/score/ddpm-seed3/round1/scores.json": "report",
}


def flip(path):
    """The middle byte of a file another, time and size as before: DVC does not look at its content again."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_flipped_byte_in_whatever_a_stage_reads_is_named_when_it_starts(inside):
    for name, command in DAMAGED.items():
        path = inside.root / name
        flip(path)
        with pytest.raises(ValueError) as caught:
            run_stage(command)
        assert str(caught.value).startswith(f"{name} is damaged: "), command
        flip(path)
        assert not list(inside.root.glob("scratch/unfinished/*"))


@pytest.mark.slow
def test_damage_that_dvc_does_not_see_is_mended_as_told(finished, tmp_path):
    """In the cache too, which shares the bytes: through snakemake, to the results of an undamaged run."""
    project = finished.copy(tmp_path / "project")
    project.run("dvc", "checkout", "--force", "--relink")  # hard links, as in the original
    model = project.root / f"artifacts/model/{IET}/round2/ema.safetensors"
    project.edit(sample__num_steps=4)
    flip(model)
    told = project.run("snakemake", check=False)
    assert told.returncode != 0
    sentence = re.search(
        r"error: (\S+) is damaged: .* remove (\S+), and (files/md5/\S+) in the cache \(\.dvc/cache\)", told.text
    )
    assert sentence.group(1) == f"artifacts/model/{IET}/round2/ema.safetensors"
    project.run("rm", "-rf", sentence.group(2), f".dvc/cache/{sentence.group(3)}")
    project.run("snakemake")
    aggregate = f"artifacts/model/{IET}/round2"
    assert project.results()[aggregate] == finished.results()[aggregate]
    undamaged = finished.copy(tmp_path / "undamaged")
    undamaged.edit(sample__num_steps=4)
    undamaged.run("snakemake")
    assert project.lock() == undamaged.lock()


@pytest.fixture
def full_disk(finished, tmp_path, monkeypatch):
    """A copy of the finished experiment's artifacts on a real tmpfs of 16 MiB without a free page."""
    import torch

    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place]
    if os.geteuid() or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    try:
        for name in ("artifacts", "plots", "params.yaml", "plan.json", "metrics.json", "workflow"):
            subprocess.run(["cp", "-r", finished.root / name, place / name], check=True)
        with contextlib.chdir(place):
            Path("scratch/unfinished").mkdir(parents=True)
            Path("scratch/locks").mkdir()
            with open("filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(4096))
            yield place
    finally:
        torch.set_num_threads(threads)
        signal.signal(signal.SIGTERM, handler)
        signal.set_wakeup_fd(-1)
        files.own_unfinished("other")
        subprocess.run(["umount", place], check=True)


WRITERS = {
    "data": "artifacts/data",
    "shard --arm ddpm --seed 3": "artifacts/shards/ddpm-seed3/round1",
    "train --arm ddpm --seed 3 --round 1 --shard 0": "artifacts/results/counts/ddpm-seed3/round1/shard0",
    "aggregate --arm iet_agc_plus --seed 3 --round 1": f"artifacts/model/{IET}/round1",
    "redistribute --arm iet_agc_plus --seed 3 --round 1": f"artifacts/shards/{IET}/round2",
    "sample --arm ddpm --seed 3 --round 1 --part 0": "artifacts/samples/ddpm-seed3/round1/part0",
    "score --arm ddpm --seed 3 --round 1": "artifacts/results/score/ddpm-seed3/round1",
    "report": "artifacts/report",
}


def contents(place):
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file() and "locks" not in path.parts}


def test_on_a_full_disk_a_stage_of_the_tiny_experiment_leaves_what_was_there_and_says_what_it_needs(full_disk):
    before = contents(full_disk)
    for command, output in WRITERS.items():
        with pytest.raises(OSError) as caught:
            run_stage(command)
        sentence = f"{output} was not written: the disk is full, it needs "
        assert str(caught.value).startswith(sentence), (command, str(caught.value))
        needed = float(re.match(r"([\d.]+) MiB and 0.0 MiB are free in ", str(caught.value)[len(sentence) :]).group(1))
        assert needed >= 0.1
        assert contents(full_disk) == before, command


def test_on_a_disk_that_became_read_only_a_stage_ends_in_one_sentence(full_disk, monkeypatch, capsys):
    from stages import shard

    for name in ("DVC_STAGE", "REDISTRIBUTE_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    before = contents(full_disk)
    Path("filler").unlink()
    monkeypatch.setattr(sys, "argv", ["shard", "--arm", "ddpm", "--seed", "3"])
    subprocess.run(["mount", "-o", "remount,ro", full_disk], check=True)
    with pytest.raises(SystemExit) as ended:
        cli.run(shard.main)
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: scratch/locks/shard@ddpm-seed3 cannot be used (Read-only file system)\n"
    assert contents(full_disk) == {path: content for path, content in before.items() if not path.endswith("filler")}


def test_a_time_that_cannot_be_recorded_costs_no_result(inside, monkeypatch, capsys):
    monkeypatch.setattr(files, "LOGS", Path("params.yaml"))  # no folder can be made in a file
    run_stage("shard --arm ddpm --seed 3")
    assert capsys.readouterr().err.startswith("warning: ")
    assert (inside.root / "artifacts/shards/ddpm-seed3/round1/shard0.npy").exists()


def test_a_stage_clears_what_a_killed_one_of_its_name_left(inside):
    """And nothing of another one, which may be at work."""
    left = {"shard@ddpm-seed3~0-round1": False, "shard@ddpm-seed33~0-round1": True, "train@ddpm-seed3~0": True}
    for name in left:
        Path("scratch/unfinished", name).mkdir(parents=True)
        Path("scratch/unfinished", name, "part").write_text("half")
    with experiments.stage(shard.PHASE, "", ["--arm", "ddpm", "--seed", "3"]):
        assert {name: Path("scratch/unfinished", name).exists() for name in left} == left
