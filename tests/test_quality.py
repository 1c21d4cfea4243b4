"""The quality phase: an Inception of random weights, measures against brute force and scipy, the phase on and left out."""

import hashlib
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import report_tree
import scipy.linalg
import torch
import torchvision
import yaml
from conftest import (
    TINY,
    check_missing_file,
    check_turned_off_and_on,
    item_of_round,
    random_images,
    seen_by_dvc,
    small_project,
    tiny_with,
    with_six_images,
    write_params,
    write_samples,
)
from torch_fidelity import feature_extractor_inceptionv3, metric_fid
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from stages import plan, quality, report, rules
from stages.measures import frechet, inception
from stages.measures import image_quality as method
from stages.run import files

pytestmark = pytest.mark.usefixtures("one_thread")
PROTOCOLS = ["torch_fidelity", "pytorch_fid"]


def random_network(num_classes=1008, seed=0):
    """torchvision's Inception has the weights of torch-fidelity's by the same names. He's start keeps the images apart."""
    network = torchvision.models.inception_v3(
        weights=None, num_classes=num_classes, aux_logits=False, init_weights=False
    )
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.1, 0.1, generator=generator)
    return network


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.save(random_network().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights_file):
    experiment = {"quality": {"weights": str(weights_file)}}
    return inception.build(quality.load_weights(experiment), weights_file)


def vectors(seed, num, shift=0.0, scale=1.0, size=6):
    """Features with more images than values, so that covariances have full rank."""
    root = np.random.default_rng(99).normal(size=(size, size))
    return (shift + scale * np.random.default_rng(seed).normal(size=(num, size)) @ root).astype(np.float32)


# The network.


def test_torch_fidelity_protocol_is_what_torch_fidelity_computes(network, weights_file):
    theirs = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights_file)
    )
    colour = random_images(0, 3, channels=3)
    features, logits = inception.features(network, colour, "torch_fidelity", batch_size=3)
    expected = theirs(torch.from_numpy(colour).permute(0, 3, 1, 2))
    assert np.array_equal(features, expected[0].numpy()) and np.array_equal(logits, expected[1].numpy())
    assert features.shape == (3, 2048) and logits.shape == (3, 1008) and features.dtype == np.float32


def test_the_layers_one_by_one_are_the_forward_pass(network):
    """pytorch_fid goes around torch-fidelity's forward method for the sake of the resize: nothing else may differ."""
    batch = torch.from_numpy(random_images(1, 2, channels=3)).permute(0, 3, 1, 2)
    resized = interpolate_bilinear_2d_like_tensorflow1x(batch.float(), size=(299, 299), align_corners=False)
    one_by_one, whole = inception._layers(network, (resized - 128) / 128), network(batch)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(one_by_one, whole))


def half_pixel_bilinear(image, side):
    """align_corners=False in plain numpy: pixel i of the result looks at (i + 1/2) H / side - 1/2, clamped at the edges."""

    def weights(old):
        at = np.clip((np.arange(side) + 0.5) * old / side - 0.5, 0, None)
        low = np.minimum(np.floor(at).astype(int), old - 1)
        matrix = np.zeros((side, old))
        matrix[np.arange(side), low] += 1 - (at - low)
        matrix[np.arange(side), np.minimum(low + 1, old - 1)] += at - low
        return matrix

    return np.einsum("yh,hwc,xw->cyx", weights(image.shape[0]), image.astype(float), weights(image.shape[1]))


def check_input(make_input):
    colour = random_images(2, 1, side=5, channels=3)
    found = make_input(torch.from_numpy(colour).permute(0, 3, 1, 2))[0].numpy()
    np.testing.assert_allclose(found, half_pixel_bilinear(colour[0], 299) / 127.5 - 1, atol=1e-5)


def test_pytorch_fid_input_by_its_formula():
    check_input(inception.pytorch_fid_input)


def pillow_weights(old, new, kernel, support):
    """Pillow's resize along one axis: [new, old] weights of a kernel, stretched where it shrinks, renormalised at the edges."""
    scale = max(old / new, 1)
    centres = (np.arange(new) + 0.5) * old / new
    weights = kernel((np.arange(old) + 0.5 - centres[:, None]) / scale)
    weights[np.abs(np.arange(old) + 0.5 - centres[:, None]) / scale >= support] = 0
    return weights / weights.sum(axis=1, keepdims=True)


def cubic(x):
    """Keys' kernel with a = -1/2."""
    x = np.abs(x)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def triangle(x):
    return np.maximum(1 - np.abs(x), 0)


@pytest.mark.parametrize("side", [5, 320])  # enlarged and shrunk; as wide as it is high plus 3
def test_clean_input_by_its_formula(side):
    colour = random_images(2, 2, side=side, channels=3)
    found = inception.clean_input(torch.from_numpy(colour).permute(0, 3, 1, 2)).numpy()
    for picture, image in zip(found, colour, strict=True):
        weights = [pillow_weights(old, 299, cubic, 2) for old in image.shape[:2]]
        expected = np.einsum("yh,hwc,xw->cyx", weights[0], image.astype(float), weights[1], optimize=True)
        np.testing.assert_allclose(picture, (expected.clip(0, 255) - 128) / 128, atol=1e-4)
        not_filtered = [pillow_weights(old, 299, triangle, 1) for old in image.shape[:2]]
        other = np.einsum("yh,hwc,xw->cyx", not_filtered[0], image.astype(float), not_filtered[1], optimize=True)
        assert np.abs(picture - (other - 128) / 128).max() > 0.1
    assert found.min() >= -1 and found.max() <= 127 / 128


@pytest.mark.parametrize("side", [5, 320])
def test_dcr_input_by_its_formula(side):
    """The short side comes to 299, the middle of the long one is cut out, and pixels lie in [-3, 1]."""
    colour = random_images(3, 2, side=side, channels=3)
    colour[0, :2], colour[1, :2] = 0, 255
    found = inception.dcr_input(torch.from_numpy(colour).permute(0, 3, 1, 2)).numpy()
    width = int(299 * (side + 3) / side)
    left = round((width - 299) / 2)
    for picture, image in zip(found, colour, strict=True):
        weights = [
            pillow_weights(old, new, triangle, 1) for old, new in zip(image.shape[:2], (299, width), strict=True)
        ]
        expected = np.einsum("yh,hwc,xw->cyx", weights[0], image.astype(float), weights[1], optimize=True)[
            :, :, left : left + 299
        ]
        np.testing.assert_allclose(
            picture, 2 * (2 * expected / 255 - 1) - 1, atol=1.1 * 4 / 255
        )  # in whole grey levels
    assert (found.min(), found.max()) == (-3, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: (
            interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(299, 299), align_corners=False) / 127.5 - 1
        ),
        lambda x: torch.nn.functional.interpolate(x / 127.5, (299, 299), mode="bilinear", align_corners=True) - 1,
        lambda x: torch.nn.functional.interpolate(x / 255, (299, 299), mode="bilinear", align_corners=False),
        lambda x: (torch.nn.functional.interpolate(x.float(), (299, 299), mode="bilinear") - 128) / 128,
    ],
)
def test_the_check_tells_other_inputs_from_it(wrong):
    with pytest.raises(AssertionError):
        check_input(wrong)


@pytest.mark.parametrize("protocol", ["clean", "dcr"])
def test_the_other_protocols_feed_the_same_layers(network, protocol):
    colour = random_images(5, 2, channels=3)
    features, _ = inception.features(network, colour, protocol, 2)
    given = inception.INPUTS[protocol](torch.from_numpy(colour).permute(0, 3, 1, 2))
    with torch.no_grad():
        assert np.array_equal(features, inception._layers(network, given)[0].numpy())
    assert np.abs(features - inception.features(network, colour, "pytorch_fid", 2)[0]).max() > 1e-3


def test_grey_is_colour_with_three_equal_channels_and_batches_change_nothing(network):
    grey = random_images(3, 5)
    features, logits = inception.features(network, grey, "pytorch_fid", batch_size=2)
    seen = []
    colour = inception.features(
        network, grey.repeat(3, axis=3), "pytorch_fid", 5, progress=lambda done, total: seen.append((done, total))
    )
    np.testing.assert_allclose(features, colour[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, colour[1], rtol=1e-4, atol=1e-5)
    assert seen == [(5, 5)]
    assert np.abs(features[0] - features[1]).max() > 100 * np.abs(features - colour[0]).max()  # images are told apart


@pytest.mark.parametrize(
    "wrong", [random_images(4, 2, channels=2), random_images(4, 2).astype(np.float32), random_images(4, 2)[0]]
)
def test_images_that_the_network_cannot_take_are_refused(network, wrong):
    with pytest.raises(ValueError, match=r"expected uint8 \[N, H, W, 1 or 3\]"):
        inception.features(network, wrong, "pytorch_fid", 2)


# The measures, on features of few values.


def measured(sample, train, logits=None, seed=5):
    logits = sample if logits is None else logits
    return method.measures(sample, logits, train, frechet.feature_moments(train), seed)


def test_fid_equals_scipy():
    sample, train = vectors(0, 50, shift=0.3, scale=1.2), vectors(1, 80)
    means, covs = zip(*((x.astype(float).mean(0), np.cov(x.astype(float).T)) for x in (sample, train)))
    root = scipy.linalg.sqrtm(covs[0] @ covs[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covs[0] + covs[1] - 2 * root)
    assert measured(sample, train)["fid"] == pytest.approx(expected, rel=1e-9)
    biased = [cov * (len(x) - 1) / len(x) for cov, x in zip(covs, (sample, train))]  # dividing by N is another number
    root = scipy.linalg.sqrtm(biased[0] @ biased[1]).real
    assert abs(expected - ((means[0] - means[1]) ** 2).sum() - np.trace(sum(biased) - 2 * root)) > 1e-5 * expected


def test_moments_are_float64_though_features_are_not():
    """A mean of float32 features in float32 is off by 1e-5 and more where they are far from 0."""
    features = vectors(2, 5000) + np.float32(1000)
    mean, cov = frechet.feature_moments(features)
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(cov, np.cov(features.astype(np.float64).T), rtol=1e-9)
    assert np.abs(features.mean(axis=0) - mean).max() > 1e-6
    with pytest.raises(ValueError, match=r"features are \(1, 6\), expected \[N, D\] with N >= 2"):
        frechet.feature_moments(features[:1])


@pytest.mark.parametrize("num", [9, 60])
def test_halves_of_features_are_as_far_apart_as_fid_says(num):
    """With fewer vectors than values, and with more: 6 values."""
    features = vectors(18, num)
    found = frechet.feature_distance_of_halves(features, np.random.default_rng(7))
    order = np.random.default_rng(7).permutation(num)
    means, covs = zip(
        *((x.mean(0), np.cov(x.T)) for x in (features[order[: num // 2]], features[order[num // 2 : num // 2 * 2]]))
    )
    expected = frechet.frechet_distance(means[0], covs[0], means[1], covs[1])
    assert found == (num // 2, pytest.approx(expected, rel=1e-5)) and expected > 0.1


def test_fid_of_the_first_images_only_where_there_are_more(monkeypatch):
    sample, train = vectors(3, 40), vectors(4, 30)
    assert measured(sample, train)["fid_50k"] is None
    monkeypatch.setattr(method, "FIRST", 40)
    assert measured(sample, train)["fid_50k"] is None
    monkeypatch.setattr(method, "FIRST", 25)
    found = measured(sample, train)
    assert found["fid_50k"] == method.fid(sample[:25], frechet.feature_moments(train)) != found["fid"]


def manifold_share(inside, manifold, k=3):
    """Share of `inside` that lies in the union of balls around `manifold`, each reaching to its k-th nearest other point."""
    hits = 0
    for point in inside:
        for i, centre in enumerate(manifold):
            others = sorted(np.linalg.norm(np.delete(manifold, i, axis=0) - centre, axis=1))
            if np.linalg.norm(point - centre) <= others[k - 1]:
                hits += 1
                break
    return hits / len(inside)


def test_precision_and_recall_by_brute_force_and_not_swapped():
    """A narrow sample inside wide training images: faithful, but covering little."""
    sample, train = vectors(5, 40, scale=0.5, size=3).astype(float), vectors(6, 60, size=3).astype(float)
    found = measured(sample.astype(np.float32), train.astype(np.float32))
    precision, recall = manifold_share(sample, train), manifold_share(train, sample)
    assert found["precision"] == pytest.approx(precision) and found["recall"] == pytest.approx(recall)
    assert precision > recall + 0.3
    assert manifold_share(train, sample, k=2) != recall != manifold_share(train, sample, k=4)
    swapped = measured(train.astype(np.float32), sample.astype(np.float32))
    assert (swapped["precision"], swapped["recall"]) == (found["recall"], found["precision"])


def kernel(x, y):
    return (x.astype(float) @ y.astype(float).T / x.shape[1] + 1) ** 3


def test_kid_of_few_images_takes_them_all():
    """12 against 12: each of the subsets is the whole set, so the mean is the unbiased estimate by its formula."""
    sample, train = vectors(7, 12, shift=0.5), vectors(8, 12)
    within = sum(kernel(x, x).sum() - np.trace(kernel(x, x)) for x in (sample, train)) / (12 * 11)
    assert measured(sample, train)["kid"] == pytest.approx(within - 2 * kernel(sample, train).mean(), rel=1e-5)


def test_kid_of_unequal_sets_draws_subsets_of_the_smaller_size(monkeypatch):
    sample, train = vectors(9, 12, shift=0.5), vectors(10, 30)
    every = measured(sample, train)["kid"]
    within = sum((kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (sample, train))
    assert every == pytest.approx(within - 2 * kernel(sample, train).mean(), rel=0.2)  # the mean over draws of 12 of 30
    assert measured(sample, train, seed=6)["kid"] != every == measured(sample, train)["kid"]
    monkeypatch.setattr(method, "KID_SUBSET_SIZE", 4)
    assert measured(sample, train)["kid"] != every


@pytest.mark.parametrize(("num", "splits"), [(53, 10), (20, 10), (7, 3), (2, 1)])
def test_inception_score_by_brute_force(num, splits):
    logits = 3 * np.random.default_rng(11).normal(size=(num, 4)).astype(np.float32)
    shuffled = logits[np.random.RandomState(5).permutation(num)].astype(float)
    p = np.exp(shuffled) / np.exp(shuffled).sum(axis=1, keepdims=True)
    scores = []
    for i in range(splits):
        chunk = p[i * num // splits : (i + 1) * num // splits]
        assert len(chunk) >= 2
        scores.append(np.exp((chunk * np.log(chunk / chunk.mean(axis=0))).sum(axis=1).mean()))
    assert measured(vectors(12, num), vectors(13, 9), logits)["is"] == pytest.approx(np.mean(scores), rel=1e-9)


@pytest.mark.parametrize(("num_samples", "num_train"), [(2, 9), (9, 2), (3, 4), (2, 2)])
def test_two_images_are_enough(num_samples, num_train):
    found = measured(vectors(14, num_samples), vectors(15, num_train))
    assert all(np.isfinite(value) for name, value in found.items() if name != "fid_50k")


def test_one_image_is_not():
    with pytest.raises(ValueError, match="there are 1 generated and 9 training images, expected 2 at least"):
        method.measures(vectors(16, 1), vectors(16, 1), vectors(17, 9), None, 0)


# The file of weights.


def refused(settings, match):
    with pytest.raises(ValueError, match=match) as error:
        quality.load_weights({"quality": settings})
    assert "\n" not in str(error.value)


def test_a_wrong_checksum_is_told_with_both(weights_file):
    found = hashlib.sha256(weights_file.read_bytes()).hexdigest()
    for sha256 in (found, found.upper()):
        quality.check({"quality": {"weights": str(weights_file), "sha256": sha256}})
    other = "ab" * 32
    told = f"inception.pth has the sha256 {found}, expected {other}: put the right file there, or mend quality.sha256"
    with pytest.raises(ValueError, match=told):
        quality.check_files({"data": {"name": "digits"}, "quality": {"weights": str(weights_file), "sha256": other}})
    refused({"weights": str(weights_file), "sha256": other}, told)


def test_a_missing_file_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = {"data": {"name": "digits"}, "quality": {"weights": "inception.pth"}}
    with pytest.raises(
        ValueError, match=r"^the file quality.weights = inception.pth does not exist: put the Inception"
    ):
        quality.check_files(section)
    Path("inception.pth").mkdir()
    with pytest.raises(ValueError, match="does not exist"):
        quality.check_files(section)
    section["quality"]["weights"] = "artifacts/inception.pth"
    with pytest.raises(ValueError, match="lies in artifacts/, which is cleared"):
        quality.check_files(section)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("code-ran",)


def test_code_in_the_file_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": torch.zeros(2), "trap": Trap()}, "trap.pth")
    Path("plain.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pth", "plain.pth"):
        refused({"weights": name}, f"^{name} cannot be read as weights: expected a file of torch that holds tensors")
    assert not Path("code-ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut short"])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "inception.pth").write_bytes(content)
    refused({"weights": str(tmp_path / "inception.pth")}, "cannot be read as weights")


def test_tensors_of_something_else_are_refused(tmp_path, weights_file):
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    refused({"weights": str(tmp_path / "list.pth")}, "cannot be read as weights")
    other = {name: value.numpy() for name, value in random_network(1000).state_dict().items() if value.ndim}
    with pytest.raises(
        ValueError, match=r"^it does not hold the Inception network of FID, but another one: .*fc"
    ) as error:
        inception.build(other, "it")
    assert "\n" not in str(error.value)
    del other["Mixed_7c.branch_pool.conv.weight"]
    with pytest.raises(ValueError, match="Mixed_7c.branch_pool.conv.weight"):
        inception.build(other, "it")


@pytest.fixture
def address(tmp_path, monkeypatch, weights_file):
    """Weights at an address whose name ends in the first digits of their checksum, and an empty cache of torch's."""
    start = hashlib.sha256(weights_file.read_bytes()).hexdigest()[:8]
    source = tmp_path / "server" / f"weights-inception-{start}.pth"
    source.parent.mkdir()
    source.symlink_to(weights_file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_extractor_inceptionv3, "URL_INCEPTION_V3", source.as_uri())
    return source


def test_weights_are_fetched_once_and_only_when_asked_for(address, tmp_path, capfd):
    assert not quality.wanted({"quality": {"protocols": ["pytorch_fid"]}})
    assert not quality.wanted({"quality": {"download": False}}) and not quality.wanted({})
    fetched = quality.load_weights({"quality": {"download": True}})
    assert fetched["fc.weight"].shape == (1008, 2048)
    told = capfd.readouterr().err
    assert told == f"fetching the Inception weights (91 MiB) from {address.as_uri()}\n"
    address.unlink()
    quality.load_weights({"quality": {"download": True}})
    assert capfd.readouterr().err == ""
    refused({"download": True, "sha256": "ab" * 32}, "has the sha256 .* expected abab")


def test_a_failed_download_says_what_to_do(address, tmp_path, weights_file):
    address.unlink()
    what_to_do = "bring the file here by other means and name it as quality.weights"
    refused({"download": True}, f"could not be fetched from {address.as_uri()} .*: {what_to_do}")
    address.write_bytes(b"something else")
    refused({"download": True}, f"invalid hash value .*: {what_to_do}")
    assert not list((tmp_path / "cache").rglob("*.pth"))


def with_quality(**section):
    return tiny_with(quality=section)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"weights": "a.pth", "protocols": ["pytorch_fid"]}, "the key quality.batch_size is missing"),
        ({"download": True, "batch_size": 8}, "the key quality.protocols is missing"),
        ({"weights": "a.pth", "download": True, "protocols": ["pytorch_fid"], "batch_size": 8}, "give one of them"),
        ({"weights": "a.pth", "protocols": ["pytorch-fid"], "batch_size": 8}, "did you mean pytorch_fid?"),
        ({"weights": "a.pth", "protocols": [], "batch_size": 8}, "quality.protocols is empty"),
        ({"weights": "a.pth", "sha": "x", "protocols": ["pytorch_fid"], "batch_size": 8}, "unknown key quality.sha"),
    ],
)
def test_a_wrong_section_is_refused(section, told):
    with pytest.raises(ValueError, match=told.replace("?", r"\?")):
        rules.check(with_quality(**section))


# The phase.


@pytest.mark.parametrize("section", [{}, {"download": False, "protocols": ["pytorch_fid"], "batch_size": 8}])
def test_without_weights_the_phase_is_left_out(section):
    rules.check(with_quality(**section))
    found = plan.expand(with_quality(**section))
    assert found == plan.expand(yaml.safe_load(TINY))
    assert not [name for name in found if name.startswith("quality")]


def test_instances_of_the_phase_by_hand():
    section = {"weights": "my/inception.pth", "protocols": ["pytorch_fid"], "batch_size": 8}
    rules.check(with_quality(**section))
    found = plan.expand(with_quality(**section) | {"seeds": [3, 4]})
    runs = [f"{arm}-seed{seed}-round{r}" for arm, r in (("ddpm", 1), ("iet_agc_plus", 2)) for seed in (3, 4)]
    names = [name for name in found if name.startswith("quality")]
    assert names == ["quality_reference@reference", *(f"quality@{run}" for run in runs)]
    assert found["quality_reference@reference"].item() == {"run": "reference", "network": "my/inception.pth"}
    assert found["quality@ddpm-seed4-round1"].item() == item_of_round("ddpm", 4, 1)
    for name, place in (
        ("quality_reference@reference", "reference"),
        ("quality@ddpm-seed3-round1", "ddpm-seed3/round1"),
    ):
        assert found[name].outputs() == [Path(f"artifacts/results/quality/{place}")]
    fetched = plan.expand(with_quality(download=True, protocols=["pytorch_fid"], batch_size=8))
    assert fetched["quality_reference@reference"].network == "requirements.txt"


@pytest.fixture
def made(tmp_path, monkeypatch, weights_file):
    """The working folder with training images and the samples of one run: 6 images in parts of 4 and 2, of two kinds."""
    monkeypatch.chdir(tmp_path)
    tiny = with_six_images(with_quality(weights=str(weights_file), protocols=PROTOCOLS, batch_size=4))
    write_params(tiny)
    files.save_array(files.DATA / "train.npy", random_images(20, 5))
    files.save_array(files.DATA / "heldout.npy", HELDOUT)
    write_samples("ddpm-seed3", {weights: random_images(21, 6, brightest=b) for weights, b in BRIGHTEST.items()})
    return tiny


BRIGHTEST = {"raw": 200, "ema": 120}
HELDOUT = random_images(22, 9, brightest=160)  # more than training images


def frechet_in_the_span(sample, train):
    """torch-fidelity's own FID, in the space that the few features span: its eigenvalues of 2,048 would take a minute."""
    basis = np.linalg.qr(np.concatenate([sample, train]).astype(float).T)[0]
    stats = [metric_fid.fid_features_to_statistics(torch.from_numpy(x.astype(float) @ basis)) for x in (sample, train)]
    return metric_fid.fid_statistics_to_metric(*stats, verbose=False)[metric_fid.KEY_METRIC_FID]


def test_the_stage_measures_every_kind_of_weights_under_both_protocols(made, network, capfd):
    quality.main(["--reference"])
    quality.main(["--arm", "ddpm", "--seed", "3", "--round", "1"])
    path = files.folder("results/quality", "ddpm-seed3", 1) / "scores.json"
    scores, fids = json.loads(path.read_text()), []
    for protocol in PROTOCOLS:
        train = files.load_arrays(files.folder("results/quality", "reference") / f"{protocol}.safetensors")["features"]
        assert np.array_equal(train, inception.features(network, random_images(20, 5), protocol, 4)[0])
        words = np.random.SeedSequence([24, 0]).generate_state(2, np.uint32)
        drawn = np.random.default_rng(int(words[0]) | int(words[1]) << 32).choice(9, 5, replace=False)
        heldout = inception.features(network, HELDOUT[np.sort(drawn)], protocol, 4)[0]
        for weights, brightest in BRIGHTEST.items():
            sample = inception.features(network, random_images(21, 6, brightest=brightest), protocol, 4)[0]
            found = scores[weights][protocol]
            assert list(found) == ["fid", "fid_50k", "kid", "is", "precision", "recall", "fid_heldout"]
            assert found["fid_heldout"] == pytest.approx(frechet_in_the_span(sample, heldout), rel=1e-4)
            assert found["fid"] == pytest.approx(frechet_in_the_span(sample, train), rel=1e-4)
            assert found["precision"] == pytest.approx(manifold_share(sample.astype(float), train.astype(float)))
            fids.append(found["fid"])
        words = np.random.SeedSequence([24, 1]).generate_state(2, np.uint32)
        order = np.random.default_rng(int(words[0]) | int(words[1]) << 32).permutation(5)
        apart = frechet_in_the_span(heldout[np.sort(order[:2])], heldout[np.sort(order[2:4])])
        chance = files.load_json(files.folder("results/quality", "reference") / "chance.json")[protocol]
        assert chance == {"num_half": 2, "distance": pytest.approx(apart, rel=1e-4)}
    assert min(abs(a - b) / a for i, a in enumerate(fids) for b in fids[:i]) > 0.02  # weights and protocols differ
    told = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("quality@")]
    assert told == []  # torch-fidelity's own lines

    # Again, without the file: a run takes the network of the reference, so that no distance can mix two.
    made["quality"] |= {"weights": "gone.pth", "protocols": ["pytorch_fid"]}
    made["sample"]["weights"] = ["raw"]
    Path("params.yaml").write_text(yaml.safe_dump(made, sort_keys=False))
    quality.main(["--arm", "ddpm", "--seed", "3", "--round", "1"])
    assert json.loads(path.read_text()) == {"raw": {"pytorch_fid": scores["raw"]["pytorch_fid"]}}


@pytest.mark.parametrize("arguments", [["--reference"], ["--arm", "ddpm", "--seed", "3", "--round", "1"]])
def test_a_stage_of_a_phase_that_is_left_out_says_how_to_turn_it_on(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(TINY)
    with pytest.raises(ValueError, match=r"quality phase .* is left out, .*: add a section quality with weights: FILE"):
        quality.main(arguments)


# The report.


def scores_of(level):
    """Scores of a run under two protocols; those of the second are ten times as large. Without a fid_50k."""
    entry = {
        "fid": 20 + level / 10,
        "fid_heldout": 30 + level / 10,
        "fid_50k": None,
        "kid": 0.01,
        "is": 2.5,
        "precision": 0.75,
        "recall": 0.5,
    }
    tenfold = {name: value and 10 * value for name, value in entry.items()}
    raw = {"pytorch_fid": entry, "torch_fidelity": tenfold}
    return {"raw": raw, "ema": raw | {"pytorch_fid": entry | {"fid": 5.0}}}


def write_quality(settings, levels):
    for arm, seed in ((arm, seed) for arm in settings["arms"] for seed in settings["seeds"]):
        files.write_json(
            files.folder("results/quality", f"{arm}-seed{seed}", settings["arms"][arm]["rounds"]) / "scores.json",
            scores_of(levels[arm][seed]),
        )


@pytest.fixture
def built(tmp_path):
    """built(levels, seeds) -> the report of a made-up tree with the quality phase, as current folder."""

    def run(levels, seeds=(0,)):
        section = {"weights": "inception.pth", "protocols": ["pytorch_fid", "torch_fidelity"], "batch_size": 8}
        return report_tree.built(tmp_path, levels, seeds, sections={"quality": section}, write_more=write_quality)

    return run


def test_report_with_quality(built, capsys):
    with built({"plain": [60], "iet": [15]}) as (root, metrics):
        raw = metrics["iet"]["raw"]
        assert raw["fid"] == {"pytorch_fid": 21.5, "torch_fidelity": 215.0} and "fid_50k" not in raw
        assert raw["precision"] == {"pytorch_fid": 0.75, "torch_fidelity": 7.5} and raw["recall"]["pytorch_fid"] == 0.5
        assert metrics["iet"]["ema"]["fid"]["pytorch_fid"] == 5.0
        frame = pd.read_parquet(root / "artifacts/report/results.parquet")
        chosen = frame[(frame.arm == "plain") & (frame.weights == "raw")]
        assert set(chosen.fid_pytorch_fid) == {26.0} and set(chosen.recall_torch_fidelity) == {5.0}
        assert chosen.fid_50k_pytorch_fid.isna().all()
        page = (root / "report.html").read_text()
        section = page[page.index('id="quality"') : page.index('id="curves"')]
        assert (
            page.count("<svg") == 15
            and "FID held out (pytorch_fid), lower = more faithful" in section
            and "FID (pytorch_fid), lower = more faithful" in section
        )
        heads = [
            "FID raw",
            "FID ema",
            "FID held out raw",
            "FID held out ema",
            "KID raw",
            "KID ema",
            "Inception score raw",
        ]  # side by side
        assert "".join(f"<th scope=col>{head}</th>" for head in heads) in section and "FID of 50,000 raw" not in section
        assert "<th scope=row>iet</th><td>21.5</td><td>5</td><td>31.5</td><td>31.5</td><td>0.01</td>" in section
        assert "Protocol torch_fidelity" in section and "215" in section

        capsys.readouterr()
        report.main(["--table"])
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].endswith("; FID by pytorch_fid") and max(map(len, lines)) <= 120
        rows = {cells[0]: cells for cells in (re.split(" {2,}", line.strip()) for line in lines)}
        at = rows["arm"].index("FID")
        assert rows["iet"][at] == "21.5" and rows["plain"][at] == "26"


def test_report_of_two_seeds(built):
    with built({"plain": [60, 70], "iet": [15, 35]}, seeds=(0, 1)) as (_, metrics):
        fid = metrics["iet"]["raw"]["fid"]
        assert fid["pytorch_fid"] == 22.5 and fid["pytorch_fid_sd"] == pytest.approx(2**0.5, rel=1e-5)


def test_report_without_quality(tmp_path):
    with report_tree.built(tmp_path, report_tree.ONE_SEED) as (root, metrics):
        assert "fid" not in metrics["iet"]["raw"]
        frame = pd.read_parquet(root / "artifacts/report/results.parquet")
        assert frame.fid_pytorch_fid.isna().all() and frame.kid_torch_fidelity.isna().all()
        page = (root / "report.html").read_text()
        section = page[page.index('id="quality"') : page.index('id="curves"')]
        assert "is left out, as params.yaml names no Inception weights" in section


# Through the doors.


LEFT_OUT = (
    "the quality phase (FID, KID, precision, recall) is left out, as params.yaml names no Inception weights: add "
)


def settings_of(weights):
    return {"weights": str(weights), "protocols": ["pytorch_fid"], "batch_size": 6}


@pytest.mark.slow
def test_the_phase_through_snakemake_turned_off_and_on_again(tmp_path, weights_file):
    project = small_project(tmp_path / "project", quality=settings_of(weights_file))
    done = project.run("snakemake")
    metrics = json.loads((project.root / "artifacts/report/summary.json").read_text())["ddpm"]
    assert metrics["raw"]["fid"]["pytorch_fid"] > 0 and 0 <= metrics["ema"]["recall"]["pytorch_fid"] <= 1
    (left_out,) = [line for line in done.text.splitlines() if "is left out" in line]
    assert "FID by pytorch_fid" in done.text and left_out.startswith("membership inference is left out")
    log = (project.root / "logs/quality/ddpm-seed3-round1.log").read_text()
    assert "quality@ddpm-seed3-round1 ema pytorch_fid: 6/6 images" in log and "Inception" not in log
    assert "Nothing to be done" in project.run("snakemake", "-n").text
    check_turned_off_and_on(project, "quality", LEFT_OUT, "fid")


@pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # of a package of DVC's
def test_dvc_knows_what_each_instance_reads_and_writes(tmp_path, weights_file, monkeypatch):
    project = small_project(tmp_path / "project", quality=settings_of(weights_file))
    monkeypatch.chdir(project.root)
    waits_for, reads, commands, outs = seen_by_dvc(project)
    reference = "quality_reference@reference"
    assert waits_for[reference] == {"data"} and str(weights_file) in reads[reference]
    assert waits_for["quality@ddpm-seed3-round1"] == {reference, "sample@ddpm-seed3-round1-part0"}
    assert {reference, "quality@ddpm-seed3-round1", "score@ddpm-seed3-round1"} < waits_for["report"]
    assert commands[reference] == "python -m stages.quality --reference"
    assert commands["quality@ddpm-seed3-round1"] == "python -m stages.quality --arm ddpm --seed 3 --round 1"
    assert {path for i in plan.expand(project.params()).values() for path in i.outputs()} <= outs


def test_a_missing_file_and_a_phase_left_out_are_told_by_both_doors(tmp_path):
    project = small_project(tmp_path / "project", quality=settings_of("gone.pth"))
    check_missing_file(project, "error: the file quality.weights = gone.pth does not exist")
    project.edit(quality={})
    for command in (("dvc", "repro"), ("snakemake", "-n")):  # dvc stops after renewing the plan
        told = project.run(*command, check=False).text
        assert [line.startswith(LEFT_OUT) for line in told.splitlines()].count(True) == 1
        assert "quality@" not in told
