"""Keeps the code that dvc.yaml lists equal to what the phases import: `make dependencies` rewrites those lines.

A block lists what its module imports, except stages/run. The training method and the kind of model depend on the arm, so a template stands for
their code (${item.method}, ${item.kind}, ${item.architecture}); the rest of what they import is the same for all of them.
"""

import re
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))
from stages import experiments
from stages.run import cli, closure, declarations, files
from stages.run.instance import phase_of

DVC_FILE = Path("dvc.yaml")
UNET = "stages/diffusion/unet.py"


def variants(block, content):
    """What the templates of a block can stand for: list of (names of the modules that they import, paths that they are filled in with)."""
    templates = set(re.findall(r"\$\{item\.(method|kind|architecture)\}", str(content)))
    if block.endswith("_elsewhere"):
        return [(list(experiments.FOREIGN), [])]
    if not templates:
        return [([], [])]
    kinds = ["text"] if "kind" not in templates else ["pixels", "text"]
    found = []
    for kind in kinds:
        for name, method in declarations.methods().items():
            if kind in method["MODELS"]:
                paths = {"method": str(declarations.method_source(name))}
                if "kind" in templates:
                    paths["kind"] = f"stages/{kind}"
                if kind == "pixels":
                    paths["architecture"] = UNET
                found.append(([f"stages.methods.{name}", f"stages.{kind}"], list(paths.values())))
    return found


def imported(block, modules):
    """Source files that the results of a block depend on, with those modules filled in: set of paths."""
    phase = phase_of(block)
    declared = declarations.phases()
    # What the report shows follows from what all phases say of themselves.
    others = [f"stages.{name}" for name in declared] if declared[phase].get("reads_phases") else []
    own = {closure.source(name).relative_to(closure.ROOT).as_posix() for name in others}
    return own | set(closure.files(f"stages.{phase}", *modules))


def is_under(path, listed):
    return any(path == other or path.startswith(f"{other}/") for other in listed)


def expected(block, content):
    """The lines of code that a block should list, beside its templates: sorted list of paths. A folder that it lists stays: its modules may
    be found by listing it.

    Raises   ValueError: two methods or kinds of model need different lines
    """
    folders = [dep for dep in content["deps"] if (closure.ROOT / dep).is_dir() and dep.startswith("stages")]
    lists = {}
    for modules, paths in variants(block, content):
        rest = [path for path in imported(block, modules) if not is_under(path, [*paths, *folders])]
        rest = tuple(sorted([*rest, *folders]))
        lists.setdefault(rest, modules)
    if len(lists) > 1:
        (one, first), (other, second) = list(lists.items())[:2]
        differ = ", ".join(sorted(set(one) ^ set(other)))
        raise ValueError(
            f"{' with '.join(first)} and {' with '.join(second)} differ in {differ}, which block {block} of dvc.yaml can only list for both "
            "or for neither: import it from the module of the method or from the folder of the kind of model alone"
        )
    return list(next(iter(lists)))


def contents(text):
    """What dvc.yaml says of each block: dict name -> dict with cmd, deps, params, outs."""
    return {name: block.get("do", block) for name, block in yaml.safe_load(text)["stages"].items()}


def renewed(text):
    """dvc.yaml with the lines of code that it should have."""
    for block, content in contents(text).items():
        if "stages" in content["deps"]:  # the plan follows from all that the phases say of themselves
            continue
        start = text.index(f"\n  {block}:")
        end = re.search(r"\n\n|\Z", text[start + 1 :]).start() + start + 1
        lines = text[start:end].split("\n")
        code = [i for i, line in enumerate(lines) if re.match(r" +- (stages/|CODE)", line)]
        indent = re.match(" +", lines[code[0]]).group()
        kept = [line for i, line in enumerate(lines) if i not in code]
        kept[code[0] : code[0]] = [f"{indent}- {path}" for path in expected(block, content)]
        text = text[:start] + "\n".join(kept) + text[end:]
    return text


def main(words):
    before = DVC_FILE.read_text(encoding="utf-8")
    after = renewed(before)
    files.write_text(DVC_FILE, after)
    print("dvc.yaml lists what the phases import" if after == before else "dvc.yaml was renewed")


if __name__ == "__main__":
    cli.run(main)
