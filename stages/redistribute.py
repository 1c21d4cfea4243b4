"""Moves the most skipped images of each shard to the next shard (MSR, Eq. 10 and 11).

params    arms.<arm>.redistribute
reads     the index lists of round r, artifacts/counts/<run>/round<r> of exactly the K shards of the plan
writes    artifacts/shards/<run>/round<r+1>/shard<k>.npy
"""

import numpy as np

from stages import cli, files
from stages.method import randomness, redistribution


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
            counts = files.load_arrays(files.counts_file(job.run, job.round, k))
            if not np.array_equal(counts["index"], shard):
                raise ValueError(
                    f"{files.counts_file(job.run, job.round, k)} counts other images than shard {k} of round {job.round} "
                    "holds: rerun its train stage"
                )
            leaving.append(redistribution.most_skipped(shard, counts["skips"], count, generator))
        with files.publish(files.shards_dir(job.run, job.round + 1)) as folder:
            for k, shard in enumerate(redistribution.moved_on(shards, leaving)):
                files.save_array(folder / f"shard{k}.npy", shard)


if __name__ == "__main__":
    cli.run(main)
