"""The small experiment through Slurm: `make slurm-test`. Two nodes on this machine; see slurm_cluster.py."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_cluster
from conftest import TINY, Project

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(not slurm_cluster.installed(), reason="no Slurm here, or not root: make slurm-test installs it"),
]
IET = "iet_agc_plus-seed3"
# The profile as a site would fill it in: two CPUs, one GPU a node, and no accounting.
SLURM = [
    "snakemake", "--workflow-profile", "workflow/profiles/slurm", "--default-resources", "slurm_partition=gpu", "runtime=60",
    "mem_mb=1500", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5", "--slurm-no-account",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = slurm_cluster.Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The experiment on this machine alone. device: auto, so that stages ask Slurm for GPUs and compute on the CPU all the same:
    those of the test are no devices."""
    return create(tmp_path_factory.mktemp("local") / "project", lambda p: p.run("snakemake", timeout=1800))


def create(root, run):
    project = Project.create(root, TINY.replace("device: cpu", "device: auto"))
    project.edit(checkpoint_minutes=0)
    project.output = run(project)
    return project


def through_slurm(project, cluster, *more):
    return project.run(*SLURM, *more, env=cluster.env, timeout=1800).text


def test_slurm_leaves_the_hashes_of_a_local_run(cluster, local, tmp_path):
    project = create(tmp_path / "project", lambda p: through_slurm(p, cluster))
    assert project.lock() == local.lock()
    assert "report.html" in project.output
    jobs = [
        dict(word.split("=", 1) for word in line.split() if "=" in word)
        for line in cluster.ask("scontrol", "--oneliner", "show", "jobs").splitlines()
    ]
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    assert {job["BatchHost"] for job in jobs} == set(slurm_cluster.NODES)
    asked = {job["Comment"]: "gres:gpu" in job.get("TresPerJob", "") for job in jobs}
    assert {name for name in asked if asked[name]} == {
        name for name in asked if re.match("rule_(train|sample|score)_", name)
    }
    assert "Nothing to be done" in through_slurm(project, cluster, "-n")

    # A cluster that takes --gres in the place of --gpus, as the profile says.
    project.edit(score__thresholds=[0.3, 0.5])
    gres = [f"{rule}:{setting}" for rule in ("score",) for setting in ("gpu=0", "gres='gpu:1'")]
    through_slurm(project, cluster, "--set-resources", *gres)
    shown = cluster.ask("scontrol", "--oneliner", "show", "jobs").splitlines()[len(jobs) :]
    assert sum("TresPerNode=gres:gpu:1" in line and "rule_score" in line for line in shown) == 2


def test_a_node_that_dies_costs_only_the_unfinished_work_of_its_jobs(cluster, local, tmp_path):
    """Slurm requeues the node's jobs, and a stage goes on from its checkpoint on the other node."""
    project = create(tmp_path / "project", lambda p: p.keep_arm("iet_agc_plus"))
    environment = {
        **os.environ, **cluster.env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with open(tmp_path / "said", "w") as log:
        run = subprocess.Popen(SLURM, cwd=project.root, env=environment, stdout=log, stderr=log)
    try:
        node, stage = wait_for_a_checkpoint(project, cluster, run)
        cluster.kill_node(node)
        done = {
            path: path.stat().st_mtime_ns
            for path in (project.root / ".snakemake/receipts").rglob("*")
            if path.is_file()
        }
        assert run.wait(timeout=1500) == 0, (tmp_path / "said").read_text()[-3000:]
    finally:
        run.kill()
        run.wait()
    assert cluster.states()[node].startswith("down")
    of_arm = {path: md5 for path, md5 in project.results().items() if IET in path}
    assert of_arm == {path: md5 for path, md5 in local.results().items() if IET in path} and len(of_arm) > 10
    assert {path: path.stat().st_mtime_ns for path in done} == done  # nothing that was finished ran again
    restarted = [
        line for line in cluster.ask("scontrol", "--oneliner", "show", "jobs").splitlines() if "Restarts=1" in line
    ]
    assert any(stage in line for line in restarted)
    cluster.start_node(node)


def wait_for_a_checkpoint(project, cluster, run):
    """A node on which a train stage of round 2 computes and has written a checkpoint: (node, key of the stage)."""
    while run.poll() is None:
        for node in slurm_cluster.NODES:
            for comment in cluster.jobs_on(node).values():
                for k in (0, 1):
                    key = f"{IET}-round2-shard{k}"
                    scratch = project.root / f"scratch/train/iet_agc_plus-seed3-round2-shard{k}"
                    if key in comment and list(scratch.glob("*/*.safetensors")):
                        return node, key
        time.sleep(0.2)
    raise AssertionError("the run ended before a checkpoint was seen")
