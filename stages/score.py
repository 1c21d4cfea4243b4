"""Finds the nearest training images of every generated image and counts which are memorised.

params    score
reads     artifacts/data, artifacts/samples/<run>/part<p> of exactly the parts of the plan
writes    artifacts/results/score/<run>/
              images.parquet    one row per generated image and kind of weights: nearest training image, distances, ratios
              curves.parquet    per protocol and threshold: count, distinct, excess with its interval, simplicity
              scores.json       numbers of images, Frechet distance on pixels
              gallery.safetensors   the most memorised images beside their nearest training images
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages import experiments, randomness
from stages.measures import frechet, memorisation, neighbours
from stages.run import cli, device, files
from stages.run.instance import LIGHT_BYTES, ROW_BYTES, Instance
from stages.run.progress import Progress

# fmt: off
PHASE = {
    "name": "score",
    "per": "run",
    "arms": "all",
    "device": True,
    "final": True,
    "section": {
        "description": "how generated images are compared with training images and held-out images",
        "required": ["neighbours", "thresholds", "grid_step", "headline"],
        "properties": {
            "neighbours": {"description": "number of nearest training images that the ratio uses", "type": "integer", "minimum": 2},
            "thresholds": {"description": "an image counts as memorised if its ratio is at or below the threshold; one result per threshold", "type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}},
            "grid_step": {"description": "step between the thresholds of the curves", "type": "number", "minimum": 0.001, "maximum": 0.5},
            "headline": {"description": "the one number at the top of the report", "type": "object", "additionalProperties": False, "required": ["protocol", "threshold", "weights"], "properties": {"protocol": {"description": "protocol of the headline", "enum": ["code_sq", "l2_from_gen"]}, "threshold": {"description": "one of score.thresholds", "type": "number", "exclusiveMinimum": 0, "maximum": 1}, "weights": {"description": "one of sample.weights", "enum": ["raw", "ema"]}}},
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
        return scale.num_generated(self.arm) * ROW_BYTES + LIGHT_BYTES


def instances(experiment):
    return [Scores(block="score", arm=arm, seed=seed) for arm, seed in experiments.runs(experiment)]


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
    with experiments.stage(PHASE, __doc__, arguments, check) as job:
        settings = job.params["score"]
        job.device = device.claim(job.params["compute"])
        sample_settings = experiments.section(job.params, "sample", job.arm)
        references = References(job, settings)
        rows, curves, gallery = [], [], None
        scores = {"num_train": len(references.train), "num_heldout": len(references.heldout)}
        for weights in sample_settings["weights"]:
            samples = files.load_samples(job.run, sample_settings["parts"], weights)
            scores["num_images"] = len(samples)
            found = references.search(samples, f"score@{job.key} {weights}")
            rows.append(_image_rows(weights, found, references.keys))
            curves.append(_curves(weights, found, settings, references, len(samples)))
            scores[weights] = {
                "fd_pixels": frechet.fd_pixels(samples, references.train),
                "fd_pixels_heldout": frechet.fd_pixels(samples, references.heldout) if references.has_heldout else None,
            }
            if weights == settings["headline"]["weights"]:
                gallery = _gallery(samples, found, references.train, settings["headline"]["protocol"])
        with files.publish(files.folder("results/score", job.run)) as folder:
            folder.mkdir()
            files.save_table(folder / "images.parquet", pd.concat(rows, ignore_index=True))
            files.save_table(folder / "curves.parquet", pd.concat(curves, ignore_index=True))
            files.write_json(folder / "scores.json", scores)
            files.save_arrays(folder / "gallery.safetensors", gallery)


class References:
    """Training and held-out images, the class-matched pair of them for the excess, and the searches among them.

    The excess compares like with like: `matched_train` and `matched_heldout` have one size and class mix. Where the
    held-out set has enough images of every class, `matched_train` is the whole training set.
    """

    def __init__(self, job, settings):
        self.k = settings["neighbours"]
        self.device = job.device
        self.train = files.load_array(files.DATA / "train.npy", mmap=True)
        self.heldout = files.load_array(files.DATA / "heldout.npy", mmap=True)
        self.keys = np.array(files.load_json(files.DATA / "keys.json")["train"])
        if len(self.train) < self.k:
            raise ValueError(
                f"there are {len(self.train)} training images, fewer than score.neighbours = {self.k} (params.yaml)"
            )
        self.has_heldout = len(self.heldout) > 0
        if self.has_heldout:
            train_indices, heldout_indices = memorisation.class_matched(
                files.load_array(files.DATA / "train_labels.npy"),
                files.load_array(files.DATA / "heldout_labels.npy"),
                randomness.numpy_generator("reference", job.seed),
            )
            if len(heldout_indices) < self.k:
                raise ValueError(
                    f"only {len(heldout_indices)} held-out images match the classes of the training images, fewer than "
                    f"score.neighbours = {self.k}: hold out more (data.heldout_share, data.num_train) or lower it (params.yaml)"
                )
            self.whole_train = len(train_indices) == len(self.train)
            self.matched_train = self.train if self.whole_train else self.train[train_indices]
            self.matched_heldout = self.heldout[heldout_indices]
            self.simplicity_ratios = self._search(self.heldout, self.train, "held-out images")[2]

    def search(self, samples, what):
        """Distances and ratios of generated images against the training set and against the matched pair.

        Returns   dict: distances, indices [M,k] int64; train, and where there is a held-out set matched_train and heldout:
                  dict of protocol -> ratio [M] float64
        """
        distances, indices, train = self._search(samples, self.train, what)
        found = {"distances": distances, "indices": indices, "train": train}
        if self.has_heldout:
            found["heldout"] = self._search(samples, self.matched_heldout, f"{what}, held-out reference")[2]
            found["matched_train"] = (
                train
                if self.whole_train
                else self._search(samples, self.matched_train, f"{what}, matched training reference")[2]
            )
        return found

    def _search(self, queries, reference, what):
        progress = Progress(what, "images")
        distances, indices = neighbours.nearest(
            queries, reference, self.k, device=self.device, progress=progress.update
        )
        return distances, indices, memorisation.ratios(distances, neighbours.distances_from_nearest(reference, indices))


def _image_rows(weights, found, keys):
    nearest = found["indices"][:, 0]
    table = {
        "weights": weights,
        "image": np.arange(len(nearest)),
        "nearest_train": nearest,
        "nearest_key": keys[nearest],
        "d1": found["distances"][:, 0],
        "d2": found["distances"][:, 1],
    }
    table |= {f"train_{protocol}": ratio for protocol, ratio in found["train"].items()}
    table |= {f"heldout_{protocol}": ratio for protocol, ratio in found.get("heldout", {}).items()}
    return pd.DataFrame(table)


def thresholds_of(protocol, settings):
    """Thresholds that a protocol is reported at: those of params.yaml and a fine grid, or its own single one."""
    own = memorisation.PROTOCOLS[protocol].thresholds
    if len(own) == 1:
        return list(own)
    num_steps = round(1 / settings["grid_step"])
    grid = [round(i * settings["grid_step"], 6) for i in range(1, num_steps + 1)]
    return sorted(set(grid) | set(settings["thresholds"]))


def _curves(weights, found, settings, references, num_samples):
    rows = []
    for name, protocol in memorisation.PROTOCOLS.items():
        for threshold in thresholds_of(name, settings):
            memorised = memorisation.is_memorised(found["train"][name], threshold, protocol.strict)
            row = {
                "weights": weights,
                "protocol": name,
                "threshold": threshold,
                "count": int(memorised.sum()),
                "share": float(memorised.mean()),
                "distinct": memorisation.distinct(found["indices"][:, 0], memorised),
                **dict.fromkeys(("excess", "excess_low", "excess_high", "simplicity"), np.nan),
            }
            if references.has_heldout:
                excess = memorisation.excess(
                    memorisation.is_memorised(found["matched_train"][name], threshold, protocol.strict),
                    memorisation.is_memorised(found["heldout"][name], threshold, protocol.strict),
                )
                row |= dict(zip(("excess", "excess_low", "excess_high"), map(float, excess), strict=True))
                heldout = memorisation.is_memorised(references.simplicity_ratios[name], threshold, protocol.strict)
                row["simplicity"] = memorisation.simplicity(heldout, num_samples)
            rows.append(row)
    return pd.DataFrame(rows)


def _gallery(samples, found, train, protocol):
    """The most memorised images, one per training image, beside that training image."""
    ratio, nearest = found["train"][protocol], found["indices"][:, 0]
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
