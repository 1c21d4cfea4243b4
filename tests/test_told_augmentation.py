"""Augmentation that the network is told of: what happens to an image, what is told, and that sampling is told nothing."""

import copy
import math

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, write_params
from test_methods import pictures, step_of

from stages import methods, randomness, rules
from stages.diffusion import ddpm, unet, weights
from stages.methods import base, dp_sgd, loop, told_augmentation
from stages.pixels import initial_weights

KINDS = list(told_augmentation.NUM_TOLD)
MODEL = {"block_channels": [8, 8], "attention_levels": [], "layers_per_block": 1, "dropout": 0.0, "norm_groups": 4}
SMOOTH = torch.nn.functional.interpolate(
    torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(2)), size=(21, 33), mode="bicubic"
)
SMOOTH = (200 * SMOOTH.clamp(0, 1) + 20).round().to(torch.uint8)  # H 21, W 33


def one(**changes):
    return {kind: np.array([value], dtype=float) for kind, value in changes.items()}


def change(**changes):
    return told_augmentation.changed(SMOOTH, one(**changes))[0]


# What is drawn.


EDM = {"x_flip": 0.5, "y_flip": 0.06, "scaling": 0.12, "rotation": 0.12, "anisotropy": 0.12, "translation": 0.12}


def test_images_change_as_often_as_in_the_training_of_the_authors():
    """NVlabs/edm, train.py --augment=0.12: a flip is a fair coin, kept with probability min(1e8 x 0.12, 1) for x and 0.12 for y."""
    n = 100_000
    found = told_augmentation.drawn(n, {"p": 0.12, "kinds": list(EDM)}, np.random.default_rng(7))
    told, column = told_augmentation.told_of(found), 0
    for kind, probability in EDM.items():
        numbers = told[:, column : column + told_augmentation.NUM_TOLD[kind]]
        column += told_augmentation.NUM_TOLD[kind]
        share = (numbers != 0).any(dim=1).double().mean().item()
        assert share == pytest.approx(probability, abs=4 * math.sqrt(probability * (1 - probability) / n)), kind
    assert (told == 0).all(dim=1).double().mean().item() == pytest.approx(0.5 * 0.94 * 0.88**4, abs=0.006)


def test_each_kind_is_drawn_with_its_distribution_and_by_itself():
    n, shares = 40_000, dict.fromkeys(KINDS, 0.3) | {"x_flip": 0.5, "y_flip": 0.15}
    found = told_augmentation.drawn(n, {"p": 0.3, "kinds": KINDS}, np.random.default_rng(1))
    chosen = {kind: values.any(axis=1) for kind, values in found.items()}
    for kind, mask in chosen.items():
        assert mask.mean() == pytest.approx(shares[kind], abs=0.01), kind
        for other in KINDS[: KINDS.index(kind)]:
            assert (mask & chosen[other]).mean() == pytest.approx(shares[kind] * shares[other], abs=0.01)
    values = {kind: found[kind][chosen[kind]] for kind in KINDS}
    assert (values["x_flip"] == 1).all() and (values["y_flip"] == 1).all()
    for normal in (values["scaling"], values["anisotropy"][:, 0], values["translation"]):
        assert normal.std() == pytest.approx(1, abs=0.02) and abs(normal.mean()) < 0.03
    direction = values["anisotropy"][:, 1]
    along_x = direction == 0
    assert along_x.mean() == pytest.approx(0.5, abs=0.02)  # aniso_rotate_prob of the authors
    assert values["anisotropy"][along_x, 0].std() == pytest.approx(1, abs=0.03)
    for angle in (values["rotation"], direction[~along_x]):
        assert -math.pi <= angle.min() < -3.1 < 3.1 < angle.max() < math.pi and abs(angle.mean()) < 0.07
        assert angle.std() == pytest.approx(math.pi / math.sqrt(3), abs=0.04)
    assert abs(np.corrcoef(values["translation"].T)[0, 1]) < 0.03
    directions, counts = np.unique(values["shift"], axis=0, return_counts=True)
    assert len(directions) == 8 and not (directions == 0).all(axis=1).any()
    assert counts / counts.sum() == pytest.approx(1 / 8, abs=0.015)


def test_shifts_are_drawn_as_they_always_were():
    """Trained models are told of them: other draws from the same seed would make other models."""
    found = told_augmentation.drawn(12, {"p": 0.5, "kinds": ["shift"]}, np.random.default_rng(11))["shift"]
    assert found.tolist() == [[0, 0], [0, 0], [0, 0], [0, 1], [0, 0], [-1, 1], [1, 1], [1, -1], [-1, 1], [-1, 1], [0, 0], [0, 0]]  # fmt: skip


def test_a_kind_is_drawn_alike_whatever_others_there_are():
    both, alone = (
        told_augmentation.drawn(50, {"p": 0.5, "kinds": kinds}, np.random.default_rng(3))
        for kinds in (["x_flip", "shift"], ["shift"])
    )
    assert np.array_equal(both["shift"], alone["shift"]) and list(alone) == ["shift"] and list(both) == ["x_flip", "shift"]  # fmt: skip


def test_what_is_told_by_hand():
    changes = one(x_flip=[1], y_flip=[0], scaling=[-1.5], rotation=[0.3], anisotropy=[2.0, 1.1], translation=[0.4, -0.7], shift=[1, -1])  # fmt: skip
    told = told_augmentation.told_of(changes)
    assert told.dtype == torch.float32
    assert told[0].tolist() == pytest.approx(
        [1, 0, -1.5, math.cos(0.3) - 1, math.sin(0.3), 2 * math.cos(1.1), 2 * math.sin(1.1), 0.4, -0.7, 1, -1]
    )
    settings = {"p": 0.5, "kinds": KINDS}
    assert told_augmentation.num_told(settings) == told.shape[1] == 11
    assert told_augmentation.num_told({"kinds": ["shift", "x_flip"]}) == 3


# What happens to an image.


def test_an_image_without_a_change_stays_as_it_is_beside_others_that_change():
    x = pictures(40, channels=3, side=7)
    changes = told_augmentation.drawn(40, {"p": 0.12, "kinds": KINDS}, np.random.default_rng(0))
    found = told_augmentation.changed(x, changes)
    unchanged = (told_augmentation.told_of(changes) == 0).all(dim=1)
    assert found.dtype == torch.uint8 and 10 < int(unchanged.sum()) < 30
    assert torch.equal(found[unchanged], x[unchanged])
    assert all((found[i] != x[i]).any() for i in (~unchanged).nonzero().flatten())


def test_flips_and_shifts_by_hand():
    assert torch.equal(change(x_flip=[1]), SMOOTH[0].flip(-1)) and torch.equal(change(y_flip=[1]), SMOOTH[0].flip(-2))
    found = change(shift=[1, -1])  # right and up; the border is repeated
    for row in range(21):
        for column in range(33):
            assert torch.equal(found[:, row, column], SMOOTH[0, :, min(row + 1, 20), max(column - 1, 0)])


def test_the_border_is_mirrored_about_its_outermost_pixels():
    """Three pixels to the right and two down: what comes in from beyond the border is on its other side, and no pixel comes twice in a row."""
    found = change(translation=[3 / (0.125 * 33), 2 / (0.125 * 21)])
    for row in range(21):
        for column in range(33):
            assert torch.equal(found[:, row, column], SMOOTH[0, :, abs(row - 2), abs(column - 3)]), (row, column)


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid")  # torch's, of sides of one pixel
def test_an_image_of_one_pixel_a_side_stays_what_it_is():
    x = torch.full((1, 1, 1, 4), 9, dtype=torch.uint8)
    assert torch.equal(told_augmentation.changed(x, one(translation=[0.4, 0.6], scaling=[1.0])), x)


def bilinear(image, row, column):
    """Value of [C,H,W] between pixels, inside the image."""
    r, c = math.floor(row), math.floor(column)
    a, b = row - r, column - c
    value = image.double()
    return (1 - a) * ((1 - b) * value[:, r, c] + b * value[:, r, c + 1]) + a * (
        (1 - b) * value[:, r + 1, c] + b * value[:, r + 1, c + 1]
    )


@pytest.mark.parametrize(
    ("changes", "position"),
    [
        ({"scaling": [1.5]}, lambda x, y: (x * 2**0.3, y * 2**0.3)),
        ({"rotation": [0.4]}, lambda x, y: (x * math.cos(0.4) - y * math.sin(0.4), x * math.sin(0.4) + y * math.cos(0.4))),
        ({"anisotropy": [1.2, 0.0]}, lambda x, y: (x * 2**0.24, y * 2**-0.24)),
        ({"anisotropy": [1.2, math.pi / 2]}, lambda x, y: (x * 2**-0.24, y * 2**0.24)),
        ({"anisotropy": [-1.0, math.pi / 4]}, lambda x, y: ((x + y) / 2 * 2**-0.2 + (x - y) / 2 * 2**0.2, (x + y) / 2 * 2**-0.2 - (x - y) / 2 * 2**0.2)),
        ({"translation": [0.7, -1.1]}, lambda x, y: (x + 0.7 * 0.125 * 33, y - 1.1 * 0.125 * 21)),
        ({"scaling": [1.0], "rotation": [math.pi / 2], "translation": [0.5, 0.2]}, lambda x, y: (-y * 2**0.2 + 0.5 * 0.125 * 33, x * 2**0.2 + 0.2 * 0.125 * 21)),
        ({"rotation": [math.pi / 2], "anisotropy": [1.0, 0.0]}, lambda x, y: (-y * 2**0.2, x * 2**-0.2)),
    ],
)  # fmt: skip
def test_where_pixels_go(changes, position):
    """A pixel at (x, y) from the centre lies at `position` afterwards, of the width 33 and the height 21."""
    found, compared = change(**changes), 0
    for row in range(21):
        for column in range(33):
            x, y = position(column - 16, row - 10)
            if abs(x) < 15 and abs(y) < 9 and abs(column - 16) < 14 and abs(row - 10) < 8:
                value = bilinear(found, y + 10, x + 16)
                assert torch.allclose(value, SMOOTH[0, :, row, column].double(), atol=6), (row, column)
                compared += 1
    assert compared > 60


# What the network is told.


def network(num_told=2, num_classes=None):
    net = unet.build(MODEL, (1, 8, 8), num_classes=num_classes, num_told=num_told)
    weights.load(net, initial_weights.initial_weights(net, 0), "the initialisation")
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=random))
    return net.eval()


@pytest.mark.parametrize("num_classes", [None, 3])
def test_a_network_that_is_told_nothing_is_the_one_of_diffusers(num_classes):
    net = network(num_classes=num_classes)
    x, t = torch.randn(4, 1, 8, 8), torch.tensor([0, 5, 9, 19])
    labels = None if num_classes is None else torch.tensor([0, 1, 2, 0])
    with torch.no_grad():
        plain = ddpm.predicted(net, x, t, labels=labels)
        told = ddpm.predicted(net, x, t, labels=(labels, torch.tensor([[0.0, 0], [1, 0], [0, -1], [0, 0]])))
        assert (plain == told).all(dim=(1, 2, 3)).tolist() == [True, False, False, True]
        exported = unet.untold(copy.deepcopy(net))
        assert torch.equal(ddpm.predicted(exported, x, t, labels=labels), plain)
    own = unet.build(MODEL, (1, 8, 8), num_classes=num_classes)
    assert [n for n, _ in own.named_parameters()] == [n for n, _ in exported.named_parameters()]
    own.load_state_dict(exported.state_dict())


@pytest.mark.parametrize("num_classes", [None, 3])
def test_an_arm_that_is_told_starts_from_the_weights_of_the_others(num_classes):
    plain = initial_weights.initial_weights(unet.build(MODEL, (1, 8, 8), num_classes=num_classes), 7)
    told = initial_weights.initial_weights(unet.build(MODEL, (1, 8, 8), num_classes=num_classes, num_told=2), 7)
    assert not told.pop("class_embedding.told.weight").any()
    renamed = {name.replace("class_embedding.weight", "class_embedding.classes.weight"): value for name, value in plain.items()}  # fmt: skip
    assert renamed.keys() == told.keys() and all(np.array_equal(renamed[name], told[name]) for name in told)


def training(method, told, num_classes=None, **own):
    settings = {"batch_size": 5, "learning_rate": 1e-3, "warmup_steps": 0, "grad_clip_norm": 1.0, "ema_decay": 0.0, "flip": True, "precision": "fp32", "told_augmentation": told} | own  # fmt: skip
    method = methods.method(method)
    net = network(told_augmentation.num_told(told) if told else 0, num_classes)
    images = base.Images(
        pictures(11), torch.arange(11), None if num_classes is None else torch.arange(11) % num_classes
    )
    state = loop.shard_state.fresh_state(list(net.parameters()), method.initial_state(20, torch.device("cpu")), False)
    alpha_bar = ddpm.alpha_bars(20, 0.005, 0.3).float()
    record = loop.Record.empty(11, 3, "cpu")
    return loop.Training(net, state, record, images, method, settings, alpha_bar, 5, 3)


TOLD = {"p": 0.6, "kinds": ["shift", "x_flip"]}


def test_a_step_shows_the_changed_images_and_tells_what_was_done_to_them():
    """The same images, timesteps and noise as without; the draws are those of seed, shard and step."""
    plain = training({"name": "ddpm"}, TOLD, told_augmentation=None)
    whole = training({"name": "ddpm"}, TOLD)
    plain.state.step = whole.state.step = 3
    (_, before), (_, step) = loop._drawn(plain), loop._drawn(whole)
    assert before.told is None and torch.equal(before.t, step.t) and torch.equal(before.eps, step.eps)
    changes = told_augmentation.drawn(5, TOLD, randomness.numpy_generator("told_augmentation", 5, 3, 3))
    assert torch.equal(step.told, told_augmentation.told_of(changes)) and step.told.abs().sum() > 0
    assert torch.equal(step.x, told_augmentation.changed(before.x, changes)) and not torch.equal(step.x, before.x)


@pytest.mark.parametrize("num_classes", [None, 3])
def test_losses_of_some_rows_are_told_of_those_rows(num_classes):
    _, step = loop._drawn(training({"name": "ddpm"}, TOLD, num_classes))
    rows = torch.tensor([3, 1, 1])
    every = step.sample_losses()
    assert torch.allclose(step.sample_losses(rows=rows), every[rows], rtol=1e-4)
    by_hand = ddpm.sample_losses(step.network, ddpm.normalise(step.x), step.t, step.eps, step.alpha_bar, labels=(step.labels, step.told))  # fmt: skip
    assert torch.equal(every, by_hand)
    step.told = step.told.roll(1, 0)
    assert not torch.allclose(step.sample_losses(), every, rtol=1e-4)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "agc", "lambda": 0.9, "eta": 0.8, "taa": {"R": 3.0, "A": 1.0, "magnitude": 9, "num_ops": 2, "max_level": 30}},
        {"name": "added_noise", "variance": 0.1},
    ],
    ids=["agc_taa", "added_noise"],
)  # fmt: skip
def test_other_methods_train_what_they_are_told_by(method):
    """The map of what is told moves away from where it was, and a round of them ends."""
    whole = training(method, TOLD, num_classes=3)
    before = whole.network.class_embedding.told.weight.detach().clone()
    loop.train_round(whole, lambda *_: None)
    assert not torch.equal(whole.network.class_embedding.told.weight, before)


def test_gradients_of_each_sample_with_what_it_is_told():
    step = step_of(network().train(), pictures(4))  # opacus looks at networks in training only
    step.told = torch.tensor([[0.0, 0], [1, 0], [0, -1], [1, 1]])
    found, _ = dp_sgd.per_sample_gradients(step.network, step.sample_losses)
    names = [name for name, _ in step.network.named_parameters()]
    of_told = found[names.index("class_embedding.told.weight")]
    for j in range(4):
        alone = torch.autograd.grad(step.sample_losses(rows=slice(j, j + 1))[0], step.network.class_embedding.told.weight)[0]  # fmt: skip
        assert torch.allclose(of_told[j], alone, rtol=1e-3, atol=1e-6)
    assert not of_told[0].any() and of_told[1].any()


AUTHORS = {"name": "agc", "lambda": 0.9, "taa": {"R": math.inf, "A": 1.0, "magnitude": 9, "authors": True}}


@pytest.mark.parametrize(
    ("method", "told", "sentence"),
    [
        (AUTHORS, TOLD, "train.told_augmentation of a does not go with taa.authors, which trains on images that it reads again: remove one of them"),
        ({"name": "ambient", "p": 0.2, "delta": 0.1}, TOLD, "train.told_augmentation of a does not go with the method ambient"),
        ({"name": "ddpm"}, {"p": 0.1, "kinds": []}, "arms.a.train.told_augmentation.kinds is empty"),
        ({"name": "ddpm"}, {"p": 0.1, "kinds": ["flip"]}, "arms.a.train.told_augmentation.kinds.0 is 'flip', expected one of x_flip"),
        ({"name": "ddpm"}, {"p": 0, "kinds": ["shift"]}, "arms.a.train.told_augmentation.p is 0, expected more than 0"),
        ({"name": "ddpm"}, {"kinds": ["shift"]}, "the key arms.a.train.told_augmentation.p is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_refused_before_anything_runs(tmp_path, monkeypatch, method, told, sentence):
    monkeypatch.chdir(tmp_path)
    experiment = yaml.safe_load(TINY)
    recipe = experiment["arms"]["ddpm"]
    experiment["arms"] = {"a": recipe | {"method": method, "train": recipe["train"] | {"told_augmentation": told}}}
    write_params(experiment)
    with pytest.raises(ValueError) as refused:
        rules.load()
    assert sentence in str(refused.value)
