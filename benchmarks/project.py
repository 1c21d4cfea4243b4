"""A copy of the project in a temporary folder, for benchmarks that run its commands."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "workflow/scripts"))

# A small experiment without its seeds and arms.
EXPERIMENT = """
data: {name: digits, num_train: 60, split_seed: 0}
model: {block_channels: [8, 16], attention_levels: [], layers_per_block: 1, norm_groups: 4}
diffusion: {num_timesteps: 20, beta_start: 0.005, beta_end: 0.4}
compute: {device: cpu, threads: 1, precision: fp32}
train: {batch_size: 10, learning_rate: 2.0e-3, warmup_steps: 5, grad_clip_norm: 1.0, ema_decay: 0.9, flip: false}
sample: {num_images: 50, parts: 2, batch_size: 20, protocol: paper, num_steps: 5, weights: [raw]}
score: {neighbours: 20, thresholds: [0.5], grid_step: 0.1, headline: {protocol: l2_from_gen, threshold: 0.5, weights: raw}}
"""
OWN = ("dvc.lock", "metrics.json", "plots/", "tests/", "benchmarks/")


@contextlib.contextmanager
def copy(params):
    """Yields the folder of a copy with these parameters and nothing run, a repository of its own; removed afterwards.

    params   dict, the content of params.yaml
    """
    import checkout
    import dulwich.repo

    with tempfile.TemporaryDirectory(prefix="redistribute-benchmark-") as folder:
        root = Path(folder)
        for name in checkout.own_files(ROOT):
            if not name.startswith(OWN):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        dulwich.repo.Repo.init(root)
        yield root


@contextlib.contextmanager
def code_copy(params):
    """As `copy`, but only what stages need when they are run by hand: no repository, and so neither git nor DVC."""
    with tempfile.TemporaryDirectory(prefix="redistribute-benchmark-") as folder:
        root = Path(folder)
        for name in ("stages", "workflow/schemas", "experiments"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy2(ROOT / "dvc.yaml", root)
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        yield root


def run(root, *words, check=True):
    """Runs a command in the copy with the environment that the project's own commands have."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OMP")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


# Makes up outputs: of an index list for each shard, or of one file a folder, with its own path in it.
PUT = """\
shards=$1
shift
for f; do
    case "$f" in
        artifacts/shards/*) mkdir -p "$f"; for k in $(seq 0 $((shards - 1))); do echo "$f $k" > "$f/shard$k.npy"; done ;;
        */*.*|*.json) mkdir -p "${f%/*}"; echo "{}" > "$f" ;;
        *) mkdir -p "$f" && echo "$f" > "$f/file" ;;
    esac
done
"""


def make_up_outputs(root, params, word=""):
    """In the copy every command but that of `plan` makes up its outputs.

    word   stands in each command: another one makes all stages stale
    """
    shards = max(recipe["shard"]["num_shards"] for recipe in params["arms"].values() if "shard" in recipe)
    pipeline = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))
    for name, stage in pipeline["stages"].items():
        body = stage.get("do", stage)
        if name != "plan":
            outs = [next(iter(output)) if isinstance(output, dict) else output for output in body["outs"]]
            body["cmd"] = f"sh put{word}.sh {shards} {' '.join(outs)}"
    (root / "dvc.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False, width=1000), encoding="utf-8")
    (root / f"put{word}.sh").write_text(PUT, encoding="utf-8")
