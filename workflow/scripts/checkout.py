"""What this copy of the project is: a git checkout, or a downloaded archive without one. `make setup` tells DVC which.

DVC refuses to work outside a git repository, unless its own setting core.no_scm says that there is none. That setting is kept in
.dvc/config.local, which is never committed.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
LOCAL_CONFIG = Path(".dvc/config.local")
NO_SCM = "no_scm"


def has_git(root="."):
    """Whether a folder lies in a git repository; git itself need not be installed."""
    root = Path(root).resolve()
    return any((folder / ".git").exists() for folder in (root, *root.parents))


def tell_dvc():
    """Makes DVC work without git where there is none, and with it where there is."""
    told = LOCAL_CONFIG.exists() and NO_SCM in LOCAL_CONFIG.read_text(encoding="utf-8")
    if told != has_git():
        return
    from dvc.config import Config

    with Config(dvc_dir=str(LOCAL_CONFIG.parent)).edit("local") as settings:
        if told:
            del settings["core"][NO_SCM]
        else:
            settings.setdefault("core", {})[NO_SCM] = True


def own_files(root="."):
    """The files of the project, without what .gitignore leaves out: sorted list of paths relative to it, as texts."""
    from dulwich.ignore import IgnoreFilter, IgnoreFilterManager

    ignored = IgnoreFilterManager(str(root), [IgnoreFilter([b".git"])], ignorecase=False)
    found, todo = [], [""]
    while todo:
        folder = todo.pop()
        for entry in os.scandir(Path(root) / folder):
            name = f"{folder}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                todo += [] if ignored.is_ignored(f"{name}/") else [f"{name}/"]
            elif entry.is_file() and not ignored.is_ignored(name):
                found.append(name)
    return sorted(found)


if __name__ == "__main__":
    tell_dvc()
