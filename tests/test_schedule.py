"""What Snakemake is told of the work of each stage: which goes first, how far the experiment is and when it ends."""

import datetime
import time
from types import SimpleNamespace

import how_far
import pytest
import schedule
import yaml
from conftest import TINY
from snakemake.cli import get_argument_parser
from snakemake.resources import Resource, Resources

from stages.run import instance

IET = "iet_agc_plus-seed3"
START_UP = instance.START_UP
# Epochs x images of a shard; a sampled image costs a third of a trained one at each of 5 steps, with two kinds of weights.
DDPM_TRAIN, IET_TRAIN, SAMPLE_PART = 10 * 60 + START_UP, 10 * 30 + START_UP, int(50 * 5 * 2 / 3 / 2) + START_UP
LIGHT = START_UP // 4

TO_RUN = {
    "train@ddpm-seed3-round1-shard0": [],
    "aggregate@ddpm-seed3-round1": ["train@ddpm-seed3-round1-shard0"],
    "sample@ddpm-seed3-round1-part0": ["aggregate@ddpm-seed3-round1"],
    f"train@{IET}-round1-shard0": [],
    f"train@{IET}-round1-shard1": [],
    f"aggregate@{IET}-round1": [f"train@{IET}-round1-shard{k}" for k in (0, 1)],
    f"sample@{IET}-round2-part1": [f"aggregate@{IET}-round1"],
    "report": ["sample@ddpm-seed3-round1-part0", f"sample@{IET}-round2-part1"],
}


def test_work_by_hand():
    work = schedule.work_of(TO_RUN, yaml.safe_load(TINY))
    assert list(work) == list(TO_RUN)
    assert work["train@ddpm-seed3-round1-shard0"] == DDPM_TRAIN and work[f"train@{IET}-round1-shard1"] == IET_TRAIN
    assert work[f"sample@{IET}-round2-part1"] == SAMPLE_PART
    assert (work["aggregate@ddpm-seed3-round1"], work["report"]) == (LIGHT, START_UP)


@pytest.mark.parametrize(("slots", "turns"), [(1, 2), (2, 1), (8, 1)])
def test_the_longest_path_to_the_end_by_hand(slots, turns):
    """Shards and parts take turns where there are fewer slots than that."""
    left = schedule.work_left(TO_RUN, yaml.safe_load(TINY), slots)
    after_training = LIGHT + turns * SAMPLE_PART + START_UP
    assert left["report"] == START_UP
    assert left["train@ddpm-seed3-round1-shard0"] == DDPM_TRAIN + after_training
    assert left[f"train@{IET}-round1-shard0"] == turns * IET_TRAIN + after_training
    assert left.keys() == TO_RUN.keys()


@pytest.mark.parametrize(
    ("cores", "jobs", "gpus", "device", "threads", "slots"),
    [
        (16, None, None, "cpu", 1, 16),
        (16, None, None, "cpu", 3, 5),
        (2, None, None, "cpu", 4, 1),  # Snakemake then gives a stage the two that there are
        (16, None, 4, "auto", 2, 4),
        (6, None, 4, "cuda", 2, 3),
        (16, None, 4, "cpu", 1, 16),  # no stage asks for one
        (None, 100, None, "auto", 8, 100),
        (None, 100, 12, "cuda", 8, 12),
        (None, None, None, "auto", 1, 1),
    ],
)
def test_stages_at_a_time(cores, jobs, gpus, device, threads, slots):
    resources = Resources({} if gpus is None else {"gpu": Resource("gpu", gpus)})
    given = SimpleNamespace(cores=cores, nodes=jobs)
    workflow = SimpleNamespace(resource_settings=given, global_resources=resources)
    assert schedule.slots(workflow, {"device": device, "threads": threads}) == slots


def test_how_far_by_hand():
    work, noon = {"a": 10, "b": 60, "c": 30}, datetime.datetime(2026, 3, 1, 12, 0)
    assert how_far.line(work, set(), 5.0, noon) is None
    assert how_far.line(work, {"a"}, 60.0, noon) == (
        "experiment: 1 of 3 stages, 10% of the work, about 9:00 min left, until 12:09"
    )
    assert how_far.line(work, {"a", "c"}, 120.0, noon) == (
        "experiment: 2 of 3 stages, 40% of the work, about 3:00 min left, until 12:03"
    )
    assert "9:00 h left, until 21:00" in how_far.line(work, {"a"}, 3600.0, noon)
    assert "90:00 h left, until Thursday 05 March 06:00" in how_far.line(work, {"a"}, 36000.0, noon)
    assert how_far.line(work, set(work), 9.0, noon) is None


def test_it_is_told_when_stages_have_ended_and_not_again(monkeypatch, capsys):
    monkeypatch.setattr(how_far, "LOOK_S", 0.01)
    monkeypatch.setattr(how_far, "EVERY_S", 0.05)
    ended = set()
    how_far.tell({"a": 1, "b": 1, "c": 2}, ended.__contains__)
    told = []
    for names in ({"a"}, {"b"}, {"c"}):
        ended |= names
        time.sleep(0.5)
        told.append(capsys.readouterr().err)
    assert told[0].startswith("experiment: 1 of 3 stages, 25% of the work") and told[0].count("\n") == 1
    assert told[1].startswith("experiment: 2 of 3 stages, 50% of the work") and told[1].count("\n") == 1
    assert told[2] == ""


@pytest.mark.parametrize(("given", "stays"), [([], False), (["--max-jobs-per-timespan", "2/1s"], True)])
def test_starts_are_limited_only_where_the_user_says_so(given, stays):
    asked = get_argument_parser().parse_args(given)
    limiter = object()
    workflow = SimpleNamespace(scheduling_settings=asked, scheduler=SimpleNamespace(job_rate_limiter=limiter))
    schedule.limit_no_starts(workflow)
    assert (workflow.scheduler.job_rate_limiter is limiter) == stays
