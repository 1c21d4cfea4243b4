"""Finds the nearest training images of every generated image and counts which are memorised.

    python -m stages.score --reference                      tries on altered training images what the search can find
    python -m stages.score --arm ddpm --seed 0 --round 2    scores the images of one round

params    score
reads     artifacts/data, artifacts/samples/<run>[/round<r>]/part<p> of exactly the parts of the plan; where images have prompts, these as well
writes    artifacts/results/score/reference/
              self_test.json    by alteration of training images how many were planted and found; see stages.measures.self_test
              fidelity.json     num_half, distance: of two halves of the held-out images, see frechet.distance_of_halves; {} of fewer than four
          artifacts/results/score/<run>[/round<r>]/
              images.parquet    one row per generated image and kind of weights: nearest training image, distances, ratios; with held-out
                                images also what it contributes to the headline's excess, its influence on fd_pixels_heldout, its lowest
                                ratio among as many training images as there are held-out ones (matched_ratio), and the confidence that it
                                is a copy (stages.measures.confidence; NaN if no held-out image has the class of its training image).
                                variant: with score.variants, the one in which it is nearest (stages.measures.variants)
                                generated: its file, where it comes from a folder
              curves.parquet    per protocol and threshold: count, distinct, excess with its interval, simplicity
              scores.json       numbers of images, Frechet distance on pixels, and fd_mean_image, which it would be if all images were the mean of
                                the held-out (or, without, the training) images; num_compared: the training images that the excess is of
              gallery.safetensors   the most memorised images beside their nearest training images
"""

import functools
import importlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages import experiments, randomness
from stages.measures import confidence, duplicates, frechet, memorisation, self_test
from stages.run import cli, device, files
from stages.run.instance import LIGHT_BYTES, REFERENCE, ROW_BYTES, Instance
from stages.run.progress import Progress

# fmt: off
PHASE = {
    "name": "score",
    "per": "sampled",
    "reference": True,
    "arms": "all",
    "device": True,
    "final": True,
    "section": {
        "description": "how generated images are compared with training images and held-out images",
        "required": ["headline"],
        "properties": {
            "neighbours": {"description": "number of nearest training images that the ratio uses", "default": 50, "type": "integer", "minimum": 2},
            "thresholds": {"description": "an image counts as memorised if its ratio is at or below the threshold; one result per threshold", "default": [0.4, 0.5, 0.6], "type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}},
            "grid_step": {"description": "step between the thresholds of the curves", "default": 0.02, "type": "number", "minimum": 0.001, "maximum": 0.5},
            "variants": {"description": "true: images are also compared mirrored, shifted by up to 2 pixels, cropped by up to 2 and with brightness and contrast fitted, which finds altered copies and takes 29 times as many searches; no ratio is then that of a published protocol (default: false)", "type": "boolean"},
            "headline": {"description": "the one number at the top of the report", "type": "object", "additionalProperties": False, "required": ["weights"], "properties": {"protocol": {"description": "protocol of the headline", "default": "l2_from_gen", "enum": ["code_sq", "l2_from_gen"]}, "threshold": {"description": "one of score.thresholds", "default": 0.5, "type": "number", "exclusiveMinimum": 0, "maximum": 1}, "weights": {"description": "one of sample.weights", "enum": ["raw", "ema"]}}},
        },
    },
    "columns": {
        "fd_pixels": {
            "title": "fd_pixels",
            "meaning": "Fréchet distance between the pixels of generated and training images; lower is more faithful. An "
            "undertrained model has a low MQ as well, so read the two together.",
            "show": "number",
            "short": "fd_pixels",
        },
        "fd_pixels_heldout": {
            "title": "fd_pixels held out",
            "meaning": "The same distance, to the held-out images instead.",
            "show": "number",
        },
    },
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Scores(Instance):
    writes = ("results/score",)

    def size(self, scale):
        if self.arm is None:
            return LIGHT_BYTES
        return scale.num_generated(self.arm) * ROW_BYTES + LIGHT_BYTES


def instances(experiment):
    return [
        Scores(block="score_reference"),
        *(Scores(block="score", **place) for place in experiments.sampled(experiment)),
    ]


def check(experiment):
    """Raises ValueError if the headline is of a threshold or of weights that are not measured."""
    headline, thresholds = experiment["score"]["headline"], experiment["score"]["thresholds"]
    if headline["threshold"] not in thresholds:
        raise ValueError(
            f"score.headline.threshold is {headline['threshold']}, expected one of score.thresholds {thresholds}"
        )
    for arm in experiment["arms"]:
        weights = experiments.section(experiment, "sample", arm)["weights"]
        if headline["weights"] in weights:
            continue
        if experiments.maker(experiment, arm) is None:
            raise ValueError(
                f"score.headline.weights is {headline['weights']}, but {arm} is a generator from elsewhere, which has raw weights "
                "only: set it to raw"
            )
        raise ValueError(f"score.headline.weights is {headline['weights']}, but sample.weights of {arm} is {weights}")


def check_sizes(experiment, num_train):
    """Raises ValueError if a ratio is taken over more neighbours than there are training images."""
    if num_train < (neighbours := experiment["score"]["neighbours"]):
        raise ValueError(f"score.neighbours is {neighbours}, more than the {num_train} training images")


GALLERY_IMAGES = 24


def main(arguments):
    experiments.stage_with_reference(PHASE, __doc__, arguments, reference, measure, check)


def reference(job):
    settings = job.params["score"]
    job.device = device.claim(job.params["compute"])
    with files.publish(files.folder("results/score", REFERENCE)) as folder:
        files.write_json(folder / "self_test.json", _self_test(job, settings))
        files.write_json(folder / "fidelity.json", _halves())


def _halves():
    """How far apart two halves of the held-out images are by chance: dict num_half, distance; {} where there are fewer than four."""
    heldout = files.load_array(files.DATA / "heldout.npy", mmap=True)
    if len(heldout) < 4:
        return {}
    num, distance = frechet.distance_of_halves(heldout, randomness.numpy_generator("halves", 0))
    return {"num_half": num, "distance": distance}


def measure(job):
    settings = job.params["score"]
    job.device = device.claim(job.params["compute"])
    sample_settings = experiments.section(job.params, "sample", job.arm)
    references = References(job, settings)
    prompts = files.prompt_numbers(files.load_generations(job.run, job.round, sample_settings["parts"]))
    rows, curves, gallery = [], [], None
    scores = {"num_train": len(references.train), "num_heldout": len(references.heldout)}
    scores["num_compared"] = references.matched.num_train if references.has_heldout else 0
    of_images = references.heldout if references.has_heldout else references.train
    scores["fd_mean_image"] = frechet.fd_of_mean_image(of_images)
    scores["largest_hits"] = references.largest_hits if references.has_heldout else None
    for weights in sample_settings["weights"]:
        samples, what = (
            files.load_samples(job.run, job.round, sample_settings["parts"], weights),
            f"score@{job.key} {weights}",
        )
        scores["num_images"] = len(samples)
        train, in_parts = references.nearest_train(samples, what)
        heldout, excess, more = None, {}, {}
        if references.variants:
            from stages.measures import variants

            more["variant"] = variants.found_in(samples, references.train, train.index)
        if references.has_heldout:
            heldout = references.nearest_heldout(samples, what)
            excess, columns = _excess(train, in_parts, heldout, settings, references, prompts)
            more |= columns | {"influence": frechet.influences(samples, references.heldout)}
        if prompts is not None:
            more["prompt"] = prompts
        if (names := _generated(job, len(samples))) is not None:
            more["generated"] = names
        rows.append(_image_rows(weights, train, heldout, references.keys, more))
        curves.append(_curves(weights, train, excess, settings, references))
        scores[weights] = {
            "fd_pixels": frechet.fd_pixels(samples, references.train),
            "fd_pixels_heldout": frechet.fd_pixels(samples, references.heldout) if references.has_heldout else None,
        }
        if weights == settings["headline"]["weights"]:
            gallery = _gallery(samples, train, references.train, settings["headline"]["protocol"])
    with files.publish(files.folder("results/score", job.run, job.round)) as folder:
        folder.mkdir()
        files.save_table(folder / "images.parquet", pd.concat(rows, ignore_index=True))
        files.save_table(folder / "curves.parquet", pd.concat(curves, ignore_index=True))
        files.write_json(folder / "scores.json", scores)
        files.save_arrays(folder / "gallery.safetensors", gallery)


def _self_test(job, settings):
    """What is found of training images that are altered and planted, with the settings of the headline.

    Returns   dict: variants, whether the search was in variants as well; alterations, a list of dicts with alteration (in words), planted,
              found, and with variants also found_as_is, how many are found without
    """
    train, first = load_train(settings)
    train, headline = train[first], settings["headline"]
    # Keyed as the parts that match held-out images, which it has nothing to do with: a purpose of its own in stages/randomness.py would
    # make every model that was ever trained stale.
    rng = randomness.numpy_generator("reference", 0)
    chosen = np.sort(rng.choice(len(train), min(self_test.PLANTED, len(train)), replace=False))
    altered = dict(self_test.alterations(train[chosen], rng))
    queries, planted = np.concatenate(list(altered.values())), np.tile(chosen, len(altered))
    with_variants = settings.get("variants", False)
    rows = [{"alteration": name, "planted": len(chosen)} for name in altered]
    for column, variants in {"found": with_variants, **({"found_as_is": False} if with_variants else {})}.items():
        everywhere = [(np.arange(len(train)), settings["neighbours"])]
        (nearest,) = search(queries, train, everywhere, variants, job.device, f"score@{job.key} altered images")
        counted = is_copy(nearest, headline["protocol"], headline["threshold"])
        found = self_test.found(train, planted, nearest.index, counted).reshape(len(altered), -1).sum(axis=1)
        for row, number in zip(rows, found, strict=True):
            row[column] = int(number)
    return {"variants": with_variants, "alterations": rows}


def load_train(settings):
    """The training images, and which of them are searched: of images that are equal the first one. Otherwise a copied image's own twins would be the
    neighbours that its ratio is taken over, and a copy of it would not count.

    Returns   train   [N,H,W,C] uint8, memory-mapped
              first   [D] int64: positions, ascending
    Raises    ValueError: there are fewer such images than score.neighbours
    """
    train = files.load_array(files.DATA / "train.npy", mmap=True)
    first = duplicates.first_of_each(train)
    if len(first) < settings["neighbours"]:
        equal = f" different (of {len(train)} in all)" if len(first) < len(train) else ""
        raise ValueError(
            f"there are {len(first)}{equal} training images, fewer than score.neighbours = {settings['neighbours']} (params.yaml)"
        )
    return train, first


def search(queries, reference, parts, variants, on, what):
    """The Nearest of each image in each of several parts of the reference images, one after another.

    parts       list of (positions among the reference images, [n] int64 ascending; number of neighbours k)
    variants    whether they are searched in all variants (stages.measures.variants)
    on          device
    what        name for the progress that is shown
    """
    from stages.measures import neighbours  # imports torch, which whoever only reads PHASE does not need

    versions = neighbours.AS_IT_IS
    if variants:
        from stages.measures import variants as in_variants

        versions = in_variants.versions(reference.shape[1:])
        what = f"{what}, {len(versions)} variants"
    progress = Progress(what, "images").update
    found = neighbours.nearest_in_parts(queries, reference, parts, device=on, progress=progress, versions=versions)
    for distances, indices in found:
        ratios = memorisation.ratios(distances, neighbours.distances_from_nearest(reference, indices))
        yield Nearest(distances[:, :2], indices[:, 0], ratios)


def is_copy(nearest, protocol, threshold):
    """Which images of a Nearest count as copies: [M] bool."""
    return memorisation.is_memorised(nearest.ratios[protocol], threshold, memorisation.PROTOCOLS[protocol].strict)


def _generated(job, num_images):
    """The file that each generated image comes from, as its path in the folder of a generator from elsewhere; None for all others."""
    generator = job.recipe.get("generator", {})
    if "folder" not in generator:
        return None
    elsewhere = importlib.import_module("stages.image_sets.elsewhere")
    names = elsewhere.names(generator, Progress)
    return None if names is None or len(names) < num_images else names[:num_images]


class References:
    """Training and held-out images, the matched parts of them for the excess, and the searches among them."""

    def __init__(self, job, settings):
        self.k = settings["neighbours"]
        self.device = job.device
        self.variants = settings.get("variants", False)
        self.train, self.first = load_train(settings)
        self.whole = (self.first, self.k)
        self.heldout = files.load_array(files.DATA / "heldout.npy", mmap=True)
        self.keys = np.array(files.load_json(files.DATA / "keys.json")["train"])
        self.has_heldout = len(self.heldout) > 0
        if self.has_heldout:
            first_heldout = duplicates.first_of_each(self.heldout)
            self.matched = memorisation.matched_parts(
                files.load_array(files.DATA / "train_labels.npy")[self.first],
                files.load_array(files.DATA / "heldout_labels.npy")[first_heldout],
                randomness.numpy_generator("reference", job.seed),
            )
            if self.matched is None:
                raise ValueError(
                    "only 1 held-out image matches the classes of the training images, expected 2 at least: hold out more "
                    "(data.heldout_share, data.num_train in params.yaml)"
                )
            self.matched = self.matched.among(self.first, len(self.train), first_heldout, len(self.heldout))
            self.matched_k = self.matched.neighbours(self.k)
            self.largest_hits = [float(self.matched.weight_train.max()), float(self.matched.weight_heldout.max())]
            (self.heldout_in_train,) = self._search(self.heldout, self.train, [self.whole], "held-out images")

    def nearest_train(self, samples, what):
        """The Nearest of each generated image in the training set; and in each matched part of it, a list, without held-out images None."""
        if not self.has_heldout:
            return *self._search(samples, self.train, [self.whole], what), None
        parts = [(part, self.matched_k) for part in self.matched.parts]
        if len(parts) == 1 and len(parts[0][0]) == len(self.first):
            (whole,) = self._search(samples, self.train, [self.whole], what)
            return whole, [whole]
        whole, *in_parts = self._search(samples, self.train, [self.whole, *parts], what)
        return whole, in_parts

    def nearest_heldout(self, samples, what):
        """The Nearest of each generated image in the matched held-out images."""
        part = (self.matched.heldout, self.matched_k)
        (found,) = self._search(samples, self.heldout, [part], f"{what}, held-out images")
        return found

    def _search(self, queries, reference, parts, what):
        return search(queries, reference, parts, self.variants, self.device, what)


class Nearest(NamedTuple):
    """The nearest of some reference images, of M images.

    distances   [M,2] int64: squared distances to the two nearest
    index       [M] int64: position of the nearest in the training set, or in the held-out set
    ratios      dict protocol -> [M] float64
    """

    distances: np.ndarray
    index: np.ndarray
    ratios: dict


def _image_rows(weights, train, heldout, keys, more):
    """One row per generated image: its Nearest in the training set, and in the held-out images or None; and more columns."""
    table = {
        "weights": weights,
        "image": np.arange(len(train.index)),
        "nearest_train": train.index,
        "nearest_key": keys[train.index],
        "d1": train.distances[:, 0],
        "d2": train.distances[:, 1],
    }
    table |= {f"train_{protocol}": ratio for protocol, ratio in train.ratios.items()}
    if heldout is not None:
        table |= {f"heldout_{protocol}": ratio for protocol, ratio in heldout.ratios.items()}
    return pd.DataFrame(table | more)


def thresholds_of(protocol, settings):
    """Thresholds that a protocol is reported at: those of params.yaml and a fine grid, or its own single one."""
    own = memorisation.PROTOCOLS[protocol].thresholds
    if len(own) == 1:
        return list(own)
    num_steps = round(1 / settings["grid_step"])
    grid = [round(i * settings["grid_step"], 6) for i in range(1, num_steps + 1)]
    return sorted(set(grid) | set(settings["thresholds"]))


def _curves(weights, train, excess, settings, references):
    """One row per protocol and threshold.

    train    Nearest in the training set of each generated image
    excess   dict (protocol, threshold) -> excess with its interval; empty without held-out images
    """
    rows, unknown = [], (np.nan,) * 3
    for name, threshold, memorised in _counting(settings):
        counted = memorised(train)
        row = {
            "weights": weights,
            "protocol": name,
            "threshold": threshold,
            "count": int(counted.sum()),
            "share": float(counted.mean()),
            "distinct": memorisation.distinct(train.index, counted),
        }
        row |= dict(zip(("excess", "excess_low", "excess_high"), excess.get((name, threshold), unknown), strict=True))
        row["simplicity"] = np.nan
        if references.has_heldout:
            row["simplicity"] = memorisation.simplicity(memorised(references.heldout_in_train), len(counted))
        rows.append(row)
    return pd.DataFrame(rows)


def _excess(train, parts, heldout, settings, references, prompts):
    """The excess by (protocol, threshold), see memorisation.excess, which takes `prompts` as its groups; and columns of images.parquet:
    excess, what each image contributes to that of the headline; matched_ratio and confidence, by the headline's protocol.

    train     Nearest of each generated image in the training set
    parts     list of its Nearest in each matched part of it
    heldout   Nearest in the matched held-out images
    """
    matched, headline = references.matched, settings["headline"]
    in_parts = {(name, threshold): np.zeros(len(train.index)) for name, threshold, _ in _counting(settings)}
    ratios, weights = [], []
    for part in parts:
        ratios.append(part.ratios[headline["protocol"]])
        weights.append(matched.weight_train[part.index])
        for name, threshold, memorised in _counting(settings):
            in_parts[name, threshold] += memorised(part) * weights[-1]
    ratios = np.stack(ratios)
    found, more = {}, {"matched_ratio": ratios.min(axis=0)}
    more["confidence"] = confidence.of_copies(
        ratios, np.stack(weights), heldout.ratios[headline["protocol"]], matched.weight_heldout[heldout.index]
    )
    more["confidence"][matched.weight_train[train.index] == 0] = np.nan  # its training image was in no part
    for name, threshold, memorised in _counting(settings):
        in_heldout = memorised(heldout) * matched.weight_heldout[heldout.index]
        found[name, threshold] = memorisation.excess(
            in_parts[name, threshold], in_heldout, references.largest_hits, prompts
        )
        if (name, threshold) == (headline["protocol"], headline["threshold"]):
            more["excess"] = in_parts[name, threshold] - in_heldout
    return found, more


def _counting(settings):
    """Each protocol and threshold, with a function from Nearest to which of its images count as memorised."""
    for name in memorisation.PROTOCOLS:
        for threshold in thresholds_of(name, settings):
            yield name, threshold, functools.partial(is_copy, protocol=name, threshold=threshold)


def _gallery(samples, found, train, protocol):
    """The most memorised images, one per training image, beside that training image; `found` is their Nearest in the training set."""
    ratio, nearest = found.ratios[protocol], found.index
    order = np.argsort(ratio, kind="stable")
    first_of_each = order[np.sort(np.unique(nearest[order], return_index=True)[1])][:GALLERY_IMAGES]
    return {
        "generated": samples[first_of_each],
        "train": train[nearest[first_of_each]],
        "image": first_of_each.astype(np.int64),
        "nearest_train": nearest[first_of_each],
        "ratio": ratio[first_of_each],
    }


if __name__ == "__main__":
    cli.run(main)
