"""Averages the proxy models of a round into the model of the round (Eq. 9): weights, and EMA weights if they are kept. Of models that are
trained apart (shard.combine: predictions) all weights stand side by side in one file.

reads     artifacts/train/<run>/round<r>/shard<k> of exactly the K shards of the plan
writes    artifacts/model/<run>/round<r>/raw.safetensors, ema.safetensors
"""

from dataclasses import dataclass

from stages import experiments
from stages.iet import averaging, rounds
from stages.run import cli, files
from stages.run.instance import START_UP, Instance

PHASE = {
    "name": "aggregate",
    "per": "round",
    "arms": "trained",
}


@dataclass(frozen=True, kw_only=True)
class Average(Instance):
    writes = ("model",)

    start_up = START_UP // 4

    def size(self, scale):  # weights, EMA
        recipe = scale.experiment["arms"][self.arm]
        num_models = recipe["shard"]["num_shards"] if experiments.trains_apart(recipe) else 1
        kinds = 1 + bool(experiments.section(scale.experiment, "train", self.arm)["ema_decay"])
        return kinds * num_models * scale.bytes_of_weights


def instances(experiment):
    arms = experiment["arms"]
    blocks = {
        arm: "aggregate_apart" if experiments.trains_apart(arms[arm]) else "aggregate"
        for arm in experiments.trained(experiment)
    }
    return [
        Average(block=blocks[arm], arm=arm, seed=seed, round=r)
        for arm, seed in experiments.runs(experiment, experiments.trained(experiment))
        for r in range(1, arms[arm]["rounds"] + 1)
        if rounds.averages_after(arms[arm]["redistribute"], r)
    ]


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments) as job:
        shards = range(job.recipe["shard"]["num_shards"])
        combined = averaging.side_by_side if experiments.trains_apart(job.recipe) else averaging.average
        with files.publish(files.folder("model", job.run, job.round)) as folder:
            for weights in ("raw", "ema"):
                proxies = [files.folder("train", job.run, job.round, k) / f"{weights}.safetensors" for k in shards]
                if weights == "ema" and not any(proxy.exists() for proxy in proxies):
                    continue
                files.save_arrays(folder / f"{weights}.safetensors", combined(map(files.load_arrays, proxies)))


if __name__ == "__main__":
    cli.run(main)
