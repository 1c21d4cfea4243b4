"""Switches this checkout to an experiment of experiments/: `python workflow/scripts/experiment.py cifar10`.

It copies the file to params.yaml, unless that would lose edits: params.yaml must be committed without changes, or be a copy of
one of the experiments.
"""

import difflib
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from stages.run import cli, files, params

FOLDER = Path("experiments")


def main(words):
    known = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}
    if len(words) != 1 or words[0] not in known:
        near = difflib.get_close_matches(" ".join(words), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        raise ValueError(f"the experiment is {' '.join(words) or 'missing'}: {hint} (make experiment NAME=...)")
    current = Path(params.PARAMS_FILE)
    if current.exists() and not _kept_elsewhere(current.read_bytes(), known.values()):
        raise ValueError(
            f"{current} has edits that are not committed, which this would lose: commit them (git commit {current}) or drop them "
            f"(git checkout {current}), then run this again"
        )
    files.write_text(current, known[words[0]].read_text(encoding="utf-8"))
    print(f"{current} is now {known[words[0]]}: `snakemake -n` lists what would run, `snakemake` runs it")


def _kept_elsewhere(content, experiments):
    committed = subprocess.run(["git", "show", f"HEAD:./{params.PARAMS_FILE}"], capture_output=True, check=False)
    return (committed.returncode == 0 and committed.stdout == content) or any(
        path.read_bytes() == content for path in experiments
    )


if __name__ == "__main__":
    cli.run(main)
