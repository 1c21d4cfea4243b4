"""Every snippet of README.md and of the manual in docs/ holds: sections of params.yaml pass the checks, commands are understood by what they call.

What each command does is tested elsewhere, through small projects (test_pipeline.py, test_own_images.py, test_release.py and so on). Not run
here: `make run`, `make seeds` and the like, which train for minutes; git, conda, cd, $EDITOR, which are not ours; printed results.
"""

import importlib.util
import re
import shlex

import pytest
import yaml
from conftest import ROOT
from snakemake.cli import get_argument_parser

from stages import rules
from stages.run import params

MANUAL = ("README.md", *(f"docs/{name}.md" for name in ("experiments", "images", "measures", "running", "text")))
TEXT = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in MANUAL)
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
INLINE = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", PROSE)]
PROGRAMS = ("make", "snakemake", "dvc", "python")
NOT_OURS = ("git", "conda", "cd", "source", "$EDITOR", "docker", "kill", "nvidia-smi")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = dict(re.findall(r"^([a-z-]+):(?!=).*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE))


def commands_of(line):
    """The commands of a line of a shell block, without comments and what is set before them; placeholders stand for any word."""
    words = [word for word in shlex.split(line, comments=True) if word not in ("[", "]")]
    commands, current = [], []
    for word in [*words, "&&"]:
        if word == "&&":
            commands.append(current)
            current = []
        else:
            current.append(word.rstrip(";"))
    for command in filter(None, commands):
        while re.match(r"[A-Z_]+=", command[0]):
            command = command[1:]
        yield command


def check(command):
    program, *words = command
    if program == "make":
        check_make(words)
    elif program == "snakemake":
        get_argument_parser().parse_args(words)
    elif program == "dvc":
        from dvc.cli import parse_args

        parse_args(words)
    elif program == "python":
        check_python(words)
    else:
        assert program in NOT_OURS, f"{program} in {command}: a kind of command that no test knows"


def check_make(words):
    targets = [word for word in words if "=" not in word]
    for name in targets:
        assert name in TARGETS, f"make {name}"
    for variable in (word.partition("=")[0] for word in words if "=" in word):
        assert any(f"$({variable})" in TARGETS[name] for name in targets) or variable == "PYTHON", words


def check_python(words):
    if words[0] == "-m":
        name = words[1].replace("NAME", "search")
        assert name.endswith("...") or importlib.util.find_spec(name.rstrip(".")), words
    else:
        assert (ROOT / words[0]).exists(), words


def section_of_params(text):
    """A block of YAML, as a part of params.yaml: `...` stands for keys that are left out."""
    return yaml.safe_load(re.sub(r"\.\.\.,\s*", "", text))


def with_snippet(found):
    """The default experiment with the sections of a snippet in the place of its own, and with what goes with them."""
    experiment = params.read(ROOT / "params.yaml")
    is_text = "pipeline" in found.get("model", {}) or {"clip", "detect"} & found.keys()
    if is_text:
        experiment = params.read(ROOT / "experiments/tiny/text.yaml")
    shared = {name: experiment.get(name, {}) | found[name] for name in ("train", "sample") if name in found}
    experiment = params.filled(experiment | found | shared)
    if is_text or any("generator" in recipe for recipe in experiment["arms"].values()):
        experiment["score"]["headline"] = experiment["score"]["headline"] | {"weights": "raw"}
    return experiment


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind == "yaml"])
def test_a_snippet_of_params_passes_the_checks(text):
    rules.check(with_snippet(section_of_params(text)))


@pytest.mark.parametrize("text", [text for kind, text in BLOCKS if kind != "yaml"])
def test_a_block_holds_commands_that_exist_or_what_was_printed(text):
    if re.search(r"^-{3,}  ", text, re.MULTILINE):  # a table that a run ended with
        return
    for line in text.splitlines():
        for command in commands_of(line.replace("<this repository>", "url").replace("...,", "")):
            check(command)


@pytest.mark.parametrize("code", sorted({code for code in INLINE if code.split()[0] in PROGRAMS and " " in code}))
def test_a_command_in_the_text_exists(code):
    if "..." in code or re.search(r"\b(FILE|COMMIT)\b", code):
        code = code.replace("...", "x")
    for command in commands_of(code.replace("gpu=", "gpu=1") if code.endswith("gpu=") else code):
        check(command)


def test_files_that_the_text_names_exist():
    named = {
        code
        for code in INLINE
        if re.fullmatch(r"(stages|workflow|tests|docs|experiments|benchmarks)/[\w/.-]+\.(py|md|yaml|txt)", code)
    }
    assert named
    for name in named:
        assert (ROOT / name).exists(), name


def test_a_wrong_snippet_would_be_noticed():
    for command in (
        ["make", "tea"],
        ["make", "experiment", "NAMES=x"],
        ["snakemake", "--corse", "2"],
        ["ls"],
        ["python", "-m", "stages.tea"],
    ):
        with pytest.raises((AssertionError, SystemExit)):
            check(command)
    with pytest.raises(ValueError, match="data.root is missing"):
        rules.check(with_snippet(section_of_params("data: {name: image_folder, size: 32}")))
