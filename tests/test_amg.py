"""AMG: the ratio that it looks at, when it moves an image and how far, and what the sample phase makes of it."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, random_images, write_params
from safetensors.numpy import save_file

from stages import rules, sample
from stages.diffusion import amg, ddpm, sampling, unet
from stages.pixels import initial_weights
from stages.run import files, params

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {"name": "amg", "start": 1.5, "level": 1.95, "strength": 1.0, "neighbours": 5}
SHAPE = (3, 6, 9)
TRAIN = 64 + random_images(3, 12, side=6, channels=3, brightest=128)  # none is at the ends, where moving stops
CPU = torch.device("cpu")


def normalised(images):
    return ddpm.normalise(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())


def brute_force(image, neighbours):
    """nL2 of one image [C,H,W] by its definition, in double precision, the number of its nearest training image, and its distances."""
    distances = [math.sqrt(sum((image.double().flatten() - t.double().flatten()) ** 2)) for t in normalised(TRAIN)]
    nearest = sorted(distances)[:neighbours]
    return nearest[0] / (0.5 * sum(nearest) / neighbours), int(np.argmin(distances)), nearest


def between(share, first=2, second=7):
    """Images that lie between two training images: share 0 is the first of them."""
    images = normalised(TRAIN)
    return torch.lerp(images[first : first + 1], images[second : second + 1], share)


def guidance(train=TRAIN, **settings):
    return amg.Guidance(SETTINGS | settings, train, CPU)


def test_the_ratio_is_that_of_the_paper_and_the_nearest_image_is_found():
    images = torch.cat([between(0.1), between(0.4), between(0.8, 9, 1)])
    nearest, first, others = guidance().nearest(images.flatten(1))
    ratio = 10 * first / (first + others)
    for i, image in enumerate(images):
        expected, number, _ = brute_force(image, 5)
        assert ratio[i].item() == pytest.approx(expected, rel=1e-4)
        assert torch.equal(nearest[i].view(SHAPE), normalised(TRAIN)[number])
        assert first[i].item() == pytest.approx((image - normalised(TRAIN)[number]).norm().item(), rel=1e-5)
    assert len(ratio.unique()) == 3


def test_images_that_are_equal_count_once():
    twins = np.concatenate([TRAIN, TRAIN[[2]].repeat(7, axis=0)])
    image = between(0.2).flatten(1)
    assert torch.equal(guidance(twins).nearest(image)[2], guidance().nearest(image)[2])
    with pytest.raises(
        ValueError, match="neighbours is 13, but of the 19 training images 12 are no near-copies of others: use at most"
    ):
        guidance(twins, neighbours=13)


def without_near_copies(images, neighbours):
    """The published rule by loops, in double precision: goes through the images, and takes each out whose nL2 to the rest is below 1."""
    left, i = list(range(len(images))), 0
    while i < len(left):
        distances = sorted(
            math.sqrt(((images[left[i]].astype(float) - images[j].astype(float)) ** 2).sum())
            for j in left
            if j != left[i]
        )
        nearest = distances[:neighbours]
        if nearest[0] == 0 or nearest[0] / (0.5 * sum(nearest) / len(nearest)) < 1:
            del left[i]
        else:
            i += 1
    return left


@pytest.mark.parametrize("at_once", [2**26, 100])
def test_near_copies_among_the_training_images_do_not_count(monkeypatch, at_once):
    """Three chains of images that grow away from one: which of a chain stay depends on which are left, and equal images are among them."""
    monkeypatch.setattr(amg, "AT_ONCE", at_once)
    random, images = np.random.default_rng(5), list(TRAIN)
    for number in (0, 5, 9):
        for far in (0, 1, 3, 6, 12, 25, 30, 40):
            images.append(np.clip(TRAIN[number] + far * random.standard_normal(TRAIN[number].shape), 0, 255))
    images = np.stack(images).round().astype(np.uint8)[random.permutation(len(images))]
    expected = without_near_copies(images, 5)
    assert len(TRAIN) <= len(expected) < len(images) - 6
    flat = normalised(images).flatten(1)
    assert amg.not_near_copies(flat, 5).nonzero().flatten().tolist() == expected
    assert torch.equal(guidance(images).train, flat[expected])


def test_of_two_near_copies_the_later_one_counts():
    near = TRAIN.copy()[[0]]
    near[0, :2] += 3
    assert amg.not_near_copies(normalised(np.concatenate([TRAIN, near])).flatten(1), 5).tolist() == [False] + [True] * 12  # fmt: skip
    assert amg.not_near_copies(normalised(TRAIN[:1]).flatten(1), 5).tolist() == [True]


@pytest.mark.parametrize(
    ("share", "level"), [(0, 1.5), (0.04, 1.95 - 0.45 * math.exp(-0.25)), (1, 1.95 - 0.45 * math.exp(-6.25))]
)
def test_the_level_goes_down_to_start_as_the_published_schedule_does(share, level):
    assert amg.level_at(SETTINGS, share) == pytest.approx(level)


@pytest.mark.parametrize("strength", [1.0, 0.25])
def test_an_image_that_is_too_near_is_moved_straight_away_as_far_as_asked_for(strength):
    image, guided, share = between(0.05), torch.zeros(1, dtype=torch.bool), 0.5
    before, number, distances = brute_force(image[0], 5)
    moved = guidance(strength=strength).moved(image, guided, share)
    nearest = normalised(TRAIN)[number]
    # Straight away: one factor for all values, but for those that were clamped or are those of the training image.
    factors = ((moved[0] - nearest) / (image[0] - nearest))[(moved[0].abs() < 1) & (image[0] != nearest)]
    assert factors.std() < 1e-3 and len(factors) > 20
    reached = before + strength * (amg.level_at(SETTINGS, share) - before)
    if strength == 1:  # there the ratio would be the level's, did the other distances stay
        first = factors.mean().item() * distances[0]
        assert first / (0.5 * (first + sum(distances[1:])) / 5) == pytest.approx(reached, rel=1e-3)
    else:
        whole = guidance().moved(image, guided, share)
        assert factors.mean().item() - 1 == pytest.approx(
            0.25
            * (
                ((whole[0] - nearest) / (image[0] - nearest))[(whole[0].abs() < 1) & (image[0] != nearest)]
                .mean()
                .item()
                - 1
            ),
            rel=1e-3,
        )
    assert moved.abs().max() <= 1 and guided.all()


def test_an_image_is_guided_from_the_step_on_in_which_it_came_near():
    far = 0.25 * between(0.0, 9) + 0.75 * normalised(TRAIN).mean(dim=0)
    near = between(0.1)
    ratio = brute_force(far[0], 5)[0]
    assert 1.5 < ratio < amg.level_at(SETTINGS, 0.8) and brute_force(near[0], 5)[0] < 1.5
    guided = torch.zeros(2, dtype=torch.bool)
    both = torch.cat([far, near])
    moved = guidance().moved(both, guided, 0.8)
    assert guided.tolist() == [False, True] and torch.equal(moved[0], both[0]) and not torch.equal(moved[1], both[1])
    guided = torch.tensor([True, False])
    moved = guidance().moved(both, guided, 0.8)
    assert guided.all() and not torch.equal(moved[0], both[0])
    at_the_end = guidance().moved(both, torch.tensor([True, False]), 0.0)
    assert torch.equal(at_the_end[0], both[0])  # the level is 1.5 there


def test_a_training_image_itself_has_no_way_away_from_it():
    image = between(0.0)
    assert torch.equal(guidance().moved(image, torch.zeros(1, dtype=torch.bool), 0.5), image)


def copycat(number, alpha_bars):
    """A network that always sees the same training image, with a little noise, in what it is shown."""
    image = normalised(TRAIN)[number] + 0.05 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))

    def network(x, t):
        signal = float(alpha_bars[int(t[0])])
        return SimpleNamespace(sample=(x - signal**0.5 * image) / (1 - signal) ** 0.5)

    return network


def test_a_model_that_gives_out_one_training_image_no_longer_does_so_and_others_stay():
    alpha_bars = ddpm.alpha_bars(100, 1e-4, 0.1)
    noise = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    network = copycat(4, alpha_bars)
    plain = sampling.ddim(network, noise, alpha_bars, 10, "clean")
    assert brute_force(plain[0], 5)[0] < 0.5
    found = sampling.ddim(guidance().over(network, alpha_bars), noise, alpha_bars, 10, "clean")
    assert all(brute_force(image, 5)[0] > 1.2 for image in found)  # 1.5, did the other distances stay
    # What never comes near is made as without guidance, to the bit.
    unseen = 64 + random_images(8, 12, side=6, channels=3, brightest=128)
    same = sampling.ddim(guidance(unseen, start=0.3).over(network, alpha_bars), noise, alpha_bars, 10, "clean")
    assert torch.equal(same, plain)


def test_noise_and_moved_image_belong_together():
    """What DDIM takes for the image that is predicted is the moved one, and what it takes for noise leads from there to x_t."""
    alpha_bars, t = ddpm.alpha_bars(100, 1e-4, 0.1), torch.tensor([40])
    signal = float(alpha_bars[40])
    x = signal**0.5 * between(0.1) + (1 - signal) ** 0.5 * torch.randn(
        1, *SHAPE, generator=torch.Generator().manual_seed(4)
    )
    network = copycat(4, alpha_bars)
    eps = network(x, t).sample
    plain = ((x - (1 - signal) ** 0.5 * eps) / signal**0.5).clamp(-1, 1)
    moved = guidance().moved(plain, torch.zeros(1, dtype=torch.bool), 0.4)
    found = guidance().over(network, alpha_bars)(x, t).sample
    assert (moved - plain).abs().max() > 0.1
    torch.testing.assert_close((x - (1 - signal) ** 0.5 * found) / signal**0.5, moved, rtol=1e-4, atol=1e-4)


def planted(weights):
    experiment = yaml.safe_load(TINY)
    experiment["sample"] |= {"num_images": 6, "batch_size": 4, "parts": 1, "weights": ["raw"]}
    experiment["arms"]["guided"] = {
        "generator": {"arm": "ddpm"},
        "sample": {"mitigation": SETTINGS | {"start": 1.99, "level": 2.0}},
    }
    write_params(experiment)
    files.save_array(files.DATA / "train.npy", random_images(5, 20, side=8)[:, :, :8])
    folder = files.folder("model", "ddpm-seed3", 1)
    folder.mkdir(parents=True)
    save_file(weights, folder / "raw.safetensors")
    return experiment


def test_the_sample_phase_guides_the_arm_that_asks_for_it_away_from_all_training_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = unet.build(yaml.safe_load(TINY)["model"] | {"dropout": 0.0}, (1, 8, 8))
    experiment = planted(initial_weights.initial_weights(network, 2))
    for arm in ("ddpm", "guided"):
        sample.main(["--arm", arm, "--seed", "3", "--round", "1", "--part", "0"])
    plain, found = (
        np.load(files.folder("samples", f"{arm}-seed3", 1, part=0) / "raw.npy") for arm in ("ddpm", "guided")
    )
    assert found.shape == plain.shape == (6, 8, 8, 1) and not np.array_equal(plain, found)
    # By the parts that the stage is made of, with the images that it should have read.
    weights = initial_weights.initial_weights(network, 2)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    train = np.load(files.DATA / "train.npy")
    settings = experiment["arms"]["guided"]["sample"]["mitigation"]
    expected = []
    for first, last in ((0, 4), (4, 6)):
        noise = sampling.starting_noise(first, last, (1, 8, 8), 3)
        alpha_bars = ddpm.alpha_bars(**experiment["diffusion"])
        over = amg.Guidance(settings, train, CPU).over(network.eval(), alpha_bars)
        expected.append(sampling.stored(sampling.ddim(over, noise, alpha_bars, 5, "paper")))
    assert np.array_equal(found, np.concatenate(expected))


def test_near_copies_are_looked_for_once_for_all_stages(tmp_path, monkeypatch):
    """A second run reads what the first one found."""
    monkeypatch.chdir(tmp_path)
    network = unet.build(yaml.safe_load(TINY)["model"] | {"dropout": 0.0}, (1, 8, 8))
    planted(initial_weights.initial_weights(network, 2))
    words = ["--arm", "guided", "--seed", "3", "--round", "1", "--part", "0"]
    sample.main(words)
    folder = files.folder("samples", "guided-seed3", 1, part=0)
    before = np.load(folder / "raw.npy")
    shutil.rmtree(folder)
    monkeypatch.setattr(amg, "not_near_copies", lambda *_: pytest.fail("looked for again"))
    sample.main(words)
    assert np.array_equal(before, np.load(folder / "raw.npy"))


def asking(arm="ddpm", text=False, **settings):
    experiment = params.filled(yaml.safe_load(TINY))
    experiment["arms"][arm]["sample"] = {"mitigation": SETTINGS | settings}
    return experiment


def told(experiment, check=rules.check):
    with pytest.raises(ValueError) as raised:
        check(experiment)
    return str(raised.value).removeprefix("params.yaml: ")


def test_what_does_not_go_together_is_refused_before_anything_runs():
    rules.check(asking())
    assert (
        told(asking(start=1.96))
        == "sample.mitigation of ddpm is amg, with start 1.96 and level 1.95, expected start <= level"
    )
    experiment = asking()
    experiment["arms"]["ddpm"]["method"] = {"name": "ambient", "p": 0.2, "delta": 0.1}
    assert (
        told(experiment)
        == "sample.mitigation of ddpm is amg, which does not go with arms.ddpm.method.name ambient: remove it"
    )
    experiment = asking()
    experiment["arms"]["ddpm"]["sample"] = {"mitigation": {"name": "rt", "num_words": 4}}
    assert (
        told(experiment)
        == "sample.mitigation of ddpm is rt, which does not go with a model without captions: use amg, or remove it"
    )
    few = asking(neighbours=61)
    assert told(few, lambda e: sample.check_sizes(e, 60)) == (
        "sample.mitigation.neighbours of ddpm is 61, but there are 60 training images: use at most that number"
    )
    sample.check_sizes(asking(neighbours=60), 60)
