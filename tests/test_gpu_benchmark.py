"""The script for a few minutes of a GPU: that it keeps to its time, that one part's error is not the next one's, and that all of it runs."""

import os
import subprocess
import sys
import time
import zipfile
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from benchmarks import gpu

# What a machine that is lent has not: the script may not need it.
ABSENT = (
    "dvc",
    "snakemake",
    "faiss",
    "dulwich",
    "ruamel",
    "psutil",
    "opacus",
    "torch_fidelity",
    "tensorboard",
    "pyarrow",
)
PART = """
import subprocess, sys, time
name = sys.argv[sys.argv.index("--part") + 1]
print(f"| {name} | 1 | | |", flush=True)
print("no row", flush=True)
if name == "wrong":
    sys.exit("one | two")
if name == "late":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # keeps the pipe open
    time.sleep(60)
"""


def test_a_part_that_fails_or_is_late_leaves_its_error_and_the_next_goes_on(tmp_path):
    (tmp_path / "part.py").write_text(PART)
    said, begun, seconds = [], time.monotonic(), gpu.WHOLE_S / 12
    budgets = {"late": 60, "wrong": 300, "after": 300}  # of the late one 5 s are left
    gpu.run_parts(list(budgets), [], seconds, said.append, budgets, [str(tmp_path / "part.py")])
    assert said == [
        "| late | 1 | | |",
        "| late | not finished: its 5 s were over |  |  |",
        "| wrong | 1 | | |",
        "| wrong | not finished: one / two |  |  |",
        "| after | 1 | | |",
    ]
    assert time.monotonic() - begun < seconds


def test_without_time_left_nothing_is_begun(tmp_path):
    said = []
    gpu.run_parts(["checks", "memory"], [], 2.5, said.append, program=[str(tmp_path / "missing.py")])
    assert said == [f"| {name} | not measured: no time was left |  |  |" for name in ("checks", "memory")]


def test_only_what_is_not_installed_is_taken_from_wheels(tmp_path):
    for package in ("json", "surely_missing"):
        with zipfile.ZipFile(tmp_path / f"{package}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{package}/__init__.py", "")
            wheel.writestr(f"{package}-1.0.dist-info/METADATA", "")
    assert gpu.unpack_wheels(tmp_path, tmp_path / "there") == ["surely_missing-1.0-py3-none-any.whl"]
    assert sorted(os.listdir(tmp_path / "there")) == ["surely_missing", "surely_missing-1.0.dist-info"]


def test_skip_decisions_are_compared_sample_by_sample():
    """The images are pure noise here. Nothing is ever skipped in fp32; in bf16 the last of four batches is, which is predicted exactly."""
    calls = []

    class Network(torch.nn.Module):
        def forward(self, x, t):
            calls.append(torch.is_autocast_enabled("cpu"))
            return SimpleNamespace(sample=x if calls[-1] and sum(calls) == 4 else torch.zeros_like(x))

    training = SimpleNamespace(
        network=Network(),
        images=SimpleNamespace(pixels=torch.zeros(5, 1, 16, 16, dtype=torch.uint8)),
        alpha_bar=torch.zeros(10),
        settings={"batch_size": 6},
        state=SimpleNamespace(step=0),
    )
    assert gpu.skip_decisions(training, 0.5, 4) == (0.75, 0.0)
    assert len(calls) == 8 and training.network.training


@pytest.mark.slow
def test_all_of_it_runs_without_what_a_lent_machine_has_not(tmp_path):
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n"
    (tmp_path / "sitecustomize.py").write_text(blocked)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--minutes", "30", "--out", str(tmp_path / "rows.md")],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert (tmp_path / "rows.md").read_text().splitlines() == rows
    assert not [line for line in rows if "not finished" in line or "DIFFERENT" in line]
    unmeasured = [line for line in rows if "not measured" in line]
    assert len(unmeasured) == 1 and "faiss" in unmeasured[0]
    for what in ("ours / the better of these", "compute.channels_last / without", "AGC / plain", "TAA with 50%", "ours / DDIMPipeline", "in batches of 8", "samples, ", "fixed cost",
                 "two shards at a time", "peak memory, search"):  # fmt: skip
        assert any(what in line for line in rows), what
