"""Asks git whether it would commit files that are nobody else's business."""

import os
import subprocess
from pathlib import Path


def check_not_committed(paths, what):
    """Refuses folders of private files that lie in the project's git repository and are not ignored there.

    Links are followed, as git commits a link and not what lies behind it. Where there is no git, or no repository, there is nothing to refuse.

    paths    folders
    what     how the message names them
    Raises   ValueError: `git add -A` would commit a file of them, or the repository has one already
    """
    if not (top := _git("rev-parse", "--show-toplevel")):
        return
    top = Path(top.decode().rstrip("\n"))
    inside = sorted({path for path in map(os.path.realpath, paths) if Path(path).is_relative_to(top)})
    if not inside:
        return
    within = ["--", *inside]
    if committed := _names(_git("ls-files", "-z", *within)):
        raise ValueError(
            f"{what} holds {len(committed):,} files that are in the git repository already, such as {committed[0]}: move the folder to data/, "
            "which git ignores, and commit that they are gone (who has the repository keeps its history)"
        )
    if new := _names(_git("ls-files", "-z", "--others", "--exclude-standard", *within)):
        shown = os.path.relpath(inside[0], top)
        raise ValueError(
            f"{what} lies in the git repository and is not ignored, so `git add -A` would commit {len(new):,} files of it: move it to data/, "
            f"which git ignores, or add the line /{shown}/ to .gitignore"
        )


def _git(*words):
    """What git prints, or b"" where it refuses."""
    try:
        done = subprocess.run(["git", "--literal-pathspecs", *words], capture_output=True, check=False)
    except OSError:
        return b""
    return done.stdout if done.returncode == 0 else b""


def _names(listed):
    return [os.fsdecode(name) for name in listed.split(b"\0") if name]
