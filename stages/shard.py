"""Deals the training images to the K shards of an arm.

params    arms.<arm>.shard
reads     artifacts/data
writes    artifacts/shards/<run>/round1/shard<k>.npy: [n] int64 sorted indices into the training set
"""

from stages import randomness
from stages.iet import sharding
from stages.run import cli, files


def main(arguments):
    with cli.stage("shard", __doc__, arguments, "arm", "seed") as job:
        labels, settings = files.load_array(files.DATA / "train_labels.npy"), job.recipe["shard"]
        if settings.get("split") == "contiguous":
            shards = sharding.contiguous_shards(len(labels), settings["num_shards"])
        else:
            generator = randomness.numpy_generator("shard", job.seed)
            shards = sharding.stratified_shards(labels, settings["num_shards"], generator)
        with files.publish(files.shards_dir(job.run, 1)) as folder:
            for k, shard in enumerate(shards):
                files.save_array(folder / f"shard{k}.npy", shard)


if __name__ == "__main__":
    cli.run(main)
