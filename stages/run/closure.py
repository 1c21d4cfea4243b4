"""Finds the source files that a result depends on: all modules that a module of stages/ imports, directly or not, also inside functions.

stages/run and stages/__init__.py are left out, because code that only runs stages changes no result. Modules that are imported by a
computed name (the training method of an arm, the kind of its model) are passed in by name.
"""

import ast
import functools
from pathlib import Path

from stages.run.declarations import STAGES

ROOT = STAGES.parent


def files(*modules):
    """Paths from the root of the project, sorted; of a package without code of its own, its modules only.

    modules   names, such as "stages.train"
    Raises    ValueError: there is no such module
    """
    found, todo = set(), list(modules)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        if source(name) is None:
            raise ValueError(f"there is no module {name}")
        found.add(name)
        todo += imports(name) - found
    return sorted(source(name).relative_to(ROOT).as_posix() for name in found if _has_code(source(name)))


def source(name):
    """Path of a module's source; None where there is none."""
    path = ROOT.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def imports(name):
    """The modules that the results of a module depend on beside itself: those that it names, but for stages.run."""
    return {other for other in named(name) if other != "stages.run" and not other.startswith("stages.run.")}


@functools.cache
def named(name):
    """The modules of stages/ that a module names in an import, wherever it stands: frozenset of names."""
    found = set()
    for node in ast.walk(ast.parse(source(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for each in names:
            parts = each.split(".")
            if parts[0] == "stages":
                packages = [".".join(parts[:end]) for end in range(2, len(parts) + 1)]
                found |= {package for package in packages if source(package)}
    return frozenset(found - {name})


@functools.cache
def _has_code(path: Path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return len(body) > 1 or not body or not isinstance(body[0], ast.Expr) or path.name != "__init__.py"
