"""Moves the most skipped images of each shard to the next shard (MSR, Eq. 10 and 11).

params    arms.<arm>.redistribute
reads     the index lists of round r, artifacts/counts/<run>/round<r> of exactly the K shards of the plan; with the alternating
          schedule also the counts of the round before, after which nothing moved
writes    artifacts/shards/<run>/round<r+1>/shard<k>.npy
"""

import numpy as np

from stages import randomness
from stages.iet import redistribution
from stages.run import cli, files


def main(arguments):
    with cli.stage("redistribute", __doc__, arguments, "arm", "seed", "round") as job:
        settings = job.recipe["redistribute"]
        if not settings:
            raise ValueError(f"arms.{job.arm}.redistribute is empty, so this arm moves no images (params.yaml)")
        shards = files.load_shards(job.recipe, job.run, job.round)
        count = redistribution.num_moved(shards, settings["share"])
        leaving = []
        for k, shard in enumerate(shards):
            generator = randomness.numpy_generator("ties", job.seed, k, job.round)
            if settings["select"] == "random":
                leaving.append(redistribution.random_images(shard, count, generator))
                continue
            leaving.append(redistribution.most_skipped(shard, _skips(job, k, shard), count, generator))
        with files.publish(files.shards_dir(job.run, job.round + 1)) as folder:
            for k, shard in enumerate(redistribution.moved_on(shards, leaving)):
                files.save_array(folder / f"shard{k}.npy", shard)


def _skips(job, k, shard):
    """Skips of the images of a shard since images moved last: [n] int, in the order of its index list."""
    rounds = [job.round]
    if job.round > 1 and not files.moves_after(job.recipe, job.round - 1):
        rounds.append(job.round - 1)
    total = np.zeros(len(shard), np.int64)
    for r in rounds:
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
