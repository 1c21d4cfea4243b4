"""A phase is declared once, by its module: what Snakemake asks the machine for, the room on the disk, the code of a checkpoint and the
sentences on what is left out follow from that, for every phase alike."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT, TINY, Project, text_experiment, tiny_with, write_params

from stages import experiments, phases, plan, rules
from stages.run import declarations

QUALITY = {"weights": "inception.pth", "protocols": ["pytorch_fid"], "batch_size": 8}
SIMILARITY = {"weights": "sscd.pt", "preprocess": "dcr", "batch_size": 8}
ANALYSE = {
    "group_size": 10, "noise_draws": 1, "timestep_stride": 5, "batch_size": 8, "select": "l2", "extreme_share": 0.1, "rare_skip_rate": 0.3,
}  # fmt: skip


def tiny_with_theirs(**generator):
    """The tiny experiment with an arm whose images come from elsewhere."""
    return tiny_with(arms=yaml.safe_load(TINY)["arms"] | {"theirs": {"generator": generator, "sample": {}}})


def every_phase():
    """A text experiment that has all of them, and a generator from elsewhere."""
    clip, detect = {"model": "clip", "preprocess": "clip", "batch_size": 8}, {
        "num_prompts": 4, "images_per_prompt": 2, "num_steps": 5, "guidance": 3.0, "batch_size": 4,
    }  # fmt: skip
    tiny = text_experiment(
        quality=QUALITY,
        similarity=SIMILARITY,
        copying={"features": "pixels"},
        clip=clip,
        detect=detect,
        analyse=ANALYSE | {"group_size": 3},
    )
    tiny["arms"]["theirs"] = {"generator": {"folder": "images"}, "sample": {}}
    return tiny


def test_every_module_that_declares_a_phase_has_a_block_and_is_found():
    assert set(phases.names()) == declarations.phases().keys()
    assert phases.names()[0] == "plan" and phases.names()[-1] == "report"
    for name in phases.names():
        assert phases.declared(name)["name"] == name and callable(phases.module(name).main)
        assert {"section", "arm_section", "left_out", "columns"} & phases.declared(name).keys() or name in (
            "plan", "aggregate", "report",
        )  # fmt: skip


RULES = """
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import OutputSettings, ResourceSettings
import json
with SnakemakeApi(OutputSettings(dryrun=True)) as api:
    workflow = api.workflow(ResourceSettings(cores=4), snakefile=Path("workflow/Snakefile"))._workflow
    asked = {r.name: [r.resources["gpu"].raw, r.resources["_cores"].raw] for r in workflow.rules if r.name != "all"}
print("asked", json.dumps(asked))
"""


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("auto", 1)])
def test_exactly_the_blocks_that_run_a_network_ask_for_a_gpu_and_none_on_the_cpu(tmp_path, device, gpus):
    """similarity, clip and detect once asked for one on a partition without any. What Snakemake itself reads of the rules."""
    tiny = tiny_with(compute={"device": device, "threads": 2, "precision": "fp32"})
    project = Project.create(tmp_path / "project", yaml.safe_dump(tiny, sort_keys=False))
    told = project.run(sys.executable, "-c", RULES).text
    asked = json.loads(re.search(r"^asked (.*)$", told, re.MULTILINE)[1])
    with_network = {
        "train", "train_next", "train_student", "train_next_student", "sample", "sample_elsewhere", "score_reference", "score",
        "quality_reference", "quality", "similarity_reference", "similarity", "membership_reference", "membership", "membership_elsewhere",
        "copying_reference", "copying", "clip", "detect", "analyse",
    }  # fmt: skip
    light = {"plan", "data", "shard", "aggregate", "aggregate_apart", "redistribute", "redistribute_both", "report"}
    assert asked == dict.fromkeys(with_network, [gpus, 2]) | dict.fromkeys(light, [0, 1])


def test_every_stage_takes_room_on_the_disk_and_one_that_writes_rows_or_images_more_for_more_of_them(
    tmp_path, monkeypatch
):
    """similarity, clip and detect once weighed nothing."""
    monkeypatch.chdir(tmp_path)
    Path("sscd.pt").write_bytes(b"x" * 5000)
    experiment = every_phase()
    instances = plan.expand(experiment)
    few, many = (phases.module("plan").Scale(experiment, n, n, (16, 16, 3), 1000) for n in (12, 1200))
    blocks = {instance.block for instance in instances.values()}
    assert blocks >= {
        "similarity_reference",
        "similarity",
        "clip",
        "detect",
        "sample_elsewhere",
        "quality_reference",
        "analyse",
    }
    for name, instance in instances.items():
        assert instance.size(few) > 0 and instance.outputs(), name
    for name in ("similarity_reference@reference", "quality_reference@reference", "analyse@default-seed0", "data"):
        assert instances[name].size(many) > instances[name].size(few), name
    more = {**experiment, "sample": experiment["sample"] | {"num_images": 6000}}
    larger = phases.module("plan").Scale(more, 12, 12, (16, 16, 3), 1000)
    for name in (
        "similarity@default-seed0-round1",
        "clip@default-seed0-round1",
        "score@default-seed0-round1",
        "sample@default-seed0-round1-part1",
    ):
        assert instances[name].size(larger) > 2 * instances[name].size(few), name
    prompts = {**experiment, "detect": experiment["detect"] | {"num_prompts": 4000}}
    assert instances["detect@default-seed0"].size(phases.module("plan").Scale(prompts, 12, 12)) > 400_000
    reference = instances["similarity_reference@reference"].size(few)
    assert reference >= 5000 + 12 * 4 * 512  # the network, and the features of twelve images by the smaller network


def job(phase, arm, experiment):
    return SimpleNamespace(phase=phase, arm=arm, params=experiment)


def test_a_checkpoint_is_of_the_code_that_its_stage_runs_and_of_no_other():
    """`sample` of a foreign pipeline once went on with images of older code, and a new method's file discarded all interrupted stages."""

    def names(*of_job):
        return {path.relative_to(ROOT).as_posix() for path in experiments.code_of(job(*of_job))}

    tiny = tiny_with_theirs(pipeline="there")
    tiny["arms"]["resampled"] = {"generator": {"arm": "iet_agc_plus"}, "sample": {}}
    ddpm, agc = names("train", "ddpm", tiny), names("train", "iet_agc_plus", tiny)
    assert {
        "stages/train.py",
        "stages/methods/loop.py",
        "stages/pixels/__init__.py",
        "stages/diffusion/unet.py",
    } <= ddpm & agc
    assert agc - ddpm == {
        f"stages/methods/agc/{name}.py" for name in ("__init__", "augmentation", "memory_bank", "two_pass")
    }
    assert ddpm - agc == {"stages/methods/ddpm.py"}
    assert not [path for path in ddpm | agc if path.startswith(("stages/text", "stages/run", "stages/methods/wen"))]
    theirs = names("sample", "theirs", tiny)
    assert {"stages/diffusion/saved_pipeline.py", "stages/image_sets/elsewhere.py", "stages/sample.py"} <= theirs
    assert "stages/methods/agc/memory_bank.py" in names("sample", "resampled", tiny)
    assert {"stages/text/latents.py", "stages/text/model.py"} <= names("train", "default", every_phase())


def test_what_is_left_out_is_said_of_a_phase_by_its_own_sentence():
    sentences = {name: phases.declared(name).get("left_out") for name in phases.names()}
    assert [name for name, told in sentences.items() if told] == [
        "quality",
        "similarity",
        "membership",
        "copying",
        "clip",
        "detect",
    ]
    always = [sentences["quality"], sentences["membership"]]
    assert phases.left_out(yaml.safe_load(TINY)) == always  # the others are about captions
    assert phases.left_out(tiny_with(similarity={})) == [always[0], sentences["similarity"], always[1]]
    tiny = text_experiment()
    del tiny["membership"]
    assert phases.left_out(tiny) == [told for told in sentences.values() if told]
    assert phases.left_out(every_phase()) == []


def test_a_section_is_refused_where_its_phase_asks_for_captions():
    for name in ("clip", "detect"):
        assert phases.declared(name)["needs_captions"]
        with pytest.raises(ValueError, match=f"the section {name} looks into images that were made from prompts"):
            rules.check(tiny_with(**{name: {}}))


@pytest.mark.parametrize(
    ("phase", "arguments", "told"),
    [
        (
            "train",
            "--arm theirs --seed 3 --round 1 --shard 0",
            "arms.theirs is a generator from elsewhere, which has no phase train",
        ),
        ("analyse", "--arm theirs --seed 3", "arms.theirs is a generator from elsewhere, which has no phase analyse"),
        (
            "aggregate",
            "--arm iet_agc_plus --seed 3 --round 3",
            "round 3 of iet_agc_plus does not exist, expected 1 to 2",
        ),
        ("train", "--arm ddpm --seed 3 --round 1 --shard 1", "shard 1 of ddpm does not exist, expected 0 to 0"),
        ("sample", "--arm theirs --seed 3 --part 1", "part 1 of theirs does not exist, expected 0 to 0"),
        ("score", "--arm dppm --seed 3", "there is no arm dppm, expected one of ddpm, iet_agc_plus, theirs"),
        ("score", "--arm ddpm --seed 0", r"there is no seed 0, expected one of \[3\]"),
    ],
)
def test_an_instance_that_the_plan_does_not_have_is_refused(tmp_path, monkeypatch, phase, arguments, told):
    monkeypatch.chdir(tmp_path)
    write_params(tiny_with_theirs(folder="images"))
    with pytest.raises(ValueError, match=told):
        phases.module(phase).main(arguments.split())


def test_the_map_of_equations_is_true():
    """Each function that CONTRIBUTING.md names is there, in a folder of two steps at most, and its docstring names the equation."""
    import importlib

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| .*? \| `(stages/[\w/]+)` \| (.*?) \|$", text, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 14))
    for number, folder, names in rows:
        assert folder.count("/") <= 2 and (ROOT / folder).is_dir()
        for name in re.findall(r"`([\w.]+)`", names):
            file, function = name.split(".")
            found = getattr(importlib.import_module(f"{folder.replace('/', '.')}.{file}"), function)
            assert re.search(rf"Eq\. {number}\b", found.__doc__), (number, name)
