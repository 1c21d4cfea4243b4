"""The benchmarks run, in sizes at which their numbers say nothing."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT

import benchmarks.__main__

NUMBER = r"\d+\.\d+"


def run(name, *options, heading=True):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--threads", "1", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not heading or f"python -m benchmarks.{name} --threads 1" in done.stdout and "commit " in done.stdout
    return done.stdout


def test_search_is_checked_against_integers_and_faiss_is_the_measure():
    said = run("search", "--samples", "40", "--train", "300", "--neighbours", "5", "--turns", "2")
    for side in ("ours, exact", "bare int8 product", "bare fp32 product", "faiss.knn, fp32"):
        assert re.search(rf"^{side} +{NUMBER} +{NUMBER} +{NUMBER}", said, re.MULTILINE), side
    assert re.search(rf"peak memory of our search by itself: {NUMBER} GB", said)


@pytest.mark.parametrize("table", ["GPU", "CPU"])
def test_the_one_command_knows_the_benchmarks_and_their_options(table):
    for name, words in getattr(benchmarks.__main__, table).items():
        options = run(name, "--help", heading=False)
        assert all(word in options for word in words if word.startswith("--")), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("training", ["--turns", "2", "--batch", "8", "--images", "16"], 3 + 5 + 3),
        ("sampling", ["--turns", "2", "--batch", "2", "--steps", "3"], 2),
        ("startup", ["--turns", "2"], 7),
        ("fixed_cost", ["--turns", "1", "--images", "32", "--batch", "16"], 2),
    ],
)
def test_other_benchmarks_print_their_tables(name, options, rows):
    assert len(re.findall(rf" {NUMBER} +{NUMBER} +{NUMBER}", run(name, *options))) >= rows


@pytest.mark.slow
def test_memory_of_training_grows_with_the_batch():
    small, large = (
        run("memory", "--network", "small", "--batch", str(batch), "--samples", "10", "--train", "60")
        for batch in (8, 64)
    )
    peaks = [[float(found) for found in re.findall(rf" ({NUMBER})$", said, re.MULTILINE)] for said in (small, large)]
    assert [len(found) for found in peaks] == [4, 4]
    assert peaks[1][0] > peaks[0][0] + 0.1 and peaks[1][1] > peaks[0][1] + 0.1
    assert abs(peaks[1][3] - peaks[0][3]) < 0.1  # the search does not know of it


@pytest.mark.slow
def test_orchestration_counts_its_stages():
    said = run("orchestration", "--seeds", "1", "--rounds", "1", "--shards", "2")
    assert "10 stage instances, 2 at a time" in said
    assert len(re.findall(rf"{NUMBER} s, {NUMBER} s each", said)) == 3  # real, empty, after a change


@pytest.mark.slow
def test_images_draws_lines_to_the_target():
    said = run(
        "images", "--files", "20", "--indices", "2000", "--shards", "10", "--reference", "64", "--target", "1000"
    )
    assert len(re.findall(rf"{NUMBER} +[\d,]+ +-?{NUMBER}$", said, re.MULTILINE)) == 6


@pytest.mark.slow
def test_instances_takes_the_experiment_closest_to_the_number():
    said = run("instances", "--instances", "30", "--shards", "5", "--rounds", "2")
    assert re.search(r"^\d\d stage instances", said, re.MULTILINE) and "four stages at a time" in said
