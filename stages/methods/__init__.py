"""Training methods: arms.<arm>.method.name in params.yaml is the name of a module here, or of a package.

To add a method, copy added_noise.py, give it another name and change what it overrides of base.Method. Nothing else has to
know of it. A module says in plain data, which is read without importing it, what its section of params.yaml may hold:

    SETTINGS      JSON schema of its keys beside `name`: {"required": [...], "properties": {...}}
    COUNTS_SKIPS  True if it skips samples and counts that, which MSR moves images by; may be left out
    MODELS        kinds of model that it can train: "pixels" (from nothing) and "text" (model.pipeline); pixels alone if left out
"""

import ast
import functools
import importlib
from pathlib import Path

FOLDER = Path(__file__).parent


def source_of(name):
    """The file or folder that a method is written in, as a path from the root of the project."""
    package = FOLDER / name
    return Path("stages/methods") / (name if package.is_dir() else f"{name}.py")


@functools.cache
def declared():
    """What every method says of itself, read from its source: importing all of them would take seconds.

    Returns   dict name -> dict with SETTINGS, COUNTS_SKIPS and MODELS
    Raises    ValueError: one of them is no plain data
    """
    found = {}
    for path in sorted([*FOLDER.glob("[!_]*.py"), *FOLDER.glob("*/__init__.py")]):
        name = path.parent.name if path.name == "__init__.py" else path.stem
        data = {}
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
                continue
            if (key := statement.targets[0].id) in ("SETTINGS", "COUNTS_SKIPS", "MODELS"):
                try:
                    data[key] = ast.literal_eval(statement.value)
                except ValueError:
                    raise ValueError(
                        f"{key} in {source_of(name)} is computed, expected plain data: texts, numbers, lists and dicts"
                    ) from None
        if "SETTINGS" in data:
            found[name] = {"COUNTS_SKIPS": False, "MODELS": ["pixels"], **data}
    return found


def method(settings):
    """The method of an arm.

    settings   section arms.<arm>.method: name, and what SETTINGS of that module lists
    """
    module = importlib.import_module(f"stages.methods.{settings['name']}")
    return module.Method(settings)
