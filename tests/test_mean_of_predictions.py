"""Models that are trained apart and whose predictions are averaged: shard.combine: predictions, through the stages that know of it."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import release
import retention
import torch
import yaml
from conftest import TINY, plant_images, write_params
from sklearn.datasets import load_digits

from stages import aggregate, experiments, models, plan, rules, sample, shard, train
from stages.diffusion import sampling, unet, weights
from stages.iet import averaging, mean_of_predictions
from stages.run import files

pytestmark = pytest.mark.usefixtures("one_thread")

SEED, NUM_IMAGES, K = 3, 31, 3  # shards of 11, 10 and 10 images
ARM = {
    "rounds": 2,
    "method": {"name": "ddpm"},
    "shard": {"num_shards": K, "combine": "predictions"},
    "train": {"epochs": 2},
    "redistribute": {},
    "sample": {},
}
RUN = f"apart-seed{SEED}"


def experiment_of(**arms):
    experiment = yaml.safe_load(TINY) | {"arms": copy.deepcopy(arms), "seeds": [SEED]}
    experiment["train"] |= {"batch_size": 4, "flip": True}
    experiment["sample"] |= {"num_images": 6, "parts": 1, "batch_size": 6}
    return experiment


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An arm of three models, both rounds of it; the working folder is its own."""
    experiment = experiment_of(apart=ARM)
    digits = load_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("apart"))
        write_params(experiment)
        pixels = (digits.images[:NUM_IMAGES, :, :, None] * 255 / 16).astype(np.uint8)
        plant_images((pixels, digits.target[:NUM_IMAGES]), None)
        of_run = ["--arm", "apart", "--seed", str(SEED)]
        shard.main(of_run)
        for r in ("1", "2"):
            for k in (2, 0, 1):
                train.main([*of_run, "--round", r, "--shard", str(k)])
            aggregate.main([*of_run, "--round", r])
        sample.main([*of_run, "--round", "2", "--part", "0"])
        yield experiment


def proxy(round_, k, kind):
    return files.load_arrays(files.folder("train", RUN, round_, k) / f"{kind}.safetensors")


def job_of(experiment, phase="sample"):
    return SimpleNamespace(phase=phase, params=experiment, arm="apart", seed=SEED, device=torch.device("cpu"))


def test_shards_are_unequal(trained):
    assert [len(s) for s in experiments.load_shards(trained["arms"]["apart"], RUN, 2)] == [11, 10, 10]


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_the_model_of_a_round_holds_the_weights_of_its_shards_side_by_side(trained, kind):
    for r in (1, 2):
        found = files.load_arrays(files.folder("model", RUN, r) / f"{kind}.safetensors")
        proxies = [proxy(r, k, kind) for k in range(K)]
        assert len(found) == sum(map(len, proxies))
        for k, state in enumerate(proxies):
            assert all(np.array_equal(found[f"members.{k}.{name}"], value) for name, value in state.items())


def test_a_shard_goes_on_from_its_own_weights(trained, tmp_path, monkeypatch):
    """Its two rounds of two epochs are one of four, bit for bit: nothing of another shard reaches it."""
    whole = experiment_of(apart=ARM | {"rounds": 1, "train": {"epochs": 4}})
    data = {name: files.load_array(files.DATA / f"{name}.npy") for name in ("train", "train_labels")}
    parts = {k: (proxy(2, k, "raw"), proxy(2, k, "ema")) for k in range(K)}
    monkeypatch.chdir(tmp_path)
    write_params(whole)
    for name, array in data.items():
        files.save_array(files.DATA / f"{name}.npy", array)
    shard.main(["--arm", "apart", "--seed", str(SEED)])
    for k in range(K):
        train.main(["--arm", "apart", "--seed", str(SEED), "--round", "1", "--shard", str(k)])
        for kind, state in zip(("raw", "ema"), parts[k], strict=True):
            assert all(np.array_equal(state[name], value) for name, value in proxy(1, k, kind).items()), (k, kind)


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_images_are_made_by_the_mean_of_three_predictions(trained, kind):
    """DDIM written out with three networks; one of them alone, or the mean of their weights, makes other images."""
    model = trained["model"] | {"dropout": 0.0}
    networks = []
    for k in range(K):
        networks.append(unet.build(model, (1, 8, 8)).eval())
        weights.load(networks[-1], proxy(2, k, kind), "the test")

    def mean(x, t):
        return SimpleNamespace(sample=sum(network(x, t).sample for network in networks) / K)

    averaged = unet.build(model, (1, 8, 8)).eval()
    weights.load(averaged, averaging.average(proxy(2, k, kind) for k in range(K)), "the test")
    made = files.load_array(files.folder("samples", RUN, 2, part=0) / f"{kind}.npy")
    alpha_bars = models.build(job_of(trained), "apart").alpha_bars
    found = {}
    for name, network in {"mean": mean, "one": networks[1], "averaged": averaged}.items():
        x = sampling.starting_noise(0, 6, (1, 8, 8), SEED)
        found[name] = sampling.stored(sampling.ddim(network, x, alpha_bars, 5, "paper")).astype(int)
    assert np.abs(found["mean"] - made).max() <= 1
    assert np.abs(found["one"] - made).max() > 3 and np.abs(found["averaged"] - made).max() > 3


def test_the_loss_of_an_analysis_is_that_of_the_mean(trained):
    """What analyse and membership look at: the network as models.profiled hands it out."""
    trained = copy.deepcopy(trained)
    trained["score"]["headline"]["weights"] = "ema"
    job = job_of(trained, "analyse")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    model = models.build(job, "apart")
    models.load_network(job, "apart", 2, "ema", model)
    network, x_0, _ = models.profiled(job, "apart", model, {"train": pictures}, [("train", [0, 2])])
    members = []
    for k in range(K):
        one = unet.build(trained["model"], (1, 8, 8)).eval()
        weights.load(one, proxy(2, k, "ema"), "the test")
        members.append(one(x_0, torch.tensor([3, 9])).sample)
    assert torch.allclose(network(x_0, torch.tensor([3, 9])).sample, torch.stack(members).mean(0), atol=1e-5)
    assert not network.training


def test_classes_and_other_arguments_reach_every_member():
    class Telling(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x, t, class_labels=None):
            return SimpleNamespace(sample=self.scale * x + t + 10 * class_labels)

    network = mean_of_predictions.MeanOfPredictions(Telling(), 3)
    states = [{"scale": np.array(value, np.float32)} for value in (1, 2, 6)]
    weights.load(network, averaging.side_by_side(states), "the test")
    assert network(torch.tensor([2.0]), torch.tensor([5]), class_labels=torch.tensor([4])).sample.tolist() == [3 * 2 + 5 + 40]  # fmt: skip


def test_the_plan_has_a_block_of_its_own_and_rounds_that_follow_the_shard():
    experiment = experiment_of(apart=ARM, iet=ARM | {"shard": {"num_shards": K}})
    found = plan.expand(experiment)
    assert {
        f"aggregate_apart@{RUN}-round{r}" for r in (1, 2)
    } <= found.keys() and f"aggregate@{RUN}-round1" not in found
    assert f"aggregate@iet-seed{SEED}-round1" in found
    later = found[f"train_next@{RUN}-round2-shard1"]
    assert later.state == f"artifacts/train/{RUN}/round1/shard1" and later.model == f"{later.state}/raw.safetensors"
    scale = plan.scale(experiment)
    sizes = {arm: found[f"{block}@{arm}-seed{SEED}-round2"].size(scale) for arm, block in (("apart", "aggregate_apart"), ("iet", "aggregate"))}  # fmt: skip
    assert sizes["apart"] == K * sizes["iet"]
    works = {arm: found[f"sample@{arm}-seed{SEED}-round2-part0"].work(scale) for arm in ("apart", "iet")}
    passes = 6 * 5 * 2 / 3
    assert works["apart"] - works["iet"] == (K - 1) * passes


def test_a_round_stays_until_each_shard_has_gone_on_from_it():
    found = plan.expand(experiment_of(apart=ARM))
    for pending, gone in (
        ({f"train_next@{RUN}-round2-shard1"}, set()),
        ({f"aggregate_apart@{RUN}-round1"}, set()),
        ({f"aggregate_apart@{RUN}-round2"}, {(RUN, 1)}),
    ):
        assert retention.rounds_no_longer_needed(found, pending) == gone


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"shard": {"num_shards": 1, "combine": "predictions"}}, "arms.apart.shard.combine is predictions, which takes a mean over the models of shards, but num_shards is 1: use at least 2"),
        ({"redistribute": {"share": 0.2, "select": "random"}}, "arms.apart.redistribute moves images between shards whose models are trained apart"),
        ({"shard": {"num_shards": 2, "combine": "prediction"}}, "arms.apart.shard.combine is 'prediction', expected one of weights, predictions"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(tmp_path, monkeypatch, changes, sentence):
    monkeypatch.chdir(tmp_path)
    write_params(experiment_of(apart=ARM | changes))
    with pytest.raises(ValueError) as refused:
        rules.load()
    assert sentence in str(refused.value)


def test_it_cannot_be_exported_as_one_pipeline(trained):
    asked = SimpleNamespace(arm="apart", seed=None, weights=None, round=None)
    with pytest.raises(
        ValueError, match="apart is the mean of the predictions of 3 models .* holds one: release an arm"
    ):
        release._check(trained, asked)
