"""dvc.lock as text with a block for each stage, and the records that are not in it yet."""

import os
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from stages.run import files, lock

ODD = [
    "yes", "on", "08", "1:30", "1e-4", "~", "2020-01-01", "0x1f", "a: b", "#x", "", " lead", "12e3", "true", "é", "x" * 200, "a\nb", "'",
    "12345678901234567890123456789012", "1234567890123456789012345678e901", "- a", "[a", "word " * 40,
]  # fmt: skip


def of(number, text="plain", count=3):
    """An entry as DVC makes it, with one odd text wherever one could be."""
    outs = [
        {"path": f"artifacts/x{k}", "hash": "md5", "md5": f"{number:032x}.dir", "size": k, "nfiles": 2}
        for k in range(count)
    ]
    return {
        "cmd": f"python -m stages.x --arm {text} --seed {number}",
        "deps": [
            {"path": text, "hash": "md5", "md5": text, "size": 10},
            {"path": "stages/a.py", "hash": "md5", "md5": "1" * 32},
        ],
        "params": {"params.yaml": {"train": {text or "k": [text, 1, 1e-5, 2.0, None, True]}, "text": text}},
        "outs": outs,
    }


def written(stages):
    from dvc.utils.serialize import dumps_yaml

    Path("dvc.lock").write_text(dumps_yaml({"schema": "2.0", "stages": stages}), encoding="utf-8")
    return stages


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def stages(folder):
    return written({f"x@a+b-seed{i}": of(i, text) for i, text in enumerate(ODD)} | {"report": of(99)})


def test_what_dvc_reads(stages):
    """Texts that YAML takes for something else included; one stage alone and all at once."""
    from dvc.utils.serialize import load_yaml

    assert load_yaml("dvc.lock")["stages"] == lock.recorded_stages() == stages
    for name, entry in stages.items():
        found = lock.entry(name)
        assert found == entry and repr(found["params"]) == repr(entry["params"]), name
    assert lock.names() == set(stages)
    assert lock.entry("x@a+b-seed100") is None and lock.entry("repor") is None


def test_the_projects_own_file():
    from dvc.utils.serialize import load_yaml

    assert Path("dvc.lock") == lock.LOCK_FILE
    text = (ROOT / "dvc.lock").read_text(encoding="utf-8")
    assert text.startswith(lock.HEAD)
    plain = lock.PLAIN_ITEM.findall(text)
    assert len(plain) > 0.9 * text.count("\n    - path: ")
    assert {item[0] for item in plain} <= {
        f["path"]
        for entry in load_yaml(ROOT / "dvc.lock")["stages"].values()
        for f in [*entry.get("deps", []), *entry["outs"]]
    }


def test_folded_records_are_the_bytes_that_dvc_writes(stages):
    """A new stage comes last, one that was there stays in its place."""
    from dvc.utils.serialize import modify_yaml

    Path("theirs").mkdir()
    shutil.copy("dvc.lock", "theirs/dvc.lock")
    changed = {"x@a+b-seed3": of(77, "12e3"), "new@b-seed0": of(78, "1:30"), "report": of(79, "~")}
    for name, entry in changed.items():
        lock.record(name, entry)
        assert lock.entry(name) == entry
    assert lock.recorded_stages() == stages
    assert lock.fold() == 3
    for name, entry in changed.items():
        with modify_yaml("theirs/dvc.lock") as theirs:
            theirs["stages"][name] = entry
    assert Path("dvc.lock").read_bytes() == Path("theirs/dvc.lock").read_bytes()
    assert not list(lock.RECORDS.iterdir()) and lock.fold() == 0
    assert lock.recorded_stages() == stages | changed


def test_the_first_record_makes_the_file(folder):
    lock.record("x@a", of(1))
    assert lock.recorded_stages() == {} and lock.names() == set()
    lock.fold()
    assert lock.recorded_stages() == {"x@a": of(1)}


def test_a_record_of_the_past_is_dropped(stages):
    """`dvc repro` or `git checkout` wrote another entry, a new one, or none, after the record was left."""
    for name in ("x@a+b-seed0", "x@a+b-seed1", "new@a", "x@a+b-seed2"):
        lock.record(name, of(50))
    now = written({**stages, "x@a+b-seed0": of(51), "new@a": of(52)} | {})
    del now["x@a+b-seed1"]
    written(now)
    lock.fold()
    assert lock.recorded_stages() == now | {"x@a+b-seed2": of(50)}


@pytest.mark.parametrize("moment", ["write_bytes", "unlink"])
def test_a_fold_that_was_killed_is_finished_by_the_next(stages, monkeypatch, moment):
    """Before dvc.lock is replaced, and after it before the records go."""
    new = {"x@a+b-seed0": of(50), "new@a": of(51)}
    for name, entry in new.items():
        lock.record(name, entry)

    class Killed(BaseException):
        pass

    def killed(path, *_, **__):
        if Path(path) == lock.LOCK_FILE or lock.RECORDS in path.parents:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(*((files, "write_bytes") if moment == "write_bytes" else (Path, "unlink")), killed)
        with pytest.raises(Killed):
            lock.fold()
    assert lock.recorded_stages() == (stages if moment == "write_bytes" else stages | new)
    assert all(lock.entry(name) == entry for name, entry in new.items())
    lock.fold()
    assert lock.recorded_stages() == stages | new and not list(lock.RECORDS.iterdir())


def test_stages_that_left_the_plan_are_removed(stages):
    lock.remove({"x@a+b-seed1", "report", "x@unknown"})
    assert lock.recorded_stages() == {n: e for n, e in stages.items() if n not in ("x@a+b-seed1", "report")}
    lock.remove(set(stages))
    assert lock.recorded_stages() == {} and lock.entry("report") is None


@pytest.mark.parametrize(
    "text",
    [
        "stages:\n  a@b: {cmd: x y, outs: [{path: p, md5: q}]}\n",
        "# by hand\nschema: '2.0'\nstages:\n    a@b:\n        cmd: x y\n        outs:\n            - {path: p, md5: q}\n",
        "schema: '2.0'\nstages:\n  a@b:\n    cmd: x y\n    outs: &o\n    - path: p\n      md5: q\n  c:\n    cmd: x y\n    outs: *o\n",
    ],
)
def test_other_forms_of_the_file_are_read_all_the_same(folder, text):
    Path("dvc.lock").write_text(text)
    expected = {"cmd": "x y", "outs": [{"path": "p", "md5": "q"}]}
    assert lock.recorded_stages()["a@b"] == lock.entry("a@b") == expected
    lock.record("d@e", of(5))
    lock.fold()
    assert lock.recorded_stages() == {
        **dict.fromkeys(["a@b", "c"] if "c:" in text else ["a@b"], expected),
        "d@e": of(5),
    }


@pytest.mark.parametrize("broken", ["<<<<<<< HEAD\n", "  a: [\n", "  - a\n", "  x@b:\n    cmd: 'a\n", "text\n"])
def test_a_broken_file_is_named(stages, broken):
    with open("dvc.lock", "a") as file:
        file.write(broken)
    with pytest.raises(ValueError, match="dvc.lock cannot be read, as after a merge with conflicts"):
        lock.recorded_stages()


def test_a_record_is_whole_or_not_there(stages, monkeypatch):
    """It is made in scratch/ and renamed: a kill while it is made leaves nothing in its place."""
    monkeypatch.setattr(os, "replace", lambda *_: os._exit(9))
    child = os.fork()
    if not child:
        lock.record("report", of(1))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not list(lock.RECORDS.glob("*")) and lock.entry("report") == stages["report"]
