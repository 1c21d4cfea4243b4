"""What Snakemake and DVC cost per stage: wall time of an experiment whose stages do nothing.

The stages of a small experiment are run once, then once more in a fresh copy where every command only puts its outputs in
place. What is left is the start of the run, DVC's bookkeeping and the launcher, shared by --cores stages at a time. Above it
stands the start-up of each stage's own Python (see benchmarks.startup).
"""

from benchmarks import common

CHOSEN = common.arguments(__doc__, threads=1, cores=2, seeds=6, rounds=2, shards=2)

import re  # noqa: E402
import time  # noqa: E402

import yaml  # noqa: E402

from benchmarks import project  # noqa: E402

EXPERIMENT = """
data: {name: digits, num_train: 60, split_seed: 0}
model: {block_channels: [8, 16], attention_levels: [], layers_per_block: 1, dropout: 0.0, norm_groups: 4}
diffusion: {num_timesteps: 20, beta_start: 0.005, beta_end: 0.4}
compute: {device: cpu, threads: 1, precision: fp32}
train: {batch_size: 10, learning_rate: 2.0e-3, warmup_steps: 5, grad_clip_norm: 1.0, ema_decay: 0.9, flip: false}
sample: {num_images: 50, parts: 2, batch_size: 20, protocol: paper, num_steps: 5, weights: [raw]}
score: {neighbours: 20, thresholds: [0.5], grid_step: 0.1, headline: {protocol: l2_from_gen, threshold: 0.5, weights: raw}}
"""


def experiment():
    arm = {
        "rounds": CHOSEN.rounds, "method": {"name": "agc", "lambda": 0.5, "eta": 0.8}, "shard": {"num_shards": CHOSEN.shards},
        "train": {"epochs": 1}, "redistribute": {"share": 0.25, "select": "memory"}, "sample": {},
    }  # fmt: skip
    return {"seeds": list(range(CHOSEN.seeds))} | yaml.safe_load(EXPERIMENT) | {"arms": {"iet_agc": arm}}


def empty_commands(definition, kept):
    """dvc.yaml as text in which every command but that of `plan` copies its outputs from the folder `kept`."""
    pipeline = yaml.safe_load(definition)
    for name, stage in pipeline["stages"].items():
        body = stage.get("do", stage)
        if name == "plan":
            continue
        outputs = []
        for kind in ("outs", "metrics", "plots"):
            for output in body.get(kind, []):
                outputs.append(next(iter(output)) if isinstance(output, dict) else output)
        body["cmd"] = f"sh put.sh {kept} {' '.join(outputs)}"
    return yaml.safe_dump(pipeline, sort_keys=False, width=1000)


PUT = 'kept=$1; shift; for f; do mkdir -p "$(dirname "$f")" && cp -r "$kept/$f" "$f" || exit 1; done\n'


def main():
    common.heading()
    params = experiment()
    command = ["snakemake", "--cores", str(CHOSEN.cores)]
    with project.copy(params) as whole, project.copy(params) as empty:
        start = time.perf_counter()
        done = project.run(whole, *command)
        with_work = time.perf_counter() - start
        number = int(re.search(r"(\d+) of \1 steps", done.stdout + done.stderr).group(1)) - 1  # without the rule all
        definition = (empty / "dvc.yaml").read_text(encoding="utf-8")
        (empty / "dvc.yaml").write_text(empty_commands(definition, whole), encoding="utf-8")
        (empty / "put.sh").write_text(PUT, encoding="utf-8")
        start = time.perf_counter()
        project.run(empty, *command)
        without_work = time.perf_counter() - start
        start = time.perf_counter()
        again = project.run(empty, *command)
        nothing = time.perf_counter() - start
        assert "Nothing to be done" in again.stdout + again.stderr
    print(f"\n{number} stage instances, {CHOSEN.cores} at a time")
    print(f"with real stages of a few steps:      {with_work:7.1f} s, {with_work / number:.2f} s each")
    print(f"with commands that do nothing:        {without_work:7.1f} s, {without_work / number:.2f} s each")
    print(f"nothing to be done:                   {nothing:7.1f} s")


if __name__ == "__main__":
    main()
