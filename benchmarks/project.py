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
OWN = ("dvc.lock", "metrics.json", "plots/", "tests/", "benchmarks/")


@contextlib.contextmanager
def copy(params):
    """Yields the folder of a copy with these parameters and nothing run, a repository of its own; removed afterwards.

    params   dict, the content of params.yaml
    """
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    with tempfile.TemporaryDirectory(prefix="redistribute-benchmark-") as folder:
        root = Path(folder)
        for name in filter(None, listed.stdout.split("\0")):
            if not name.startswith(OWN) and (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        run(root, "git", "init", "-q")
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
