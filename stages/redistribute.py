"""Moves the most skipped images of each shard to the next shard (MSR, Eq. 10 and 11).

params    arms.<arm>.redistribute
reads     the index lists of round r, artifacts/results/counts/<run>/round<r> of exactly the K shards of the plan; with the alternating
          schedule also the counts of the round before, as nothing moved after that round
writes    artifacts/shards/<run>/round<r+1>/shard<k>.npy
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import experiments, randomness
from stages.iet import redistribution, rounds
from stages.run import cli, declarations, files
from stages.run.instance import START_UP, Instance

# fmt: off
PHASE = {
    "name": "redistribute",
    "per": "round",
    "arms": "trained",
    "arm_section": {
        "description": "how images move between shards (MSR); {} for no moves",
        "default": {},
        "dependentRequired": {"share": ["select"], "select": ["share"], "schedule": ["share"]},
        "properties": {
            "share": {"description": "P, share of each shard that moves to the next shard after a round", "type": "number", "exclusiveMinimum": 0, "maximum": 1},
            "select": {"description": "which images move. memory: the most skipped ones; random: random ones", "enum": ["memory", "random"]},
            "schedule": {"description": "joint: every round ends with averaging and moving; alternating: odd rounds end with moving, even rounds with averaging, as in the authors' code for Stable Diffusion (default: joint)", "enum": ["joint", "alternating"]},
        },
    },
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Move(Instance):
    """What moves after a round.

    shards, next_shards   folders of the index lists before and after it
    round_before          the round before, where nothing moved after that: its skips count too
    """

    shards: str
    next_shards: str
    round_before: int | None = None

    start_up = START_UP // 4

    def outputs(self):
        return [Path(self.next_shards)]

    def size(self, scale):
        return 8 * scale.num_train


def instances(experiment):
    found = []
    for arm, seed in experiments.runs(experiment, experiments.trained(experiment)):
        recipe, run = experiment["arms"][arm], files.run_name(arm, seed)
        for r in range(1, recipe["rounds"]):  # nothing trains after the last round
            if not rounds.moves_after(recipe["redistribute"], r):
                continue
            place = {"arm": arm, "seed": seed, "round": r}
            lists = {
                "shards": str(experiments.current_shards(recipe, run, r)),
                "next_shards": str(files.folder("shards", run, r + 1)),
            }
            if r > 1 and not rounds.moves_after(recipe["redistribute"], r - 1):
                found.append(Move(block="redistribute_both", **place, **lists, round_before=r - 1))
            else:
                found.append(Move(block="redistribute", **place, **lists))
    return found


def check(experiment):
    """Raises ValueError if the schedule does not fit the number of rounds, or skips are asked for that no one counts."""
    kind = experiments.kind(experiment)
    counting = [n for n, m in declarations.methods().items() if m["COUNTS_SKIPS"] and kind in m["MODELS"]]
    for arm, recipe in experiments.trained(experiment).items():
        if recipe["redistribute"].get("schedule") == "alternating" and recipe["rounds"] % 2:
            raise ValueError(
                f"arms.{arm}.rounds is {recipe['rounds']}, expected an even number with redistribute.schedule: alternating, as every "
                "second round ends with averaging"
            )
        if recipe["redistribute"].get("select") == "memory" and recipe["method"]["name"] not in counting:
            raise ValueError(
                f"arms.{arm}.redistribute.select is memory, which needs the skip counts of a method that skips "
                f"({', '.join(counting)}), but arms.{arm}.method.name is {recipe['method']['name']}: use such a method, or "
                "select: random"
            )


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments, check) as job:
        settings = job.recipe["redistribute"]
        if not settings:
            raise ValueError(f"arms.{job.arm}.redistribute is empty, so this arm moves no images (params.yaml)")
        shards = experiments.load_shards(job.recipe, job.run, job.round)
        count = redistribution.num_moved(shards, settings["share"])
        leaving = []
        for k, shard in enumerate(shards):
            generator = randomness.numpy_generator("ties", job.seed, k, job.round)
            if settings["select"] == "random":
                leaving.append(redistribution.random_images(shard, count, generator))
                continue
            leaving.append(redistribution.most_skipped(shard, _skips(job, k, shard), count, generator))
        with files.publish(files.folder("shards", job.run, job.round + 1)) as folder:
            for k, shard in enumerate(redistribution.moved_on(shards, leaving)):
                files.save_array(folder / f"shard{k}.npy", shard)


def _skips(job, k, shard):
    """Skips of the images of a shard since images moved last: [n] int, in the order of its index list."""
    counted = [job.round]
    if job.round > 1 and not rounds.moves_after(job.recipe["redistribute"], job.round - 1):
        counted.append(job.round - 1)
    total = np.zeros(len(shard), np.int64)
    for r in counted:
        counts = files.load_arrays(files.counts_file(job.run, r, k))
        if not np.array_equal(counts["index"], shard):
            raise ValueError(
                f"{files.counts_file(job.run, r, k)} counts other images than shard {k} of round {job.round} holds: rerun its train "
                "stage"
            )
        total += counts["skips"]
    return total


if __name__ == "__main__":
    cli.run(main)
