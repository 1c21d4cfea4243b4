"""Membership inference: how well one can tell from a model which images it was trained on, with four attacks.

    python -m stages.membership --reference                     of the untrained network: whether the images alone can be told apart
    python -m stages.membership --arm ddpm --seed 0 --round 4   of the model after a round

params    model, diffusion, compute, membership, score.headline, arms.<arm>.train, arms.<arm>.method
reads     artifacts/data, artifacts/model/<run>/round<r>; of a saved pipeline its folder in the place of the model
writes    artifacts/results/membership/<run>[/round<r>]/
              scores.json      by kind of weights (the headline's; untrained for the reference): number of training images looked at, and
                               of the best attack and of each the area under the ROC curve and the shares found, with intervals, and
                               what was chosen; or {"absent": why there is nothing}
              images.parquet   one row per image: member, index, half, score and contribution (measures.membership.Judged), and every
                               statistic at every timestep, such as sima_50
All arms, seeds and rounds are shown the same images.
"""

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import experiments, models, randomness
from stages.run import cli, device, files
from stages.run.instance import LIGHT_BYTES, REFERENCE, ROW_BYTES, START_UP, Instance
from stages.run.progress import Progress

# fmt: off
PHASE = {
    "name": "membership",
    "per": "sampled",
    "reference": True,
    "arms": "all",
    "device": True,
    "final": True,
    "title": "Membership",
    "left_out": "membership inference is left out: add a section membership with num_images: 1000",
    "left_out_told": "always",
    "section": {
        "description": "tries to tell from each model which images it was trained on; without num_images the phase is left out",
        "properties": {
            "num_images": {"description": "training images that are looked at, at most, and as many held-out images of the same classes", "type": "integer", "minimum": 4},
            "noise_draws": {"description": "number of noise draws over which the loss of an image is averaged at each timestep", "default": 3, "type": "integer", "minimum": 1},
            "timesteps": {"description": "timesteps looked at, as shares of diffusion.num_timesteps; the best is chosen on one half of the images and judged on the other", "default": [0.02, 0.05, 0.1, 0.2], "type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.9}},
            "batch_size": {"description": "images per pass through the network", "default": 128, "type": "integer", "minimum": 1},
        },
    },
    "columns": {
        "auc": {
            "title": "membership AUC",
            "meaning": "How well the best attack tells training images from held-out ones: 0.5 is no better than chance, 1 is certainty. It "
            "is the attack and timestep that does best on one half of the images, judged on the other.",
            "show": "number",
            "short": "MIA",
            "digits": 2,
        },
        "found_at_1_percent": {
            "title": "found at 1 % false",
            "meaning": "Share of the training images (%) that the best attack finds while it takes at most 1 % of the held-out ones for "
            "training images.",
            "show": "percent",
        },
        "found_at_01_percent": {
            "title": "found at 0.1 % false",
            "meaning": "The same at 0.1 %. There is none with fewer than 1,000 held-out images in each half.",
            "show": "percent",
        },
        "auc_loss": {
            "title": "AUC, loss",
            "meaning": "Attack by the loss: the squared error of the predicted noise, a mean over noise draws that all images share.",
            "show": "number",
        },
        "auc_pia": {
            "title": "AUC, PIA",
            "meaning": "Attack of Kong et al. 2023: how far the noise predicted for a noised image is from the one it was noised with, which "
            "is that predicted for the image itself at t = 0.",
            "show": "number",
        },
        "auc_secmi": {
            "title": "AUC, SecMI",
            "meaning": "Attack of Duan et al. 2023: the error of one deterministic step towards noise and back.",
            "show": "number",
        },
        "auc_sima": {
            "title": "AUC, SimA",
            "meaning": "Attack of arXiv 2509.25003: the size of the noise that the network predicts for the image itself.",
            "show": "number",
        },
    },
}
# fmt: on
UNTRAINED = "untrained"  # in the place of the kind of weights, for the reference


@dataclass(frozen=True, kw_only=True)
class Membership(Instance):
    """source   of a saved pipeline: its folder; the others as of a part of the samples, without a model for the reference"""

    model: str | None = None
    method: str | None = None
    kind: str | None = None
    architecture: str | None = None
    source: str | None = None

    writes = ("results/membership",)

    def size(self, scale):
        return 2 * scale.experiment["membership"]["num_images"] * ROW_BYTES + LIGHT_BYTES

    def work(self, scale):
        settings = scale.experiment["membership"]
        passes = len(settings["timesteps"]) * (settings["noise_draws"] + 2) + 100 * max(settings["timesteps"]) + 2
        num_images = 2 * min(settings["num_images"], scale.num_train)
        return int(num_images * passes / 3) + START_UP  # a forward pass is a third of a training pass


def instances(experiment):
    if not wanted(experiment):
        return []
    found, trained = [], experiments.trained(experiment)
    if trained:
        control = experiments.final_model(experiment, *_control(experiment))
        del control["model"]
        found.append(Membership(block="membership_reference", **control))
    for place in experiments.sampled(experiment, arms(experiment)):
        if place["arm"] in trained:
            model = experiments.model_of_round(experiment, place["arm"], place["seed"], place["round"])
            found.append(Membership(block="membership", **place, **model))
        else:
            source = experiments.source_of(experiment["arms"][place["arm"]]["generator"])
            found.append(Membership(block="membership_elsewhere", **place, source=source))
    return found


def wanted(experiment):
    """Whether there is such a phase: its section says how many images to look at."""
    return "num_images" in experiment.get("membership", {})


def arms(experiment):
    """The arms whose model is at hand: those that are trained here, and saved pipelines. One that samples another arm's model has none of
    its own."""
    recipes = experiment["arms"].items()
    return [arm for arm, recipe in recipes if "pipeline" in recipe.get("generator", {"pipeline": None})]


def check(experiment):
    """Raises ValueError if no timestep leaves room for a further step."""
    if wanted(experiment) and experiment["diffusion"]:
        num_timesteps = experiment["diffusion"]["num_timesteps"]
        if num_timesteps < 4:
            raise ValueError(
                f"diffusion.num_timesteps is {num_timesteps}, expected at least 4 for membership inference: leave the section "
                "membership out"
            )


def main(arguments):
    experiments.stage_with_reference(PHASE, __doc__, arguments, reference, measure, check)


def _control(experiment):
    """The arm and seed whose untrained network is looked at: the first that predicts the noise. All start from the same weights."""
    arms_ = list(experiments.trained(experiment))
    return next((arm for arm in arms_ if experiments.predicts_noise(experiment, arm)), arms_[0]), experiment["seeds"][0]


def reference(job):
    _start(job)
    if not experiments.trained(job.params):
        raise ValueError("no arm is trained here, so there is no untrained network to look at (params.yaml, arms)")
    job.arm, job.seed = _control(job.params)
    _write(files.folder("results/membership", REFERENCE), *_of_arm(job, 0, UNTRAINED))


def measure(job):
    _start(job)
    if job.arm not in arms(job.params):
        raise ValueError(
            f"the model of {job.arm} is not at hand, so nothing tells what it was trained on: membership inference needs an arm that is "
            "trained here, or a saved pipeline"
        )
    if experiments.maker(job.params, job.arm) is None:
        found = _of_pipeline(job)
    else:
        found = _of_arm(job, job.round, job.params["score"]["headline"]["weights"])
    _write(files.folder("results/membership", job.run, job.round), *found)


def _start(job):
    if not wanted(job.params):
        raise ValueError(PHASE["left_out"])
    job.device = device.claim(job.params["compute"])


def _of_arm(job, round_, weights):
    """Scores and table of the model of an arm."""
    images, pairs = _images(job)
    if not experiments.predicts_noise(job.params, job.arm):
        return _absent(job, f"the network of {job.arm} does not predict the noise")
    if absent := _too_few(pairs):
        return _absent(job, absent)
    model = models.build(job, job.arm, single=round_ == 0)  # every shard starts from the same weights
    models.load_network(job, job.arm, round_, weights, model)
    groups = [("train", pairs[0]), ("heldout", pairs[1])]
    shown, x_0, labels = models.profiled(job, job.arm, model, images, groups)
    return _judged(job, weights, pairs, shown, x_0, model.alpha_bars, labels)


def _of_pipeline(job):
    """The same of a saved pipeline, whose only weights are called raw."""
    saved_pipeline = importlib.import_module("stages.diffusion.saved_pipeline")
    images, pairs = _images(job)
    if absent := _too_few(pairs):
        return _absent(job, absent)
    path = Path(job.recipe["generator"]["pipeline"])
    settings = experiments.section(job.params, "sample", job.arm)
    source = saved_pipeline.Source(path, images["train"].shape[1:], job.seed, settings["num_steps"], job.device)
    both = np.concatenate([images[part][index] for part, index in zip(("train", "heldout"), pairs, strict=True)])
    try:
        shown, x_0, alpha_bars = source.profiled(both)
    except ValueError as error:
        return _absent(job, str(error))
    return _judged(job, "raw", pairs, shown, x_0, alpha_bars, None)


def _images(job):
    """Training and held-out images by part, and the pairs that are looked at."""
    from stages.measures import membership

    parts = ("train", "heldout")
    images = {part: files.load_array(files.DATA / f"{part}.npy", mmap=True) for part in parts}
    labels = [files.load_array(files.DATA / f"{part}_labels.npy") for part in parts]
    rng = randomness.numpy_generator("membership", 0)
    return images, membership.pairs(*labels, job.params["membership"]["num_images"], rng)


def _too_few(pairs):
    """Why so few pairs say nothing; None where there are enough."""
    if (num := pairs.shape[1]) >= 4:
        return None
    return f"{num} training images have a held-out image of the same class, expected at least 4 (data.heldout_share)"


def _absent(job, reason):
    print(f"membership inference of {job.arm} is left out, as {reason}", file=sys.stderr)
    return {"absent": reason}, None


def _judged(job, weights, pairs, shown, x_0, alpha_bars, labels):
    from stages.measures import membership

    settings = job.params["membership"]
    at = membership.timesteps(len(alpha_bars), settings["timesteps"])
    found = membership.statistics(
        shown,
        x_0,
        at,
        settings["noise_draws"],
        alpha_bars,
        job.seed,
        settings["batch_size"],
        job.params["compute"]["precision"],
        Progress(f"membership@{job.key} {weights}", "images").update,
        labels,
    )
    candidates = {
        name: {f"{name}_{t}": values[:, s].reshape(2, -1) for s, t in enumerate(at)} for name, values in found.items()
    }
    every = {name: values for of_attack in candidates.values() for name, values in of_attack.items()}

    def judged(some):
        return membership.judged(some, randomness.numpy_generator("membership", 1))

    best, each = judged(every), {name: judged(some) for name, some in candidates.items()}
    entry = {"num_images": pairs.shape[1], **_told(best), **{f"auc_{name}": each[name].auc for name in each}}
    entry["attacks"] = {name: _told(one) for name, one in each.items()}
    return {weights: entry}, _table(weights, pairs, every, best)


def _told(one):
    """A Judged as scores.json holds it."""
    told = {"auc": one.auc, "auc_low": one.low, "auc_high": one.high, "chosen": one.chosen}
    for name, found in zip(("found_at_1_percent", "found_at_01_percent"), one.found, strict=True):
        told |= dict(zip((name, f"{name}_low", f"{name}_high"), found or (None, None, None), strict=True))
    return told


def _table(weights, pairs, statistics, best):
    import pandas as pd

    num = pairs.shape[1]
    return pd.DataFrame(
        {
            "weights": weights,
            "member": np.repeat([True, False], num),
            "index": pairs.ravel(),
            "half": np.tile(np.arange(num) >= num // 2, 2).astype(np.int64),
            "score": best.score,
            "contribution": best.contribution,
            **{name: values.ravel() for name, values in statistics.items()},
        }
    )


def _write(target, scores, table):
    with files.publish(target) as folder:
        folder.mkdir()
        files.write_json(folder / "scores.json", scores)
        if table is not None:
            files.save_table(folder / "images.parquet", table)


if __name__ == "__main__":
    cli.run(main)
