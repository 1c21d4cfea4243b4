"""Splits the training images into the K shards of an arm.

params    arms.<arm>.shard
reads     artifacts/data
writes    artifacts/shards/<run>/round1/shard<k>.npy: [n] int64 sorted indices into the training set
"""

from dataclasses import dataclass

from stages import experiments, randomness
from stages.iet import sharding
from stages.run import cli, files
from stages.run.instance import START_UP, Instance

# fmt: off
PHASE = {
    "name": "shard",
    "per": "run",
    "arms": "trained",
    "arm_section": {
        "description": "how the training set is split into shards",
        "properties": {
            "num_shards": {"description": "K, number of shards", "default": 1, "type": "integer", "minimum": 1},
            "split": {"description": "random: each shard has the same mix of classes; contiguous: as in the authors' code for Stable Diffusion (default: random)", "enum": ["random", "contiguous"]},
            "combine": {"description": "how the models of the shards become one. weights: averaged after each round (IET); predictions: trained apart, and the mean of their predictions makes the images (default: weights)", "enum": ["weights", "predictions"]},
        },
    },
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Shards(Instance):
    start_up = START_UP // 4

    def outputs(self):
        return [files.folder("shards", self.run, 1)]

    def size(self, scale):
        return 8 * scale.num_train


def instances(experiment):
    runs = experiments.runs(experiment, experiments.trained(experiment))
    return [Shards(block="shard", arm=arm, seed=seed) for arm, seed in runs]


def check(experiment):
    """Raises ValueError if an arm has models that are trained apart and nothing to train apart, or that images move between."""
    for arm, recipe in experiments.trained(experiment).items():
        if not experiments.trains_apart(recipe):
            continue
        if recipe["shard"]["num_shards"] == 1:
            raise ValueError(
                f"arms.{arm}.shard.combine is predictions, which takes a mean over the models of shards, but num_shards is 1: use at least 2"
            )
        if recipe["redistribute"]:
            raise ValueError(
                f"arms.{arm}.redistribute moves images between shards whose models are trained apart (shard.combine: predictions), each of which "
                "is never to see the images of another: set it to {}"
            )


def check_sizes(experiment, num_train):
    """Raises ValueError if an arm asks for more shards than there are training images."""
    for arm, recipe in experiments.trained(experiment).items():
        if (num_shards := recipe["shard"]["num_shards"]) > num_train:
            raise ValueError(f"arms.{arm}.shard.num_shards is {num_shards}, more than the {num_train} training images")


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments) as job:
        labels, settings = files.load_array(files.DATA / "train_labels.npy"), job.recipe["shard"]
        if settings.get("split") == "contiguous":
            shards = sharding.contiguous_shards(len(labels), settings["num_shards"])
        else:
            generator = randomness.numpy_generator("shard", job.seed)
            shards = sharding.stratified_shards(labels, settings["num_shards"], generator)
        with files.publish(files.folder("shards", job.run, 1)) as folder:
            for k, shard in enumerate(shards):
                files.save_array(folder / f"shard{k}.npy", shard)


if __name__ == "__main__":
    cli.run(main)
