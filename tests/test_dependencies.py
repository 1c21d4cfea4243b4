"""What dvc.yaml lists of the code is what the phases import; imports go down the three floors only, and never in a circle."""

import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from stages import plan, rules
from stages.run import closure, declarations

sys.path.insert(0, str(ROOT / "workflow/scripts"))
import dependencies

TEXT = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
BLOCKS = dependencies.contents(TEXT)
EXPERIMENTS = ["params.yaml", *(f"experiments/tiny/{name}.yaml" for name in ("digits", "text", "cifar10"))]
MATHEMATICS = ("iet", "diffusion", "pixels", "text", "methods", "measures", "image_sets", "randomness")
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "stages").rglob("*.py"))
]


def listed(content):
    """Paths of stages/ that a block lists, templates as they are."""
    return [dep for dep in content["deps"] if dep.startswith("stages")]


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_lists_what_its_module_imports_no_more_and_no_less(block):
    """Mended by: make dependencies"""
    if block == "plan":  # follows from all that the phases say of themselves
        assert listed(BLOCKS[block]) == ["stages"]
    else:
        assert listed(BLOCKS[block]) == dependencies.expected(block, BLOCKS[block])


def test_dvc_yaml_is_as_make_dependencies_would_write_it():
    assert dependencies.renewed(TEXT) == TEXT


@pytest.mark.parametrize("change", ["missing", "superfluous"])
@pytest.mark.parametrize(
    ("block", "line"),
    [
        ("train", "stages/diffusion/ddpm.py"),
        ("analyse", "stages/measures/roc.py"),
        ("detect", "stages/measures/intervals.py"),
        ("report", "stages/measures/trade_off.py"),
    ],
)
def test_a_line_too_many_or_too_few_is_seen(block, line, change):
    """The wrong lists that stood here once: an analysis without what decides what a copy is, a detector without its interval."""
    content = BLOCKS[block]
    deps = (
        [dep for dep in content["deps"] if dep != line]
        if change == "missing"
        else [*content["deps"], "stages/shard.py"]
    )
    assert deps != content["deps"]
    assert sorted(listed(content | {"deps": deps})) != dependencies.expected(block, content)


@pytest.mark.parametrize("path", EXPERIMENTS)
def test_of_every_arm_what_is_listed_with_its_templates_is_what_is_imported(path, monkeypatch):
    """Each instance of real experiments: no method that other arms use, no model of the other kind."""
    monkeypatch.chdir(ROOT)
    experiment = rules.load(path)
    seen = set()
    for instance in plan.expand(experiment).values():
        content, item = BLOCKS[instance.block], instance.item()
        if instance.block == "plan":
            continue
        filled = [dep.replace("${item.method}", item.get("method", "")) for dep in content["deps"]]
        filled = [dep.replace("${item.kind}", item.get("kind", "")) for dep in filled]
        filled = [dep.replace("${item.architecture}", item.get("architecture", "")) for dep in filled]
        code = [dep for dep in filled if dep.startswith("stages")]
        modules = [".".join(Path(item[name]).with_suffix("").parts) for name in ("method", "kind") if name in item]
        if instance.block == "detect":
            modules.append("stages.text")
        imported = dependencies.imported(instance.block, modules)
        assert all(dependencies.is_under(file, code) for file in imported), (instance.name, sorted(imported), code)
        for dep in code:
            assert any(dependencies.is_under(file, [dep]) for file in imported), (instance.name, dep)
        seen.add(instance.block)
    assert {"data", "shard", "train", "aggregate", "sample", "score", "report"} <= seen


def test_a_training_method_of_one_arm_is_no_dependency_of_another():
    """Adding a file to stages/methods, or editing wen.py, leaves plain DDPM as it is."""
    ddpm = closure.files("stages.train", "stages.methods.ddpm", "stages.pixels")
    assert "stages/methods/wen.py" not in ddpm and not [path for path in ddpm if path.startswith("stages/text")]
    assert "stages/methods/agc/memory_bank.py" in closure.files("stages.train", "stages.methods.agc", "stages.pixels")


def test_imports_inside_functions_count_and_what_runs_a_stage_does_not(tmp_path, monkeypatch):
    (tmp_path / "stages/maths").mkdir(parents=True)
    (tmp_path / "stages/run").mkdir()
    for name, text in {
        "stages/a.py": "from stages.run import cli\n\ndef f():\n    from stages.maths import one\n",
        "stages/run/cli.py": "import stages.other\n",
        "stages/other.py": "x = 1\n",
        "stages/maths/__init__.py": '"""Only a docstring."""\n',
        "stages/maths/one.py": "import stages.maths.two as two\n",
        "stages/maths/two.py": "from stages.maths.three import y\n",
        "stages/maths/three.py": "y = 1\n",
        "stages/maths/four.py": "",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(closure, "ROOT", tmp_path)
    closure.named.cache_clear()
    try:
        assert closure.files("stages.a") == [
            "stages/a.py", "stages/maths/one.py", "stages/maths/three.py", "stages/maths/two.py",
        ]  # fmt: skip
        with pytest.raises(ValueError, match="there is no module stages.b"):
            closure.files("stages.b")
    finally:
        closure.named.cache_clear()


# The three floors.


def floor(module):
    """3: what runs a stage; 1: the mathematics; 2: the phases, their registry and the report."""
    room = module.split(".")[1] if "." in module else ""
    return 3 if room == "run" else 1 if room in MATHEMATICS else 2


def imported_by(module):
    """All modules of stages/ that a module names in an import, stages.run among them."""
    return closure.named(module)


def test_every_folder_has_its_floor():
    folders = {path.name for path in (ROOT / "stages").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {"run", "report", *MATHEMATICS} - {"randomness"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    """The mathematics knows no files, no params.yaml and no phase; what runs a stage knows neither the mathematics nor the phases."""
    for other in imported_by(module):
        if floor(module) == 1:
            assert floor(other) == 1, f"{module} imports {other}"
        if floor(module) == 3:
            assert floor(other) == 3, f"{module} imports {other}"


def test_there_is_no_circle_among_modules():
    """A package that imports its own modules is one with them; two modules that need each other are not."""
    above, done = [], set()

    def visit(module):
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module in done:
            return
        above.append(module)
        for other in imported_by(module):
            if not other.startswith(f"{module}.") and not module.startswith(f"{other}."):
                visit(other)
        above.pop()
        done.add(module)

    for module in MODULES:
        visit(module)
    assert len(done) == len(MODULES) > 80


def test_the_phases_of_the_registry_are_those_of_dvc_yaml():
    declared = declarations.phases()
    assert {block.partition("_")[0] for block in BLOCKS} == declared.keys()
    for name, phase in declared.items():
        assert phase["name"] == name and phase["per"] in ("experiment", "run", "round", "shard", "sampled", "part")
    assert yaml.safe_load(TEXT)["stages"].keys() == BLOCKS.keys()
