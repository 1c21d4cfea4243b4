"""Methods that know images by their place in the training set, or draw for a shard, in three shards of 11, 10 and 10 images between which
images move: through the stages themselves, against a loop written out.

A place in the shard is no place in the training set, and after a move it is that of another image.
"""

import copy

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, plant_images, write_params
from sklearn.datasets import load_digits
from test_rounds_through_stages import arm, take_the_mean

from stages import aggregate, redistribute, shard, train
from stages.diffusion import unet, weights
from stages.methods import told_augmentation
from stages.pixels import initial_weights
from stages.run import files

pytestmark = pytest.mark.usefixtures("one_thread")

SEED, BATCH, T, K = 3, 4, 20, 3
ALPHA_BAR = torch.cumprod(1 - torch.linspace(0.005, 0.4, T, dtype=torch.float64), 0).float()
IMAGES, LABELS = load_digits().images[:31], load_digits().target[:31]
IMAGES = (IMAGES * 255 / 16).astype(np.uint8)
SIGMA_N = 0.7
TOLD = {"p": 0.5, "kinds": ["x_flip", "rotation", "shift"]}  # A = 5
MOVE = {"share": 0.3, "select": "random"}
ARMS = {
    "ambient_high": arm({"name": "ambient_high", "sigma_n": SIGMA_N}, 2, 1, num_shards=K, move=MOVE),
    "told": arm({"name": "ddpm"}, 2, 1, num_shards=K, move=MOVE),
}
ARMS["told"]["train"]["told_augmentation"] = TOLD


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both arms, trained by their stages; the working folder is theirs. Classes are told: they are looked up for each image as well."""
    experiment = yaml.safe_load(TINY) | {"arms": copy.deepcopy(ARMS), "seeds": [SEED]}
    experiment["model"]["class_conditional"] = True
    experiment["train"] |= {"batch_size": BATCH, "flip": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("unequal"))
        write_params(experiment)
        plant_images((IMAGES[:, :, :, None], LABELS), None)
        files.write_json(files.DATA / "classes.json", list(map(str, range(10))))
        for name in ARMS:
            of_run = ["--arm", name, "--seed", str(SEED)]
            shard.main(of_run)
            for r in ("1", "2"):
                for k in (2, 0, 1):
                    train.main([*of_run, "--round", r, "--shard", str(k)])
                aggregate.main([*of_run, "--round", r])
                if r == "1":
                    redistribute.main([*of_run, "--round", r])
        yield experiment


def lists(name, round_):
    folder = files.folder("shards", f"{name}-seed{SEED}", round_)
    return [files.load_array(folder / f"shard{k}.npy") for k in range(K)]


def key_of(purpose, *key):
    """The project's seeds, written anew."""
    numbers = {"order": 4, "noise": 5, "flip": 6, "dropout": 7, "told": 56, "fixed_noise": 57}
    low, high = np.random.SeedSequence([numbers[purpose], SEED, *key]).generate_state(2, np.uint32)
    return int(low) + (int(high) << 32)


def mirrored(x, which):
    return torch.where(which.view(-1, 1, 1, 1), x.flip(-1), x)


def loss_of_ambient_high(network, ids, x, flipped, t, eps, number, k):
    sigma = ((1 - ALPHA_BAR[t]) / ALPHA_BAR[t]).sqrt().view(-1, 1, 1, 1)
    copies = [np.random.default_rng(key_of("fixed_noise", i)).standard_normal((1, 8, 8), np.float32) for i in ids]
    x = x.float() / 127.5 - 1
    y = x + SIGMA_N * mirrored(torch.from_numpy(np.stack(copies)), flipped)
    rest = (sigma**2 - SIGMA_N**2).clamp(min=0).sqrt()
    shown = torch.where(sigma > SIGMA_N, y + rest * eps, x + sigma * eps)
    r = torch.where(sigma > SIGMA_N, rest / sigma, 1.0)
    shown = shown * ALPHA_BAR[t].sqrt().view(-1, 1, 1, 1)
    return (eps - r * network(shown, t, class_labels=torch.from_numpy(LABELS[ids])).sample).square().mean()


def loss_of_told(network, ids, x, flipped, t, eps, number, k):
    changes = told_augmentation.drawn(BATCH, TOLD, np.random.default_rng(key_of("told", k, number)))
    x = told_augmentation.changed(x, changes).float() / 127.5 - 1
    signal = ALPHA_BAR[t].view(-1, 1, 1, 1)
    labels = (torch.from_numpy(LABELS[ids]), told_augmentation.told_of(changes))
    return (network(signal.sqrt() * x + (1 - signal).sqrt() * eps, t, class_labels=labels).sample - eps).square().mean()


class Shard:
    """What one shard keeps from round to round."""

    def __init__(self, experiment, loss_of, num_told):
        model = experiment["model"] | {"dropout": experiment["train"]["dropout"]}
        self.settings, self.loss_of = experiment["train"], loss_of
        self.network = unet.build(model, (1, 8, 8), num_classes=10, num_told=num_told).train()
        weights.load(self.network, initial_weights.initial_weights(self.network, SEED), "the initialisation")
        self.ema = [p.detach().clone() for p in self.network.parameters()]
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=self.settings["learning_rate"], foreach=False)
        self.steps = 0

    def train(self, members, k):
        """A round of one epoch on these training images."""
        for _ in range(len(members) // BATCH):
            epoch, batch = divmod(self.steps, len(members) // BATCH)
            order = np.random.default_rng(key_of("order", k, epoch)).permutation(len(members))
            ids = members[order[batch * BATCH : (batch + 1) * BATCH]]
            flip = torch.Generator().manual_seed(key_of("flip", k, self.steps))
            noise = torch.Generator().manual_seed(key_of("noise", k, self.steps))
            flipped = torch.rand(BATCH, generator=flip) < 0.5
            t = torch.randint(T, (BATCH,), generator=noise)
            eps = torch.randn(BATCH, 1, 8, 8, generator=noise)
            torch.manual_seed(key_of("dropout", k, self.steps))
            x = mirrored(torch.from_numpy(IMAGES[ids])[:, None], flipped)
            loss = self.loss_of(self.network, ids, x, flipped, t, eps, self.steps, k)
            rate = self.settings["learning_rate"] * min(1, (self.steps + 1) / self.settings["warmup_steps"])
            self.optimiser.param_groups[0]["lr"] = rate
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings["grad_clip_norm"])
            self.optimiser.step()
            for average, p in zip(self.ema, self.network.parameters(), strict=True):
                average.mul_(self.settings["ema_decay"]).add_(p.detach(), alpha=1 - self.settings["ema_decay"])
            self.steps += 1


@pytest.mark.parametrize(
    ("name", "loss_of", "num_told"), [("ambient_high", loss_of_ambient_high, 0), ("told", loss_of_told, 5)]
)
def test_two_rounds_in_unequal_shards_are_a_loop_written_out(trained, name, loss_of, num_told):
    before, after = lists(name, 1), lists(name, 2)
    for members in (before, after):
        assert [len(of_shard) for of_shard in members] == [11, 10, 10]
        assert sorted(np.concatenate(members).tolist()) == list(range(31))
        assert all((of_shard != np.arange(len(of_shard))).sum() > 8 for of_shard in members)
    assert all(len(set(one.tolist()) - set(other.tolist())) == 3 for one, other in zip(before, after, strict=True))
    shards = [Shard(trained, loss_of, num_told) for _ in range(K)]
    for r, members in ((1, before), (2, after)):
        for k, of_shard in enumerate(members):
            shards[k].train(of_shard, k)
        take_the_mean(shards)
        for kind, values in (("raw", shards[0].network.parameters()), ("ema", shards[0].ema)):
            found = files.load_arrays(files.folder("model", f"{name}-seed{SEED}", r) / f"{kind}.safetensors")
            assert len(found) == len(shards[0].ema)
            for (parameter, _), value in zip(shards[0].network.named_parameters(), values, strict=True):
                if not parameter.endswith("to_k.bias"):  # its gradient is rounding noise, which Adam makes large
                    np.testing.assert_allclose(
                        found[parameter], value.detach().numpy(), rtol=0, atol=3e-5, err_msg=parameter
                    )
