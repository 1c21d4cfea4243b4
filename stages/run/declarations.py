"""Reads what modules declare in plain data from their source, because importing all of them would take seconds.

A phase declares it in PHASE (stages/phases.py), a training method in SETTINGS and the names of METHOD (stages/methods/__init__.py).
"""

import ast
import functools
from pathlib import Path

STAGES = Path(__file__).parents[1]
# What a method that says nothing of it is taken to say.
METHOD = {
    "COUNTS_SKIPS": False,
    "MODELS": ["pixels"],
    "AUGMENTABLE": True,
    "FOCUSABLE": True,
    "COMPILE": ["inductor"],
    "CHANNELS_LAST": True,
    "PREDICTS_NOISE": True,
}


@functools.cache
def literals(path):
    """The names that a module sets to plain data (texts, numbers, lists, dicts) at its top level, in capital letters.

    Raises   ValueError: PHASE or SETTINGS is computed
    """
    found = {}
    for statement in ast.parse(Path(path).read_text(encoding="utf-8")).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            continue
        name = statement.targets[0].id
        try:
            found[name] = ast.literal_eval(statement.value)
        except ValueError:
            if name in ("PHASE", "SETTINGS", *METHOD):
                where = Path(path).relative_to(STAGES.parent)
                raise ValueError(
                    f"{name} in {where} is computed, expected plain data: texts, numbers, lists and dicts"
                ) from None
    return found


def _modules(folder):
    """Name and source of each module of a folder: dict, in the order of the alphabet."""
    paths = [*folder.glob("[!_]*.py"), *folder.glob("[!_]*/__init__.py")]
    return dict(sorted((p.parent.name if p.stem == "__init__" else p.stem, p) for p in paths))


@functools.cache
def phases():
    """PHASE of every module of stages/ that has one: dict name -> dict."""
    each = {name: literals(path) for name, path in _modules(STAGES).items()}
    return {name: data["PHASE"] for name, data in each.items() if "PHASE" in data}


@functools.cache
def methods():
    """What every training method says of itself: dict name -> dict with SETTINGS and the names of METHOD."""
    each = {name: literals(path) for name, path in _modules(STAGES / "methods").items()}
    return {
        name: {key: data.get(key, default) for key, default in METHOD.items()} | {"SETTINGS": data["SETTINGS"]}
        for name, data in each.items()
        if "SETTINGS" in data
    }


def mitigations():
    """Settings of what can be done while images are generated: dict, text (by models with captions) and pixels, of dicts name -> JSON schema."""
    sources = {"text": "text/prompt_mitigations.py", "pixels": "diffusion/amg.py"}
    return {kind: literals(STAGES / source)["SETTINGS"] for kind, source in sources.items()}


def method_source(name):
    """The file or folder that a training method is written in, as a path from the root of the project."""
    package = STAGES / "methods" / name
    return Path("stages/methods") / (name if package.is_dir() else f"{name}.py")
