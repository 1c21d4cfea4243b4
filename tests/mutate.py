"""Puts plausible mistakes into copies of the project, one at a time, and looks whether the tests that should notice do.

    python tests/mutate.py           all of tests/mutants/
    python tests/mutate.py score     only those whose file, module or sentence holds this text

A file of tests/mutants/ is a list of mistakes:

    module stages/score.py                  the module of what follows
    tests tests/test_stage_score.py         files or node ids of tests that should notice

    k is one neighbour less                 one sentence that says what is wrong
    - self.k = settings["neighbours"]       text that occurs once in the module, one or more lines
    + self.k = settings["neighbours"] - 1   what takes its place

A mistake may name tests of its own in a line `tests ...` after its sentence, and in a line `survives ...` the reason why no test can notice.

All tests that are named must pass without a change first. A mistake is killed when a test fails or does not end in time, and survives
when all pass; one that does not even import is a mistake of the list. Prints a table in Markdown; ends with 1 when one survives
that has no reason, or has a reason and is killed.
"""

import argparse
import compileall
import importlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "workflow/scripts"))
import checkout  # noqa: E402

AT_ONCE = 2
LIMIT_S = 300  # for the tests of one mistake
OUTCOMES = {0: "survived", 1: "killed"}  # exit codes of pytest; others: no test was run


@dataclass(frozen=True)
class Mutant:
    """One mistake: see above. `listed` is the file of tests/mutants/ that it stands in."""

    listed: str
    file: str
    name: str
    old: str
    new: str
    tests: tuple
    survives: str | None = None

    def applied(self, root):
        path = Path(root) / self.file
        path.write_text(path.read_text(encoding="utf-8").replace(self.old, self.new), encoding="utf-8")
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):  # of the file as it was, by its size and second
            compiled.unlink()


def load(folder=ROOT / "tests/mutants"):
    """All mistakes, in the order of the files: list of Mutant.

    Raises   ValueError: a block has another form
    """
    return [mutant for path in sorted(folder.glob("*.txt")) for mutant in parsed(path)]


def parsed(path):
    """The mistakes of one file: list of Mutant."""
    found, module, tests = [], None, ()
    for block in path.read_text(encoding="utf-8").strip("\n").split("\n\n"):
        sentence, *rest = block.split("\n")
        told = {"tests": tests, "survives": None}
        old, new = [], []
        for line in rest:
            kind, _, value = line.partition(" ")
            if kind == "tests":
                told["tests"] = tuple(value.split())
            elif kind == "survives":
                told["survives"] = value
            elif kind in "-+":
                (old if kind == "-" else new).append(value)
            else:
                raise ValueError(f"{path}: {line!r}, expected a line of tests, survives, - or +")
        if sentence.startswith("module "):
            module, tests = sentence.removeprefix("module "), told["tests"]
            continue
        found.append(Mutant(path.stem, module, sentence, "\n".join(old), "\n".join(new), **told))
    return found


def copy(root):
    """The project's own files as they lie in the working tree, as a repository, which some tests ask for its files."""
    for name in checkout.own_files(ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)


# A module that is there already when pytest starts cannot have its assertions rewritten, which pytest warns of and the project takes for an error.
OPTIONS = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]


def _tested(place, tests):
    """Runs tests in the copy place/project and ends this process with pytest's exit code."""
    with open(place / "output", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(place / "project")
    sys.modules.pop("checkout")  # of the project itself: the tests import that of the copy
    import pytest

    code = pytest.main([*OPTIONS, f"--basetemp={place / 'tmp'}", *tests])
    sys.stdout.flush()
    os._exit(int(code))


def run(jobs, told):
    """Runs the tests of each job in a copy of its own, AT_ONCE at a time.

    jobs      list of (Mutant or None, tests)
    told      called with job, outcome, output of pytest, as each ends
    """
    waiting, running = list(jobs), []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        original = Path(folder) / "original"
        original.mkdir()
        copy(original)
        compileall.compile_dir(original / "stages", quiet=1)
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                job = waiting.pop(0)
                place = Path(folder) / str(len(waiting))
                shutil.copytree(original, place / "project")
                if job[0]:
                    job[0].applied(place / "project")
                process = multiprocessing.get_context("fork").Process(target=_tested, args=(place, job[1]))
                process.start()
                running.append((job, process, place, time.monotonic()))
            time.sleep(0.05)
            for each in list(running):
                job, process, place, started = each
                too_long = time.monotonic() - started > LIMIT_S
                if process.is_alive() and not too_long:
                    continue
                if process.is_alive():
                    process.kill()
                process.join()
                running.remove(each)
                outcome = "killed" if too_long else OUTCOMES.get(process.exitcode, "invalid")
                told(job, outcome, (place / "output").read_text(errors="replace"))
                shutil.rmtree(place)


def baseline(mutants):
    """Names of the tests that fail without a change: list of (tests, output)."""
    by_file = {}
    for test in sorted({test for mutant in mutants for test in mutant.tests}):
        by_file.setdefault(test.partition("::")[0], []).append(test)
    failed = []
    jobs = [(None, names) for names in by_file.values()]
    done = 0

    def told(job, outcome, output):
        nonlocal done
        done += 1
        print(f"\rwithout a change: {done} of {len(jobs)} files of tests", end="", file=sys.stderr, flush=True)
        if outcome != "survived":
            failed.append((job[1], output))

    run(jobs, told)
    print(file=sys.stderr)
    return failed


def table(results):
    """Markdown: by module the numbers of mistakes and of those that were killed, and the sentences of those that survived.

    results   list of (Mutant, outcome)
    """
    lines = ["| module | mistakes | killed | survived |", "| --- | --- | --- | --- |"]
    for file in sorted({mutant.file for mutant, _ in results}):
        of_file = [(mutant, outcome) for mutant, outcome in results if mutant.file == file]
        killed = sum(outcome == "killed" for _, outcome in of_file)
        left = [f"{m.name} ({m.survives or 'no reason is given'})" for m, outcome in of_file if outcome == "survived"]
        lines.append(f"| `{file}` | {len(of_file)} | {killed} | {'; '.join(left)} |")
    killed = sum(outcome == "killed" for _, outcome in results)
    return "\n".join([*lines, f"| all | {len(results)} | {killed} | {len(results) - killed} |"])


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", default="", help="text that the file, the module or the sentence holds")
    only = parser.parse_args(arguments).only
    mutants = [m for m in load() if any(only in text for text in (m.listed, m.file, m.name))]
    if not mutants:
        sys.exit(f"error: no mistake of tests/mutants/ has {only!r} in its file, its module or its sentence")
    sys.path.remove(str(ROOT / "tests"))  # of this script: the copies have their own
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for module in ("pandas", "scipy.stats", "sklearn.metrics", "torch", "diffusers.models.unets.unet_2d"):
        importlib.import_module(module)  # once, in the place of once a mistake

    if failed := baseline(mutants):
        for tests, output in failed:
            print(f"{' '.join(tests)} fails without a change:\n{output}", file=sys.stderr)
        sys.exit(1)
    results, wrong, started = [], [], time.monotonic()

    def told(job, outcome, output):
        mutant = job[0]
        results.append((mutant, outcome))
        left = (time.monotonic() - started) / len(results) * (len(mutants) - len(results)) / 60
        print(
            f"{len(results)} of {len(mutants)}, {left:.0f} min left: {outcome}: {mutant.file}: {mutant.name}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        if outcome == "invalid":
            print(output, file=sys.stderr)
        if outcome != ("survived" if mutant.survives else "killed"):
            wrong.append(mutant)

    run([(mutant, mutant.tests) for mutant in mutants], told)
    results.sort(key=lambda result: mutants.index(result[0]))
    print(table(results))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(sys.argv[1:])
