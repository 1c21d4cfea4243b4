"""What Snakemake and DVC cost per stage: wall time of an experiment whose stages do nothing.

Every command only makes up its outputs, a few bytes each. What is left is the start of the run, DVC's bookkeeping and the launcher,
shared by --cores stages at a time. Without --experiment a small experiment is run with real stages as well, whose own Python starts
(see benchmarks.startup). In the end one setting of one arm is changed: its stages and the report must run, and no others.
"""

from benchmarks import common

CHOSEN = common.arguments(__doc__, threads=1, cores=2, seeds=6, rounds=2, shards=2, experiment=None)

import os  # noqa: E402
import re  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import yaml  # noqa: E402

from benchmarks import project  # noqa: E402
from stages import experiments, plan  # noqa: E402


def small_experiment():
    arm = {
        "rounds": CHOSEN.rounds, "method": {"name": "agc", "lambda": 0.5, "eta": 0.8}, "shard": {"num_shards": CHOSEN.shards},
        "train": {"epochs": 1}, "redistribute": {"share": 0.25, "select": "memory"}, "sample": {},
    }  # fmt: skip
    shared = {"seeds": list(range(CHOSEN.seeds))} | yaml.safe_load(project.EXPERIMENT) | {"arms": {"iet_agc": arm}}
    shared["data"]["num_train"] = max(60, 12 * CHOSEN.shards)  # a batch in each shard
    return shared


def timed(root, *words):
    """(seconds, what it said)"""
    start = time.perf_counter()
    done = project.run(root, *words)
    return time.perf_counter() - start, done.stdout + done.stderr


def change_one_arm(root, params):
    """Gives the last arm that is trained another number of epochs. Returns the stages that this reaches."""
    arm = list(experiments.trained(params))[-1]
    params["arms"][arm]["train"]["epochs"] += 1
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
    reached = {
        "train",
        "train_next",
        "aggregate",
        "redistribute",
        "redistribute_both",
        "sample",
        "score",
        "quality",
        "similarity",
        "analyse",
    }
    made_by = {other for other in params["arms"] if experiments.maker(params, other) == arm}
    return {n for n, i in plan.expand(params).items() if i.arm in made_by and i.block in reached} | {"plan", "report"}


def main():
    common.heading()
    params = (
        yaml.safe_load(Path(CHOSEN.experiment).read_text(encoding="utf-8")) if CHOSEN.experiment else small_experiment()
    )
    number = len(plan.expand(params))
    command = ["snakemake", "--cores", str(CHOSEN.cores)]
    print(f"\n{number} stage instances, {CHOSEN.cores} at a time")
    if not CHOSEN.experiment:
        with project.copy(params) as root:
            seconds, _ = timed(root, *command)
            print(f"with real stages of a few steps:      {seconds:7.1f} s, {seconds / number:.2f} s each")
    os.environ["REDISTRIBUTE_ANY_ROOM"] = "1"  # nothing of the size that is expected is written
    with project.copy(params) as root:
        if folder := params["data"].get("root"):
            (root / folder).mkdir(parents=True)
        project.make_up_outputs(root, params)
        seconds, said = timed(root, *command)
        assert f"{number + 1} of {number + 1} steps" in said, said[-2000:]  # and the rule all
        print(f"with commands that do nothing:        {seconds:7.1f} s, {seconds / number:.2f} s each", flush=True)
        seconds, said = timed(root, *command)
        assert "Nothing to be done" in said, said[-2000:]
        print(f"nothing to be done:                   {seconds:7.1f} s", flush=True)
        expected = change_one_arm(root, params)
        _, said = timed(root, "snakemake", "-n")
        listed = {name.replace(" ", "@") for name in re.findall(r"^ *\d+ of \d+  (.*)$", said, re.MULTILINE)}
        assert listed == expected, listed ^ expected
        seconds, _ = timed(root, *command)
        print(
            f"after a change of one arm, {len(expected):4} stages: {seconds:7.1f} s, {seconds / len(expected):.2f} s each"
        )


if __name__ == "__main__":
    main()
