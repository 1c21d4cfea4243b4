"""What leaves the disk under REDISTRIBUTE_KEEP=needed, and that nothing else does."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import retention
import yaml
from conftest import TINY, Project

from stages import plan

IET = "iet_agc_plus-seed3"
NEEDED = {"REDISTRIBUTE_KEEP": "needed"}


def test_rounds_no_longer_needed_by_hand():
    """Round r goes when round r + 1 has trained all shards and round r is averaged; the last one stays."""
    experiment = yaml.safe_load(TINY)
    experiment["arms"]["iet_agc_plus"]["rounds"] = 4
    expanded = plan.expand(experiment)

    def after(*pending):
        return sorted(r for run, r in retention.rounds_no_longer_needed(expanded, set(pending)) if run == IET)

    assert after() == [1, 2, 3]
    assert {run for run, _ in retention.rounds_no_longer_needed(expanded, set())} == {IET}  # ddpm has one round
    assert after(f"train_next@{IET}-round3-shard1") == [1]  # writes round 3 and reads round 2
    assert after(f"train_next@{IET}-round4-shard0") == [1, 2]
    assert after(f"aggregate@{IET}-round1") == [2, 3]
    assert after(f"redistribute@{IET}-round1", f"sample@{IET}-round2-part0", "report") == [1, 2, 3]  # read none of it
    assert after(*(name for name in expanded if name.startswith("train"))) == []


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Nothing run; `record` makes it look so."""
    made = Project.create(tmp_path / "project", TINY)
    monkeypatch.chdir(made.root)
    return made


def record(project, outputs):
    """Writes dvc.lock, artifacts/ and cache as if DVC had run stages with these outputs: dict path -> dict file -> hash."""
    stages = {}
    for i, (path, contents) in enumerate(outputs.items()):
        listed = json.dumps([{"md5": part, "relpath": name} for name, part in contents.items()])
        oid = hashlib.md5(listed.encode()).hexdigest() + ".dir"
        for name, part in contents.items():
            for target in (project.root / path / name, cached(project, part)):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(part)
        cached(project, oid).parent.mkdir(parents=True, exist_ok=True)
        cached(project, oid).write_text(listed)
        stages[f"train@{i}"] = {"cmd": "x", "outs": [{"path": path, "hash": "md5", "md5": oid}]}
    (project.root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def cached(project, oid):
    return project.root / ".dvc/cache/files/md5" / oid[:2] / oid[2:]


def hash_of(number):
    return f"{number:02d}" + "0" * 30


def prune(expanded, pending=()):
    retention.Retention(expanded, set(pending), lambda _: False).prune()


def folder(run, round_, shard=0):
    return f"artifacts/train/{run}/round{round_}/shard{shard}"


def test_what_others_share_stays_in_the_cache(project):
    """Shared by the averaged model (one shard: the average is the shard), by an arm that still needs it, and by a tag."""
    outputs = {
        folder("a-seed0", 1): {"raw": hash_of(1), "ema": hash_of(2), "state": hash_of(3), "other": hash_of(4)},
        folder("a-seed0", 2): {"raw": hash_of(5), "state": hash_of(6)},
        folder("b-seed0", 1): {"raw": hash_of(7), "state": hash_of(3)},
        folder("b-seed0", 2): {"raw": hash_of(8)},
        "artifacts/model/a-seed0/round1": {"raw": hash_of(1)},
    }
    tagged = {folder("a-seed0", 1): {"raw": hash_of(9), "old": hash_of(4)}}  # a commit in which round 1 was the last
    record(project, tagged)
    project.commit("one round")
    project.run("git", "tag", "one")
    record(project, outputs)
    project.commit("two rounds")
    recipe = {"rounds": 2, "method": {"name": "ddpm"}, "shard": {"num_shards": 1}, "redistribute": {}, "sample": {}}
    experiment = {
        "seeds": [0],
        "data": {"name": "digits"},
        "model": {},
        "sample": {"parts": 1},
        "arms": {"a": recipe, "b": recipe},
    }
    expanded = plan.expand(experiment)

    prune(expanded, {"train_next@b-seed0-round2-shard0"})
    gone = {number for number in range(1, 10) if not cached(project, hash_of(number)).exists()}
    assert gone == {2}
    left = {str(path.relative_to(project.root)) for path in project.root.glob("artifacts/train/*/*")}
    assert left == {f"artifacts/train/{where}" for where in ("a-seed0/round2", "b-seed0/round1", "b-seed0/round2")}

    prune(expanded)  # now b needs it no longer: the state that both shared goes, and what only b had
    gone = {number for number in range(1, 10) if not cached(project, hash_of(number)).exists()}
    assert gone == {2, 3, 7}
    assert not Path("scratch/pruned").exists()


def test_a_prune_that_was_killed_is_finished_by_the_next(project):
    outputs = {folder("a-seed0", r): {"raw": hash_of(r), "state": hash_of(10 + r)} for r in (1, 2)}
    record(project, outputs)
    recipe = {"rounds": 2, "method": {"name": "ddpm"}, "shard": {"num_shards": 1}, "redistribute": {}, "sample": {}}
    expanded = plan.expand(
        {"seeds": [0], "data": {"name": "digits"}, "model": {}, "sample": {"parts": 1}, "arms": {"a": recipe}}
    )
    Path("scratch/pruned").mkdir(parents=True)
    Path("artifacts/train/a-seed0/round1").rename("scratch/pruned/x")  # killed after the rename,
    cached(project, hash_of(1)).unlink()  # and after the first file of the cache
    prune(expanded)
    assert not Path("scratch/pruned").exists()
    assert [cached(project, hash_of(n)).exists() for n in (1, 11, 2, 12)] == [False, False, True, True]


def test_a_cache_outside_the_project_is_left_alone(project, tmp_path, capsys):
    outputs = {folder("a-seed0", r): {"raw": hash_of(r)} for r in (1, 2)}
    record(project, outputs)
    (project.root / ".dvc/cache").rename(tmp_path / "shared")
    project.run("dvc", "cache", "dir", "--local", tmp_path / "shared")
    recipe = {"rounds": 2, "method": {"name": "ddpm"}, "shard": {"num_shards": 1}, "redistribute": {}, "sample": {}}
    prune(
        plan.expand(
            {"seeds": [0], "data": {"name": "digits"}, "model": {}, "sample": {"parts": 1}, "arms": {"a": recipe}}
        )
    )
    assert "may be shared, so rounds leave artifacts/ only" in capsys.readouterr().err
    assert (tmp_path / "shared/files/md5" / hash_of(1)[:2] / hash_of(1)[2:]).exists()
    assert not Path(folder("a-seed0", 1)).parent.exists() and Path(folder("a-seed0", 2)).exists()


def test_another_word_is_refused_before_anything_runs(project):
    said = project.run("snakemake", "-n", env={"REDISTRIBUTE_KEEP": "some"}, check=False)
    assert said.returncode == 1
    assert "error: REDISTRIBUTE_KEEP is 'some' in the environment, expected all or needed" in said.text


def test_folders_are_stored_once(project):
    """In artifacts/ and in DVC's cache under one inode. (With reflink as the first link type DVC copies folders where there are no
    reflinks, as on ext4.)"""
    project.run("snakemake", "--until", "data")
    of_stage = [path for path in (project.root / "artifacts/data").iterdir() if path.stat().st_size]
    assert len(of_stage) >= 4 and {path.stat().st_nlink for path in of_stage} == {2}


def rounds_left(project):
    return sorted(path.name for path in project.root.glob(f"artifacts/train/{IET}/round*"))


def test_a_finished_run_is_pruned_and_nothing_is_to_be_done(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    round1 = [project.lock()[f"train@{IET}-round1-shard{k}"]["outs"] for k in (0, 1)]
    states = [out["md5"] for outs in round1 for out in outs if out["path"].startswith("artifacts/train")]
    inside = [e["md5"] for oid in states for e in json.loads(cached(project, oid).read_text())]
    assert len(inside) == 8 and all(cached(project, oid).exists() for oid in inside)

    assert "Nothing to be done" in project.run("snakemake", "-n", env=NEEDED).text
    assert rounds_left(project) == ["round1", "round2"]  # a dry run removes nothing
    assert "Nothing to be done" in project.run("snakemake", env=NEEDED).text
    assert rounds_left(project) == ["round2"]
    assert not any(cached(project, oid).exists() for oid in (*states, *inside))
    for env in (NEEDED, {}):
        assert "Nothing to be done" in project.run("snakemake", "-n", env=env).text
    said = project.run("dvc", "status").text
    changes = set(re.findall(r"^\s+(\w[\w ]*):\s+artifacts", said, re.MULTILINE))
    assert changes == {"deleted", "not in cache"} and f"artifacts/train/{IET}/round1" in said
    assert project.run("git", "status", "--porcelain").text == ""
    assert "up to date" in project.run("dvc", "repro", "--allow-missing").text


@pytest.mark.slow
def test_more_rounds_and_more_arms_after_pruning_equal_an_unpruned_run(finished, tmp_path):
    """Rounds 3 and 4 after rounds 1 and 2 were pruned while they ran leave the dvc.lock of a run that kept all; so does a
    change that needs pruned rounds again."""
    pruned = Project.create(tmp_path / "pruned", TINY)
    pruned.run("snakemake", env=NEEDED)
    assert rounds_left(pruned) == ["round2"]
    assert pruned.lock() == finished.lock()
    kept = finished.copy(tmp_path / "kept")
    for project, env in ((pruned, NEEDED), (kept, {})):
        project.edit(arms__iet_agc_plus__rounds=4)
        project.run("snakemake", env=env)
    assert rounds_left(pruned) == ["round4"] and len(rounds_left(kept)) == 4
    assert pruned.lock() == kept.lock()
    for project, env in ((pruned, NEEDED), (kept, {})):
        project.edit(arms__iet_agc_plus__redistribute__share=0.5)
        assert ("train" in project.run("snakemake", "-n", env=env).text) is True
        project.run("snakemake", env=env)
    assert pruned.lock() == kept.lock()
    assert "Nothing to be done" in pruned.run("snakemake", "-n").text
