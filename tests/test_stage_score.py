"""The phase score on planted images: copies of training images, of held-out images, and neither, in unequal numbers.

What is expected is found by loops over float64 distances, and by counting what was planted.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import TINY, write_params
from PIL import Image

from stages import randomness, score
from stages.measures import confidence, intervals, memorisation, self_test, variants
from stages.run import files

pytestmark = pytest.mark.usefixtures("one_thread")

ARM, SEED, RUN, K = "plain", 9, "plain-seed9", 4
THRESHOLDS = [0.25, 0.35]
PROTOCOLS = ["code_sq", "printed_eq12", "printed_eq12_excl", "l2_from_gen", "carlini", "third"]
RANDOM = np.random.default_rng(5)
TRAIN = RANDOM.integers(0, 256, (11, 3, 4, 2), dtype=np.uint8)
HELDOUT = RANDOM.integers(0, 256, (8, 3, 4, 2), dtype=np.uint8)
HELDOUT[7] = TRAIN[6] ^ 1  # looks like a copy, so that real images count too
TRAIN_LABELS = np.array([0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0])  # nine of class 0, two of class 1
HELDOUT_LABELS = np.array([1, 0, 1, 1, 0, 1, 0, 1])  # three and five
MATCHED_K = (
    2  # of 5 held-out images, three of class 0 and two of class 1, as many neighbours as K of 11 training images
)
KEYS = [f"image{(7 * i) % 11}.png" for i in range(11)]


def near(image, amount):
    return (image.astype(int) + np.where(image < 128, amount, -amount)).astype(np.uint8)


def other(number, seed):
    return np.random.default_rng(seed).integers(0, 256, (number, 3, 4, 2), dtype=np.uint8)


# Images 1 and 5 are of training image 9, image 3 is of training image 2; 0, 2 and 6 are of held-out images of class 0, which are in every draw.
RAW = np.stack(
    [near(HELDOUT[1], 2), near(TRAIN[9], 3), near(HELDOUT[4], 1), TRAIN[2], *other(1, 1), near(TRAIN[9], 1), near(HELDOUT[6], 3), *other(2, 2)]
)  # fmt: skip
# With EMA weights four copies of three training images; of held-out images one.
EMA = np.stack(
    [near(TRAIN[3], 9), *other(2, 3), near(TRAIN[5], 2), near(HELDOUT[4], 1), near(TRAIN[0], 5), near(TRAIN[5], 7), *other(2, 4)]
)  # fmt: skip
SAMPLES = {"raw": RAW, "ema": EMA}
COPIES = {"raw": (3, 2), "ema": (4, 3)}  # copies of training images, and of how many of these


def write_experiment(heldout=HELDOUT, heldout_labels=HELDOUT_LABELS, train_labels=TRAIN_LABELS):
    """Two parts of 5 and 4 images. The section sample would have one part more and raw weights only."""
    experiment = yaml.safe_load(TINY)
    experiment["seeds"] = [3, SEED]
    experiment["sample"] |= {"parts": 3, "weights": ["raw"]}
    arm = experiment["arms"].pop("ddpm") | {"sample": {"parts": 2, "weights": ["ema", "raw"], "num_images": 9}}
    experiment["arms"] = {ARM: arm}
    experiment["score"] = {
        "neighbours": K,
        "thresholds": THRESHOLDS,
        "grid_step": 0.2,
        "headline": {"protocol": "code_sq", "threshold": 0.25, "weights": "ema"},
    }
    write_params(experiment)
    files.save_array(files.DATA / "train.npy", TRAIN)
    files.save_array(files.DATA / "train_labels.npy", train_labels)
    files.save_array(files.DATA / "heldout.npy", heldout)
    files.save_array(files.DATA / "heldout_labels.npy", heldout_labels)
    keys = {"heldout": [f"other{i}.png" for i in range(len(heldout))], "train": KEYS}
    files.write_json(files.DATA / "keys.json", keys)
    for weights, images in SAMPLES.items():
        for part, rows in enumerate(
            (images[:5], images[5:], images[::-1])
        ):  # the last is a part that the arm does not have
            files.save_array(files.folder("samples", RUN, 1, part=part) / f"{weights}.npy", rows)


def results():
    folder = files.folder("results/score", RUN, 1)
    images, curves = (pd.read_parquet(folder / f"{name}.parquet") for name in ("images", "curves"))
    return images, curves, files.load_json(folder / "scores.json"), files.load_arrays(folder / "gallery.safetensors")


@pytest.fixture(scope="module")
def scored(tmp_path_factory, one_thread):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("score"))
        patch.setattr(score, "GALLERY_IMAGES", 4)
        write_experiment()
        score.main(["--arm", ARM, "--seed", str(SEED), "--round", "1"])
        assert {path.name for path in files.folder("results/score", RUN, 1).iterdir()} == {
            "images.parquet", "curves.parquet", "scores.json", "gallery.safetensors", "checksums.json",
        }  # fmt: skip
        yield results()


def lengths_in_variants(queries, reference):
    """The same where each image may be mirrored, moved, cropped or differently lit: the smallest."""
    found = [lengths(variants.undone(queries, name), reference) for name in variants.names(queries.shape[1:])]
    lit = np.empty(found[0].shape)
    for i, j in np.ndindex(lit.shape):
        x, t = queries[i].astype(float), reference[j].astype(float)
        contrast = min(max(t.std() / x.std(), 0.5), 2)
        lit[i, j] = np.sqrt(round(((contrast * (x - x.mean()) + t.mean() - t) ** 2).sum()))
    return np.minimum(np.min(found, axis=0), lit)


def lengths(queries, reference):
    """[M,N] float64: distances in grey levels."""
    difference = queries[:, None].astype(float) - reference[None].astype(float)
    return np.sqrt((difference**2).sum(axis=(2, 3, 4)))


def expected_ratios(queries, reference, k=K, lengths_between=lengths):
    """What each protocol says of each image: dict of lists; the nearest reference image of each."""
    found, nearest = {name: [] for name in PROTOCOLS}, []
    between = lengths(reference, reference)
    for length in lengths_between(queries, reference):
        order = np.argsort(length, kind="stable")[:k]
        first, around = length[order[0]], between[order[0]][order]
        found["code_sq"].append(first**2 / np.mean(length[order] ** 2))
        found["printed_eq12"].append(first / np.mean(around))
        found["printed_eq12_excl"].append(first / np.mean(around[1:]))
        found["l2_from_gen"].append(first / np.mean(length[order]))
        found["carlini"].append(2 * first / np.mean(length[order]))
        found["third"].append(first / length[order[1]])
        nearest.append(order[0])
    return {name: np.array(values) for name, values in found.items()}, np.array(nearest)


def test_images_have_their_own_distances_and_ratios_in_the_order_of_the_parts(scored):
    images = scored[0]
    assert images.weights.tolist() == ["ema"] * 9 + ["raw"] * 9 and images.image.tolist() == 2 * list(range(9))
    for weights, rows in images.groupby("weights"):
        ratios, nearest = expected_ratios(SAMPLES[weights], TRAIN)
        assert rows.nearest_train.tolist() == nearest.tolist()
        assert rows.nearest_key.tolist() == [KEYS[i] for i in nearest]
        squared = np.sort(lengths(SAMPLES[weights], TRAIN) ** 2, axis=1)
        assert rows.d1.tolist() == pytest.approx(squared[:, 0]) and rows.d2.tolist() == pytest.approx(squared[:, 1])
        for name in PROTOCOLS:
            assert rows[f"train_{name}"].tolist() == pytest.approx(ratios[name], abs=1e-12), name
    assert images[images.weights == "raw"].nearest_train[[10, 12, 14]].tolist() == [9, 2, 9]


def test_the_reference_of_held_out_images_has_the_classes_of_the_training_images(scored):
    """The draw is that of the run's seed; held-out images of class 0 are in each draw, so their copies are known."""
    draw = memorisation.matched_parts(
        TRAIN_LABELS, HELDOUT_LABELS, randomness.numpy_generator("reference", SEED)
    ).heldout
    assert np.bincount(HELDOUT_LABELS[draw]).tolist() == [3, 2] and {1, 4, 6} < set(draw.tolist())
    for weights, rows in scored[0].groupby("weights"):
        ratios = expected_ratios(SAMPLES[weights], HELDOUT[draw], MATCHED_K)[0]
        for name in PROTOCOLS:
            assert rows[f"heldout_{name}"].tolist() == pytest.approx(ratios[name], abs=1e-12), name
        planted = {"raw": [0, 2, 6], "ema": [4]}[weights]
        assert rows.image[rows.heldout_l2_from_gen <= 0.25].tolist() == planted


def test_curves_count_what_was_planted(scored):
    curves = scored[1]
    assert list(curves.columns) == [
        "weights", "protocol", "threshold", "count", "share", "distinct", "excess", "excess_low", "excess_high", "simplicity",
    ]  # fmt: skip
    at = curves.set_index(["weights", "protocol", "threshold"])
    for weights, (copies, distinct) in COPIES.items():
        for protocol in ("code_sq", "l2_from_gen", "printed_eq12"):
            row = at.loc[(weights, protocol, 0.25)]
            assert (row["count"], row["distinct"]) == (copies, distinct), protocol
            assert row["share"] == copies / 9
            assert row["simplicity"] == 9 / 8  # one of eight held-out images looks like a copy, of nine generated ones


def test_the_excess_counts_the_planted_copies_of_the_whole_training_set(scored):
    """A copy of a training image counts one, in whichever of the three parts its image is: an image of class 1 is in all three, and
    counts a third in each. One of a held-out image of class 0 counts nine thirds, as three of them stand for nine training images."""
    at = scored[1].set_index(["weights", "protocol", "threshold"])
    planted = {"raw": [-3, 1, -3, 1, 0, 1, -3, 0, 0], "ema": [1, 0, 0, 1, -3, 1, 1, 0, 0]}
    for weights, differences in planted.items():
        for protocol in ("code_sq", "l2_from_gen"):
            row = at.loc[(weights, protocol, 0.25)]
            found = row["excess"], row["excess_low"], row["excess_high"]
            assert found == pytest.approx(intervals.sum_of_differences(np.array(differences, float), 1, 3)), protocol
            assert row["excess"] == pytest.approx({"raw": -6, "ema": 1}[weights])


def test_the_excess_at_every_threshold_by_loops_over_the_parts(scored):
    """Each of the three parts, and the held-out images, with two neighbours; weights by class as above."""
    matched = memorisation.matched_parts(TRAIN_LABELS, HELDOUT_LABELS, randomness.numpy_generator("reference", SEED))
    sides = [(TRAIN, part, np.array([1, 1 / 3]), TRAIN_LABELS) for part in matched.parts]
    sides.append((HELDOUT, matched.heldout, np.array([-3, -1]), HELDOUT_LABELS))
    for weights, samples in SAMPLES.items():
        of_sides = [
            (*expected_ratios(samples, images[chosen], MATCHED_K), weight[labels[chosen]])
            for images, chosen, weight, labels in sides
        ]
        rows = scored[1][scored[1].weights == weights]
        for protocol, threshold, excess in rows[["protocol", "threshold", "excess"]].itertuples(index=False):
            expected = sum(
                ((ratios[protocol] <= threshold) * weight[nearest]).sum() for ratios, nearest, weight in of_sides
            )
            assert excess == pytest.approx(expected), (weights, protocol, threshold)


def test_what_each_image_contributes_sums_to_the_excess_of_the_headline(scored):
    """As planted above, at the headline's own protocol and threshold."""
    planted = {"raw": [-3, 1, -3, 1, 0, 1, -3, 0, 0], "ema": [1, 0, 0, 1, -3, 1, 1, 0, 0]}
    for weights, rows in scored[0].groupby("weights"):
        assert rows.excess.tolist() == pytest.approx(planted[weights], abs=1e-12)
    assert scored[2]["largest_hits"] == [1, 3] and "prompt" not in scored[0]


def test_influences_are_those_on_the_distance_to_held_out_images(scored):
    """What an image's influence says the distance gains where it is there twice, against the distance of ten images by scipy."""
    rows = scored[0][scored[0].weights == "ema"]
    many, none = np.repeat(EMA, 40, axis=0), frechet(np.repeat(EMA, 40, axis=0), HELDOUT)
    for i in (0, 4, 8):
        moved = frechet(np.concatenate([many, EMA[i : i + 1]]), HELDOUT) - none
        assert moved * 361 == pytest.approx(rows.influence.to_numpy()[i], rel=0.1, abs=0.05), i
    assert np.ptp(rows.influence) > 1


def test_images_of_one_prompt_are_counted_together(tmp_path, monkeypatch):
    """The same images with prompts: of four that are copies three have the same one."""
    monkeypatch.chdir(tmp_path)
    write_experiment()
    prompts = [
        "b",
        "a",
        "a",
        "b",
        "a",
        "c",
        "b",
        "d",
        "e",
    ]  # the copies among the EMA images are 0, 3, 5, 6; image 4 is of a held-out one
    asked = [{"prompt_original": prompt, "train_key": KEYS[0]} for prompt in prompts]
    for part, lines in enumerate((asked[:5], asked[5:])):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        files.write_text(files.folder("samples", RUN, 1, part=part) / "generations.jsonl", text)
    score.main(["--arm", ARM, "--seed", str(SEED), "--round", "1"])
    row = results()[1].set_index(["weights", "protocol", "threshold"]).loc[("ema", "code_sq", 0.25)]
    of_prompts = np.array([-3.0, 3, 1, 0, 0])
    expected = intervals.sum_of_differences(of_prompts, 3 * 1, 3 * 3)
    assert (row["excess"], row["excess_low"], row["excess_high"]) == pytest.approx(expected)


def test_curves_have_every_protocol_and_threshold(scored):
    curves = scored[1]
    grid = [0.2, 0.25, 0.35, 0.4, 0.6, 0.8, 1.0]
    thresholds = dict.fromkeys(PROTOCOLS[:4], grid) | {"carlini": [1.0], "third": [1 / 3]}
    for weights, samples in SAMPLES.items():
        ratios, nearest = expected_ratios(samples, TRAIN)
        of_heldout = expected_ratios(HELDOUT, TRAIN)[0]
        for name, values in thresholds.items():
            rows = curves[(curves.weights == weights) & (curves.protocol == name)]
            assert rows.threshold.tolist() == values, name
            counted = [ratios[name] <= value for value in values]
            assert rows["count"].tolist() == [mask.sum() for mask in counted], name
            assert rows.distinct.tolist() == [len(set(nearest[mask])) for mask in counted], name
            assert rows.simplicity.tolist() == [(of_heldout[name] <= value).sum() * 9 / 8 for value in values], name
    assert curves["count"].nunique() > 5


def test_the_strict_protocols_leave_out_what_lies_on_the_threshold(tmp_path, monkeypatch):
    """Every ratio lies on the threshold exactly."""
    monkeypatch.chdir(tmp_path)
    write_experiment()
    monkeypatch.setattr(score, "thresholds_of", lambda protocol, settings: [0.25])
    monkeypatch.setattr(
        memorisation, "ratios", lambda distances, around: dict.fromkeys(PROTOCOLS, np.full(len(distances), 0.25))
    )
    score.main(["--arm", ARM, "--seed", str(SEED), "--round", "1"])
    curves = results()[1]
    strict = curves.protocol.isin(["code_sq", "third"])
    assert set(curves[strict]["count"]) == {0} and set(curves[~strict]["count"]) == {9}
    assert set(curves[strict].simplicity) == {0.0} and set(curves[~strict].simplicity) == {9.0}


def frechet(one, two):
    """Between the pixels in [0, 1], by scipy."""
    from scipy import linalg

    one, two = (images.reshape(len(images), -1) / 255 for images in (one, two))
    cov_one, cov_two = np.cov(one, rowvar=False), np.cov(two, rowvar=False)
    root = linalg.sqrtm(cov_one + 1e-12 * np.eye(24)) @ linalg.sqrtm(cov_two + 1e-12 * np.eye(24))
    cross = np.linalg.svd(root, compute_uv=False).sum()
    return np.sum((one.mean(0) - two.mean(0)) ** 2) + np.trace(cov_one) + np.trace(cov_two) - 2 * cross


def test_numbers_of_images_and_frechet_distances_of_both_sets(scored):
    scores = scored[2]
    numbers = {"num_images", "num_train", "num_heldout", "num_compared", "largest_hits", "fd_mean_image"}
    assert set(scores) == numbers | {"raw", "ema"}
    assert scores["num_compared"] == 11
    assert (scores["num_images"], scores["num_train"], scores["num_heldout"]) == (9, 11, 8)
    mean_image = np.tile(HELDOUT.reshape(8, -1).mean(axis=0), (9, 1))
    assert scores["fd_mean_image"] == pytest.approx(frechet(mean_image, HELDOUT), abs=1e-4)
    for weights, samples in SAMPLES.items():
        assert set(scores[weights]) == {"fd_pixels", "fd_pixels_heldout"}
        assert scores[weights]["fd_pixels"] == pytest.approx(frechet(samples, TRAIN), abs=1e-4)
        assert scores[weights]["fd_pixels_heldout"] == pytest.approx(frechet(samples, HELDOUT), abs=1e-4)


def test_the_gallery_has_each_leaked_image_once_beside_its_copy_with_the_headlines_weights(scored):
    """By the protocol of the headline. Two images are copies of training image 5: the nearer one is shown."""
    gallery = scored[3]
    ratios, nearest = expected_ratios(EMA, TRAIN)
    order = sorted(range(9), key=ratios["code_sq"].__getitem__)
    first_of_each = [image for i, image in enumerate(order) if nearest[image] not in nearest[order[:i]]][:4]
    assert first_of_each[:3] == [3, 5, 0] and set(gallery) == {"generated", "train", "image", "nearest_train", "ratio"}
    assert gallery["image"].tolist() == first_of_each
    assert gallery["nearest_train"].tolist() == [5, 0, 3, nearest[first_of_each[3]]]
    assert gallery["ratio"].tolist() == pytest.approx(ratios["code_sq"][first_of_each])
    assert np.array_equal(gallery["generated"], EMA[first_of_each])
    assert np.array_equal(gallery["train"], TRAIN[nearest[first_of_each]])


def test_without_held_out_images_what_rests_on_them_is_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment(HELDOUT[:0], HELDOUT_LABELS[:0])
    score.main(["--arm", ARM, "--seed", str(SEED), "--round", "1"])
    images, curves, scores, _ = results()
    assert not [name for name in images if name.startswith("heldout")]
    assert curves[["excess", "excess_low", "excess_high", "simplicity"]].isna().all(axis=None)
    assert curves[(curves.weights == "ema") & (curves.threshold == 0.25)]["count"].tolist()[0] == 4
    assert scores["num_heldout"] == scores["num_compared"] == 0 and [
        scores[w]["fd_pixels_heldout"] for w in ("raw", "ema")
    ] == [None, None]
    assert scores["fd_mean_image"] == pytest.approx(np.cov(TRAIN.reshape(11, -1) / 255, rowvar=False).trace())


def test_the_confidence_is_that_of_the_ratios_in_all_parts_and_among_the_held_out_images(scored):
    """By the protocol of the headline. The lowest ratio of the three parts is told as well."""
    matched = memorisation.matched_parts(TRAIN_LABELS, HELDOUT_LABELS, randomness.numpy_generator("reference", SEED))
    for weights, rows in scored[0].groupby("weights"):
        found = [(part, *expected_ratios(SAMPLES[weights], TRAIN[part], MATCHED_K)) for part in matched.parts]
        ratios = np.array([ratio["code_sq"] for _, ratio, _ in found])
        hits = np.array([np.where(TRAIN_LABELS[part[nearest]] == 0, 1, 1 / 3) for part, _, nearest in found])
        of_heldout, nearest = expected_ratios(SAMPLES[weights], HELDOUT[matched.heldout], MATCHED_K)
        heldout_hits = np.where(HELDOUT_LABELS[matched.heldout[nearest]] == 0, 3.0, 1.0)
        expected = confidence.of_copies(ratios, hits, of_heldout["code_sq"], heldout_hits)
        assert rows.matched_ratio.tolist() == pytest.approx(ratios.min(axis=0), abs=1e-12)
        assert rows.confidence.tolist() == pytest.approx(expected, abs=1e-9)
        assert rows.confidence.nunique() > 1
    assert not {"variant", "generated"} & set(scored[0])


def test_an_image_of_a_class_without_held_out_images_has_no_confidence(tmp_path, monkeypatch):
    """Training image 9 gets a class of its own; images 1 and 5 with raw weights are copies of it."""
    monkeypatch.chdir(tmp_path)
    write_experiment(train_labels=np.where(np.arange(11) == 9, 2, TRAIN_LABELS))
    score.main(["--arm", ARM, "--seed", str(SEED), "--round", "1"])
    rows = results()[0]
    rows = rows[rows.weights == "raw"]
    assert rows.image[rows.confidence.isna()].tolist() == rows.image[rows.nearest_train == 9].tolist() == [1, 5]


def test_with_variants_training_and_held_out_images_are_searched_alike(tmp_path, monkeypatch):
    """Every ratio by loops over the smallest distances, and so the count, the excess and the simplicity."""
    monkeypatch.chdir(tmp_path)
    samples = {weights: images.copy() for weights, images in SAMPLES.items()}
    samples["ema"][1], samples["ema"][2] = TRAIN[7][:, ::-1], HELDOUT[1][:, ::-1]
    monkeypatch.setitem(SAMPLES, "ema", samples["ema"])
    write_experiment()
    experiment = yaml.safe_load(Path("params.yaml").read_text())
    experiment["score"]["variants"] = True
    write_params(experiment)
    score.main(["--arm", ARM, "--seed", str(SEED), "--round", "1"])
    images, curves, _, _ = results()
    matched = memorisation.matched_parts(TRAIN_LABELS, HELDOUT_LABELS, randomness.numpy_generator("reference", SEED))
    in_variants = {"lengths_between": lengths_in_variants}
    for weights, rows in images.groupby("weights"):
        to_train, nearest = expected_ratios(samples[weights], TRAIN, **in_variants)
        to_heldout, _ = expected_ratios(samples[weights], HELDOUT[matched.heldout], MATCHED_K, **in_variants)
        assert rows.nearest_train.tolist() == nearest.tolist()
        for name in PROTOCOLS:
            assert rows[f"train_{name}"].tolist() == pytest.approx(to_train[name], abs=1e-9), name
            assert rows[f"heldout_{name}"].tolist() == pytest.approx(to_heldout[name], abs=1e-9), name
    ema = images[images.weights == "ema"].set_index("image")
    assert ema.variant[1] == "mirrored" and ema.nearest_train[1] == 7 and ema.train_l2_from_gen[1] == 0
    assert ema.heldout_l2_from_gen[2] == 0  # a mirrored copy of a held-out image counts by chance
    of_heldout = expected_ratios(HELDOUT, TRAIN, **in_variants)[0]["l2_from_gen"]
    row = curves[(curves.weights == "ema") & (curves.protocol == "l2_from_gen") & (curves.threshold == 0.35)].iloc[0]
    assert row.simplicity == (of_heldout <= 0.35).sum() * 9 / 8 and row["count"] >= 5


def test_the_self_test_finds_what_a_loop_finds(tmp_path, monkeypatch):
    """On smooth images, with the protocol and threshold of the headline; the same for every arm and seed."""
    monkeypatch.chdir(tmp_path)
    write_experiment()
    rng = np.random.default_rng(8)
    train = np.kron(rng.integers(0, 256, (60, 3, 3, 1)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    files.save_array(files.DATA / "train.npy", train)
    experiment = yaml.safe_load(Path("params.yaml").read_text())
    told = {}
    for with_variants in (False, True):
        experiment["score"]["variants"] = with_variants
        write_params(experiment)
        score.main(["--reference"])
        found = files.load_json(files.folder("results/score", "reference") / "self_test.json")
        fidelity = files.load_json(files.folder("results/score", "reference") / "fidelity.json")
        words = np.random.SeedSequence([32, 0]).generate_state(2, np.uint32)
        rng, heldout = np.random.default_rng(int(words[0]) | int(words[1]) << 32), np.load(files.DATA / "heldout.npy")
        order = [rng.permutation(len(heldout)) for _ in range(4)]
        num = len(heldout) // 2
        halves = [(heldout[np.sort(o[:num])], heldout[np.sort(o[num : 2 * num])]) for o in order]
        assert fidelity["num_half"] == num
        assert fidelity["distance"] == pytest.approx(np.mean([frechet(*both) for both in halves]))
        assert found["variants"] == with_variants
        told[with_variants] = {row.pop("alteration"): row for row in found["alterations"]}
    drawn = randomness.numpy_generator("reference", 0)
    chosen = np.sort(drawn.choice(60, 50, replace=False))
    for name, images in self_test.alterations(train[chosen], drawn):
        ratios, nearest = expected_ratios(images, train)
        found = int(((ratios["code_sq"] < 0.25) & (nearest == chosen)).sum())
        assert told[False][name] == {"planted": 50, "found": found}, name
        assert told[True][name]["found_as_is"] == found, name
    plain, in_variants = ({name: row["found"] for name, row in of.items()} for of in (told[False], told[True]))
    assert plain["unchanged"] == plain["noise of 8 grey levels"] == 50 and plain["mirrored"] < 5
    for name in ("mirrored", "shifted by 2 pixels", "60 % of the contrast", "darker by 40 grey levels"):
        assert in_variants[name] > 40 > plain[name] or plain[name] == 50, name


def test_images_of_a_folder_have_their_file_names(tmp_path, monkeypatch):
    """In the order in which they were read, which is that of their names; the first ones, where fewer are taken."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a/2.png", "a/10.png"):
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "given" / name)
    Image.fromarray(np.zeros((9, 2, 3), np.uint8)).save(tmp_path / "given/c.png")
    job = SimpleNamespace(recipe={"generator": {"folder": "given", "resize": True}})
    assert score._generated(job, 4) == ["a/10.png", "a/2.png", "b.png", "c.png"]
    assert score._generated(job, 2) == ["a/10.png", "a/2.png"]
    assert score._generated(job, 5) is None  # another folder than the one that was read
    for recipe in ({"generator": {"folder": "gone"}}, {"generator": {"file": "a.npy"}}, {}):
        assert score._generated(SimpleNamespace(recipe=recipe), 4) is None


def test_twins_of_training_and_of_held_out_images_change_no_count(scored, tmp_path, monkeypatch):
    """A copy of an image that is there five times has its twins as neighbours: by no ratio it would be far closer to one than to others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(score, "GALLERY_IMAGES", 4)
    twins = [9, 9, 9, 9, 2, 5]
    write_experiment(
        np.concatenate([HELDOUT, HELDOUT[[1, 1, 6]]]), np.append(HELDOUT_LABELS, HELDOUT_LABELS[[1, 1, 6]])
    )
    files.save_array(files.DATA / "train.npy", np.concatenate([TRAIN, TRAIN[twins]]))
    files.save_array(files.DATA / "train_labels.npy", np.append(TRAIN_LABELS, TRAIN_LABELS[twins]))
    keys = {"heldout": [f"other{i}.png" for i in range(11)], "train": KEYS + [f"twin{i}.png" for i in range(6)]}
    files.write_json(files.DATA / "keys.json", keys)
    score.main(["--arm", ARM, "--seed", str(SEED), "--round", "1"])
    images, curves, scores, gallery = results()
    heldout_once = ["simplicity"]  # of all held-out images, as before
    pd.testing.assert_frame_equal(curves.drop(columns=heldout_once), scored[1].drop(columns=heldout_once))
    of_pixels = ["influence"]  # a distance to all held-out images
    pd.testing.assert_frame_equal(images.drop(columns=of_pixels), scored[0].drop(columns=of_pixels))
    assert (scores["num_train"], scores["num_heldout"], scores["num_compared"]) == (17, 11, scored[2]["num_compared"])
    for name, array in scored[3].items():
        assert np.array_equal(gallery[name], array), name


def test_too_few_different_images_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_experiment()
    files.save_array(files.DATA / "train.npy", TRAIN[[0, 1, 2] * 4])
    with pytest.raises(
        ValueError, match=r"there are 3 different \(of 12 in all\) training images, fewer than score.neighbours = 4"
    ):
        score.main(["--arm", ARM, "--seed", str(SEED), "--round", "1"])
