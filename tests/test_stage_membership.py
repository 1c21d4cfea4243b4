"""The phase membership on planted weights and images: which images, weights, round and classes it looks at, and what it writes of them.

The attacks themselves are held to numbers by hand in test_membership.
"""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import TINY, plant_images, text_experiment, tiny_with, write_params
from sklearn import metrics
from test_elsewhere import save_pipeline

from stages import membership, plan, rules
from stages.diffusion import saved_pipeline, unet
from stages.pixels import initial_weights
from stages.run import files

pytestmark = pytest.mark.usefixtures("one_thread")

ARM, SEED, RUN = "iet", 5, "iet-seed5"
SHAPE, T = (4, 6, 1), 20
MODEL = {"block_channels": [4, 8], "attention_levels": [], "layers_per_block": 1, "norm_groups": 4, "class_conditional": True}  # fmt: skip
RANDOM = np.random.default_rng(3)
TRAIN, HELDOUT = (RANDOM.integers(0, 256, (n, *SHAPE), dtype=np.uint8) for n in (24, 17))
LABELS, HELDOUT_LABELS = RANDOM.integers(0, 3, 24), RANDOM.integers(0, 3, 17)
NUM, DRAWS, AT = 11, 2, [1, 2, 4]
SECTION = {"num_images": NUM, "noise_draws": DRAWS, "batch_size": 5, "timesteps": [0.05, 0.1, 0.2]}
SIGNAL = [math.prod(1 - (0.005 + 0.395 * s / 19) for s in range(t + 1)) for t in range(T)]


def draws(purpose, *key):
    words = np.random.SeedSequence([purpose, *key]).generate_state(2, np.uint32)
    return np.random.default_rng(int(words[0]) | int(words[1]) << 32)


def network(arrays):
    net = unet.build(MODEL | {"dropout": 0.5}, (SHAPE[2], *SHAPE[:2]), num_classes=3).eval()
    net.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return net


def planted(number):
    random = np.random.default_rng(number)
    net = unet.build(MODEL | {"dropout": 0.5}, (SHAPE[2], *SHAPE[:2]), num_classes=3)
    return {n: (0.3 * random.standard_normal(p.shape)).astype(np.float32) for n, p in net.named_parameters()}


def write_all(**changes):
    experiment = yaml.safe_load(TINY) | {"seeds": [3, SEED], "model": MODEL, "membership": SECTION} | changes
    experiment["train"]["dropout"] = 0.5
    experiment["score"]["headline"]["weights"] = "ema"
    arm = experiment["arms"]["iet_agc_plus"] | {"sample_rounds": [1, 2]}
    experiment["arms"] = {"ddpm": experiment["arms"]["ddpm"], ARM: arm} | experiment.pop("more", {})
    write_params(experiment)
    plant_images((TRAIN, LABELS), (HELDOUT, HELDOUT_LABELS))
    files.write_json(files.DATA / "classes.json", ["a", "b", "c"])
    for round_ in (1, 2):
        for kind in ("raw", "ema"):
            path = files.folder("model", RUN, round_) / f"{kind}.safetensors"
            files.save_arrays(path, planted(10 * round_ + (kind == "ema")))
    return experiment


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@torch.no_grad()
def by_hand(net, pixels, label, seed):
    """sima and loss of one image, at each timestep: dict name -> number."""
    x_0 = torch.from_numpy(pixels.transpose(2, 0, 1)[None] / 127.5 - 1).float()

    def said(x, t):
        return net(x, torch.tensor([t]), class_labels=torch.tensor([label])).sample

    found = {}
    for t in AT:
        found[f"sima_{t}"] = (said(x_0, t).double() ** 4).sum().item() ** 0.25
        losses = []
        for draw in range(DRAWS):
            eps = torch.from_numpy(draws(19, seed, t, draw).standard_normal(x_0.shape[1:], np.float32))[None]
            x_t = math.sqrt(SIGNAL[t]) * x_0 + math.sqrt(1 - SIGNAL[t]) * eps
            losses.append(((said(x_t, t) - eps) ** 2).mean().item())
        found[f"loss_{t}"] = np.mean(losses)
    return found


def check(folder, weights, net, seed):
    """That a folder holds what the network says of the images, and the areas of its best attacks."""
    scores, table = files.load_json(folder / "scores.json"), pd.read_parquet(folder / "images.parquet")
    assert scores.keys() == {weights} and (table.weights == weights).all()
    members, others = table[table.member], table[~table.member]
    assert len(members) == len(others) == NUM == scores[weights]["num_images"]
    assert members["index"].is_unique and others["index"].is_unique
    assert (LABELS[members["index"]] == HELDOUT_LABELS[others["index"]]).all()
    assert members.half.tolist() == others.half.tolist() == [0] * 5 + [1] * 6
    for of_kind, images, labels in ((members, TRAIN, LABELS), (others, HELDOUT, HELDOUT_LABELS)):
        for _, row in of_kind.iterrows():
            for name, value in by_hand(net, images[row["index"]], labels[row["index"]], seed).items():
                assert row[name] == pytest.approx(value, rel=1e-4), name
    for attack, told in [("", scores[weights]), *scores[weights]["attacks"].items()]:
        names = [f"{a}_{t}" for a in ("loss", "pia", "secmi", "sima") for t in AT if a == attack or not attack]

        def area(name, half):
            rows = table[table.half == half]
            return metrics.roc_auc_score(rows.member, -rows[name])

        best = told["chosen"]  # of equal areas any
        for which, other in zip(best, (1, 0), strict=True):
            assert which in names and area(which, other) == pytest.approx(max(area(name, other) for name in names))
        assert told["auc"] == pytest.approx((5 * area(best[0], 0) + 6 * area(best[1], 1)) / 11)
        assert told["found_at_1_percent"] is None
        if attack:
            assert scores[weights][f"auc_{attack}"] == told["auc"]
        else:
            assert table.contribution.mean() == pytest.approx(told["auc"])
            chosen = [-row[best[row.half]] for _, row in table.iterrows()]
            assert table.score.tolist() == chosen
    return table


def test_a_round_is_attacked_with_the_headlines_weights_of_that_round(here):
    write_all()
    membership.main(["--arm", ARM, "--seed", str(SEED), "--round", "1"])
    folder = files.folder("results/membership", RUN, 1)
    table = check(folder, "ema", network(planted(11)), SEED)
    # The same images for all arms, seeds and rounds.
    rng, pairs = draws(30, 0), []
    for label in range(3):
        both = [rng.permutation(np.flatnonzero(labels == label)) for labels in (LABELS, HELDOUT_LABELS)]
        pairs += zip(*both, strict=False)
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:NUM]]
    assert table["index"].tolist() == [m for m, _ in chosen] + [h for _, h in chosen]


def test_the_untrained_network_is_that_of_the_first_arm_and_seed(here):
    write_all()
    membership.main(["--reference"])
    first = initial_weights.initial_weights(network(planted(0)), 3)
    check(files.folder("results/membership", "reference"), "untrained", network(first), 3)


def test_the_untrained_network_is_that_of_an_arm_that_predicts_the_noise_and_one_where_shards_are_trained_apart(here):
    """Ambient Diffusion first, then an arm of three models: all of its shards start from the same weights, so it is one network."""
    experiment = write_all()
    apart = experiment["arms"].pop(ARM) | {"method": {"name": "ddpm"}, "redistribute": {}}
    apart["shard"] = {"num_shards": 3, "combine": "predictions"}
    experiment["arms"]["ddpm"]["method"] = {"name": "ambient", "p": 0.2, "delta": 0.1}
    experiment["arms"][ARM] = apart
    write_params(experiment)
    membership.main(["--reference"])
    first = initial_weights.initial_weights(network(planted(0)), 3)
    check(files.folder("results/membership", "reference"), "untrained", network(first), 3)


def test_a_network_that_does_not_predict_the_noise_and_too_few_images_are_left_out_with_a_line(here, capsys):
    experiment = write_all()
    experiment["arms"][ARM]["method"] = {"name": "ambient", "p": 0.2, "delta": 0.1}
    write_params(experiment)
    folder = files.folder("results/membership", RUN, 2)
    membership.main(["--arm", ARM, "--seed", str(SEED), "--round", "2"])
    told = "the network of iet does not predict the noise"
    assert files.load_json(folder / "scores.json") == {"absent": told} and not (folder / "images.parquet").exists()
    assert f"membership inference of iet is left out, as {told}" in capsys.readouterr().err
    write_all()
    files.save_array(files.DATA / "heldout.npy", HELDOUT[:3])
    files.save_array(files.DATA / "heldout_labels.npy", np.array([0, 1, 2]))
    membership.main(["--arm", ARM, "--seed", str(SEED), "--round", "2"])
    assert files.load_json(folder / "scores.json")["absent"].startswith("3 training images have a held-out image")


def test_a_saved_pipeline_is_attacked_with_its_own_weights_and_noise_schedule(here, monkeypatch):
    generator = save_pipeline(Path("pipe"))
    sample = {"num_images": 4, "batch_size": 4, "num_steps": 5}
    write_all(more={"theirs": {"generator": generator, "sample": sample}})
    train, heldout = (RANDOM.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8) for n in (24, 17))
    files.save_array(files.DATA / "train.npy", train)
    files.save_array(files.DATA / "heldout.npy", heldout)
    membership.main(["--arm", "theirs", "--seed", "3"])
    folder = files.folder("results/membership", "theirs-seed3")
    scores, table = files.load_json(folder / "scores.json"), pd.read_parquet(folder / "images.parquet")
    assert scores.keys() == {"raw"} and 0 <= scores["raw"]["auc"] <= 1
    source = saved_pipeline.Source(Path("pipe"), (8, 8, 1), 3, 5, "cpu")
    row = table.iloc[NUM + 2]  # a held-out image; the pipeline has 1,000 timesteps, of which 5 % are 50
    x_0 = torch.from_numpy(heldout[row["index"]].transpose(2, 0, 1)[None] / 127.5 - 1).float()
    with torch.no_grad():
        said = source.network(x_0, torch.tensor([50])).sample
    assert row.sima_50 == pytest.approx((said.double() ** 4).sum().item() ** 0.25, rel=1e-5)
    assert "pia_200" in table and "pia_10" not in table


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
def test_the_noise_follows_from_whatever_a_pipeline_predicts(tmp_path, kind):
    generator = save_pipeline(tmp_path / "pipe")
    source = saved_pipeline.Source(Path(generator["pipeline"]), (8, 8, 1), 0, 5, "cpu")
    source.pipeline.scheduler.register_to_config(prediction_type=kind)
    images = RANDOM.integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    if kind == "flow":
        with pytest.raises(ValueError, match="predicts flow, expected one of epsilon, v_prediction, sample"):
            source.profiled(images)
        return
    shown, x_0, alpha_bars = source.profiled(images)
    np.testing.assert_allclose(x_0[:, 0].numpy(), images[..., 0] / 127.5 - 1, atol=1e-6)
    a, eps = alpha_bars[300].float(), torch.randn(2, 1, 8, 8)
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    right = {"epsilon": eps, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x_0, "sample": x_0}[kind]

    class Knowing(torch.nn.Module):
        config = source.network.config

        def forward(self, x, t):
            return type("Output", (), {"sample": torch.cat([right, torch.full_like(x, 9.0)], dim=1)})

    source.network = Knowing()  # with a variance beside the prediction
    shown, _, _ = source.profiled(images)
    torch.testing.assert_close(shown(x_t, torch.tensor([300, 300])).sample, eps, atol=1e-4, rtol=1e-4)


def test_the_models_at_hand_are_attacked_each_round_and_no_other(here):
    experiment = write_all(
        more={
            "again": {"generator": {"arm": "ddpm"}, "sample": {}},
            "folder": {"generator": {"folder": "images"}, "sample": {}},
            "pipe": {"generator": {"pipeline": "pipe"}, "sample": {"num_images": 4, "batch_size": 4, "num_steps": 5}},
        }
    )
    experiment["score"]["headline"]["weights"] = "raw"  # of generators from elsewhere there are no others
    rules.check(experiment)
    names = [name for name in plan.expand(experiment) if name.startswith("membership")]
    assert names == [
        "membership_reference@reference",
        *(f"membership@ddpm-seed{seed}-round1" for seed in (3, 5)),
        *(f"membership@iet-seed{seed}-round{r}" for seed in (3, 5) for r in (1, 2)),
        *(f"membership_elsewhere@pipe-seed{seed}" for seed in (3, 5)),
    ]
    with pytest.raises(ValueError, match="the model of again is not at hand"):
        membership.main(["--arm", "again", "--seed", "3", "--round", "1"])


def test_the_section_is_left_out_with_a_line_and_bad_settings_are_refused():
    told = "membership inference is left out: add a section membership with num_images: 1000"
    for left_out in (tiny_with(), tiny_with(membership={})):
        assert not membership.wanted(left_out) and told in plan.left_out(left_out)
    assert told not in plan.left_out(tiny_with(membership=SECTION))
    few = tiny_with(membership=SECTION)
    few["diffusion"]["num_timesteps"] = 3
    with pytest.raises(ValueError, match="num_timesteps is 3, expected at least 4 for membership inference"):
        membership.check(few)
    with pytest.raises(ValueError, match="num_images"):
        rules.check(tiny_with(membership=SECTION | {"num_images": 3}))
    assert text_experiment()["membership"]["num_images"] == 16
