"""The project as a git checkout, and as a downloaded archive without git."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import checkout
import pytest
import retention
import yaml
from conftest import TINY, Project


def test_the_files_of_the_project_are_those_that_git_lists(tmp_path):
    project = Project.create(tmp_path, TINY)
    for name in (
        "data/x.png",
        "artifacts/y",
        "a/__pycache__/z.pyc",
        "notes.txt",
        "b/.gitignore",
        "b/one",
        "b/two",
        "big.pth",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("/one\n")
    listed = project.run("git", "ls-files", "--cached", "--others", "--exclude-standard").text.split()
    assert {"notes.txt", "b/two"} <= set(listed) and "b/one" not in listed and "data/x.png" not in listed
    assert checkout.own_files(tmp_path) == sorted(listed)


def test_dvc_is_told_that_there_is_no_git_and_that_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    Path(".dvc/config.local").write_text("[cache]\n    dir = /shared\n")
    for has_git in (False, False, True, True):
        if has_git:
            Path(".git").mkdir(exist_ok=True)
        checkout.tell_dvc()
        text = Path(".dvc/config.local").read_text()
        assert "dir = /shared" in text and ("no_scm = True" in text) == (not has_git)
        assert checkout.has_git() == has_git


def test_pruning_needs_git_where_there_is_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    retention.check_git()
    (tmp_path / ".git").mkdir()
    with pytest.raises(ValueError, match="git is not installed, so nothing says which results other branches need"):
        retention.check_git()


def without_git(folder):
    """A folder that holds links to all commands but git, for PATH."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for entry in Path(place).iterdir() if Path(place).is_dir() else ():
            if not entry.name.startswith("git") and not (folder / entry.name).exists():
                (folder / entry.name).symlink_to(entry)
    return str(folder)


@pytest.mark.slow
def test_an_archive_runs_without_git_through_snakemake_and_dvc(tmp_path):
    """Nothing above it is a repository, and no git is installed."""
    experiment = yaml.safe_load(TINY)
    project = Project.create(tmp_path / "own", yaml.safe_dump(experiment))
    archive = Project(tmp_path / "archive")
    archive.root.mkdir()
    tar = tmp_path / "archive.tar"
    project.run("git", "archive", "--output", tar, "HEAD")
    shutil.unpack_archive(tar, archive.root)
    assert not checkout.has_git(archive.root)
    env = {"PATH": without_git(tmp_path / "bin")}
    archive.run("snakemake", env=env)
    assert (archive.root / "report.html").exists()
    assert "Nothing to be done" in archive.run("snakemake", "-n", env=env).text
    assert "up to date" in archive.run("dvc", "status", env=env).text
    assert "up to date" in archive.run("dvc", "repro", env=env).text
    assert "Nothing to be done" in archive.run("snakemake", "-n", env=env | {"REDISTRIBUTE_KEEP": "needed"}).text
    # A link to the python of an environment is a python without the environment.
    seeds = archive.run(sys.executable, "workflow/scripts/seeds.py", "4", env=env)
    assert "steps (100%) done" in seeds.text


def test_make_tells_dvc_of_an_archive(tmp_path):
    """`make setup`, with an environment that is there already: what a target does first."""
    project = Project.create(tmp_path, TINY)
    project.run("rm", "-rf", ".git")
    if not Path(sys.prefix, "ready").exists():
        pytest.skip("the environment was not made by make")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    subprocess.run(["touch", "-d", "2000-01-01", tmp_path / "requirements.txt"], check=True)
    assert "Setting up" not in project.run("make", "setup").text
    assert "no_scm = True" in (tmp_path / ".dvc/config.local").read_text()
    assert project.run("dvc", "status", "plan").returncode == 0
