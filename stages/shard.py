"""Deals the training images to the K shards of an arm.

params    arms.<arm>.shard
reads     artifacts/data
writes    artifacts/shards/<run>/round1/shard<k>.npy: [n] int64 sorted indices into the training set
"""

from stages import cli, files
from stages.method import randomness, sharding


def main(arguments):
    with cli.stage("shard", __doc__, arguments, "arm", "seed") as job:
        labels = files.load_array(files.DATA / "train_labels.npy")
        shards = sharding.stratified_shards(
            labels, job.recipe["shard"]["num_shards"], randomness.numpy_generator("shard", job.seed)
        )
        with files.publish(files.shards_dir(job.run, 1)) as folder:
            for k, shard in enumerate(shards):
                files.save_array(folder / f"shard{k}.npy", shard)


if __name__ == "__main__":
    cli.run(main)
