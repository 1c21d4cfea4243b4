"""Several GPUs through snakemake, with made-up devices: which stage runs when, and on which of them."""

import json
import shutil
import uuid

import pytest
from conftest import TINY, Project

# In the place of what the train stage does: claims a device as it does, with a torch that finds one, holds it until as many stages
# hold one as may (TOGETHER) and a second longer, and says when.
STAND_IN = """
import json, os, sys, time, types
from pathlib import Path
import numpy as np
from stages.run import device

sys.modules["torch"] = types.SimpleNamespace(
    set_num_threads=lambda n: None,
    cuda=types.SimpleNamespace(is_available=lambda: True),
    device=str,
    backends=types.SimpleNamespace(cuda=types.SimpleNamespace(matmul=types.SimpleNamespace()), cudnn=types.SimpleNamespace()),
)

def main(arguments):
    with experiments.stage(PHASE, "", arguments) as job:
        job.device = device.claim(job.params["compute"])
        start = time.time()
        Path(f"logs/start{job.shard}").touch()
        while len(list(Path("logs").glob("start*"))) < int(os.environ["TOGETHER"]) and time.time() < start + 120:
            time.sleep(0.1)
        time.sleep(1)
        files.save_arrays(files.folder("train", job.run, 1, job.shard) / "x.safetensors", {"shard": np.array([job.shard])})
        files.save_arrays(files.counts_file(job.run, 1, job.shard), {"shard": np.array([job.shard])})
        said = {"device": str(job.device), "gpu": os.environ["CUDA_VISIBLE_DEVICES"], "start": start, "end": time.time()}
        Path(f"logs/claim{job.shard}.json").write_text(json.dumps(said))

if __name__ == "__main__":
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Four shards of one round to be trained, by the stand-in."""
    project = Project.create(tmp_path_factory.mktemp("gpus") / "project", TINY)
    project.keep_arm("iet_agc_plus")
    project.edit(compute__device="auto", arms__iet_agc_plus__rounds=1, arms__iet_agc_plus__shard__num_shards=4)
    script = project.root / "stages/train.py"
    declared, run = script.read_text().split('if __name__ == "__main__":\n')  # the phase's declaration stays
    script.write_text(declared + STAND_IN + run)
    return project


def claims(project, visible, number, *options, **environment):
    """Trains all shards anew with these devices, `number` at a time; returns what each said, in the order of their starts."""
    for folder in ("artifacts/train", "artifacts/results/counts", ".dvc/cache", "logs"):
        shutil.rmtree(project.root / folder, ignore_errors=True)
    project.run(
        "snakemake", "--cores", "4", "--until", "train", *options,
        env={"CUDA_VISIBLE_DEVICES": ",".join(visible), "TOGETHER": str(number), **environment},
    )  # fmt: skip
    said = [json.loads((project.root / f"logs/claim{k}.json").read_text()) for k in range(4)]
    assert {claim["device"] for claim in said} == {"cuda"}
    assert {claim["gpu"] for claim in said} <= set(visible)
    return sorted(said, key=lambda claim: claim["start"])


def together(said, gpu=None):
    """The largest number of stages that held a device, or this one, at the same time."""
    said = [claim for claim in said if gpu in (None, claim["gpu"])]
    return max(sum(a["start"] <= b["start"] < a["end"] for a in said) for b in said)


def names(number):
    """Devices that nobody else on this machine claims."""
    return [f"GPU-{uuid.uuid4()}" for _ in range(number)]


@pytest.mark.slow
def test_stages_run_on_different_devices_as_many_as_asked_for(project):
    three = names(3)
    said = claims(project, three, 2, "--resources", "gpu=2")
    assert together(said) == 2  # not three, nor four
    assert said[0]["gpu"] != said[1]["gpu"]
    assert max(together(said, gpu) for gpu in {claim["gpu"] for claim in said}) == 1


def test_visible_devices_and_slots_say_how_many_stages_share_them(project):
    """Without --resources: two visible devices of two slots each take all four stages at once, two each."""
    two = names(2)
    said = claims(project, two, 4, REDISTRIBUTE_GPU_SLOTS="2")
    assert together(said) == 4
    assert [together(said, gpu) for gpu in two] == [2, 2]
    assert {claim["gpu"] for claim in said[:2]} == set(two)  # free devices before second slots
