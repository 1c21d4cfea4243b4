"""Averages the proxy models of a round into the model of the round (Eq. 9): weights, and EMA weights where they are kept.

reads     artifacts/train/<run>/round<r>/shard<k> of exactly the K shards of the plan
writes    artifacts/model/<run>/round<r>/raw.safetensors, ema.safetensors
"""

from stages.iet import averaging
from stages.run import cli, files


def main(arguments):
    with cli.stage("aggregate", __doc__, arguments, "arm", "seed", "round") as job:
        shards = range(job.recipe["shard"]["num_shards"])
        with files.publish(files.model_dir(job.run, job.round)) as folder:
            for weights in ("raw", "ema"):
                proxies = [files.train_dir(job.run, job.round, k) / f"{weights}.safetensors" for k in shards]
                if weights == "ema" and not any(proxy.exists() for proxy in proxies):
                    continue
                files.save_arrays(folder / f"{weights}.safetensors", averaging.average(map(files.load_arrays, proxies)))


if __name__ == "__main__":
    cli.run(main)
