"""Data-copying measures of the literature on an arm's generated images: authenticity, C_T and the FLD gap, beside two reference rows.

    python -m stages.copying --reference                       of held-out images, and of a copycat
    python -m stages.copying --arm ddpm --seed 0 --round 2     of the images of one round

params    compute, copying, sample, arms.<arm>.sample
reads     artifacts/data/train.npy and heldout.npy
          for a round: artifacts/results/copying/reference, artifacts/samples/<run>[/round<r>]/part<p> of exactly the parts of the plan
writes    artifacts/results/copying/reference/
              features.safetensors   train [N,D] float32, test [P,D]: features of the training images, and of half of the held-out ones
              scores.json            num_images, num_test, and the measures of heldout (the other half) and of copycat (training images, drawn
                                     with replacement, with noise of standard deviation 2 % of the range of grey levels)
          artifacts/results/copying/<run>[/round<r>]/scores.json   by kind of weights the measures

All rows are of equally many images, as C_T grows with their number: the first of an arm's images, as many as the section sample asks for, and no more
than half of the held-out ones and copying.num_images. An arm with fewer has fewer. Without at least FEWEST held-out images nothing is written but why.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import experiments, randomness
from stages.run import cli, device, files, weight_files
from stages.run.instance import LIGHT_BYTES, REFERENCE, START_UP, Instance
from stages.run.progress import Progress

# fmt: off
PHASE = {
    "name": "copying",
    "per": "sampled",
    "reference": True,
    "arms": "all",
    "device": True,
    "final": True,
    "title": "Data copying",
    "left_out": "the data-copying measures (authenticity, C_T, FLD gap) are left out: add a section copying with features: pixels",
    "section": {
        "description": "data-copying measures of the literature; without features the phase is left out",
        "properties": {
            "features": {"description": "what images are compared by. pixels; inception: the network of the file weights; dinov2: that of the folder model", "enum": ["pixels", "inception", "dinov2"]},
            "weights": {"description": "file of the Inception weights, as quality.weights", "type": "string", "minLength": 1},
            "model": {"description": "folder of a DINOv2 model in transformers' layout", "type": "string", "minLength": 1},
            "num_images": {"description": "generated images that are looked at, at most, and held-out images of either half", "default": 2000, "type": "integer", "minimum": 20},
            "batch_size": {"description": "images per pass through the network; changes results in the last digits", "default": 64, "type": "integer", "minimum": 1},
        },
    },
    "columns": {
        "authenticity": {
            "title": "authentic",
            "meaning": "Share of the generated images (%) that are farther from their nearest training image than that one is from its nearest "
            "other training image (Alaa et al. 2022).",
            "show": "percent",
        },
        "c_t": {
            "title": "C_T",
            "meaning": "Whether generated images are closer to the training images than new images are, in standard deviations (Meehan et "
            "al. 2020): below about -3 they copy. It grows with the number of images.",
            "show": "number",
        },
        "fld_gap": {
            "title": "FLD gap",
            "meaning": "How much less likely new images are than training images under a density around the generated images, in 1/100 nats a "
            "feature (Jiralerspong et al. 2023); the lower, the more is copied.",
            "show": "number",
        },
    },
}
# fmt: on
FEWEST = 40  # held-out images: two halves of which C_T has a cell
NEEDED = {"inception": "weights", "dinov2": "model"}  # key of the network, by features
DINOV2 = ("config.json", "model.safetensors")  # what its folder must hold
NOISE = 0.02 * 255  # standard deviation of the copycat's noise, in grey levels


@dataclass(frozen=True, kw_only=True)
class Copying(Instance):
    """network   where features come from: the folder or file of a network; of pixels the training images"""

    network: str

    writes = ("results/copying",)

    def size(self, scale):
        if self.arm is not None:
            return LIGHT_BYTES
        num_features = {"inception": 2048, "dinov2": 1536}.get(scale.experiment["copying"]["features"], scale.values)
        return 4 * num_features * scale.num_images + LIGHT_BYTES

    def work(self, scale):
        return START_UP


def instances(experiment):
    if not wanted(experiment):
        return []
    network = _network(experiment["copying"]) or str(files.DATA / "train.npy")
    return [
        Copying(block="copying_reference", network=network),
        *(Copying(block="copying", **place, network=network) for place in experiments.sampled(experiment)),
    ]


def _network(settings):
    """The file or folder of the network; None for pixels."""
    return settings.get(NEEDED.get(settings["features"]))


def wanted(experiment):
    """Whether there are such measures: the section says of which features."""
    return "features" in experiment.get("copying", {})


def check(experiment):
    """Raises ValueError if there is no network for the features, or one that nothing reads."""
    if not wanted(experiment):
        return
    settings = experiment["copying"]
    needed = NEEDED.get(settings["features"])
    if needed and needed not in settings:
        raise ValueError(f"the key copying.{needed} is missing, which copying.features: {settings['features']} needs")
    for key in NEEDED.values():
        if key in settings and key != needed:
            raise ValueError(f"copying.{key} has no effect on {settings['features']}: remove it")


def check_files(experiment):
    """Raises ValueError if the file or folder of the network is not there, or would be removed with artifacts/."""
    if wanted(experiment) and (named := _network(experiment["copying"])):
        key = NEEDED[experiment["copying"]["features"]]
        files.check_outside(Path(named), f"copying.{key} = {named}", "it")
        wanted_files = [Path(named)] if key == "weights" else [Path(named) / name for name in DINOV2]
        if lacking := [str(path) for path in wanted_files if not path.is_file()]:
            raise ValueError(
                f"there is no {' and no '.join(lacking)}: put it there, or mend copying.{key} (params.yaml)"
            )


def main(arguments):
    experiments.stage_with_reference(PHASE, __doc__, arguments, reference, measure, check)


def reference(job):
    from stages.measures import copying

    network = _start(job)
    train, heldout = (files.load_array(files.DATA / f"{part}.npy", mmap=True) for part in ("train", "heldout"))
    with files.publish(files.folder("results/copying", REFERENCE)) as folder:
        folder.mkdir()
        if len(heldout) < FEWEST:
            told = f"{len(heldout)} images are held out, expected at least {FEWEST} (data.heldout_share)"
            print(f"the data-copying measures are left out, as {told}", file=sys.stderr)
            files.write_json(folder / "scores.json", {"absent": told})
            return
        order = randomness.numpy_generator("copying", 0).permutation(len(heldout))
        num_test = min(len(heldout) // 2, job.params["copying"]["num_images"])
        num = min(num_test, job.params["sample"]["num_images"])  # as many as arms have, as C_T depends on it
        sets = {"train": train, "test": heldout[order[:num_test]], "heldout": heldout[order[num_test : num_test + num]]}
        sets["copycat"] = copycat(train, num, randomness.numpy_generator("copying", 1))
        features = {name: _features(job, network, images, name) for name, images in sets.items()}
        scores = {"num_images": num, "num_test": num_test}
        for name in ("heldout", "copycat"):
            rng = randomness.numpy_generator("copying", 2)
            scores[name] = copying.measures(features[name], features["test"], features["train"], rng)
        files.save_arrays(folder / "features.safetensors", {name: features[name] for name in ("train", "test")})
        files.write_json(folder / "scores.json", scores)


def copycat(train, num, rng):
    """Training images that differ from themselves by a little noise: [num,H,W,C] uint8, drawn with replacement."""
    images = train[rng.integers(len(train), size=num)].astype(np.float64)
    return (images + NOISE * rng.standard_normal(images.shape)).round().clip(0, 255).astype(np.uint8)


def measure(job):
    from stages.measures import copying

    network, kept = _start(job), files.folder("results/copying", REFERENCE)
    of_reference, scores = files.load_json(kept / "scores.json"), {}
    if "absent" in of_reference:
        scores = of_reference
    else:
        features = files.load_arrays(kept / "features.safetensors")
        sampled = experiments.section(job.params, "sample", job.arm)
        for weights in sampled["weights"]:
            images = files.load_samples(job.run, job.round, sampled["parts"], weights)[: of_reference["num_images"]]
            own = _features(job, network, images, weights)
            rng = randomness.numpy_generator("copying", 2)
            scores[weights] = copying.measures(own, features["test"], features["train"], rng)
    with files.publish(files.folder("results/copying", job.run, job.round)) as folder:
        folder.mkdir()
        files.write_json(folder / "scores.json", scores)


def _start(job):
    """The network that features come from, on its device; None for pixels."""
    if not wanted(job.params):
        raise ValueError(PHASE["left_out"])
    job.device = device.claim(job.params["compute"])
    features = job.params["copying"]["features"]
    if features == "inception":
        from stages.measures import inception

        path = Path(job.params["copying"]["weights"])
        named = {name: v for name, v in weight_files.tensors(path).items() if not name.endswith("num_batches_tracked")}
        return inception.build(named, path).to(job.device)
    if features == "dinov2":
        from stages.measures import dinov2

        return dinov2.load(job.params["copying"]["model"]).to(job.device)
    return None


def _features(job, network, images, what):
    """Features of images [n,H,W,C] uint8: [n,D] float32."""
    features, batch_size = job.params["copying"]["features"], job.params["copying"]["batch_size"]
    progress = Progress(f"copying@{job.key} {what}", "images").update
    if features == "inception":
        from stages.measures import inception

        return inception.features(network, images, "pytorch_fid", batch_size, progress)[0]
    if features == "dinov2":
        from stages.measures import dinov2

        return dinov2.features(network, images, batch_size, progress)
    return images.reshape(len(images), -1).astype(np.float32) / 255


if __name__ == "__main__":
    cli.run(main)
