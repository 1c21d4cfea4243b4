"""Repeats the experiment of params.yaml over several seeds: `python workflow/scripts/seeds.py 0 1 2`.

It runs in a copy of the project under scratch/seeds, so that params.yaml, plan.yaml and dvc.lock of the project stay as they
are; the copy shares the DVC cache, so nothing that is there already is trained again.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from stages import cli, params

COPY = Path("scratch/seeds")


def main(words):
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(
            f"the seeds are {' '.join(words) or 'missing'}, expected whole numbers of at least 0, such as 0 1 2"
        )
    seeds = [int(word) for word in words]
    params.load()
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], capture_output=True, check=True
    ).stdout
    COPY.mkdir(parents=True, exist_ok=True)
    for name in filter(None, tracked.decode().split("\0")):
        source, target = Path(name), COPY / name
        if source.exists() and not (target.exists() and name in ("dvc.lock", "plan.yaml", "metrics.json")):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    text = Path("params.yaml").read_text(encoding="utf-8")
    replaced, count = re.subn(r"^seeds:.*(\n[ -].*)*$", f"seeds: {seeds}", text, count=1, flags=re.MULTILINE)
    if count != 1:
        raise ValueError("params.yaml has no line that starts with seeds:")
    (COPY / "params.yaml").write_text(replaced, encoding="utf-8")
    params.load(COPY / "params.yaml")
    if not (COPY / ".git").exists():  # DVC wants its own repository
        subprocess.run(["git", "init", "--quiet"], cwd=COPY, check=True)
    subprocess.run(["dvc", "cache", "dir", "--local", str(Path(".dvc/cache").resolve())], cwd=COPY, check=True)
    print(f"seeds {seeds} run in {COPY}; the report will be {COPY}/report.html")
    sys.exit(subprocess.run(["snakemake"], cwd=COPY, check=False).returncode)


if __name__ == "__main__":
    cli.run(main)
