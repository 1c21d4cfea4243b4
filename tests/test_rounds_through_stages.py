"""Rounds of IET through the stages themselves, shard, train, aggregate and redistribute, and the files between them.

One shard in rounds is one long run, bit for bit; three unequal shards are what a loop written out below comes to.
"""

import copy

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, plant_images, write_params
from sklearn.datasets import load_digits

from stages import aggregate, redistribute, shard, train
from stages.diffusion import unet, weights
from stages.pixels import initial_weights
from stages.run import files

pytestmark = pytest.mark.usefixtures("one_thread")

SEED, BATCH, T, NUM_IMAGES = 3, 4, 6, 31  # few timesteps, so that the bank has seen each of them
TAA = {"R": 1.5, "A": 5.0, "magnitude": 10, "num_ops": 2, "max_level": 30}
AGC = {"name": "agc", "lambda": 0.95, "eta": 0.8}


def arm(method, rounds, epochs, num_shards=1, move=None):
    return {
        "rounds": rounds,
        "method": method,
        "shard": {"num_shards": num_shards},
        "train": {"epochs": epochs},
        "redistribute": move or {},
        "sample": {},
    }


ARMS = {
    "plain_long": arm({"name": "ddpm"}, 1, 6),
    "plain_rounds": arm({"name": "ddpm"}, 3, 2),
    "agc_long": arm(AGC | {"taa": TAA}, 1, 6),
    "agc_rounds": arm(AGC | {"taa": TAA}, 3, 2),
    "iet": arm(AGC, 3, 2, num_shards=3, move={"share": 0.25, "select": "memory"}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All arms, trained by their stages; the working folder is theirs."""
    experiment = yaml.safe_load(TINY) | {"arms": copy.deepcopy(ARMS), "seeds": [SEED]}
    experiment["diffusion"]["num_timesteps"], experiment["sample"]["num_steps"] = T, 3
    experiment["train"] |= {"batch_size": BATCH, "flip": True}
    digits = load_digits()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("rounds"))
        write_params(experiment)
        pixels = (digits.images[:NUM_IMAGES, :, :, None] * 255 / 16).astype(np.uint8)
        plant_images((pixels, digits.target[:NUM_IMAGES]), None)
        for name, recipe in ARMS.items():
            of_run = ["--arm", name, "--seed", str(SEED)]
            shard.main(of_run)
            for r in range(1, recipe["rounds"] + 1):
                of_round = [*of_run, "--round", str(r)]
                for k in reversed(range(recipe["shard"]["num_shards"])):  # shards do not depend on each other
                    train.main([*of_round, "--shard", str(k)])
                aggregate.main(of_round)
                if recipe["redistribute"] and r < recipe["rounds"]:
                    redistribute.main(of_round)
        yield experiment


def run_of(name):
    return f"{name}-seed{SEED}"


def state(name, r, k=0):
    return files.load_arrays(files.folder("train", run_of(name), r, k) / "state.safetensors")


def model(name, r, kind):
    return files.load_arrays(files.folder("model", run_of(name), r) / f"{kind}.safetensors")


def counts(name, r, k=0):
    return files.load_arrays(files.counts_file(run_of(name), r, k))


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@pytest.mark.parametrize("method", ["plain", "agc"])
def test_one_shard_in_rounds_is_one_long_run_bit_for_bit(trained, method):
    whole, parts = f"{method}_long", f"{method}_rounds"
    for kind in ("raw", "ema"):
        assert_same_bits(model(whole, 1, kind), model(parts, 3, kind))
        assert any((model(parts, 2, kind)[name] != value).any() for name, value in model(parts, 3, kind).items())
    assert any((value != model(whole, 1, "ema")[name]).any() for name, value in model(whole, 1, "raw").items())
    last = state(whole, 1)
    assert_same_bits(last, state(parts, 3))
    assert last["step"] == 6 * (NUM_IMAGES // BATCH)
    kinds = {name.partition(".")[0] for name in last}
    assert {"exp_avg", "exp_avg_sq", "step"} <= kinds
    if method == "agc":
        assert (last["carried.bank"] > 0).sum() > T / 2
    of_whole, of_parts = counts(whole, 1), [counts(parts, r) for r in (1, 2, 3)]
    for name in ("skips", "augmented", "visits", "t_skipped", "t_visited", "forward_images", "optimizer_steps"):
        assert np.array_equal(of_whole[name], sum(part[name] for part in of_parts)), name
    for name in ("epoch_loss", "epoch_skipped", "epoch_augmented", "epoch_visited"):
        assert np.array_equal(of_whole[name], np.concatenate([part[name] for part in of_parts])), name
    assert bool(of_whole["skips"].sum()) == bool(of_whole["augmented"].sum()) == (method == "agc")


# Three shards, written out.


def key_of(purpose, *key):
    """The project's seeds, written anew."""
    numbers = {"order": 4, "noise": 5, "flip": 6, "dropout": 7, "ties": 9}
    low, high = np.random.SeedSequence([numbers[purpose], SEED, *key]).generate_state(2, np.uint32)
    return int(low) + (int(high) << 32)


class Shard:
    """What one shard keeps from round to round."""

    def __init__(self, experiment):
        self.network = unet.build(experiment["model"] | {"dropout": experiment["train"]["dropout"]}, (1, 8, 8))
        weights.load(self.network, initial_weights.initial_weights(self.network, SEED), "the initialisation")
        self.ema = [p.detach().clone() for p in self.network.parameters()]
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=experiment["train"]["learning_rate"], foreach=False
        )
        self.bank, self.steps, self.skips = np.zeros(T, np.float32), 0, None

    def train(self, experiment, images, members, number):
        """One round on these training images."""
        settings = experiment["train"]
        self.network.train()
        self.skips = dict.fromkeys(members.tolist(), 0)
        alpha_bar = torch.cumprod(1 - torch.linspace(0.005, 0.4, T, dtype=torch.float64), 0).float()
        for _ in range(2 * (len(members) // BATCH)):
            epoch, batch = divmod(self.steps, len(members) // BATCH)
            order = np.random.default_rng(key_of("order", number, epoch)).permutation(len(members))
            chosen = members[order[batch * BATCH : (batch + 1) * BATCH]]
            x = torch.from_numpy(images[chosen, :, :, 0]).float()[:, None] / 127.5 - 1
            mirrored = (
                torch.rand(BATCH, generator=torch.Generator().manual_seed(key_of("flip", number, self.steps))) < 0.5
            )
            x[mirrored] = x[mirrored].flip(3)
            noise = torch.Generator().manual_seed(key_of("noise", number, self.steps))
            t = torch.randint(T, (BATCH,), generator=noise)
            eps = torch.randn(BATCH, 1, 8, 8, generator=noise)
            torch.manual_seed(key_of("dropout", number, self.steps))
            a = alpha_bar[t].view(-1, 1, 1, 1)
            loss = (self.network(a.sqrt() * x + (1 - a).sqrt() * eps, t).sample - eps).square().mean((1, 2, 3))
            before, kept = self.bank.copy(), []
            for i, (image, timestep, value) in enumerate(zip(chosen.tolist(), t.tolist(), loss.tolist())):
                if value < AGC["lambda"] * before[timestep]:
                    self.skips[image] += 1
                else:
                    kept.append(i)
                self.bank[timestep] = AGC["eta"] * self.bank[timestep] + (1 - AGC["eta"]) * value
            for group in self.optimiser.param_groups:
                group["lr"] = settings["learning_rate"] * min(1, (self.steps + 1) / settings["warmup_steps"])
            self.optimiser.zero_grad()
            (loss[kept].mean() if kept else 0 * loss.sum()).backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), settings["grad_clip_norm"])
            self.optimiser.step()
            for average, p in zip(self.ema, self.network.parameters()):
                average.mul_(settings["ema_decay"]).add_(p.detach(), alpha=1 - settings["ema_decay"])
            self.steps += 1


def take_the_mean(shards):
    """Eq. 9, for the weights and for their moving averages, each for itself."""
    with torch.no_grad():
        for tensors in (*zip(*(list(s.network.parameters()) for s in shards)), *zip(*(s.ema for s in shards))):
            mean = torch.stack([tensor.detach().double() for tensor in tensors]).mean(0).float()
            for tensor in tensors:
                tensor.copy_(mean)


def move_on(shards, members, share, r):
    """Eq. 10 and 11: the most skipped of each shard go to the next one."""
    number = int(share * min(map(len, members)))
    leaving = []
    for k, of_shard in enumerate(members):
        order = np.random.default_rng(key_of("ties", k, r)).permutation(len(of_shard))
        ranked = sorted(order, key=lambda place: -shards[k].skips[of_shard[place]])
        leaving.append({int(of_shard[place]) for place in ranked[:number]})
    return [
        np.array(sorted((set(of_shard.tolist()) - leaving[k]) | leaving[k - 1])) for k, of_shard in enumerate(members)
    ]


def test_three_unequal_shards_are_a_loop_written_out(trained):
    images = files.load_array(files.DATA / "train.npy")
    members = [files.load_array(files.folder("shards", run_of("iet"), 1) / f"shard{k}.npy") for k in range(3)]
    assert sorted(np.concatenate(members).tolist()) == list(range(NUM_IMAGES))
    assert sorted(map(len, members)) == [10, 10, 11]
    shards, moved = [Shard(trained) for _ in range(3)], 0
    for r in (1, 2, 3):
        for k, of_shard in enumerate(members):
            shards[k].train(trained, images, of_shard, k)
            found = counts("iet", r, k)
            assert found["index"].tolist() == of_shard.tolist()
            assert dict(zip(found["index"].tolist(), found["skips"].tolist())) == shards[k].skips
            kept = state("iet", r, k)
            assert kept["step"] == shards[k].steps
            np.testing.assert_allclose(kept["carried.bank"], shards[k].bank, rtol=1e-4)
        take_the_mean(shards)
        for kind, values in (("raw", shards[0].network.parameters()), ("ema", shards[0].ema)):
            found = model("iet", r, kind)
            for (name, _), value in zip(shards[0].network.named_parameters(), values):
                if not name.endswith("to_k.bias"):  # its gradient is rounding noise, which Adam makes large
                    np.testing.assert_allclose(found[name], value.detach().numpy(), rtol=0, atol=3e-5, err_msg=name)
        if r < 3:
            before, members = members, move_on(shards, members, 0.25, r)
            moved += sum(len(set(a.tolist()) - set(b.tolist())) for a, b in zip(members, before))
            folder = files.folder("shards", run_of("iet"), r + 1)
            stored = [files.load_array(folder / f"shard{k}.npy").tolist() for k in range(3)]
            assert stored == [of_shard.tolist() for of_shard in members]
    assert moved == 2 * 3 * 2
    assert sum(sum(s.skips.values()) for s in shards) > 5  # something was skipped in the last round too
