"""The lists of mistakes in tests/mutants/ fit the code as it is, so that `make mutants` can put them in; and what its runner says of a mistake."""

import ast
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import checkout
import mutate
import pytest

MUTANTS = mutate.load()


def test_every_mistake_can_be_put_in():
    """Its text occurs once in its module, and another takes its place."""
    for mutant in MUTANTS:
        source = (mutate.ROOT / mutant.file).read_text(encoding="utf-8")
        assert source.count(mutant.old) == 1, (
            f"{mutant.file}: {mutant.name}: {source.count(mutant.old)} times in the module"
        )
        assert mutant.old != mutant.new and mutant.new, mutant.name
        changed = source.replace(mutant.old, mutant.new)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), (
            f"{mutant.file}: {mutant.name}: nothing changes"
        )


def test_every_mistake_has_a_sentence_of_its_own_and_tests_that_there_are():
    times = Counter((mutant.file, mutant.name) for mutant in MUTANTS)
    assert [key for key, number in times.items() if number > 1] == []
    for mutant in MUTANTS:
        assert mutant.tests, mutant.name
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert f"def {name}" in (mutate.ROOT / file).read_text(encoding="utf-8"), (
                f"{mutant.name}: there is no {test}"
            )


def test_every_stage_and_method_has_mistakes():
    listed = {mutant.file for mutant in MUTANTS}
    phases = {f"stages/{name}.py" for name in ("aggregate", "analyse", "clip", "data", "detect", "quality", "redistribute", "sample", "score", "shard", "similarity", "train")}  # fmt: skip
    methods = {path.relative_to(mutate.ROOT).as_posix() for path in (mutate.ROOT / "stages/methods").glob("*.py")}
    without = {f"stages/methods/{name}.py" for name in ("__init__", "kinds", "ddpm", "objective")}  # no arithmetic
    assert phases | methods - without <= listed


def test_few_mistakes_may_survive_and_each_says_why():
    survivors = [mutant for mutant in MUTANTS if mutant.survives is not None]
    assert len(MUTANTS) >= 120 and len(survivors) <= 0.02 * len(MUTANTS)
    assert all(mutant.survives for mutant in survivors)


def test_a_list_of_another_form_is_refused(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(
        "module a.py\ntests b.py\n\nwrong\n- x\n+ y\n\nwrong too\ntests c.py d.py::e\nsurvives it is the same\n- x\n-     z\n+ y\n"
    )
    one, two = mutate.parsed(path)
    assert one == mutate.Mutant("own", "a.py", "wrong", "x", "y", ("b.py",))
    assert two == mutate.Mutant("own", "a.py", "wrong too", "x\n    z", "y", ("c.py", "d.py::e"), "it is the same")
    path.write_text("module a.py\ntests b.py\n\nwrong\n* x\n")
    with pytest.raises(ValueError, match=r"own.txt: '\* x', expected a line of tests, survives, - or \+"):
        mutate.parsed(path)


def test_the_table_has_a_row_a_module_and_names_what_survives():
    killed = mutate.Mutant("own", "a.py", "one", "x", "y", ("b.py",))
    other = replace(killed, file="b.py", name="two", survives="nobody can tell")
    assert mutate.table(
        [(other, "survived"), (killed, "killed"), (replace(killed, name="three"), "survived")]
    ).splitlines() == [
        "| module | mistakes | killed | survived |",
        "| --- | --- | --- | --- |",
        "| `a.py` | 2 | 1 | three (no reason is given) |",
        "| `b.py` | 1 | 0 | two (nobody can tell) |",
        "| all | 3 | 1 | 2 |",
    ]


@pytest.mark.slow
def test_the_runner_tells_killed_from_survived_and_from_what_does_not_import(tmp_path):
    """In a project of one function and one test."""
    written = {
        "pytest.ini": "[pytest]\npythonpath = .\n",
        "stages/a.py": "def half(x):\n    return x // 2\n",
        "workflow/scripts/checkout.py": Path(checkout.__file__).read_text(encoding="utf-8"),
        "tests/mutate.py": Path(mutate.__file__).read_text(encoding="utf-8"),
        "tests/test_a.py": "from stages.a import half\n\n\ndef test_half():\n    assert half(6) == 3\n",
        "tests/mutants/a.txt": "module stages/a.py\ntests tests/test_a.py\n\ntwice\n- x // 2\n+ x * 2\n\nrounded up\n- x // 2\n+ -(-x // 2)\n",
    }
    for name, text in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)

    def run(more=""):
        (tmp_path / "tests/mutants/a.txt").write_text(written["tests/mutants/a.txt"] + more, encoding="utf-8")
        return subprocess.run(
            [sys.executable, "tests/mutate.py"], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    done = run("survives no test has an odd number\n")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "| all | 2 | 1 | 1 |")
    assert "| `stages/a.py` | 2 | 1 | rounded up (no test has an odd number) |" in done.stdout
    assert run().returncode == 1  # it survives without a reason
    done = run("survives no test has an odd number\n\nno Python\n- return x\n+ return x x\n")
    assert done.returncode == 1 and "invalid: stages/a.py: no Python" in done.stderr and "SyntaxError" in done.stderr
    (tmp_path / "tests/test_a.py").write_text("def test_half():\n    assert False\n")
    done = run()
    assert done.returncode == 1 and "tests/test_a.py fails without a change" in done.stderr and not done.stdout
