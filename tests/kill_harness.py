"""Kills a random process of a running experiment at random moments, then compares with an undisturbed run: `make kills`.

    python tests/kill_harness.py [--kills 20] [--seed 0] [--folder FOLDER]

A small experiment runs through Snakemake. Each kill is a SIGKILL of one of: the stage, the DVC that started it, snakemake, or
the whole process group; most wait until a train or sample stage has written its first checkpoint, so that it computes, some until
snakemake puts records into dvc.lock. Half of the time the experiment is started again at once, while what was killed may still be ending. Then it is left to finish.

What must hold: dvc.lock (metrics included) is that of the undisturbed run; what a kill leaves behind is gone within GONE_S; no
two processes compute one stage at a time; nothing blocks the next run; no unfinished file or checkpoint is left.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import TINY, Project
from safetensors import SafetensorError
from safetensors.numpy import load_file

from stages.run import processes

COMPUTE = ("train@", "train_next@", "sample@")  # the phases that compute for long
VICTIMS = ("stage", "dvc", "snakemake", "group")
GONE_S = 12  # a stage has 10 seconds to write its checkpoint and end
LEAST_S = 100  # of the undisturbed run: a shorter one would end before the last kill


def experiment(length):
    """params.yaml of the experiment; with twice the length twice the work of the stages that compute."""
    return (
        TINY.replace("epochs: 10}", f"epochs: {80 * length}}}")
        .replace("num_images: 50, parts: 2, batch_size: 20", f"num_images: {900 * length}, parts: 2, batch_size: 20")
        .replace("seeds: [3]", "seeds: [3]\ncheckpoint_minutes: 0.005")
    )


def undisturbed(root):
    """A project in which the experiment has run, long enough for this machine, and one for the kills: of the same params.yaml."""
    for length in (1, 4, 16):
        folder = root / f"undisturbed-{length}"
        print(f"undisturbed run in {folder}", flush=True)
        folder.mkdir(parents=True)
        reference, begun = Project.create(folder, experiment(length)), time.monotonic()
        reference.run("snakemake", "--cores", "2", timeout=3600)
        took = time.monotonic() - begun
        print(f"it took {took:.0f} s", flush=True)
        if took >= LEAST_S:
            break
    (root / "killed").mkdir()
    return reference, Project.create(root / "killed", experiment(length))


def processes_in(folder):
    """dict pid -> command line of the processes that live in a folder, this one left out."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and Path(process.cwd()) == folder and process.status() != "zombie":
                found[process.pid] = process.cmdline()
        except (psutil.Error, OSError):
            continue
    return found


def lives(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != "zombie"
    return False


def stage_of(command):
    """phase@key of the command line of a stage, None for any other process."""
    if "-m" not in command or not command[command.index("-m") + 1].startswith("stages."):
        return None
    phase, *words = command[command.index("-m") + 1 :]
    options = dict(zip(words[::2], words[1::2]))
    key = "-".join(value if name == "--arm" else f"{name[2:]}{value}" for name, value in options.items())
    return f"{phase.removeprefix('stages.')}@{key}"


def computes(pid, stage):
    """Whether a process is inside a stage: torch is imported under the stage's lock, whose file it then has open.

    A process that it forks is one with it until it runs a program of its own.
    """
    try:
        opened = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        inside = any(path.endswith(f"/scratch/locks/{stage}") for path in opened)
        forked = stage_of(psutil.Process(pid).parent().cmdline()) == stage
        return inside and not forked and "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    except (OSError, psutil.Error, AttributeError):
        return False


class Watch(threading.Thread):
    """Looks ten times a second who is at work in a folder.

    two_at_once   stages that two processes computed at a time, which must stay empty
    """

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.two_at_once, self.most, self.looks, self.stopped = folder, [], 0, 0, threading.Event()

    def run(self):
        while not self.stopped.wait(0.1):
            pids = {}
            for pid, command in processes_in(self.folder).items():
                stage = stage_of(command)
                if stage and stage.startswith(COMPUTE) and computes(pid, stage):
                    pids.setdefault(stage, []).append(pid)
            self.looks += 1
            self.most = max(self.most, *map(len, pids.values()), 0)
            self.two_at_once += [(stage, found) for stage, found in pids.items() if len(found) > 1]

    def stop(self):
        self.stopped.set()
        self.join()


class Harness:
    def __init__(self, project, seed, log, longest_wait_s=1.5):
        self.project, self.rng, self.log, self.longest_wait_s = project, random.Random(seed), log, longest_wait_s
        self.snakemake, self.kills, self.left, self.slowest_end_s = None, [], [], 0.0

    def start(self):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("REDISTRIBUTE", "DVC_", "SNAKEMAKE"))}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        output = open(self.project.root / "snakemake.log", "w")  # noqa: SIM115
        self.snakemake = subprocess.Popen(
            ["snakemake", "--cores", "2"], cwd=self.project.root, env=environment, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        output.close()

    def checkpoint_of(self, pid, stage):
        """Step of a train stage, or images of a sample stage, that the last checkpoint of this process holds; None without one."""
        phase, key = stage.split("@")
        for path in (self.project.root / "scratch" / phase / key).glob("*/*.safetensors"):
            try:
                if path.stat().st_mtime <= psutil.Process(pid).create_time():
                    continue  # of a process that was killed
                arrays = load_file(path)
            except (OSError, SafetensorError, psutil.Error):  # replaced or removed this moment
                continue
            return int(arrays["step" if phase == "train" else "done"][0])
        return None

    def computing(self, phases, within_s=90):
        """A stage of these phases that has written a checkpoint: (pid, stage, how far); None where snakemake ends before."""
        deadline = time.monotonic() + within_s
        while self.snakemake.poll() is None and time.monotonic() < deadline:
            running = list(processes_in(self.project.root).items())
            self.rng.shuffle(running)
            for pid, command in running:
                stage = stage_of(command) or ""
                if stage.startswith(phases) and self.checkpoint_of(pid, stage) is not None:
                    time.sleep(self.rng.uniform(0, self.longest_wait_s))
                    if (done := self.checkpoint_of(pid, stage)) is not None:
                        return pid, stage, done
            time.sleep(0.05)
        return None

    def folding(self, within_s=120):
        """Whether snakemake puts records into dvc.lock: its new file lies in scratch/ for a moment. False where it ends before."""
        deadline = time.monotonic() + within_s
        while self.snakemake.poll() is None and time.monotonic() < deadline:
            if list((self.project.root / "scratch/unfinished").glob("snakemake~*-dvc.lock")):
                time.sleep(self.rng.choice([0, 0.001, 0.005]))  # before it is renamed, or before the records go
                return True
            time.sleep(0.0005)
        return False

    def kill_once(self, number=signal.SIGKILL, victims=VICTIMS, anywhere=False, folding=False, phases=COMPUTE):
        """Waits for a moment and kills.

        phases     while a stage of one of these computes
        anywhere   at any moment, in the place of one when such a stage computes
        folding    while snakemake puts records into dvc.lock: snakemake or the group
        Returns    the entry of the log, None where the experiment ended before the moment came
        """
        if self.snakemake is None or self.snakemake.poll() is not None:
            self.start()
        if anywhere:
            time.sleep(self.rng.uniform(0, 12))
            stages = [
                (pid, stage, None) for pid, c in processes_in(self.project.root).items() if (stage := stage_of(c))
            ]
            found = self.rng.choice(stages) if stages else (None, None, None)
        elif folding:
            found = (None, None, None) if self.folding() else None
        else:
            found = self.computing(phases)
        if found is None or self.snakemake.poll() is not None:
            return None
        pid, stage, done = found
        victim = self.rng.choice(victims if pid else ("snakemake", "group"))
        before = processes_in(self.project.root)
        started = {}
        for p in before:
            with contextlib.suppress(psutil.NoSuchProcess):
                started[p] = psutil.Process(p)
        try:
            target = {"stage": pid, "dvc": pid and psutil.Process(pid).ppid()}.get(victim, self.snakemake.pid)
            if target not in before:  # it has just ended, or the stage is on its way out without a parent
                return None
            (os.killpg if victim == "group" else os.kill)(target, number)
        except (psutil.Error, ProcessLookupError):  # the stage has just ended
            return None
        entry = {
            "kill": len(self.kills) + 1, "signal": signal.Signals(number).name, "victim": victim, "pid": target,
            "stage": stage, "computing": done is not None, "checkpoint": done, "folding": folding,
        }  # fmt: skip
        self.kills.append(entry)
        print(json.dumps(entry), file=self.log, flush=True)
        hung = [started[p] for p in (before if victim in ("snakemake", "group") else (target, pid)) if p in started]
        threading.Thread(target=self._look_for_orphans, args=(hung, entry), daemon=True).start()
        if victim in ("snakemake", "group"):
            self.snakemake.wait()
            time.sleep(self.rng.choice([0, 4]))
        return entry

    def _look_for_orphans(self, hung, entry):
        """What hung on the killed process must be gone in time; snakemake itself goes on with other stages."""
        begun = time.monotonic()
        while left := [process.pid for process in hung if lives(process)]:
            if time.monotonic() - begun > GONE_S:
                self.left.append((entry, left))
                return
            time.sleep(0.1)
        self.slowest_end_s = max(self.slowest_end_s, time.monotonic() - begun)

    def finish(self, within_s=900):
        """Lets the experiment end, starting it again after failures that a kill caused. Returns the number of starts."""
        deadline, starts = time.monotonic() + within_s, 0
        while True:
            if self.snakemake is not None:
                self.snakemake.wait(timeout=max(1, deadline - time.monotonic()))
                if self.snakemake.returncode == 0:
                    return starts
                assert starts < 2, (
                    f"it does not end by itself any more:\n{(self.project.root / 'snakemake.log').read_text()}"
                )
            self.start()
            starts += 1


def check_aftermath(project, harness, watch):
    """Raises AssertionError where something runs on, blocks or lies about after the experiment has ended."""
    watch.stop()
    time.sleep(1)
    assert harness.left == [], f"orphans: {harness.left}"
    assert watch.two_at_once == [], f"two processes at one stage: {watch.two_at_once}"
    assert processes_in(project.root) == {}
    for path in [*(project.root / "scratch/locks").iterdir(), project.root / ".snakemake/redistribute.lock"]:
        lock = processes.FileLock(path)
        assert lock.try_acquire(), f"{path} is still held"
        lock.release()
    assert "Nothing to be done" in project.run("snakemake", "-n").text
    status = project.run("dvc", "status").text
    assert "up to date" in status, status
    assert not list((project.root / "scratch").glob("unfinished/*@*")), "an unfinished file of a stage was left"
    assert not list((project.root / "scratch").rglob("*.safetensors")), "a checkpoint was left"


def check_results(project, reference):
    assert project.lock() == reference.lock()
    assert (project.root / "metrics.json").read_bytes() == (reference.root / "metrics.json").read_bytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default: a new temporary folder")
    chosen = parser.parse_args()
    root = chosen.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    started = time.monotonic()

    reference, project = undisturbed(root)
    print(f"now {chosen.kills} kills, seed {chosen.seed}", flush=True)

    watch = Watch(project.root)
    watch.start()
    with open(root / "kills.jsonl", "w") as log:
        harness = Harness(project, chosen.seed, log)
        while len(harness.kills) < chosen.kills:
            number = len(
                harness.kills
            )  # of 20, 3 at any moment, 3 while records are folded, and 3 while a sample stage computes, for which it waits
            entry = harness.kill_once(
                anywhere=number % 6 == 5,
                folding=number % 6 == 2,
                phases=COMPUTE if number < 0.8 * chosen.kills else ("sample@",),
            )
            if entry:
                print(json.dumps(entry), flush=True)
            elif harness.snakemake.poll() == 0:
                parser.exit(1, f"the experiment ended after {len(harness.kills)} kills: it is too short\n")
        starts = harness.finish()
    check_aftermath(project, harness, watch)
    check_results(project, reference)
    computing, folding = (sum(kill[moment] for kill in harness.kills) for moment in ("computing", "folding"))
    by_victim = {victim: sum(kill["victim"] == victim for kill in harness.kills) for victim in VICTIMS}
    print(
        f"{len(harness.kills)} kills ({by_victim}), {computing} while a train or sample stage computed, {folding} while records were folded; {starts} more starts to the "
        f"end; at most {watch.most} process computed one stage in {watch.looks} looks; what a kill left behind "
        f"was gone within {harness.slowest_end_s:.1f} s; dvc.lock and metrics.json are those of the "
        f"undisturbed run; {time.monotonic() - started:.0f} s. Log: {root}/kills.jsonl"
    )


if __name__ == "__main__":
    main()
