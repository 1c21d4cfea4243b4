"""What Snakemake is told of the work of each stage: which goes first, how far the experiment is and when it ends."""

import datetime
import time
from types import SimpleNamespace

import how_far
import pytest
import schedule
import yaml
from conftest import ROOT, TINY
from snakemake.cli import get_argument_parser
from snakemake.resources import Resource, Resources

from stages import plan, rules
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


def clock(slots=1, **waits_for):
    """Two stages of plain work, and two that pass images through a network."""
    work = {
        "data": how_far.Work("data", 1500, 0),
        "train": how_far.Work("train", 6000, 1000),
        "next": how_far.Work("train_next", 6000, 3000),
        "score": how_far.Work("score", 6000, 0),
    }
    return how_far.HowFar(work, waits_for, slots)


def test_how_far_by_hand():
    """data takes 3 s, so a unit of start-up takes 2 ms; train 32 s, of which 12 s are start-up, so an image takes 20 ms."""
    told = clock()
    told.start("data", 0)
    told.end("data", 3)
    told.start("train", 3)
    assert told.left(30) is None  # nothing says yet how long an image takes
    told.end("train", 35)
    left = 12 + 60 + 12  # next and score
    assert told.left(35) == pytest.approx((left, 35 / (35 + left)))
    told.start("next", 35)
    assert told.left(45) == pytest.approx((left - 10, 45 / (35 + left)))
    assert told.left(435)[0] == pytest.approx(
        7.2 + 12
    )  # it takes longer than expected: a tenth of it is still taken to be left
    told.end("next", 215)
    told.start("score", 215)
    told.end("score", 221)
    assert told.left(221) == (0, 1)


def test_stages_side_by_side_and_the_longest_path():
    left = {}
    for slots, waits_for in ((1, {}), (2, {}), (4, {}), (4, {"score": ["next"]})):
        told = clock(slots, **waits_for)
        for name, start, end in (("data", 0, 3), ("train", 3, 35)):
            told.start(name, start)
            told.end(name, end)
        left[slots, bool(waits_for)] = told.left(35)[0]
    assert left == pytest.approx({(1, False): 84, (2, False): 72, (4, False): 72, (4, True): 84})


# Seconds of the stages of the default experiment on two cores, of a run whose first estimate was five times too long.
TOOK = {
    "plan": 3,
    "data": 5,
    "shard": 2,
    "aggregate": 2,
    "redistribute": 2,
    "sample": 53,
    "score": 7,
    "membership": 17,
    "copying": 8,
    "analyse": 15,
    "report": 12,
}
TRAINED = {"iet_agc_plus": 31, "ddpm": 48, "ddpm_dropout": 50, "timestep_focus": 48}  # the last taken to be as ddpm


@pytest.mark.parametrize("per_image", [0.2, 1, 30])
@pytest.mark.parametrize("slots", [1, 2, 8])
def test_the_first_estimate_and_all_later_ones_are_right_within_a_factor_of_two(per_image, slots):
    """Of networks that take a fifth and thirty times as long. What goes first is what Snakemake would take."""
    experiment = rules.load(ROOT / "params.yaml")
    instances = plan.expand(experiment)
    waits_for = waits_of(instances)
    work = schedule.tasks_of(waits_for, experiment)
    took = {}
    for name, i in instances.items():
        seconds = TOOK[i.phase] if i.phase != "train" else TRAINED[i.arm]
        start_up = 4 if i.phase in ("train", "sample", "membership") else seconds
        took[name] = start_up + (seconds - start_up) * per_image
    told, now, running, done, estimates = how_far.HowFar(work, waits_for, slots), 0.0, {}, set(), []
    first = schedule.work_left(waits_for, experiment, slots)
    while len(done) < len(took):
        ready = [n for n in took if n not in done and n not in running and set(waits_for[n]) <= done]
        for name in sorted(ready, key=lambda n: -first[n])[: slots - len(running)]:
            running[name] = now + took[name]
            told.start(name, now)
        name = min(running, key=running.get)
        now = running.pop(name)
        done.add(name)
        told.end(name, now)
        if now > 30 and (found := told.left(now)):
            estimates.append((now, found[0], found[1]))
    assert estimates[0][2] < 0.35
    for at, left, share in estimates:
        if share < 0.9:  # then seconds are left
            assert (now - at) / 2 < left < 2 * (now - at), (at, left, now)


def waits_of(instances):
    """dict stage -> the stages that it waits for, of the plan of the default experiment: by hand, as dvc.yaml says it."""
    found = {name: [] for name in instances}
    for name, i in instances.items():

        def of(phase, **fields):
            return [
                n
                for n, o in instances.items()
                if o.phase == phase and all(getattr(o, k) == v for k, v in fields.items())
            ]  # noqa: B023

        run = {"arm": i.arm, "seed": i.seed}
        match i.phase:
            case "data":
                found[name] = ["plan"]
            case "score" | "membership" | "copying" if i.arm is None:  # the reference
                found[name] = ["data"]
            case "shard":
                found[name] = ["data"]
            case "train" if i.round == 1:
                found[name] = of("shard", **run)
            case "train":
                found[name] = of("aggregate", **run, round=i.round - 1) + of("redistribute", **run, round=i.round - 1)
            case "aggregate" | "redistribute":
                found[name] = of("train", **run, round=i.round)
            case "sample" | "membership":
                found[name] = of("aggregate", **run, round=i.round)
            case "score" | "copying":
                found[name] = of("sample", **run, round=i.round)
            case "analyse":
                found[name] = of("score", **run, round=4)
            case "report":
                found[name] = of("score") + of("membership") + of("copying") + of("analyse")
    return found


def test_how_it_is_told():
    noon = datetime.datetime(2026, 3, 1, 12, 0)
    assert how_far.line(180, 0.53, noon) == "53% of the work, about 3 min left, until 12:03"
    assert how_far.line(44, 0.53, noon) == "53% of the work, about 40 s left, until 12:00"
    assert "9:00 h left, until 21:00" in how_far.line(9 * 3600, 0.1, noon)
    assert "90:00 h left, until Thursday 05 March 06:00" in how_far.line(90 * 3600, 0.1, noon)


def test_it_is_told_when_stages_have_ended_and_otherwise_seldom(monkeypatch):
    for name, seconds in (("LOOK_S", 0.01), ("EVERY_S", 0.05), ("SILENT_S", 0.8)):
        monkeypatch.setattr(how_far, name, seconds)
    told, shown = clock(), []
    how_far.tell(told, shown.append)
    for name in ("data", "train"):
        told.start(name, time.monotonic())
        time.sleep(0.2)
        told.end(name, time.monotonic())
    time.sleep(0.3)
    assert len(shown) == 1 and "of the work" in shown[0]
    time.sleep(1)
    assert len(shown) == 2
    for name in ("next", "score"):
        told.start(name, time.monotonic())
        told.end(name, time.monotonic())
    time.sleep(0.2)
    at_the_end = len(shown)
    time.sleep(1)
    assert len(shown) == at_the_end


@pytest.mark.parametrize(("given", "stays"), [([], False), (["--max-jobs-per-timespan", "2/1s"], True)])
def test_starts_are_limited_only_where_the_user_says_so(given, stays):
    asked = get_argument_parser().parse_args(given)
    limiter = object()
    workflow = SimpleNamespace(scheduling_settings=asked, scheduler=SimpleNamespace(job_rate_limiter=limiter))
    schedule.limit_no_starts(workflow)
    assert (workflow.scheduler.job_rate_limiter is limiter) == stays
