"""The phases with networks of others, quality, similarity, clip and detect, with stand-ins for the networks, so that each number is known: which
images, weights, parts, prompts, seeds and settings they use, and under which names they write what comes of it.

The networks themselves are held to others in test_quality, test_similarity, test_clip_score and test_magnitude_detector.
"""

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY, text_experiment, write_params
from sklearn import metrics

from stages import clip, detect, models, quality, similarity
from stages.measures import clip_score, image_quality, inception, sscd
from stages.run import files
from stages.text import detection

ARM, SEED = "own", 8
RANDOM = np.random.default_rng(2)
TRAIN, HELDOUT = (RANDOM.integers(0, 256, (n, 3, 4, 1), dtype=np.uint8) for n in (5, 4))
SAMPLES = {kind: RANDOM.integers(0, 256, (7, 3, 4, 1), dtype=np.uint8) for kind in ("raw", "ema")}
KEYS = ["d.png", "b.png", "e.png", "a.png", "c.png"]
OWN = [3, 0, 3, 4, 1, 1, 2]  # training image whose caption each image was asked for
SETTINGS = {"num_images": 7, "batch_size": 2, "parts": 3, "weights": ["ema", "raw"]}
OF_RUN = ["--arm", ARM, "--seed", str(SEED)]
ARGUMENTS = [*OF_RUN, "--round", "2"]


def unit(vectors):
    vectors = np.asarray(vectors, np.float64)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_experiment(experiment, asked=True, moved=1):
    """The arm has settings of its own, in the place of two parts and raw weights; another seed has the same images, moved on by one, and so
    has another round, moved on by two."""
    experiment["seeds"] = [3, SEED]
    experiment["sample"] |= {"parts": 2, "weights": ["raw"]}
    first = next(iter(experiment["arms"].values()))
    experiment["train"]["ema_decay"] = 0.9
    experiment["arms"] = {"other": first, ARM: first | {"rounds": 3, "sample_rounds": [1, 2], "sample": SETTINGS}}
    write_params(experiment)
    files.save_array(files.DATA / "train.npy", TRAIN)
    files.save_array(files.DATA / "heldout.npy", HELDOUT)
    files.write_json(files.DATA / "keys.json", {"heldout": ["x.png"] * 4, "train": KEYS})
    for seed, round_, by in ((SEED, 2, 0), (3, 2, moved), (SEED, 1, 2)):
        for part, rows in enumerate((slice(0, 2), slice(2, 4), slice(4, 7))):
            folder = files.folder("samples", files.run_name(ARM, seed), round_, part=part)
            for kind, images in SAMPLES.items():
                files.save_array(folder / f"{kind}.npy", np.roll(images, by, axis=0)[rows])
            if asked:
                lines = [
                    {"index": i, "prompt_used": f"used {i}", "prompt_original": f"asked {i}", "train_key": KEYS[OWN[i]], "seed": seed}
                    for i in range(7)[rows]
                ]  # fmt: skip
                files.write_text(folder / "generations.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return monkeypatch


NETWORK = SimpleNamespace(to=lambda device: NETWORK)
PROTOCOLS = ["clean", "pytorch_fid"]


def features_of(images, protocol):
    return images.reshape(len(images), -1)[:, :3].astype(np.float32) + 1000 * PROTOCOLS.index(protocol)


def test_quality_compares_each_kind_of_weights_with_the_training_images_under_each_protocol(here):
    experiment = yaml.safe_load(TINY)
    write_experiment(
        experiment | {"quality": {"weights": "w.pth", "protocols": PROTOCOLS, "batch_size": 6}}, asked=False
    )
    calls = []

    def seen(network, images, protocol, batch_size, progress):
        assert (network, batch_size) == (NETWORK, 6)
        return features_of(images, protocol), images[:, 0, :2, 0].astype(np.float32)

    def measured(features, logits, train, moments, rng_seed, device):
        calls.append((features, logits, train, moments, rng_seed))
        return {"fid": len(calls)}

    here.setattr(quality, "load_weights", lambda experiment: {"w": np.arange(3, dtype=np.float32)})
    here.setattr(inception, "build", lambda weights, source: NETWORK)
    here.setattr(inception, "features", seen)
    here.setattr(image_quality, "measures", measured)
    quality.main(["--reference"])
    quality.main(ARGUMENTS)

    reference = files.folder("results/quality", "reference")
    assert files.load_arrays(reference / "inception.safetensors")["w"].tolist() == [0, 1, 2]
    scores = files.load_json(files.folder("results/quality", f"{ARM}-seed{SEED}", 2) / "scores.json")
    assert scores.keys() == {"raw", "ema"} and scores["raw"].keys() == scores["ema"].keys() == set(PROTOCOLS)
    words = np.random.SeedSequence([23, SEED]).generate_state(2, np.uint32)
    for kind, images in SAMPLES.items():
        for protocol in PROTOCOLS:
            features, logits, train, (mean, cov), rng_seed = calls[scores[kind][protocol]["fid"] - 1]
            assert np.array_equal(features, features_of(images, protocol)), (kind, protocol)
            assert np.array_equal(logits, images[:, 0, :2, 0])
            assert np.array_equal(train, features_of(TRAIN, protocol))
            np.testing.assert_allclose(mean, train.astype(float).mean(axis=0))
            np.testing.assert_allclose(cov, np.cov(train.astype(float), rowvar=False), atol=1e-8)
            assert rng_seed == words[0]
            # Four held-out images, fewer than training images: all of them.
            of_heldout = features_of(HELDOUT, protocol).astype(float)
            moments = of_heldout.mean(axis=0), np.cov(of_heldout, rowvar=False)
            assert scores[kind][protocol]["fid_heldout"] == pytest.approx(image_quality.fid(features, moments))
    assert len(calls) == 4


def picture_features(images):
    """Two values of a picture and a constant: no two of the images are alike."""
    return unit(
        np.concatenate([images.reshape(len(images), -1)[:, :2] - 100.0, np.full((len(images), 1), 30.0)], axis=1)
    )


@pytest.mark.parametrize("asked", [True, False])
def test_similarity_finds_the_nearest_training_image_of_each_image(here, asked):
    section = {"weights": "sscd.pt", "preprocess": "sscd", "batch_size": 6, "show_images": 3}
    experiment = text_experiment() if asked else yaml.safe_load(TINY)
    write_experiment(experiment | {"similarity": section}, asked, moved=0)
    Path("sscd.pt").write_bytes(b"weights")

    def seen(network, images, preprocess, batch_size, progress):
        assert (network, preprocess, batch_size) == (NETWORK, "sscd", 6)
        return picture_features(images)

    def summed(values, prompts=None, interval=True, summary=sscd.summary):
        groups.append(None if prompts is None else prompts.tolist())
        return summary(values, prompts, interval)

    groups = []
    here.setattr(sscd, "summary", summed)
    here.setattr(sscd, "load", lambda path: NETWORK)
    here.setattr(sscd, "features", seen)
    similarity.main(["--reference"])
    similarity.main(ARGUMENTS)
    similarity.main(["--arm", ARM, "--seed", "3", "--round", "2"])

    # The interval of a run is over its prompts, where it has any: here each image has its own.
    assert groups == [None] + 4 * [list(range(7)) if asked else None]
    used = {"weights": "sscd.pt", "sha256": hashlib.sha256(b"weights").hexdigest(), "preprocess": "sscd"}
    train = picture_features(TRAIN).astype(float)
    reference = files.folder("results/similarity", "reference")
    assert (reference / "network.pt").read_bytes() == b"weights"
    among = train @ train.T - 3 * np.eye(5)
    table, scores = pd.read_parquet(reference / "nearest.parquet"), files.load_json(reference / "scores.json")
    assert table["index"].tolist() == list(range(5)) and table.key.tolist() == KEYS
    assert table.nearest_train.tolist() == among.argmax(axis=1).tolist()
    assert table.nearest_key.tolist() == [KEYS[i] for i in among.argmax(axis=1)]
    np.testing.assert_allclose(table.similarity, among.max(axis=1), atol=1e-6)
    assert {name: scores[name] for name in used} == used
    assert scores["train"]["percentile_95"] == pytest.approx(np.percentile(among.max(axis=1), 95), abs=1e-6)

    folder = files.folder("results/similarity", f"{ARM}-seed{SEED}", 2)
    table, scores = pd.read_parquet(folder / "nearest.parquet"), files.load_json(folder / "scores.json")
    pictures = files.load_arrays(folder / "pictures.safetensors")
    assert table.weights.tolist() == ["ema"] * 7 + ["raw"] * 7 and scores.keys() == {*used, "raw", "ema"}
    assert {name: scores[name] for name in used} == used
    for kind, images in SAMPLES.items():
        rows = table[table.weights == kind]
        matrix = picture_features(images).astype(float) @ train.T
        nearest, found = matrix.argmax(axis=1), matrix.max(axis=1)
        assert rows.image.tolist() == list(range(7)) and rows.nearest_train.tolist() == nearest.tolist()
        assert rows.nearest_key.tolist() == [KEYS[i] for i in nearest]
        np.testing.assert_allclose(rows.similarity, found, atol=1e-6)
        for name, value in (("percentile_95", np.percentile(found, 95)), ("percentile_75", np.percentile(found, 75)), ("mean", found.mean())):  # fmt: skip
            assert scores[kind][name] == pytest.approx(value, abs=1e-6)
        if asked:
            assert rows.own_train.tolist() == OWN and rows.prompt.tolist() == [f"asked {i}" for i in range(7)]
            np.testing.assert_allclose(rows.own_similarity, matrix[np.arange(7), OWN], atol=1e-6)
        else:
            assert "own_train" not in rows and "prompt" not in rows
        order = sorted(range(7), key=lambda image: -found[image])
        chosen = [image for i, image in enumerate(order) if nearest[image] not in nearest[order[:i]]][:3]
        first = [0, 1, 3] if asked else [0, 1, 2]  # one image a prompt
        shown = {name.removeprefix(f"{kind}."): array for name, array in pictures.items() if name.startswith(kind)}
        assert shown["copy_image"].tolist() == chosen and shown["copy_train"].tolist() == nearest[chosen].tolist()
        np.testing.assert_allclose(shown["copy_similarity"], found[chosen], atol=1e-6)
        assert np.array_equal(shown["copies"], images[chosen])
        assert np.array_equal(shown["originals"], TRAIN[nearest[chosen]])
        assert shown["first_image"].tolist() == first and np.array_equal(shown["first"], images[first])
        originals = np.array(OWN)[first] if asked else nearest[first]
        assert np.array_equal(shown["first_originals"], TRAIN[originals])
    other = files.load_json(files.folder("results/similarity", f"{ARM}-seed3", 2) / "scores.json")
    assert other == scores  # of the same images: nothing is drawn at random


def text_vector(text):
    return [len(text), int(text.split()[-1]) - 3.5, 5.0 if text.startswith("used") else -2.0]


def test_clip_compares_each_image_with_its_own_prompts(here):
    section = {"model": "my_clip", "preprocess": "dcr", "batch_size": 6}
    write_experiment(text_experiment(clip=section))
    Path("my_clip").mkdir()
    for name in ("model.safetensors", "second.safetensors"):
        Path("my_clip", name).write_bytes(name.encode())
    model = SimpleNamespace(model=NETWORK)

    def image_embeddings(found, images, preprocess, batch_size, progress):
        assert (found, preprocess, batch_size) == (model, "dcr", 6)
        return picture_features(images)

    here.setattr(clip_score, "load", lambda folder: model if folder == "my_clip" else None)
    here.setattr(clip_score, "text_embeddings", lambda found, texts, batch_size: unit([text_vector(t) for t in texts]))
    here.setattr(clip_score, "image_embeddings", image_embeddings)
    clip.main(ARGUMENTS)

    folder = files.folder("results/clip", f"{ARM}-seed{SEED}", 2)
    table, scores = pd.read_parquet(folder / "images.parquet"), files.load_json(folder / "scores.json")
    assert list(table.columns) == ["weights", "image", "original", "used"]
    assert table.weights.tolist() == ["ema"] * 7 + ["raw"] * 7
    for kind, images in SAMPLES.items():
        rows = table[table.weights == kind]
        assert rows.image.tolist() == list(range(7))
        for which, word in (("original", "asked"), ("used", "used")):
            texts = unit([text_vector(f"{word} {i}") for i in range(7)])
            expected = (picture_features(images) * texts).sum(axis=1)
            np.testing.assert_allclose(rows[which], expected, atol=1e-6)
            assert scores[kind][which] == pytest.approx(100 * expected.mean(), abs=1e-4)
    assert (scores["model"], scores["preprocess"]) == ("my_clip", "dcr")
    names = ("model.safetensors", "second.safetensors")
    assert scores["sha256"] == {name: hashlib.sha256(name.encode()).hexdigest() for name in names}


def magnitude(prompt, kind, number):
    """What the stand-in says of a prompt: trained ones, t0 to t4, mostly more."""
    base = int(prompt[1:]) * {"raw": 1.0, "ema": -1.0}[kind] + (2.5 if prompt[0] == "t" else 0)
    raw = {"mean": 3 * base + 1, "first_step": base**2, "per_step": [base, number]}
    return {"raw": raw, "rms": {"mean": base / 2, "first_step": -base, "per_step": [2 * base, number]}}


def test_detect_tells_captions_that_were_trained_on_from_others_with_each_kind_of_weights(here):
    section = {"num_prompts": 4, "images_per_prompt": 2, "num_steps": 3, "guidance": 3.0, "batch_size": 5}
    write_experiment(text_experiment(detect=section))
    captions = {"train": [[f"t{i}", "second"] for i in range(5)], "heldout": [["u0"], ["u1"], ["t1"], ["u2"]]}
    files.write_json(files.DATA / "captions.json", captions)
    source = SimpleNamespace()

    def made(job, arm, round_, settings, sampler):
        assert (job.arm, arm, round_, settings["weights"], settings["mitigation"]) == (
            ARM,
            ARM,
            2,
            ["ema", "raw"],
            None,
        )
        return source, []

    def loaded(job, arm, round_, kind, of):
        assert (arm, round_, of) == (ARM, 2, source)
        of.kind = kind

    def magnitudes(of, prompts, settings, progress):
        assert settings == section
        return [magnitude(prompt, of.kind, i) for i, prompt in enumerate(prompts)]

    here.setattr(models, "source", made)
    here.setattr(models, "load", loaded)
    here.setattr(detection, "magnitudes", magnitudes)
    detect.main(OF_RUN)

    folder = files.folder("results/detect", f"{ARM}-seed{SEED}")
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    words = np.random.SeedSequence([43, SEED]).generate_state(2, np.uint32)
    generator = np.random.default_rng(int(words[0]) | int(words[1]) << 32)
    prompts = [f"t{i}" for i in generator.permutation(5)[:4]] + [f"u{i}" for i in generator.permutation(3)]
    assert [line["prompt"] for line in lines] == 2 * prompts
    assert [line["weights"] for line in lines] == ["ema"] * 7 + ["raw"] * 7
    trained = [prompt[0] == "t" for prompt in prompts]
    assert [line["trained"] for line in lines] == 2 * trained
    scores = files.load_json(folder / "scores.json")
    assert (scores["num_trained"], scores["num_unseen"]) == (4, 3)
    for line, i in zip(lines, 2 * [*range(7)], strict=True):
        assert {name: line[name] for name in ("raw", "rms")} == magnitude(line["prompt"], line["weights"], i)
    for kind in ("raw", "ema"):
        assert scores[kind].keys() == {"raw_mean", "raw_first_step", "rms_mean", "rms_first_step"}
        for norm in ("raw", "rms"):
            for measure in ("mean", "first_step"):
                values = np.array([magnitude(prompt, kind, 0)[norm][measure] for prompt in prompts])
                of_trained, of_others = values[:4], values[4:]
                entry = scores[kind][f"{norm}_{measure}"]
                assert entry["trained"] == pytest.approx(of_trained.mean())
                assert entry["unseen"] == pytest.approx(of_others.mean())
                assert entry["auc"] == pytest.approx(metrics.roc_auc_score(trained, values))
                assert entry["found_at_1_percent"] == np.mean(of_trained > of_others.max())
