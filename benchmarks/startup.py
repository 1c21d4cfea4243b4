"""Start-up of the stages: from process start to the first optimiser step, and whole phases that need no network.

In a copy of the project with its params.yaml, file cache warm. `import diffusers` the usual way is timed beside it.
"""

from benchmarks import common

CHOSEN = common.arguments(__doc__, threads=1, turns=5)

import sys  # noqa: E402

import yaml  # noqa: E402

from benchmarks import project  # noqa: E402

# Runs the train stage as `python -m stages.train` does and ends the process when the first optimiser step is done.
FIRST_STEP = """
import os, runpy, sys
from stages.methods import loop
train_step = loop.train_step
def first(*arguments):
    float(train_step(*arguments))
    os._exit(0)
loop.train_step = first
runpy.run_module("stages.train", run_name="__main__", alter_sys=True)
"""


def main():
    common.heading()
    params = yaml.safe_load((project.ROOT / "params.yaml").read_text(encoding="utf-8"))
    recipe = params["arms"]["iet_agc_plus"]
    params["arms"] = {"iet_agc_plus": recipe | {"train": {"epochs": 1}, "rounds": 2}}
    arm, first = ["--arm", "iet_agc_plus", "--seed", "0"], ["--round", "1"]
    with project.copy(params) as root:

        def stage(name, *words):
            return lambda: project.run(root, sys.executable, "-m", f"stages.{name}", *words)

        # Renews plan.json, and says so with an error.
        project.run(root, sys.executable, "-m", "stages.plan", check=False)
        stage("data")()
        stage("shard", *arm)()
        for shard in range(recipe["shard"]["num_shards"]):
            stage("train", *arm, *first, "--shard", str(shard))()
        shard = [*arm, *first, "--shard", "0"]
        sides = {
            "import diffusers' UNet2DModel": lambda: project.run(
                root, sys.executable, "-c", "from diffusers import UNet2DModel"
            ),
            "train, to the first step": lambda: project.run(root, sys.executable, "-c", FIRST_STEP, *shard),
            "train, whole stage of one step": stage("train", *shard),
            "plan": stage("plan"),
            "shard": stage("shard", *arm),
            "aggregate": stage("aggregate", *arm, *first),
            "redistribute": stage("redistribute", *arm, *first),
        }
        times = common.take_turns(sides, CHOSEN.turns, what="start-up")
    common.table("Wall time of processes", times, "import diffusers' UNet2DModel")


if __name__ == "__main__":
    main()
