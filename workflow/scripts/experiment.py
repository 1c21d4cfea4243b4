"""Switches this checkout to an experiment of experiments/, or writes one for a folder of images.

    python workflow/scripts/experiment.py cifar10              make experiment NAME=cifar10
    python workflow/scripts/experiment.py my_images FOLDER     make experiment NAME=my_images DATA=FOLDER

It replaces params.yaml, unless that would lose edits: params.yaml must be committed without changes, or be a copy of one of the
experiments. Without git the old file is kept under another name.
"""

import difflib
import itertools
import subprocess
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))
import checkout
import own_images

from stages import phases, rules
from stages.run import cli, files, params

FOLDER = Path("experiments")


def main(words):
    params.at_root()
    known = {path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}
    current = Path(params.PARAMS_FILE)
    _check_name(words, known)
    _check_edits(current, known.values())
    if len(words) == 1:
        new, source = known[words[0]].read_text(encoding="utf-8"), known[words[0]]
    else:
        new, source = _of_folder(*words), f"an experiment on the images of {words[1]}"
    kept = _keep(current, new, known.values())
    files.write_text(current, new)
    print(f"{current} is now {source}{kept}: `snakemake -n` lists what would run, `snakemake` runs it")


def _check_name(words, known):
    if len(words) == 2 and words[0] in known:
        raise ValueError(
            f"{words[0]} is one of experiments/, with images of its own: choose another name for those of {words[1]} "
            "(make experiment NAME=my_images DATA=folder)"
        )
    if len(words) != 2 and (len(words) != 1 or words[0] not in known):
        near = difflib.get_close_matches(" ".join(words), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        raise ValueError(
            f"the experiment is {' '.join(words) or 'missing'}: {hint} (make experiment NAME=...; with DATA=folder, any name for an "
            "experiment on images of your own)"
        )


def _of_folder(name, root):
    """The content of params.yaml for a folder of images, which passes every check that a run makes.

    Raises   ValueError: what is wrong with the folder
    """
    name, root = " ".join(name.split()), str(Path(root).expanduser())
    found = own_images.look(root)
    chosen = own_images.choose(found.num_images, found.side)
    text = own_images.text(name, root, found, chosen)
    experiment = params.filled(yaml.safe_load(text))
    rules.check(experiment)
    phases.check_sizes(experiment, chosen.num_train)
    phases.check_files(experiment)
    print(
        f"{found.num_images:,} images of {root}, {chosen.num_heldout:,} of them held out, at {chosen.size}x{chosen.size} pixels: some "
        f"{chosen.minutes} minutes on two cores"
    )
    return text


def _check_edits(current, experiments):
    if current.exists() and checkout.has_git() and not _kept_elsewhere(current.read_bytes(), experiments):
        raise ValueError(
            f"{current} has edits that are not committed, which this would lose: commit them (git commit {current}) or drop them "
            f"(git checkout {current}), then run this again"
        )


def _kept_elsewhere(content, experiments):
    return content == _committed() or any(path.read_bytes() == content for path in experiments)


def _committed():
    """params.yaml of the last commit: bytes, None where there is none."""
    try:
        done = subprocess.run(["git", "show", f"HEAD:./{params.PARAMS_FILE}"], capture_output=True, check=False)
    except FileNotFoundError:
        raise ValueError(
            f"git, which knows whether {params.PARAMS_FILE} has edits, is not installed: install it, or copy the file of experiments/ "
            "yourself"
        ) from None
    return done.stdout if done.returncode == 0 else None


def _keep(current, new, experiments):
    """Without git, keeps what is replaced under a name of its own; says so."""
    if checkout.has_git() or not current.exists():
        return ""
    old = current.read_bytes()
    if old == new.encode() or any(path.read_bytes() == old for path in experiments):
        return ""
    free = next(name for i in itertools.count(1) if not (name := Path(f"params.old{i}.yaml")).exists())
    current.rename(free)
    return f" (the old one is {free})"


if __name__ == "__main__":
    cli.run(main)
