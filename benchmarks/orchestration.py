"""What Snakemake and DVC cost per stage: wall time of an experiment whose stages do nothing.

The stages of a small experiment are run once, then once more in a fresh copy where every command only puts its outputs in
place. What is left is the start of the run, DVC's bookkeeping and the launcher, shared by --cores stages at a time. Above it
stands the start-up of each stage's own Python (see benchmarks.startup).
"""

from benchmarks import common

CHOSEN = common.arguments(__doc__, threads=1, cores=2, seeds=6, rounds=2, shards=2)

import re  # noqa: E402
import time  # noqa: E402

import yaml  # noqa: E402

from benchmarks import project  # noqa: E402


def experiment():
    arm = {
        "rounds": CHOSEN.rounds, "method": {"name": "agc", "lambda": 0.5, "eta": 0.8}, "shard": {"num_shards": CHOSEN.shards},
        "train": {"epochs": 1}, "redistribute": {"share": 0.25, "select": "memory"}, "sample": {},
    }  # fmt: skip
    shared = {"seeds": list(range(CHOSEN.seeds))} | yaml.safe_load(project.EXPERIMENT) | {"arms": {"iet_agc": arm}}
    shared["data"]["num_train"] = max(60, 12 * CHOSEN.shards)  # a batch in each shard
    return shared


PUT = 'kept=$1; shift; for f; do mkdir -p "$(dirname "$f")" && cp -r "$kept/$f" "$f" || exit 1; done\n'


def main():
    common.heading()
    params = experiment()
    command = ["snakemake", "--cores", str(CHOSEN.cores)]
    with project.copy(params) as whole, project.copy(params) as empty:
        start = time.perf_counter()
        done = project.run(whole, *command)
        with_work = time.perf_counter() - start
        number = int(re.search(r"(\d+) of \1 steps", done.stdout + done.stderr).group(1)) - 1  # without the rule all
        definition = (empty / "dvc.yaml").read_text(encoding="utf-8")
        (empty / "dvc.yaml").write_text(project.empty_commands(definition, whole), encoding="utf-8")
        (empty / "put.sh").write_text(PUT, encoding="utf-8")
        start = time.perf_counter()
        project.run(empty, *command)
        without_work = time.perf_counter() - start
        start = time.perf_counter()
        again = project.run(empty, *command)
        nothing = time.perf_counter() - start
        assert "Nothing to be done" in again.stdout + again.stderr
    print(f"\n{number} stage instances, {CHOSEN.cores} at a time")
    print(f"with real stages of a few steps:      {with_work:7.1f} s, {with_work / number:.2f} s each")
    print(f"with commands that do nothing:        {without_work:7.1f} s, {without_work / number:.2f} s each")
    print(f"nothing to be done:                   {nothing:7.1f} s")


if __name__ == "__main__":
    main()
