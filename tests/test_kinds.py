"""Both kinds of model offer the phases the same things, know nothing of each other, and are found by their name alone."""

import ast
import inspect
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from stages import models, pixels, text
from stages.methods import kinds
from stages.text import generation, kind

OFFERED = ("build", "memory_needed")


def methods_of(cls):
    return {name for name, value in vars(cls).items() if inspect.isfunction(value) and not name.startswith("_")}


@pytest.mark.parametrize("name", OFFERED)
def test_functions_have_one_signature(name):
    found = [inspect.signature(getattr(package, name)) for package in (pixels, text)]
    assert found[0] == found[1]
    documented = kinds.__doc__[kinds.__doc__.index(f"    {name}(") :].split("\n", 1)[0].strip()
    assert documented == f"{name}{found[0]}"


@pytest.mark.parametrize(
    ("base", "classes"),
    [(kinds.Model, (pixels.Model, kind.Model)), (kinds.Source, (pixels.Source, generation.Source))],
    ids=["model", "source"],
)
def test_models_and_sources_keep_to_what_is_documented(base, classes):
    for cls in classes:
        assert issubclass(cls, base)
        for name in methods_of(base):
            assert inspect.signature(getattr(cls, name)) == inspect.signature(getattr(base, name)), (cls, name)
    for name in methods_of(kinds.Model):  # none is left to the base class, which raises NotImplementedError
        assert all(name in vars(cls) for cls in classes) or base is not kinds.Model


def imported(path):
    """Modules and names that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def those_within(found, *packages):
    return sorted(name for name in found if any(f"{name}.".startswith(f"{package}.") for package in packages))


def test_kinds_import_neither_each_other_nor_what_runs_a_stage():
    above = ["stages.run", "stages.params", "stages.models", "stages.report"]
    above += [f"stages.{path.stem}" for path in (ROOT / "stages").glob("*.py") if path.stem != "randomness"]
    above.remove("stages.__init__")
    for one, other in (("pixels", "stages.text"), ("text", "stages.pixels")):
        for path in sorted((ROOT / "stages" / one).glob("*.py")):
            assert those_within(imported(path), other, *above) == [], path


def test_no_phase_imports_a_kind():
    """The detector is of models with captions alone."""
    for path in sorted((ROOT / "stages").glob("*.py")):
        if path.stem in ("train", "sample", "analyse", "models"):
            assert those_within(imported(path), "stages.text", "stages.pixels", "stages.diffusion.unet") == [], path
    assert those_within(imported(ROOT / "stages/detect.py"), "stages.pixels", "stages.diffusion.unet") == []
    assert imported(Path(models.__file__)) & set(sys.modules)  # the names are those of modules
