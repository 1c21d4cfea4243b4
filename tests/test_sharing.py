"""A finished experiment in the hands of somebody else: through a remote, and through one cache for several checkouts."""

import json
import subprocess

import pytest
from conftest import Project

IET = "iet_agc_plus-seed3"
NOTHING = "Nothing to be done"


def clone(project, root):
    subprocess.run(["git", "clone", "-q", str(project.root), str(root)], check=True)
    return Project(root)


def push(project, store):
    project.run("dvc", "remote", "add", "--local", "--default", "store", store)
    project.run("dvc", "push")


def test_a_fresh_clone_pulls_and_has_nothing_to_do(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    push(project, tmp_path / "store")
    other = clone(project, tmp_path / "clone")
    assert NOTHING not in other.run("snakemake", "-n").text
    other.run("dvc", "remote", "add", "--local", "--default", "store", tmp_path / "store")
    other.run("dvc", "pull")
    assert NOTHING in other.run("snakemake", "-n").text
    assert "up to date" in other.run("dvc", "status").text
    for path in (
        f"artifacts/samples/{IET}/round2/part1/ema.npy",
        f"artifacts/train/{IET}/round1/shard0/state.safetensors",
    ):
        assert (other.root / path).read_bytes() == (finished.root / path).read_bytes()


@pytest.mark.slow
def test_after_pruning_what_is_left_is_pushed_and_pulled(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    project.run("snakemake", env={"REDISTRIBUTE_KEEP": "needed"})
    push(project, tmp_path / "store")
    other = clone(project, tmp_path / "clone")
    other.run("dvc", "remote", "add", "--local", "--default", "store", tmp_path / "store")
    other.run("dvc", "pull", "--allow-missing")
    assert NOTHING in other.run("snakemake", "-n").text
    assert not list(other.root.glob(f"artifacts/train/{IET}/round1"))  # not even empty: DVC would call it changed
    assert "up to date" in other.run("dvc", "repro", "--allow-missing").text
    other.edit(arms__iet_agc_plus__rounds=3)  # the last round's states came along: one more round needs no old one
    listed = other.run("snakemake", "-n", "--quiet", "progress").text
    assert f"train_next {IET}-round3-shard1" in listed and f"train_next {IET}-round2" not in listed


@pytest.mark.slow
def test_checkouts_that_share_a_cache_have_nothing_to_do(finished, tmp_path):
    """What one has run the other only links."""
    project = finished.copy(tmp_path / "project")
    (project.root / ".dvc/cache").rename(tmp_path / "cache")
    project.run("dvc", "cache", "dir", "--local", tmp_path / "cache")
    assert NOTHING in project.run("snakemake", "-n").text
    other = clone(project, tmp_path / "clone")
    other.run("dvc", "cache", "dir", "--local", tmp_path / "cache")
    assert NOTHING in other.run("snakemake", "-n").text  # brings the ends of the pipeline back from the cache
    other.run("dvc", "checkout")
    assert "up to date" in other.run("dvc", "status").text
    image = f"artifacts/samples/{IET}/round2/part0/raw.npy"
    assert (other.root / image).stat().st_ino == (tmp_path / "cache" / path_of(other, image)).stat().st_ino


def path_of(project, path):
    """Where the cache has the file of a folder."""
    folder, name = path.rsplit("/", 1)
    oid = project.results()[folder]
    listed = json.loads((project.root.parent / "cache/files/md5" / oid[:2] / oid[2:]).read_text())
    part = next(entry["md5"] for entry in listed if entry["relpath"] == name)
    return f"files/md5/{part[:2]}/{part[2:]}"
