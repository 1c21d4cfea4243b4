"""What DVC and Snakemake take for an experiment of many stage instances whose commands do nothing.

No stage runs: the outputs are made up, a byte or so each, and recorded in dvc.lock as if they had. Then, for each number of
instances: how long DVC takes to read the graph, Snakemake to say what a run from scratch would be and that nothing is to be done,
and one stage to be skipped and to be run, alone and four at a time.
"""

from benchmarks import common

CHOSEN = common.arguments(__doc__, threads=1, instances="100,1000,5000", shards=10, rounds=20)

import os  # noqa: E402
import re  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import yaml  # noqa: E402

from benchmarks import project  # noqa: E402
from stages import plan  # noqa: E402

# Makes the outputs of all stages and records them, and puts those of a few into the cache: run in the copy.
MADE_UP = """
import sys
from pathlib import Path
import yaml
from dvc.repo import Repo
sys.path[:0] = [".", "workflow/scripts"]
import schedule

repo = Repo()
with repo.lock:
    pipeline = schedule.Pipeline(repo)
    for path in pipeline.makers:
        file = Path(path) if Path(path).suffix else Path(path) / "file"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
    for rounds in sorted(Path("artifacts/shards").rglob("round*")):
        for k in range(int(sys.argv[1])):
            (rounds / f"shard{k}.npy").write_text(f"{rounds}{k}")
    hashes = schedule.Hashes(repo)

    def recorded(path):
        size = {"size": Path(path).stat().st_size} | ({"nfiles": 1} if Path(path).is_dir() else {})
        return {"path": path, "hash": "md5", "md5": hashes.of(path), **size}

    entries = {}
    for name, stage in pipeline.stages.items():
        entries[name] = {
            "cmd": stage["cmd"],
            "deps": [recorded(path) for path in sorted(stage["deps"])],
            "params": {"params.yaml": {key: pipeline.setting(key) for key in sorted(stage.get("params", []))}},
            "outs": [recorded(path) for path in sorted(schedule.paths(stage["outs"]))],
        }
    yaml.CSafeDumper.ignore_aliases = lambda *_: True  # each entry by itself, as DVC writes them
    content = {"schema": "2.0", "stages": entries}
    Path("dvc.lock").write_text(yaml.dump(content, Dumper=yaml.CSafeDumper, sort_keys=False))
    for name in sys.argv[2:]:
        stage = repo.stage.load_one(name=name)
        stage.save()
        stage.commit()
"""
READ_GRAPH = "from dvc.repo import Repo; print(len(Repo().index.graph))"


def experiment(seeds, rounds):
    arm = {
        "rounds": rounds, "method": {"name": "agc", "lambda": 0.5, "eta": 0.8}, "shard": {"num_shards": CHOSEN.shards},
        "train": {"epochs": 1}, "redistribute": {"share": 0.25, "select": "memory"}, "sample": {},
    }  # fmt: skip
    params = {"seeds": list(range(seeds))} | yaml.safe_load(project.EXPERIMENT) | {"arms": {"iet_agc": arm}}
    params["data"]["num_train"] = 100 * CHOSEN.shards  # so that a shard holds a batch; no image is read
    return params


def closest(number):
    """The experiment with about this many stage instances: whole runs of --rounds rounds, or fewer rounds of one run."""
    a_run = {r: len(plan.expand(experiment(1, r))) - 3 for r in range(2, CHOSEN.rounds + 1)}
    rounds = min(a_run, key=lambda r: abs(a_run[r] + 3 - number))
    return experiment(max(1, round((number - 3) / a_run[rounds])), rounds)


def timed(root, *words):
    """(wall seconds, processor seconds, peak memory in MB of the largest process, what it said)"""
    script = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print('USED', used.ru_utime + used.ru_stime, used.ru_maxrss, flush=True)\n"
        "sys.exit(done.returncode)"
    )
    start = time.perf_counter()
    done = project.run(root, sys.executable, "-c", script, *words)
    seconds = time.perf_counter() - start
    said = done.stdout + done.stderr
    busy, peak = re.search(r"USED (\S+) (\d+)", said).groups()
    return seconds, float(busy), int(peak) / 1000, said


def repro(stage):
    return [sys.executable, "workflow/scripts/repro.py", stage, f".snakemake/receipts/{stage.replace('@', '/')}"]


def at_a_time(root, stages):
    """Seconds until all of these stages, started together, have ended."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    start = time.perf_counter()
    started = [
        subprocess.Popen(repro(s), cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for s in stages
    ]
    assert not any(process.wait() for process in started)
    return time.perf_counter() - start


def measure(number):
    params = closest(number)
    expanded = plan.expand(params)
    names = sorted(expanded)
    print(f"\n{f'{len(names)} stage instances':52} {'wall s':>8} {'CPU s':>8} {'peak MB':>8}", flush=True)
    with project.copy(params) as root:
        (root / "plan.json").write_text(plan.text(expanded), encoding="utf-8")
        project.make_up_outputs(root, params)

        def row(what, *words, expect=""):
            seconds, busy, peak, said = timed(root, *words)
            assert expect in said, said[-2000:]
            print(f"{what:52} {seconds:8.1f} {busy:8.1f} {peak:8.0f}", flush=True)

        row("snakemake -n, nothing run yet: everything is to run", "snakemake", "-n", "--quiet", "all")
        row("DVC reads the graph", sys.executable, "-c", READ_GRAPH, expect=str(len(names)))
        some = [n for n in names if n.startswith("train_next@") and "round2-" in n][:5]
        row("(made up)", sys.executable, "-c", MADE_UP, str(CHOSEN.shards), *some)
        row("snakemake -n", "snakemake", "-n", expect="Nothing to be done")
        row("one stage is skipped", *repro(some[0]), expect="didn't change")
        project.make_up_outputs(root, params, word="_again")  # so that they have to run
        row("one stage runs (an empty command)", *repro(some[4]), expect="Running stage")
        print(f"{'four stages at a time, each':52} {at_a_time(root, some[:4]) / 4:8.1f}", flush=True)
        size = (root / "dvc.lock").stat().st_size
        print(f"dvc.lock {size / 1e6:.2f} MB, plan.json {(root / 'plan.json').stat().st_size / 1e6:.2f} MB")


def main():
    common.heading()
    for number in CHOSEN.instances.split(","):
        measure(int(number))


if __name__ == "__main__":
    main()
