"""CONTRIBUTING.md, followed word by word in a copy of the project: a method, a measure, a phase and a data set are added with no more files
than it says, and the pipeline runs with all four."""

import json
import re
from collections import Counter

import pandas as pd
import pytest
import yaml
from conftest import ROOT, TINY, Project

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def examples(heading, language):
    """The blocks of code of one section of the guide."""
    section = GUIDE.split(f"## {heading}")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def before(block, new, text):
    """A block of dvc.yaml put before another one."""
    assert text.count(f"\n  {block}:") == 1
    return text.replace(f"\n  {block}:", f"\n{new.rstrip()}\n\n  {block}:")


def changed(project):
    """Files that differ from the commit, and how many lines were added to those that were there."""
    told = project.run("git", "status", "--porcelain", "--untracked-files=all").text.splitlines()
    return {line[3:]: line[:2].strip() for line in told}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    tiny = yaml.safe_load(TINY)
    tiny["data"] |= {"name": "small_digits"}
    tiny["model"] |= {"block_channels": [8], "attention_levels": []}
    recipe = tiny["arms"]["ddpm"] | {"train": {"epochs": 2}}
    tiny["arms"] = {"plain": recipe, "mine": recipe | {"method": {"name": "mine", "gamma": 5.0}}}
    tiny["sample"] |= {"num_images": 20, "parts": 1}
    tiny["census"] = {"smallest": 6}
    project = Project.create(tmp_path_factory.mktemp("extended"), TINY)

    (method,) = examples("Add a training method", "python")
    (measure,) = examples("Add a measure", "python")
    (phase,) = examples("Add a phase", "python")
    (data_set,) = examples("Add a data set", "python")
    (measure_block,) = examples("Add a measure", "yaml")
    (phase_block,) = examples("Add a phase", "yaml")
    (project.root / "stages/methods/mine.py").write_text(method)
    (project.root / "stages/brightness.py").write_text(measure)
    (project.root / "stages/census.py").write_text(phase)
    with open(project.root / "stages/image_sets/packaged.py", "a") as module:
        module.write(f"\n\n{data_set}")
    dvc = project.root / "dvc.yaml"
    dvc.write_text(before("report", measure_block, before("shard", phase_block, dvc.read_text())))
    guided = dvc.read_text()
    project.told = project.run("python", "workflow/scripts/dependencies.py").text
    project.more = Counter(dvc.read_text().splitlines()) - Counter(guided.splitlines())
    project.files = changed(project)
    (project.root / "params.yaml").write_text(yaml.safe_dump(tiny, sort_keys=False))
    project.output = project.run("snakemake", "--cores", "2").text
    return project


def test_no_file_is_touched_that_the_guide_does_not_name(extended):
    assert extended.files == {
        "stages/methods/mine.py": "??",
        "stages/brightness.py": "??",
        "stages/census.py": "??",
        "stages/image_sets/packaged.py": "M",
        "dvc.yaml": "M",
    }


def test_make_dependencies_adds_a_line_a_phase_to_the_block_of_the_report_alone(extended):
    """The blocks in the guide list what is imported; the report shows what all phases say of themselves."""
    assert extended.told == "dvc.yaml was renewed\n"
    assert extended.more == {"      - stages/brightness.py": 1, "      - stages/census.py": 1}
    assert extended.run("python", "workflow/scripts/dependencies.py").text == "dvc.yaml lists what the phases import\n"
    report = extended.root.joinpath("dvc.yaml").read_text().split("\n  report:")[1]
    assert "- stages/brightness.py" in report and "- stages/census.py" in report


def test_the_method_trained_an_arm_of_the_new_data_set(extended):
    """Weighted by min-SNR, it ends with other weights than plain DDPM, on images of 6x6."""
    recorded = extended.lock()
    assert (
        recorded["train@mine-seed3-round1-shard0"]["outs"][0]["md5"]
        != recorded["train@plain-seed3-round1-shard0"]["outs"][0]["md5"]
    )
    listed = {dep["path"] for dep in recorded["train@mine-seed3-round1-shard0"]["deps"]}
    assert "stages/methods/mine.py" in listed and "stages/methods/ddpm.py" not in listed
    header = (extended.root / "artifacts/data/train.npy").read_bytes()[:80]
    assert b"(60, 6, 6, 1)" in header


def test_the_measure_has_its_numbers_in_the_metrics_in_the_table_and_on_the_page(extended):
    metrics = json.loads((extended.root / "artifacts/report/summary.json").read_text())
    images = pd.read_parquet(extended.root / "artifacts/results/brightness/mine-seed3/round1/images.parquet")
    for weights in ("raw", "ema"):
        of_weights = images[images.weights == weights].brightness
        assert len(of_weights) == 20
        assert metrics["mine"][weights]["brightness"]["mean"] == pytest.approx(of_weights.mean(), rel=1e-5)
    page = (extended.root / "report.html").read_text()
    section = page.split('id="brightness"')[1].split("</section>")[0]
    assert "Brightness" in section and "mean grey level" in section and "Mean of all pixels, 0 to 255." in section
    assert "<svg" in section and "mean grey level of an image" in section
    assert re.search(r"arm .* grey ", extended.output)  # the table in the terminal


def test_the_phase_ran_and_its_setting_is_checked(extended, tmp_path):
    counts = json.loads((extended.root / "artifacts/census/reference/counts.json").read_text())
    assert counts and all(n >= 6 for n in counts.values()) and sum(counts.values()) <= 60
    assert (extended.root / "logs/census/census.log").exists()
    copy = extended.copy(tmp_path / "copy")
    copy.edit(census={"smalest": 3})
    told = copy.run("snakemake", "-n", check=False)
    assert told.returncode and "unknown key census.smalest: did you mean smallest?" in told.text
    copy.edit(census={"smallest": 7})
    told = copy.run("snakemake", "-n", "--cores", "2").text
    assert (
        "census" in told and "train" not in told
    )  # a change of its setting runs it, and nothing that does not read it


def test_nothing_is_left_to_do(extended):
    assert "Data and pipelines are up to date." in extended.run("dvc", "status").text
