"""The whole pipeline through snakemake and dvc, on temporary copies of the project with a tiny experiment."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY, Project
from safetensors.numpy import load_file

IET = "iet_agc_plus-seed3"


def counts(project, round_, shard):
    return load_file(project.root / f"artifacts/results/counts/{IET}/round{round_}/shard{shard}/counts.safetensors")


def shard_lists(project, round_):
    return [np.load(project.root / f"artifacts/shards/{IET}/round{round_}/shard{k}.npy") for k in range(2)]


def test_a_run_ends_with_the_table_and_the_report(finished):
    assert "22 of 22 steps (100%) done" in finished.output  # 21 stages, and the rule all
    assert re.search(r"iet_agc_plus +\d", finished.output)
    assert "report.html" in finished.output
    page = (finished.root / "report.html").read_text()
    assert "iet_agc_plus" in page and "<svg" in page


def test_the_method_acted(finished):
    """Something was skipped, augmented and moved, and nothing of it in plain DDPM."""
    training = yaml.safe_load((finished.root / "artifacts/report/summary.json").read_text())
    assert training["iet_agc_plus"]["training"]["skipped_share"] > 0
    assert training["iet_agc_plus"]["training"]["augmented_share"] > 0
    assert training["iet_agc_plus"]["training"]["moved"] == 2 * int(0.25 * 30)
    assert training["ddpm"]["training"]["skipped_share"] == 0
    assert training["ddpm"]["training"]["augmented_share"] == 0
    assert (
        training["ddpm"]["training"]["optimizer_steps"] == training["iet_agc_plus"]["training"]["optimizer_steps"] / 2
    )


def test_the_most_skipped_images_moved_to_the_next_shard(finished):
    before, after = shard_lists(finished, 1), shard_lists(finished, 2)
    for k in range(2):
        record = counts(finished, 1, k)
        assert np.array_equal(record["index"], before[k])
        left = np.setdiff1d(before[k], after[k])
        assert len(left) == 7 and np.isin(left, after[1 - k]).all()
        stayed = record["skips"][~np.isin(before[k], left)]
        assert record["skips"][np.isin(before[k], left)].min() >= stayed.max()
    assert np.array_equal(np.sort(np.concatenate(after)), np.arange(60))


def test_the_state_of_a_shard_goes_on_from_round_to_round(finished):
    states = [load_file(finished.root / f"artifacts/train/{IET}/round{r}/shard0/state.safetensors") for r in (1, 2)]
    assert [int(state["step"][0]) for state in states] == [30, 60]
    assert (states[0]["carried.bank"] > 0).mean() > 0.9
    proxies = [load_file(finished.root / f"artifacts/train/{IET}/round1/shard{k}/raw.safetensors") for k in range(2)]
    mean = load_file(finished.root / f"artifacts/model/{IET}/round1/raw.safetensors")
    for name, value in mean.items():
        expected = (proxies[0][name].astype(np.float64) + proxies[1][name]) / 2
        assert np.array_equal(value, expected.astype(np.float32)), name


def test_a_finished_run_is_clean(finished):
    assert "up to date" in finished.run("dvc", "status").text
    changed = {line[3:] for line in finished.stray.splitlines()}
    assert changed == {"dvc.lock", "metrics.json", "plots/"}
    started = time.monotonic()
    again = finished.run("snakemake")
    assert "Nothing to be done" in again.text
    assert time.monotonic() - started < 30  # measured at 6 s on an idle machine
    assert finished.run("git", "status", "--porcelain").text == ""


def test_metrics_are_a_few_numbers_an_arm_and_plots_a_line_an_arm_without_the_web(finished, tmp_path):
    metrics = json.loads((finished.root / "metrics.json").read_text())
    assert set(metrics["arms"]["ddpm"]) >= {"excess", "excess_low", "excess_high", "fd_pixels_heldout"}
    assert all(len(numbers) <= 7 for numbers in metrics["arms"].values())
    shown = finished.run("dvc", "metrics", "show").text
    assert "arms.iet_agc_plus.excess" in shown and "headline.threshold" in shown
    finished.run("dvc", "plots", "show", "-o", tmp_path / "plots")
    html = (tmp_path / "plots/index.html").read_text()
    assert "http" not in html
    sources = re.findall(r'<img src="([^"]+)"', html)
    assert len(sources) == 4
    drawn = {source.split("_plots_")[1]: (tmp_path / "plots" / source).read_text() for source in sources}
    for svg in drawn.values():
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in svg and "currentColor" not in svg
    assert set(drawn) == {f"{name}.svg" for name in ("trade_off", "mq_curve", "training", "skip_histogram")}
    named = {name: {arm for arm in ("ddpm", "iet_agc_plus") if f">{arm}<" in svg} for name, svg in drawn.items()}
    assert named.pop("skip_histogram.svg") == {"iet_agc_plus"}  # ddpm skips nothing
    assert all(arms == {"ddpm", "iet_agc_plus"} for arms in named.values())


def test_scores_of_every_image_can_be_read_with_pandas(finished):
    table = pd.read_parquet(finished.root / f"artifacts/results/score/{IET}/round2/images.parquet")
    assert len(table) == 2 * 50
    assert set(table.nearest_train) <= set(range(60))
    train = np.load(finished.root / "artifacts/data/train.npy").astype(int)
    parts = [np.load(finished.root / f"artifacts/samples/{IET}/round2/part{p}/raw.npy") for p in range(2)]
    samples = np.concatenate(parts).astype(int)
    distances = ((samples[:, None] - train[None]) ** 2).sum(axis=(2, 3, 4))
    raw = table[table.weights == "raw"]
    assert np.array_equal(raw.nearest_train, distances.argmin(axis=1))
    assert np.array_equal(raw.d1, distances.min(axis=1))


LISTED = r"^ *\d+ of \d+  (.*)$"  # a stage, as `snakemake -n` lists it


def planned(project):
    """Stages that `snakemake -n` would run, and a check that `dvc repro --dry` knows of none beside them.

    DVC alone cannot list a longer experiment: its --dry ends with an error at the first new stage whose inputs are not there.
    """
    listed = project.run("snakemake", "-n").text
    run = set(re.findall(LISTED, listed, re.MULTILINE)) - {"plan"}
    run = {name.replace(" ", "@") for name in run}
    dry = project.run("dvc", "repro", "--dry", check=False)
    assert dry.returncode == 0 or "No such file or directory" in dry.text, dry.text
    assert project.stages_run(dry.text) - {"plan"} <= run
    return run


def test_a_changed_parameter_reruns_what_depends_on_it_and_no_more(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    assert planned(project) == set()
    end = {f"sample@{IET}-round2-part0", f"sample@{IET}-round2-part1", f"score@{IET}-round2", "report"}

    project.edit(arms__iet_agc_plus__rounds=4)
    rounds = {f"train_next@{IET}-round{r}-shard{k}" for r in (3, 4) for k in (0, 1)}
    rounds |= {f"aggregate@{IET}-round3", f"aggregate@{IET}-round4"}
    rounds |= {f"redistribute@{IET}-round2", f"redistribute@{IET}-round3"}
    of_round_4 = {name.replace("round2", "round4") for name in end}
    assert planned(project) == rounds | of_round_4
    project.edit(arms__iet_agc_plus__sample_rounds=[2, 4])  # what was sampled stays as it is
    assert planned(project) == rounds | of_round_4

    project.edit(
        arms__iet_agc_plus__rounds=2, arms__iet_agc_plus__sample_rounds=[2], arms__iet_agc_plus__method__lambda=0.8
    )
    first = {f"train@{IET}-round1-shard0", f"train@{IET}-round1-shard1", f"aggregate@{IET}-round1"}
    second = {f"train_next@{IET}-round2-shard0", f"train_next@{IET}-round2-shard1", f"aggregate@{IET}-round2"}
    assert planned(project) == first | {f"redistribute@{IET}-round1"} | second | end

    project.edit(arms__iet_agc_plus__method__lambda=0.9, arms__iet_agc_plus__redistribute__share=0.5)
    assert planned(project) == {f"redistribute@{IET}-round1"} | second | end

    project.edit(arms__iet_agc_plus__redistribute__share=0.25, score__thresholds=[0.3, 0.4, 0.5])
    assert planned(project) == {"score_reference@reference", "score@ddpm-seed3-round1", f"score@{IET}-round2", "report"}

    arm = project.params()["arms"]["ddpm"]
    project.edit(score__thresholds=[0.4, 0.5, 0.6], arms__longer={**arm, "train": {"epochs": 20}})
    suffixes = {
        "shard": "",
        "train": "-round1-shard0",
        "aggregate": "-round1",
        "sample": "-round1-part0",
        "score": "-round1",
    }
    longer = {f"{phase}@longer-seed3{suffix}" for phase, suffix in suffixes.items()} | {
        "sample@longer-seed3-round1-part1"
    }
    assert planned(project) == longer | {"report"}

    (project.root / "params.yaml").write_text(f"{TINY}# The page shows this line.\n")
    assert planned(project) == {"report"}

    (project.root / "params.yaml").write_text(TINY)
    (project.root / "stages/methods/mine.py").write_text("SETTINGS = {}\n")
    agc = project.root / "stages/methods/agc/augmentation.py"
    agc.write_text(agc.read_text() + "\n# edited\n")  # of one arm's method
    assert planned(project) == first | {f"redistribute@{IET}-round1"} | second | end
    project.run("git", "checkout", "-q", "stages")

    sampler = project.root / "stages/diffusion/sampling.py"
    sampler.write_text(sampler.read_text() + "\n# edited\n")
    assert planned(project) == end | {
        "sample@ddpm-seed3-round1-part0",
        "sample@ddpm-seed3-round1-part1",
        "score@ddpm-seed3-round1",
    }


def test_a_dry_run_removes_nothing(finished, tmp_path):
    """Of shards that left the plan; only a run does."""
    project = finished.copy(tmp_path / "project")
    project.edit(arms__iet_agc_plus__shard__num_shards=1)
    lost = [project.root / f"artifacts/train/{IET}/round{r}/shard1/raw.safetensors" for r in (1, 2)]
    lock = project.lock()
    assert "would be removed" in project.run("snakemake", "-n").text
    assert all(path.exists() for path in lost) and project.lock() == lock


ANALYSE = {
    "group_size": 10, "noise_draws": 1, "timestep_stride": 5, "batch_size": 30, "select": "l2", "extreme_share": 0.1,
    "rare_skip_rate": 0.3,
}  # fmt: skip


@pytest.mark.slow
def test_analyses_come_and_go_with_their_section(finished, tmp_path):
    """Added to a finished run they cost themselves and the report; taken out, nothing of them is left."""
    project = finished.copy(tmp_path / "project")
    analyses = {"analyse@ddpm-seed3", f"analyse@{IET}"}
    project.edit(analyse=ANALYSE)
    assert planned(project) == analyses | {"report"}
    project.edit(
        score__thresholds=[0.5, 0.9], score__headline__threshold=0.9
    )  # the tiny models give out nothing at 0.5
    scores = {"score_reference@reference", "score@ddpm-seed3-round1", f"score@{IET}-round2"}
    assert planned(project) == analyses | scores | {"report"}
    project.run("snakemake")
    assert "up to date" in project.run("dvc", "status").text

    page = (project.root / "report.html").read_text()
    assert 'id="analyses"' in page and "Loss against timestep" in page and "Skipping by timestep" in page
    summary = yaml.safe_load((project.root / f"artifacts/results/analyse/{IET}/summary.json").read_text())
    assert summary["moves"]["moved"] == 2 * int(0.25 * 30)
    for name in ("loss_by_timestep", "train_images", "extremes", "skip_by_timestep"):
        assert "absent" not in summary[name], name
    images = pd.read_parquet(project.root / f"artifacts/results/analyse/{IET}/train_images.parquet")
    assert images.skips.sum() == sum(counts(project, r, k)["skips"].sum() for r in (1, 2) for k in (0, 1)) > 0

    leaks = pd.read_parquet(project.root / "artifacts/report/leaks.parquet")
    metrics = yaml.safe_load((project.root / "artifacts/report/summary.json").read_text())
    keys = yaml.safe_load((project.root / "artifacts/data/keys.json").read_text())["train"]
    assert leaks.key.tolist() == [keys[i] for i in leaks["index"]]
    for arm in ("ddpm", "iet_agc_plus"):
        for weights in ("raw", "ema"):
            of_run = leaks[(leaks.arm == arm) & (leaks.weights == weights)]
            expected = metrics[arm][weights]["l2_from_gen"]["0.9"]
            assert (len(of_run), of_run["count"].sum()) == (expected["distinct"], expected["count"])
    raw = leaks[(leaks.arm == "iet_agc_plus") & (leaks.weights == "raw")]
    assert 0 < len(raw) == (images.emitted > 0).sum() == summary["emission"]["emitted"]

    (project.root / "params.yaml").write_text(TINY)
    project.run("snakemake")
    assert not (project.root / "artifacts/results/analyse").exists()
    assert project.lock() == finished.lock()


def same_results(project, reference, arm):
    """The hashes of all outputs of one arm are those of another project; at least a handful of them."""
    found = {path: md5 for path, md5 in project.results().items() if arm in path}
    assert found == {path: md5 for path, md5 in reference.results().items() if arm in path}
    return len(found) >= 6


def test_dvc_repro_from_scratch_leaves_the_same_hashes(finished, tmp_path):
    project = Project.create(tmp_path / "project", TINY)
    project.keep_arm("ddpm")
    first = project.run("dvc", "repro", check=False)
    assert first.returncode != 0 and "run the same command again" in first.text
    project.run("dvc", "repro")
    assert "up to date" in project.run("dvc", "status").text
    assert same_results(project, finished, "ddpm-seed3")


@pytest.mark.slow
@pytest.mark.parametrize("command", [("dvc", "repro"), ("snakemake", "--cores", "1"), ("snakemake", "--cores", "2")])
def test_every_door_leaves_the_same_lock_file(finished, tmp_path, command):
    project = Project.create(tmp_path / "project", TINY)
    project.run("python", "-m", "stages.plan", check=False)
    project.run(*command, timeout=1200)
    assert project.lock() == finished.lock()


@pytest.mark.slow
def test_checkout_of_another_commit_reruns_nothing(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    project.edit(
        score__thresholds=[0.5, 0.9], score__headline__threshold=0.9
    )  # the tiny models give out nothing at 0.5
    project.run("snakemake")
    project.commit("other thresholds")
    for commit in ("HEAD~1", "main"):
        project.run("git", "checkout", "-q", commit)
        project.run("dvc", "checkout")
        listed = project.run("snakemake", "-n").text
        assert "Nothing to be done" in listed, f"{commit}: {listed}"
    assert project.run("git", "status", "--porcelain").text == ""
    changed = project.run("dvc", "metrics", "diff", "HEAD~1").text
    for name in ("headline.threshold", "arms.ddpm.memorised", "arms.iet_agc_plus.memorised"):
        assert name in changed, changed


@pytest.fixture(scope="module")
def grown(finished, tmp_path_factory):
    """The finished run, then two more rounds, each committed."""
    project = finished.copy(tmp_path_factory.mktemp("grown") / "project")
    project.edit(arms__iet_agc_plus__rounds=4)
    project.output = project.run("snakemake").text
    project.commit("four rounds")
    return project


@pytest.mark.slow
def test_more_rounds_equal_a_fresh_run(grown, tmp_path):
    """Rounds 3 and 4 after a run of 2 leave the hashes of a run of 4 from the start."""
    project = Project.create(tmp_path / "project", (grown.root / "params.yaml").read_text())
    project.keep_arm("iet_agc_plus")
    project.run("snakemake", timeout=1200)
    assert same_results(project, grown, IET)


@pytest.mark.slow
def test_checkout_of_a_commit_with_fewer_rounds_reruns_nothing(grown):
    for commit in ("HEAD~1", "main"):
        grown.run("git", "checkout", "-q", commit)
        grown.run("dvc", "checkout")
        listed = grown.run("snakemake", "-n").text
        assert "Nothing to be done" in listed, f"{commit}: {listed}"
    changed = grown.run("dvc", "metrics", "diff", "HEAD~1").text
    assert "arms.iet_agc_plus.fd_pixels_heldout" in changed and "arms.ddpm" not in changed


@pytest.mark.slow
def test_fewer_shards_equal_a_fresh_run(finished, tmp_path):
    """A run of 4 shards turned into one of 2: nothing of shards 2 and 3 is left to be averaged."""
    project = Project.create(tmp_path / "project", TINY)
    project.keep_arm("iet_agc_plus")
    project.edit(arms__iet_agc_plus__shard__num_shards=4, arms__iet_agc_plus__rounds=1)
    project.run("snakemake")
    assert (project.root / f"artifacts/train/{IET}/round1/shard3").exists()
    project.edit(arms__iet_agc_plus__shard__num_shards=2, arms__iet_agc_plus__rounds=2)
    project.run("snakemake")
    assert same_results(project, finished, IET)
    assert not (project.root / f"artifacts/train/{IET}/round1/shard3").exists()
    assert not [name for name in project.lock() if "shard3" in name]


def test_dvc_experiments_change_one_value(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    project.run("dvc", "exp", "run", "-S", "score.thresholds=[0.3,0.5]")
    assert project.params()["score"]["thresholds"] == [0.3, 0.5]
    assert '"0.3"' in (project.root / "artifacts/report/summary.json").read_text()


def test_a_fresh_clone_with_a_lock_file_runs_everything(finished, tmp_path):
    """dvc.lock says that all was done, but nothing is there: the plan is to run every stage."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(finished.root), str(clone)], check=True)
    listed = Project(clone).run("snakemake", "-n").text
    phases = Counter(name.split()[0] for name in re.findall(LISTED, listed, re.MULTILINE))
    assert (phases["train"], phases["train_next"], phases["report"]) == (3, 2, 1)


def test_lost_samples_are_made_again_and_nothing_else(finished, tmp_path):
    """Brought back from the cache if it has them, generated anew if not."""
    project = finished.copy(tmp_path / "project")
    project.run("rm", "-rf", "artifacts/samples/ddpm-seed3")
    assert "Nothing to be done" in project.run("snakemake", "-n").text
    assert (project.root / "artifacts/samples/ddpm-seed3/round1/part0/ema.npy").exists()
    project.run("rm", "-rf", ".dvc/cache", "artifacts/samples/ddpm-seed3/round1/part1", "artifacts/train")
    listed = project.run("snakemake", "-n").text
    phases = Counter(name.split()[0] for name in re.findall(LISTED, listed, re.MULTILINE))
    assert phases["sample"] == 1 and not phases["train"], listed


@pytest.mark.slow
def test_the_scheduler_passes_over_ready_stages_only_when_one_ends(finished, tmp_path):
    """And not each second as well, once for every stage that has run: that would grow with the square of their number."""
    project = finished.copy(tmp_path / "project")
    project.run("rm", "-rf", ".dvc/cache", "artifacts/results/score")
    said = project.run("snakemake", "--cores", "1", "--verbose").text  # one waits while the other runs
    assert "5 of 5 steps" in said, said  # two scores, the self-test, the report and the rule all
    assert said.count("Ready jobs: ") <= 5, said


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_train_stage_that_was_ended_goes_on_from_its_checkpoint(finished, tmp_path, end):
    """Ended by hand in the middle, started again: the files of an uninterrupted run, byte for byte."""
    project = finished.copy(tmp_path / "project")
    project.edit(checkpoint_minutes=0)
    outputs = [f"artifacts/train/{IET}/round2/shard1/{name}.safetensors" for name in ("raw", "ema", "state")]
    outputs.append(f"artifacts/results/counts/{IET}/round2/shard1/counts.safetensors")
    for path in outputs:
        (project.root / path).unlink()
    options = ["--arm", "iet_agc_plus", "--seed", "3", "--round", "2", "--shard", "1"]
    command = [sys.executable, "-m", "stages.train", *options]
    scratch = project.root / "scratch/train"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stage = subprocess.Popen(command, cwd=project.root, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(scratch.rglob("*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(stage.pid, end)
    told = stage.communicate(timeout=10)[1]
    assert stage.returncode == (-signal.SIGKILL if end == signal.SIGKILL else 128 + signal.SIGTERM)
    (checkpoint,) = scratch.rglob("*.safetensors")
    step = int(load_file(checkpoint)["step"][0])
    assert 30 < step < 60  # after round 1, before the end of round 2
    assert end == signal.SIGKILL or f"stopped at step {step - 30} of 30: the same command goes on from there" in told
    assert not (project.root / outputs[-1]).exists()
    project.edit(checkpoint_minutes=60)
    again = project.run(*command)
    assert again.returncode == 0 and not list(scratch.rglob("*.safetensors"))
    for path in outputs:
        assert (project.root / path).read_bytes() == (finished.root / path).read_bytes(), path


def test_style():
    """ruff, snakefmt and snakemake --lint find nothing."""
    root = Path(__file__).parent.parent
    for command in (
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["snakefmt", "--check", "workflow"],
    ):
        done = subprocess.run(
            [Path(sys.executable).parent / command[0], *command[1:]],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_snakemake_lint(finished):
    assert "Congratulations" in finished.run("snakemake", "--lint").text
