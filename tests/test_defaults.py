"""Keys of params.yaml that may be left out: what stands for them, in which files, and what DVC makes of it."""

import re

import pytest
import yaml
from conftest import ROOT, TINY, Project

from stages import experiments, rules
from stages.run import files, params

# A change of a line here changes what existing files mean, and no stage runs again for it: DVC records what is written.
DEFAULTS = {
    "seeds": [0],
    "model.attention_levels": [],
    "model.layers_per_block": 2,
    "model.norm_groups": 8,
    "diffusion.num_timesteps": 1000,
    "diffusion.beta_start": 1.0e-4,
    "diffusion.beta_end": 0.02,
    "compute.device": "auto",
    "compute.threads": 1,
    "compute.precision": "fp32",
    "data.split_seed": 0,
    "train.warmup_steps": 0,
    "train.grad_clip_norm": 1.0,
    "train.flip": False,
    "sample.parts": 1,
    "sample.batch_size": 64,
    "sample.protocol": "paper",
    "sample.num_steps": 50,
    "sample.weights": ["raw", "ema"],
    "score.neighbours": 50,
    "score.thresholds": [0.4, 0.5, 0.6],
    "score.grid_step": 0.02,
    "score.headline.protocol": "l2_from_gen",
    "score.headline.threshold": 0.5,
    "analyse.noise_draws": 2,
    "analyse.timestep_stride": 20,
    "analyse.batch_size": 128,
    "analyse.select": "l2",
    "analyse.extreme_share": 0.1,
    "analyse.rare_skip_rate": 0.27,
    "arms.plain.rounds": 1,
    "arms.plain.shard.num_shards": 1,
    "arms.plain.redistribute": {},
    "arms.skips.rounds": 1,
    "arms.skips.shard.num_shards": 1,
    "arms.skips.redistribute": {},
    "arms.skips.method.eta": 0.8,
    "arms.skips.method.taa.A": 5.0,
    "arms.skips.method.taa.num_ops": 2,
    "arms.skips.method.taa.max_level": 30,
}
MINIMAL = """\
data: {name: image_folder, root: photos}
model: {block_channels: [8, 16]}
diffusion: {}
compute: {}
train: {batch_size: 10, learning_rate: 2.0e-3, ema_decay: 0.9}
sample: {num_images: 50}
score: {headline: {weights: raw}}
arms:
  plain: {method: {name: ddpm}, shard: {}, train: {epochs: 10}, sample: {}}
"""
SKIPS = {
    "method": {"name": "agc", "lambda": 0.5, "taa": {"R": 1.7, "magnitude": 1}},
    "shard": {},
    "train": {"epochs": 10},
    "sample": {},
}


def flat(value, key=""):
    """dict key with dots -> value, {} and lists as they are."""
    if not isinstance(value, dict) or not value:
        return {key: value}
    found = {}
    for name, below in value.items():
        found |= flat(below, f"{key}.{name}" if key else name)
    return found


def loaded(folder, experiment):
    (folder / "params.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    return rules.load(folder / "params.yaml")


def test_what_stands_for_each_key_that_is_left_out(tmp_path):
    written = yaml.safe_load(MINIMAL)
    written["analyse"], written["arms"]["skips"] = {"group_size": 10}, SKIPS
    found, before = flat(loaded(tmp_path, written)), flat(written)
    assert {key: value for key, value in found.items() if key not in before} == DEFAULTS
    assert {key: found[key] for key in before if before[key] != {}} == {k: v for k, v in before.items() if v != {}}


def test_a_minimal_file_has_14_keys_where_38_were_needed_and_none_of_them_can_go(tmp_path):
    assert len(flat(yaml.safe_load(MINIMAL))) == 14
    loaded(tmp_path, yaml.safe_load(MINIMAL))
    for key in flat(yaml.safe_load(MINIMAL)):
        experiment = yaml.safe_load(MINIMAL)
        *folders, last = key.split(".")
        section = experiment
        for name in folders:
            section = section[name]
        del section[last]
        with pytest.raises(ValueError, match="params.yaml: .*missing|expected at least one entry"):
            loaded(tmp_path, experiment)
    of_plain = [key for key in DEFAULTS if not key.startswith(("analyse", "arms.skips"))]
    filled_sections = {"diffusion", "compute", "arms.plain.shard"}  # {} in the minimal file
    assert len(flat(yaml.safe_load(MINIMAL))) - len(filled_sections) + len(of_plain) == 38


def test_an_arm_takes_the_shared_value_of_a_key_that_it_leaves_out_and_not_the_default(tmp_path):
    written = yaml.safe_load(MINIMAL)
    written["train"]["warmup_steps"], written["sample"]["num_steps"] = 7, 20
    experiment = loaded(tmp_path, written)
    assert experiments.section(experiment, "train", "plain")["warmup_steps"] == 7
    assert experiments.section(experiment, "sample", "plain")["num_steps"] == 20


def test_a_model_with_captions_gets_no_keys_of_the_unet_and_no_schedule():
    found = params.filled({"model": {"pipeline": "sd"}, "diffusion": {}})
    assert found["model"] == {"pipeline": "sd"} and found["diffusion"] == {}


@pytest.mark.parametrize("written", [None, [], "x", {"arms": None}, {"arms": {"a": 5}}, {"score": {"headline": []}}])
def test_what_is_no_section_is_left_for_the_schema_to_refuse(written):
    found = params.filled(written)
    assert (
        found == written if not isinstance(written, dict) else {k: found[k] for k in written}.keys() == written.keys()
    )


def test_files_that_say_everything_mean_what_they_say():
    for path in [ROOT / "params.yaml", *(ROOT / "experiments").rglob("*.yaml")]:
        assert rules.load(path) == yaml.safe_load(path.read_text(encoding="utf-8")), path


def test_no_section_or_key_that_dvc_looks_up_has_a_default():
    """DVC ends with an error where params.yaml lacks a key that a block lists. Blocks of moves have instances only where `redistribute` says so."""
    listed = set(re.findall(r"(?<=[\[ \"])(?:arms\.\$\{item\.arm\}|[a-z]+)(?:\.[a-z_]+)*(?=[\",\]])", "\n".join(
        line for line in (ROOT / "dvc.yaml").read_text().splitlines() if line.strip().startswith("params:")
    )))  # fmt: skip
    assert {"data", "score.headline", "quality.batch_size", "arms.${item.arm}.train", "compute"} <= listed
    never = {re.sub(r"^arms\.\w+", "arms.${item.arm}", key) for key in DEFAULTS}
    assert listed & never == {"arms.${item.arm}.redistribute"}


def shortened():
    """The tiny experiment without the keys that have defaults, and with the values of these where that changes nothing that takes time."""
    experiment = yaml.safe_load(MINIMAL)
    tiny = yaml.safe_load(TINY)
    experiment["data"] = {"name": "digits", "num_train": 60}
    experiment["diffusion"] = {"num_timesteps": 20, "beta_end": 0.4}
    experiment["sample"] = {"num_images": 50, "num_steps": 5}
    experiment["model"] = {"block_channels": tiny["model"]["block_channels"]}
    return experiment


def results_of(project):
    """Hashes of all outputs; of the report those of its files, but for the page, which shows params.yaml as it is written."""
    results, folder = project.results(), project.root / "artifacts/report"
    results["artifacts/report"] = {
        path.name: files.checksum(path) for path in folder.iterdir() if path.name not in ("body.html", files.CHECKSUMS)
    }
    return results


@pytest.mark.slow
def test_a_run_from_a_minimal_file_equals_the_one_that_says_everything(tmp_path):
    short = Project.create(tmp_path / "short", yaml.safe_dump(shortened(), sort_keys=False))
    short.run("snakemake")
    assert "Nothing to be done" in short.run("snakemake", "-n").text
    assert "up to date" in short.run("dvc", "status").text
    full = Project.create(tmp_path / "full", yaml.safe_dump(params.filled(shortened()), sort_keys=False))
    full.run("dvc", "repro")
    assert results_of(full) == results_of(short) and len(results_of(short)["artifacts/report"]) >= 4
    # The default written out is another text for DVC, which runs the stages that read it again; the results stay.
    before = results_of(short)
    short.edit(score__neighbours=50)
    assert "score plain-seed0" in short.run("snakemake", "-n").text
    short.run("snakemake")
    assert results_of(short) == before
