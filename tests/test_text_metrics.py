"""CLIP score and magnitude detector as phases: what they read and write, who has them, and the report."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import report_tree
import tiny_clip
import tiny_sd
import tiny_sscd
import torch
import yaml
from conftest import TINY, Project, item_of_round, random_images, text_experiment, write_params, write_samples

from stages import clip, detect, phases, plan, rules
from stages.measures import clip_score
from stages.run import files
from stages.text import detection

pytestmark = pytest.mark.usefixtures("one_thread")
CLIP = {"model": "clip", "preprocess": "clip", "batch_size": 4}
DETECT = {"num_prompts": 3, "images_per_prompt": 2, "num_steps": 4, "guidance": 3.0, "batch_size": 5}
RUN = ["--arm", "default", "--seed", "0"]


# Who has them.


def test_an_experiment_with_captions_has_both_phases_and_others_must_not():
    experiment = text_experiment(clip=CLIP, detect=DETECT)
    rules.check(experiment)
    found = plan.expand(experiment)
    run = {"run": "default-seed0", "place": "default-seed0", "arm": "default", "seed": 0}
    assert found["clip@default-seed0-round1"].item() == item_of_round("default", 0, 1) | {"model": "clip"}
    assert found["detect@default-seed0"].item() == run | {
        "arguments": "--arm default --seed 0",
        "model": "artifacts/model/default-seed0/round1",
        "architecture": "model",
        "method": "stages/methods/ddpm.py",
    }
    places = {"clip@default-seed0-round1": "clip/default-seed0/round1", "detect@default-seed0": "detect/default-seed0"}
    for name, place in places.items():
        assert found[name].outputs() == [Path(f"artifacts/results/{place}")]
    for name, section in (("clip", CLIP), ("detect", DETECT)):
        with pytest.raises(ValueError, match=f"the section {name} looks into images that were made from prompts"):
            rules.check({**yaml.safe_load(TINY), name: section})


def test_what_is_left_out_is_told_in_one_line_each():
    told = phases.left_out(text_experiment())
    assert [sentence.split(" is left out")[0] for sentence in told] == [
        "the quality phase (FID, KID, precision, recall)",
        "the similarity phase (SSCD)",
        "the data-copying measures (authenticity, C_T, FLD gap) are left out: add a section copying with features: pixels",
        "the CLIP score",
        "the magnitude detector",
    ]
    assert len(phases.left_out(text_experiment(clip=CLIP, detect=DETECT))) == 3
    told = phases.left_out(yaml.safe_load(TINY))
    assert [sentence.split(" is left out")[0] for sentence in told] == [
        "the quality phase (FID, KID, precision, recall)",
        "membership inference",
    ]


def test_a_safety_checker_is_left_out_in_one_line(tmp_path):
    experiment = text_experiment()
    experiment["model"]["pipeline"] = str(tmp_path)
    before = plan.left_out(experiment)
    (tmp_path / "model_index.json").write_text(
        '{"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}'
    )
    told = f"the safety checker of {tmp_path} is left out, as what it blacks out could not be measured"
    assert plan.left_out(experiment) == [*before, told]


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"detect": DETECT | {"guidance": 1}}, "detect.guidance is 1, expected more than 1 .* no magnitude"),
        ({"detect": DETECT | {"num_prompt": 1}}, "unknown key detect.num_prompt: did you mean num_prompts?"),
        ({"detect": {"num_prompts": 3}}, "the key detect.images_per_prompt is missing"),
        ({"clip": {"model": "clip"}}, "the key clip.preprocess is missing"),
    ],
)
def test_wrong_sections_are_refused(sections, told):
    with pytest.raises(ValueError, match=told.replace("?", r"\?")):
        rules.check(text_experiment(**sections))


def test_the_clip_folder_is_looked_at_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the folder clip does not exist: put a CLIP model"):
        clip.check_files(text_experiment(clip=CLIP))
    with pytest.raises(ValueError, match="clip.model = artifacts/results/clip lies in artifacts/"):
        clip.check_files(text_experiment(clip=CLIP | {"model": "artifacts/results/clip"}))


@pytest.mark.parametrize(("stage", "told"), [(clip, "the CLIP score is left out"), (detect, "detector is left out")])
def test_a_stage_that_is_left_out_says_how_to_turn_it_on(tmp_path, monkeypatch, stage, told):
    monkeypatch.chdir(tmp_path)
    write_params(text_experiment())
    with pytest.raises(ValueError, match=f"{told}.*: add a section"):
        stage.main(RUN if stage is detect else [*RUN, "--round", "1"])


# CLIP score.


IMAGES = random_images(30, 6, side=40, channels=3)
ASKED = [(f"a {colour} square", f"word a {colour} square") for colour in ("red", "blue", "green", "white", "red", "of")]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """The working folder with samples of one run, in parts of 4 and 2, and their prompts."""
    monkeypatch.chdir(tmp_path)
    tiny_clip.build("clip")
    write_params(text_experiment(clip=CLIP))
    asked = [
        {"index": i, "prompt_original": original, "prompt_used": used, "train_key": "a", "seed": 0}
        for i, (original, used) in enumerate(ASKED)
    ]
    write_samples("default-seed0", {"raw": IMAGES}, asked)


def test_scores_of_a_run_are_means_over_its_images(made):
    clip.main([*RUN, "--round", "1"])
    folder = files.folder("results/clip", "default-seed0", 1)
    table, scores = pd.read_parquet(folder / "images.parquet"), json.loads((folder / "scores.json").read_text())
    model = clip_score.load("clip")
    shown = clip_score.image_embeddings(model, IMAGES, "clip", 6)
    for which, place in (("original", 0), ("used", 1)):
        texts = clip_score.text_embeddings(model, [asked[place] for asked in ASKED], 6)
        expected = (shown * texts).sum(axis=1)
        np.testing.assert_allclose(table[which], expected, atol=1e-5)
        assert scores["raw"][which] == pytest.approx(100 * expected.mean(), abs=1e-3)
    assert abs(scores["raw"]["original"] - scores["raw"]["used"]) > 1e-2
    assert scores["model"] == "clip" and list(scores["sha256"]) == ["model.safetensors"]


def test_images_without_prompts_have_no_score(made):
    for part in (0, 1):
        (files.folder("samples", "default-seed0", 1, part=part) / "generations.jsonl").unlink()
    with pytest.raises(ValueError, match="images of default-seed0 have no prompts, so there is no CLIP score"):
        clip.main([*RUN, "--round", "1"])


def test_prompts_of_a_part_that_cannot_be_read(made):
    path = files.folder("samples", "default-seed0", 1, part=1) / "generations.jsonl"
    path.write_text('{"index": 4, "promp')
    with pytest.raises(ValueError, match=r"part1/generations.jsonl cannot be read .*remove it and run"):
        clip.main([*RUN, "--round", "1"])


# Detector.


def test_prompts_of_both_kinds_are_distinct():
    captions = {
        "train": [["a"], ["b", "other"], ["a"], ["c"]],
        "heldout": [["d"], ["b"], ["other"], ["d"], ["e"], ["f"]],  # b and other are captions trained on
    }
    prompts, trained = detection.chosen(captions, 10, 3)
    assert sorted(prompts[:3]) == ["a", "b", "c"] and sorted(prompts[3:]) == ["d", "e", "f"]
    assert list(trained) == [True] * 3 + [False] * 3
    two, _ = detection.chosen(captions, 2, 3)
    assert two == [*prompts[:2], *prompts[3:5]]  # fewer are the first of more
    assert detection.chosen(captions, 10, 4)[0] != prompts
    alone, trained = detection.chosen({"train": [["a"]]}, 2, 0)
    assert alone == ["a"] and trained.all()


def test_the_stage_measures_both_kinds_of_prompts(tmp_path, monkeypatch):
    """The weights as they come with the model; each magnitude against two passes of the network at the first step."""
    from stages.diffusion import sampling
    from stages.text import model

    monkeypatch.chdir(tmp_path)
    tiny_sd.build("model", "D", "v_prediction")
    write_params(text_experiment(detect=DETECT))
    files.save_arrays(files.folder("model", "default-seed0", 1) / "raw.safetensors", model.unet_weights("model"))
    files.save_array(files.DATA / "train.npy", np.zeros((12, 32, 32, 3), np.uint8))
    files.write_json(files.DATA / "keys.json", {"train": [f"{i}.png" for i in range(12)], "heldout": []})
    colours = ["red", "blue", "green", "white", "yellow", "purple"]
    captions = {"train": [[f"a {colours[i % 6]} square"] for i in range(12)], "heldout": [["a cross"], ["black"]]}
    files.write_json(files.DATA / "captions.json", captions)
    detect.main(RUN)
    folder = files.folder("results/detect", "default-seed0")
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    scores = json.loads((folder / "scores.json").read_text())
    assert [line["trained"] for line in lines] == [True] * 3 + [False] * 2
    assert {line["prompt"] for line in lines[3:]} == {"a cross", "black"}
    assert (scores["num_trained"], scores["num_unseen"]) == (3, 2)

    frozen = model.Frozen("model", torch.device("cpu"))
    network = model.unet("model")
    network.load_state_dict({name: torch.from_numpy(w) for name, w in model.unet_weights("model").items()})
    network.eval()
    # Images 6 and 7 are those of the fourth prompt, in the second batch of five. The first of 4 steps is at t = 751.
    x_T, signal = sampling.starting_noise(6, 8, (4, 8, 8), 0), float(frozen.alpha_bars[751])
    with torch.no_grad():
        cond, uncond = (
            network(x_T, 751, frozen.embeddings([prompt]).expand(2, -1, -1)).sample
            for prompt in (lines[3]["prompt"], "")
        )
    expected = signal**0.5 * (cond - uncond).flatten(1).norm(dim=1).mean().item()
    assert lines[3]["raw"]["first_step"] == pytest.approx(expected, rel=1e-4)
    assert lines[3]["rms"]["first_step"] == pytest.approx(expected / 16, rel=1e-4)
    assert len(lines[3]["raw"]["per_step"]) == 4

    means = np.array([line["rms"]["mean"] for line in lines])
    entry = scores["raw"]["rms_mean"]
    assert entry["trained"] == pytest.approx(means[:3].mean()) and entry["unseen"] == pytest.approx(means[3:].mean())
    assert entry["auc"] == pytest.approx(np.mean([a > b for a in means[:3] for b in means[3:]]))
    assert entry["found_at_1_percent"] == pytest.approx(np.mean(means[:3] > means[3:].max()))


# The report.


def rounds_of(settings, arm):
    return settings["arms"][arm]["rounds"]


def write_clip_and_detector(settings, levels):
    for arm in settings["arms"]:
        level = levels[arm][0]
        used = {"model": "tiny", "sha256": {"model.safetensors": "cd" * 32}, "preprocess": "clip"}
        scores = {w: {"original": level + 0.5, "used": level + 0.25} for w in ("raw", "ema")}
        files.write_json(
            files.folder("results/clip", f"{arm}-seed0", rounds_of(settings, arm)) / "scores.json", used | scores
        )
        entry = {"trained": 0.5, "unseen": 0.25 if arm == "plain" else None}
        if arm == "plain":
            entry |= {"auc": 0.75, "low": 0.5, "high": 1.0, "found_at_1_percent": 0.125}
        found = {"rms_mean": entry, "rms_first_step": entry | ({"auc": 0.625} if arm == "plain" else {})}
        of_ema = {name: values | {"trained": 0.375} for name, values in found.items()}
        files.write_json(files.folder("results/detect", f"{arm}-seed0") / "scores.json", {"raw": found, "ema": of_ema})


def test_report_with_clip_and_detector(tmp_path):
    phases = {"clip": CLIP, "detect": DETECT}
    with report_tree.built(tmp_path, report_tree.ONE_SEED, sections=phases, write_more=write_clip_and_detector) as (
        root,
        metrics,
    ):
        assert metrics["iet"]["raw"]["clip"] == {"original": 15.5, "used": 15.25}
        found = metrics["plain"]["raw"]["detect"]
        assert found == {
            "trained": 0.5, "unseen": 0.25, "auc": 0.75, "found_at_1_percent": 0.125, "auc_first_step": 0.625
        }  # fmt: skip
        assert metrics["plain"]["ema"]["detect"] == found | {"trained": 0.375}
        assert metrics["iet"]["raw"]["detect"]["auc"] is None
        page = (root / "report.html").read_text()
        section = page[page.index('id="prompts"') : page.index('id="curves"')]
        assert (
            "<th scope=row>plain</th><td>raw</td><td>60.5</td><td>60.2</td><td>0.5</td><td>0.25</td><td>0.75</td>"
            in section
        )
        assert "<td>15.5</td><td>15.2</td><td>0.5</td><td>–</td><td>–</td>" in section and "cdcdcdcd" in section


# Through the doors.


@pytest.mark.slow
def test_all_measures_of_an_experiment_with_captions_through_snakemake(tmp_path):
    tiny_sscd.save(tmp_path / "sscd.pt")
    experiment = text_experiment(clip=CLIP, detect=DETECT)
    experiment["similarity"] = {"weights": "../sscd.pt", "preprocess": "dcr", "batch_size": 8, "show_images": 2}
    experiment["model"], experiment["clip"] = {"pipeline": "data/tiny/model"}, CLIP | {"model": "data/clip"}
    experiment["data"]["root"] = "data/tiny/images"
    experiment["sample"]["parts"] = 1
    experiment["arms"]["default"]["train"] = {"steps": 3}
    (tmp_path / "project").mkdir()
    project = Project.create(tmp_path / "project", yaml.safe_dump(experiment, sort_keys=False))
    project.run("python", "workflow/scripts/tiny_sd.py", "data/tiny")
    tiny_clip.build(project.root / "data/clip")
    project.run("snakemake")
    metrics = json.loads((project.root / "artifacts/report/summary.json").read_text())["default"]["raw"]
    assert 0 < metrics["similarity"]["percentile_95"] <= 1.0001 and -100 < metrics["clip"]["original"] < 100
    assert metrics["clip"]["original"] == metrics["clip"]["used"] and 0 <= metrics["detect"]["auc"] <= 1
    page = (project.root / "report.html").read_text()
    assert 'id="similarity"' in page and 'id="prompts"' in page
    # Each image beside that of its own prompt: keys, prompts and similarities agree with each other.
    table = pd.read_parquet(project.root / "artifacts/results/similarity/default-seed0/round1/nearest.parquet")
    keys = json.loads((project.root / "artifacts/data/keys.json").read_text())["train"]
    captions = json.loads((project.root / "artifacts/data/captions.json").read_text())["train"]
    assert list(table.prompt) == [captions[own][0] for own in table.own_train]
    assert list(table.nearest_key) == [keys[i] for i in table.nearest_train]
    assert (table.own_similarity <= table.similarity + 1e-6).all()
    assert "Nothing to be done" in project.run("snakemake", "-n").text

    project.edit(detect=DETECT | {"num_steps": 5})  # one measure alone is stale
    named = project.run("snakemake", "-n").text
    assert "detect@default-seed0" in named or "detect default-seed0" in named
    for other in ("clip", "similarity", "sample", "train"):
        assert f"{other} default-seed0" not in named and f"{other}@default-seed0" not in named


@pytest.mark.slow
def test_the_detector_tells_captions_that_were_learnt_by_heart(tmp_path, monkeypatch):
    """Four toy images, each twice, 600 steps: at the first step the magnitude of their captions is above that of captions with a
    colour never seen. (Of other pairs of the colours and shapes learnt, such as a red circle, it is high as well.)"""
    from stages import aggregate, train

    monkeypatch.chdir(tmp_path)
    tiny_sd.build("model", "D")
    toys = list(tiny_sd.toy_images(24, 32))
    tiny = text_experiment(
        detect=DETECT | {"num_prompts": 8, "images_per_prompt": 4, "num_steps": 20, "guidance": 2.0, "batch_size": 12}
    )
    tiny["data"]["num_train"] = 8
    tiny["train"] |= {
        "batch_size": 8,
        "learning_rate": 3.0e-3,
        "warmup_steps": 0,
        "flip": False,
        "caption_dropout": 0.1,
    }
    tiny["arms"]["default"]["train"] = {"steps": 600}
    write_params(tiny)
    learnt = [toys[i] for i in (0, 7, 14, 21)]  # a red square, a green circle, a blue triangle, a yellow cross
    unseen = [text for _, text in toys if "white" in text or "purple" in text]
    files.save_array(files.DATA / "train.npy", np.stack([image for image, _ in learnt] * 2))
    files.save_array(files.DATA / "train_labels.npy", np.zeros(8, np.int64))
    files.write_json(files.DATA / "keys.json", {"train": [f"{i}.png" for i in range(8)], "heldout": []})
    captions = {"train": [[text] for _, text in learnt] * 2, "heldout": [[text] for text in unseen]}
    files.write_json(files.DATA / "captions.json", captions)
    files.save_array(files.folder("shards", "default-seed0", 1) / "shard0.npy", np.arange(8))
    train.main([*RUN, "--round", "1", "--shard", "0"])
    aggregate.main([*RUN, "--round", "1"])
    detect.main(RUN)
    scores = json.loads((files.folder("results/detect", "default-seed0") / "scores.json").read_text())
    print(scores)
    assert (scores["num_trained"], scores["num_unseen"]) == (4, 8)
    entry = scores["raw"]["rms_first_step"]
    assert entry["trained"] > 1.25 * entry["unseen"] and entry["auc"] > 0.7
