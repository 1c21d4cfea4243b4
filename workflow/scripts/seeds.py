"""Repeats the experiment of params.yaml over several seeds: `python workflow/scripts/seeds.py 0 1 2`.

It runs in a copy of the project under scratch/seeds, so that params.yaml, plan.json and dvc.lock of the project stay as they
are. The copy shares the DVC cache, so nothing that is already in it is trained again.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import dulwich.repo
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))
import checkout

from stages import experiments, rules
from stages.run import cli, params

COPY = Path("scratch/seeds")


def _from_anywhere(experiment, seeds):
    """The experiment with other seeds, and with absolute paths of what it reads, which the copy does not have."""

    def make_absolute(section, keys):
        for key in keys & section.keys():
            section[key] = str(Path(section[key]).resolve())

    make_absolute(experiment["data"], {"root"})
    make_absolute(experiment["model"], {"pipeline"})
    make_absolute(experiment.get("quality", {}), {"weights"})
    make_absolute(experiment.get("similarity", {}), {"weights"})
    make_absolute(experiment.get("clip", {}), {"model"})
    make_absolute(experiment.get("copying", {}), {"model", "weights"})
    for recipe in experiment["arms"].values():
        make_absolute(recipe.get("generator", {}), set(experiments.SOURCES))
    return experiment | {"seeds": seeds}


def main(words):
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(
            f"the seeds are {' '.join(words) or 'missing'}, expected whole numbers of at least 0, such as 0 1 2"
        )
    seeds = [int(word) for word in words]
    params.at_root()
    experiment = rules.load()
    make(COPY, _from_anywhere(experiment, seeds))
    print(f"seeds {seeds} run in {COPY}; the report will be {COPY}/report.html")
    sys.exit(run(COPY))


def make(copy, experiment):
    """Makes or renews a copy of the project, with another experiment.

    copy         pathlib.Path below the root of the project
    experiment   of `_from_anywhere`
    """
    copy.mkdir(parents=True, exist_ok=True)
    for name in checkout.own_files():
        source, target = Path(name), copy / name
        if not (target.exists() and name in ("dvc.lock", "plan.json", "metrics.json")):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    (copy / "params.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False), encoding="utf-8")
    rules.load(copy / "params.yaml")
    if (
        checkout.has_git() and not (copy / ".git").exists()
    ):  # or DVC would take the repository around the copy for its own
        dulwich.repo.Repo.init(copy)
    subprocess.run(["dvc", "cache", "dir", "--local", str(Path(".dvc/cache").resolve())], cwd=copy, check=True)


def run(copy):
    """Runs the experiment of a copy: exit code of snakemake."""
    return subprocess.run(["snakemake"], cwd=copy, check=False).returncode


if __name__ == "__main__":
    cli.run(main)
