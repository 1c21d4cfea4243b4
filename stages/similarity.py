"""Copy-detection similarity (SSCD) of an arm's generated images to the training images, and of the training images to each other.

    python -m stages.similarity --reference              the features of the training images
    python -m stages.similarity --arm ddpm --seed 0      the similarities of one run, which read that

params    compute, similarity
reads     artifacts/data; the weights sscd.weights
          for a run: artifacts/results/similarity/reference, artifacts/samples/<run>[/round<r>]/part<p> of exactly the parts of the plan
writes    artifacts/results/similarity/reference/
              network.pt             the checked weights, which every run uses: one network for both sides
              features.safetensors   [N,D] float32 unit features of the training images
              nearest.parquet        one row per training image: the most similar other training image
              scores.json            name and checksum of the weights, preprocessing, and the summary of the similarities
          artifacts/results/similarity/<run>[/round<r>]/
              nearest.parquet        one row per generated image and kind of weights: the most similar training image; where images
                                     have prompts, also the prompt, and the similarity to the training image that it belongs to
              scores.json            as above, the summary by kind of weights
              pictures.safetensors   where sscd.show_images asks for pictures: near-copies and first images, see `_pictures`
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import experiments
from stages.run import cli, device, files, weight_files
from stages.run.instance import LIGHT_BYTES, REFERENCE, ROW_BYTES, START_UP, Instance
from stages.run.progress import Progress

MOST_FEATURES = 1024  # values of an image's features: as many as the largest published network gives
# fmt: off
PHASE = {
    "name": "similarity",
    "per": "sampled",
    "reference": True,
    "arms": "all",
    "device": True,
    "final": True,
    "left_out": "the similarity phase (SSCD) is left out, as params.yaml names no weights of SSCD: add a section similarity with "
    "weights: FILE, preprocess: dcr and batch_size: 64",
    "section": {
        "description": "copy-detection similarity (SSCD) of generated images to training images; without weights the phase is left out",
        "dependentRequired": {"weights": ["preprocess", "batch_size"]},
        "properties": {
            "weights": {"description": "TorchScript file of SSCD, such as sscd_disc_large.torchscript.pt", "type": "string", "minLength": 1},
            "sha256": {"description": "checksum of the weights file in hexadecimal digits, in quotes", "type": "string", "minLength": 1},
            "preprocess": {"description": "how images are prepared for the network: dcr as for the published similarities, sscd as the authors of SSCD recommend", "enum": ["dcr", "sscd"]},
            "batch_size": {"description": "images per pass through the network; changes results in the last digits", "type": "integer", "minimum": 1},
            "show_images": {"description": "how many near-copies of each arm, and how many rows comparing the arms, the report shows beside training images (default 0: no pictures, keys only)", "type": "integer", "minimum": 0, "maximum": 1000},
        },
    },
    "columns": {
        "percentile_95": {
            "title": "Sim (95th percentile)",
            "meaning": "95th percentile of the similarity of each generated image to its nearest training image; 1 is a copy.",
            "show": "number",
            "short": "Sim",
            "digits": 3,
        },
        "mean": {"title": "mean", "meaning": "Mean of the same similarities.", "show": "number"},
        "percentile_75": {"title": "75th percentile", "meaning": "75th percentile of the same similarities.", "show": "number"},
        "percentile_90": {"title": "90th percentile", "meaning": "90th percentile of the same similarities.", "show": "number"},
        "share_above": {
            "title": "share above 0.5",
            "meaning": "Share of the generated images with a similarity above 0.5.",
            "show": "number",
        },
        "own_mean": {
            "title": "mean to own training image",
            "meaning": "Mean similarity to the training image whose caption was the prompt.",
            "show": "number",
        },
    },
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Similarities(Instance):
    """network   of the reference: the file of the weights"""

    network: str | None = None

    writes = ("results/similarity",)

    def size(self, scale):
        settings = scale.experiment["similarity"]
        if self.arm is None:
            return os.path.getsize(settings["weights"]) + scale.num_train * (4 * MOST_FEATURES + ROW_BYTES)
        pictures = 4 * settings.get("show_images", 0) * scale.values
        kinds = len(experiments.section(scale.experiment, "sample", self.arm)["weights"])
        return scale.num_generated(self.arm) * ROW_BYTES + kinds * pictures + LIGHT_BYTES

    def work(self, scale):
        return START_UP if self.arm is not None else scale.num_train + START_UP


def instances(experiment):
    if not wanted(experiment):
        return []
    return [
        Similarities(block="similarity_reference", network=experiment["similarity"]["weights"]),
        *(Similarities(block="similarity", **place) for place in experiments.sampled(experiment)),
    ]


def wanted(experiment):
    """Whether there is a similarity phase: its section names a file of weights."""
    return "weights" in experiment.get("similarity", {})


def check_files(experiment):
    """Raises ValueError if the file of weights is not there, or another one."""
    if wanted(experiment):
        weight_files.check(
            "similarity", experiment["similarity"], "put the SSCD weights there, or mend similarity.weights"
        )


def shows_pictures(experiment):
    """Whether the report may show training images of an experiment with captions, or of this phase: keys only, unless asked for."""
    return wanted(experiment) and experiment["similarity"].get("show_images", 0) > 0


def main(arguments):
    experiments.stage_with_reference(PHASE, __doc__, arguments, reference, measure)


def reference(job):
    _check_wanted(job)
    check_files(job.params)
    job.device = device.claim(job.params["compute"])
    import pandas as pd

    from stages.measures import sscd

    settings = job.params["similarity"]
    path = Path(settings["weights"])
    train = files.load_array(files.DATA / "train.npy", mmap=True)
    keys = np.array(files.load_json(files.DATA / "keys.json")["train"])
    features = _features(job, sscd.load(path), train, "training images")
    found, nearest = sscd.nearest_other(features, job.params["compute"]["threads"])
    rows = {"index": np.arange(len(keys)), "key": keys, "similarity": found, "nearest_train": nearest}
    with files.publish(files.folder("results/similarity", REFERENCE)) as folder:
        folder.mkdir()
        shutil.copyfile(path, folder / "network.pt")
        files.save_arrays(folder / "features.safetensors", {"features": features})
        pd.DataFrame(rows | {"nearest_key": keys[nearest]}).to_parquet(folder / "nearest.parquet", index=False)
        files.write_json(folder / "scores.json", _used(path, settings) | {"train": sscd.summary(found, interval=False)})


def measure(job):
    _check_wanted(job)
    job.device = device.claim(job.params["compute"])
    import pandas as pd

    from stages.measures import sscd

    folder = files.folder("results/similarity", REFERENCE)
    scores = files.load_json(folder / "scores.json")
    del scores["train"]
    train = files.load_arrays(folder / "features.safetensors")["features"]
    keys = files.load_table(folder / "nearest.parquet", ["key"])["key"].to_numpy()
    network = sscd.load(folder / "network.pt").to(job.device)
    sampled = experiments.section(job.params, "sample", job.arm)
    asked = files.load_generations(job.run, job.round, sampled["parts"])
    own, prompts = _own(asked, keys), files.prompt_numbers(asked)
    rows, pictures = [], {}
    for weights in sampled["weights"]:
        images = files.load_samples(job.run, job.round, sampled["parts"], weights)
        features = _features(job, network, images, weights)
        found, nearest = sscd.nearest(features, train, job.params["compute"]["threads"])
        scores[weights] = sscd.summary(found, prompts)
        table = {"weights": weights, "image": np.arange(len(images)), "similarity": found, "nearest_train": nearest}
        table["nearest_key"] = keys[nearest]
        if own is not None:
            products = np.einsum("md,md->m", features, train[own])
            table |= {
                "own_train": own,
                "own_similarity": products,
                "prompt": [line["prompt_original"] for line in asked],
            }
        rows.append(pd.DataFrame(table))
        shown = _pictures(job, images, found, nearest, own)
        pictures |= {f"{weights}.{name}": array for name, array in shown.items()}
    with files.publish(files.folder("results/similarity", job.run, job.round)) as folder:
        folder.mkdir()
        pd.concat(rows, ignore_index=True).to_parquet(folder / "nearest.parquet", index=False)
        files.write_json(folder / "scores.json", scores)
        if pictures:
            files.save_arrays(folder / "pictures.safetensors", pictures)


def _check_wanted(job):
    if not wanted(job.params):
        raise ValueError(PHASE["left_out"])


def _used(path, settings):
    return {"weights": path.name, "sha256": weight_files.sha256(path), "preprocess": settings["preprocess"]}


def _features(job, network, images, what):
    from stages.measures import sscd

    settings = job.params["similarity"]
    progress = Progress(f"similarity@{job.key} {what}", "images").update
    network.to(job.device)
    return sscd.features(network, images, settings["preprocess"], settings["batch_size"], progress)


def _own(asked, keys):
    """The training image that each prompt belongs to: [M] int64; None where there are no prompts, or one text for all images."""
    if asked is None or asked[0]["train_key"] is None:
        return None
    index = {key: i for i, key in enumerate(keys)}
    return np.array([index[line["train_key"]] for line in asked], np.int64)


def _pictures(job, images, similarity, nearest, own):
    """Pictures for the report, as many of each kind as sscd.show_images says; none by default, as they show training images.

    Returns   dict: copies, originals [n,H,W,C] uint8, the most similar images and their training images, each training image once;
              copy_image, copy_train [n] int64, copy_similarity [n] float32;
              first, first_originals [m,H,W,C] uint8, the first image of each of the first prompts, and the training images of these;
              without prompts (own is None) the first images, and the training images that they are most similar to
              first_image [m] int64, their numbers
    """
    if not (number := job.params["similarity"].get("show_images", 0)):
        return {}
    train = files.load_array(files.DATA / "train.npy", mmap=True)
    order = np.argsort(-similarity, kind="stable")
    chosen = order[np.sort(np.unique(nearest[order], return_index=True)[1])][:number]
    first = np.arange(len(images)) if own is None else np.sort(np.unique(own, return_index=True)[1])
    first = first[:number]
    return {
        "copies": images[chosen],
        "originals": train[nearest[chosen]],
        "copy_image": chosen,
        "copy_train": nearest[chosen],
        "copy_similarity": similarity[chosen],
        "first": images[first],
        "first_originals": train[(nearest if own is None else own)[first]],
        "first_image": first,
    }


if __name__ == "__main__":
    cli.run(main)
