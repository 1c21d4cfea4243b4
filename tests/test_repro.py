"""The launcher of one stage: it knows of no other stage, and works beside others of its kind."""

import re
import subprocess
import sys

import dvc.rwlock
import pytest
import repro
from dvc_objects.fs import system

from stages.run import lock, plan_file, processes

STAGE = "train@ddpm-seed3-round1-shard0"
LAUNCHER = [sys.executable, "workflow/scripts/repro.py"]


def test_it_reads_nothing_of_other_stages(finished, tmp_path):
    """What it costs does not depend on how many there are: their lines may be anything."""
    project = finished.copy(tmp_path / "project")
    locked, planned = project.root / "dvc.lock", project.root / "plan.json"
    blocks = lock.BLOCK.split(locked.read_text()[len(lock.HEAD) :])[1:]
    nonsense = [block if block.startswith(f"  {STAGE}:") else block.replace(":", "[{") for block in blocks]
    assert sum(block in nonsense for block in blocks) == 1
    locked.write_text(lock.HEAD + "".join(nonsense))
    key = f'"{STAGE.partition("@")[2]}": {{'
    planned.write_text(
        "\n".join(
            ln if ln.startswith((key, '"train": {')) else ln.replace(",", "[{")
            for ln in planned.read_text().split("\n")
        )
    )
    said = project.run(*LAUNCHER, STAGE, "receipt").text
    assert f"Stage '{STAGE}' didn't change, skipping" in said
    assert (project.root / "receipt").read_text() == f"{STAGE}\n"
    assert not list((project.root / lock.RECORDS).glob("*"))


def test_its_record_is_what_dvc_repro_records(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    before = (project.root / "dvc.lock").read_bytes()
    project.edit(arms__ddpm__train__epochs=2)
    other = project.copy(tmp_path / "other")
    assert f"Running stage '{STAGE}'" in project.run(*LAUNCHER, STAGE, "receipt").text
    assert (project.root / "dvc.lock").read_bytes() == before
    other.run("dvc", "repro", "--single-item", STAGE)
    project.run(sys.executable, "-c", "from stages.run import lock; lock.fold()")
    assert (project.root / "dvc.lock").read_bytes() == (other.root / "dvc.lock").read_bytes() != before


def test_a_stage_that_fails_leaves_no_record_and_no_receipt(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    project.edit(arms__ddpm__train__epochs=2)
    (project.root / "stages/train.py").write_text("raise SystemExit('error: it is broken')\n")
    failed = project.run(*LAUNCHER, STAGE, "receipt", check=False)
    assert failed.returncode == 1 and "Traceback" not in failed.text
    assert "error: it is broken" in failed.text
    assert re.search(
        rf"^error: failed to reproduce '{STAGE}': failed to run: python -m stages.train .* exited with 1",
        failed.text,
        re.MULTILINE,
    )
    assert not (project.root / "receipt").exists() and not list((project.root / lock.RECORDS).glob("*"))


def test_a_kill_before_the_first_file_of_the_run_cache_does_not_stop_a_stage_for_good(finished, tmp_path):
    """DVC makes the folder of a run and then puts a file into it; a kill between the two leaves it empty."""
    project = finished.copy(tmp_path / "project")
    files = [file for file in (project.root / ".dvc/cache/runs").rglob("*") if file.is_file()]
    of_train = [file for file in files if "stages.train" in file.read_text()]
    for file in of_train:
        file.unlink()
    (project.root / "dvc.lock").unlink()  # nothing was recorded either, so the run cache is asked
    assert f"Running stage '{STAGE}'" in project.run(*LAUNCHER, STAGE, "receipt").text
    assert sum(file.exists() for file in of_train) == 1  # its run alone is kept again


def test_an_unknown_stage_is_one_sentence(finished):
    failed = finished.run(*LAUNCHER, "train@nobody", "receipt", check=False)
    assert failed.returncode == 1 and "Traceback" not in failed.text and "train@nobody" in failed.text


def test_launchers_do_not_wait_for_each_other(finished, tmp_path):
    """One that shares DVC's lock is let in; while another holds it alone, they wait."""
    project = finished.copy(tmp_path / "project")
    path = project.root / ".dvc/tmp/lock"
    with processes.DvcLock(path, shared=True):
        project.run(*LAUNCHER, STAGE, "receipt", timeout=60)
    with processes.DvcLock(path):
        waiting = subprocess.Popen([*LAUNCHER, STAGE, "again"], cwd=project.root)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(timeout=10)
        assert not (project.root / "again").exists()
    assert waiting.wait(timeout=60) == 0


def test_a_file_in_the_cache_is_not_touched_by_a_second_that_comes_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(system, "reflink", system.reflink)
    monkeypatch.setattr(dvc.rwlock, "make_lock", dvc.rwlock.make_lock)
    mine, cached = tmp_path / "mine", tmp_path / "cached"
    for file in (mine, cached):
        file.write_text("same")
    try:
        system.reflink(str(mine), str(cached))
        pytest.skip("this disk can clone files")
    except OSError:
        assert not cached.exists()  # what DVC alone does to it
    cached.write_text("same")
    repro.work_side_by_side()
    with pytest.raises(OSError):
        system.reflink(str(mine), str(cached))
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"mine": "same", "cached": "same"}


def test_the_line_of_a_stage_in_the_plan(tmp_path, monkeypatch):
    """A key of one block stands in others too; plan itself is a stage."""
    monkeypatch.chdir(tmp_path)
    blocks = {
        "data": {"source": "x"},
        "shard": {"a-seed0": {"arm": "a", "seed": 0}, "a-seed01": {"arm": "a", "seed": 1}},
        "train": {},
        "score": {"a-seed0": {"arm": "a", "of": {"b": [1, 2]}}, "reference": {"arm": "é}"}},
    }
    plan_file.PLAN_FILE.write_text(plan_file.text(blocks), encoding="utf-8")
    for block, items in blocks.items():
        for key, fields in items.items():
            if block != "data":
                assert plan_file.of_stage(f"{block}@{key}") == {"plan": {block: {key: fields}}}
    assert plan_file.of_stage("data") == {"plan": {"data": {"source": "x"}}}
    for name in ("shard@a-seed", "train@a-seed0", "shard@reference"):
        assert plan_file.of_stage(name) == {"plan": {name.partition("@")[0]: {}}}
    assert plan_file.of_stage("plan") == {"plan": {"plan": {}}}
