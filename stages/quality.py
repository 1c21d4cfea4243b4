"""FID, KID, Inception score, precision and recall of an arm's generated images against the training images.

    python -m stages.quality --reference              the network, and the features of the training images
    python -m stages.quality --arm ddpm --seed 0      the measures of one run, which read that

params    compute, quality.protocols, quality.batch_size; where the weights come from: quality.weights, sha256, download
reads     artifacts/data/train.npy and heldout.npy as they are, no flips; the Inception weights
          for a run: artifacts/results/quality/reference, artifacts/samples/<run>[/round<r>]/part<p> of exactly the parts of the plan
writes    artifacts/results/quality/reference/
              inception.safetensors    the checked weights, which every run uses: one network for both sides of a distance
              <protocol>.safetensors   features [N,2048] float32 of the training images, their mean and cov in float64; heldout_mean and
                                       heldout_cov of as many held-out images, or of all where there are fewer; without any, neither
              chance.json              by protocol num_half, distance: of two halves of those held-out images, see
                                       frechet.feature_distance_of_halves; none of fewer than four
          artifacts/results/quality/<run>[/round<r>]/scores.json    by kind of weights and protocol, as measures/image_quality.py names them

The reference is a stage of its own because its features are the same for every run: of an experiment of 17 arms that would be
850,000 images through the network instead of 50,000. It takes 0.5 GB a protocol at 50,000 images.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import experiments
from stages.run import cli, device, files, weight_files
from stages.run.instance import LIGHT_BYTES, REFERENCE, START_UP, Instance
from stages.run.progress import Progress

HALVES = ("num_half", "distance")  # of chance.json
INCEPTION_BYTES = 96 * 2**20  # the weights in float32
# fmt: off
PHASE = {
    "name": "quality",
    "per": "sampled",
    "reference": True,
    "arms": "all",
    "device": True,
    "final": True,
    "left_out": "the quality phase (FID, KID, precision, recall) is left out, as params.yaml names no Inception weights: add "
    "a section quality with weights: FILE (or download: true), protocols: [pytorch_fid] and batch_size: 64",
    "left_out_told": "always",
    "section": {
        "description": "FID and related measures, from the Inception network; the phase is left out if there is neither weights nor download",
        "dependentRequired": {"weights": ["protocols", "batch_size"], "download": ["protocols", "batch_size"]},
        "properties": {
            "weights": {"description": "file of the Inception weights (pytorch-fid's or torch-fidelity's, which are the same)", "type": "string", "minLength": 1},
            "download": {"description": "instead of weights: download torch-fidelity's file (91 MiB) into torch's cache", "type": "boolean"},
            "sha256": {"description": "checksum of the weights file in hexadecimal digits, in quotes; the checksum of the published file begins with 6726825d", "type": "string", "minLength": 1},
            "protocols": {"description": "how images are prepared for the network: pytorch_fid as in the authors' code, dcr as in their code for text-conditioned models, torch_fidelity as in TensorFlow, clean as in clean-fid; the summary uses the first of the list", "type": "array", "minItems": 1, "uniqueItems": True, "items": {"enum": ["pytorch_fid", "torch_fidelity", "clean", "dcr"]}},
            "batch_size": {"description": "images per pass through the Inception network; changes results in the last digits", "type": "integer", "minimum": 1},
        },
    },
    "columns": {
        "fid": {
            "title": "FID",
            "meaning": "Fréchet distance between the Inception features of generated and training images; lower is closer. It falls as "
            "the number of images grows, so compare equal numbers. With fewer than 2,049 images on either side it says little.",
            "show": "number",
            "short": "FID",
        },
        "fid_heldout": {
            "title": "FID held out",
            "meaning": "The same against images that are held out: as many as there are training images, or all where there are fewer, "
            "which makes it larger. Copies of training images do not bring it down as they do FID.",
            "show": "number",
        },
        "fid_50k": {
            "title": "FID of 50,000",
            "meaning": "FID of the first 50,000 generated images, the number that most published values use.",
            "show": "number",
        },
        "kid": {
            "title": "KID",
            "meaning": "Kernel distance of the same features, without the bias that FID has with few images. It can be slightly below 0.",
            "show": "number",
        },
        "is": {
            "title": "Inception score",
            "meaning": "How confidently the network assigns each image to an ImageNet class, and how varied the classes are; higher is "
            "more. It means little for images of other things.",
            "show": "number",
        },
        "precision": {
            "title": "precision",
            "meaning": "Share of the generated images that lie among the training images. Memorised images do, too.",
            "show": "number",
        },
        "recall": {
            "title": "recall",
            "meaning": "Share of the training images that lie among the generated ones.",
            "show": "number",
        },
    },
}
# fmt: on
# The pinned torch-fidelity knows address and checksum of the Inception weights where they are to be fetched.
FETCHED_WEIGHTS = "requirements.txt"


@dataclass(frozen=True, kw_only=True)
class Features(Instance):
    """network   of the reference: the file of the Inception weights, or the lock of the package that fetches it"""

    network: str | None = None

    writes = ("results/quality",)

    def size(self, scale):
        if self.arm is not None:
            return LIGHT_BYTES
        protocols = len(scale.experiment["quality"]["protocols"])
        return protocols * (4 * 2048 * scale.num_train + 2 * 8 * 2048**2) + INCEPTION_BYTES

    def work(self, scale):
        return START_UP if self.arm is not None else 2 * scale.num_train + START_UP


def instances(experiment):
    if not wanted(experiment):
        return []
    network = experiment["quality"].get("weights", FETCHED_WEIGHTS)
    return [
        Features(block="quality_reference", network=network),
        *(Features(block="quality", **place) for place in experiments.sampled(experiment)),
    ]


def wanted(experiment):
    """Whether there is a quality phase: its section names a file of weights, or asks for a download."""
    settings = experiment.get("quality", {})
    return "weights" in settings or settings.get("download", False)


def check(experiment):
    """Raises ValueError if the weights are to come from two places."""
    if "weights" in (settings := experiment.get("quality", {})) and settings.get("download"):
        raise ValueError(
            "quality.weights and quality.download: true both say where the weights come from: give one of them"
        )


def check_files(experiment):
    """Raises ValueError if the file of weights is not there, would be removed with artifacts/, or is another one."""
    settings = experiment.get("quality", {})
    if "weights" in settings:
        what_to_do = "put the Inception weights there, mend quality.weights, or set download: true in its place"
        weight_files.check("quality", settings, what_to_do)


def main(arguments):
    experiments.stage_with_reference(PHASE, __doc__, arguments, reference, measure, check)


def reference(job):
    _check_wanted(job)
    job.device = device.claim(job.params["compute"])
    from stages import randomness
    from stages.measures import frechet, inception

    settings = job.params["quality"]
    weights = load_weights(job.params)
    network = inception.build(weights, settings.get("weights", "the fetched file")).to(job.device)
    train = files.load_array(files.DATA / "train.npy", mmap=True)
    heldout = _heldout(len(train))
    chance = {}
    with files.publish(files.folder("results/quality", REFERENCE)) as folder:
        files.save_arrays(folder / "inception.safetensors", weights)
        for protocol in settings["protocols"]:
            features = _features(job, network, train, protocol, f"quality@{job.key} {protocol}")[0]
            mean, cov = frechet.feature_moments(features)
            kept = {"features": features, "mean": mean, "cov": cov}
            if len(heldout) > 1:
                of_heldout = _features(
                    job, network, heldout, protocol, f"quality@{job.key} {protocol}, held-out images"
                )[0]
                kept["heldout_mean"], kept["heldout_cov"] = frechet.feature_moments(of_heldout)
            if len(heldout) > 3:
                rng = randomness.numpy_generator("quality_heldout", 1)
                chance[protocol] = dict(zip(HALVES, frechet.feature_distance_of_halves(of_heldout, rng), strict=True))
            files.save_arrays(folder / f"{protocol}.safetensors", kept)
        files.write_json(folder / "chance.json", chance)


def _heldout(num_train):
    """As many held-out images as there are training images, by chance, or all where there are fewer: [n,H,W,C] uint8."""
    from stages import randomness

    images = files.load_array(files.DATA / "heldout.npy", mmap=True)
    if len(images) <= num_train:
        return images
    chosen = randomness.numpy_generator("quality_heldout", 0).choice(len(images), num_train, replace=False)
    return images[np.sort(chosen)]


def measure(job):
    _check_wanted(job)
    job.device = device.claim(job.params["compute"])
    from stages import randomness
    from stages.measures import image_quality, inception

    folder = files.folder("results/quality", REFERENCE)
    source = folder / "inception.safetensors"
    network = inception.build(files.load_arrays(source), source).to(job.device)
    sample_settings = experiments.section(job.params, "sample", job.arm)
    rng_seed = (
        randomness.seed_of("quality", job.seed) % 2**32
    )  # what numpy's RandomState takes, which torch-fidelity uses
    scores = {weights: {} for weights in sample_settings["weights"]}
    for protocol in job.params["quality"]["protocols"]:
        train = files.load_arrays(folder / f"{protocol}.safetensors")
        for weights in sample_settings["weights"]:
            images = files.load_samples(job.run, job.round, sample_settings["parts"], weights)
            what = f"quality@{job.key} {weights} {protocol}"
            features, logits = _features(job, network, images, protocol, what)
            moments = train["mean"], train["cov"]
            found = image_quality.measures(features, logits, train["features"], moments, rng_seed, job.device)
            has_heldout = "heldout_mean" in train
            of_heldout = (
                image_quality.fid(features, (train["heldout_mean"], train["heldout_cov"])) if has_heldout else None
            )
            scores[weights][protocol] = found | {"fid_heldout": of_heldout}
    with files.publish(files.folder("results/quality", job.run, job.round)) as folder:
        files.write_json(folder / "scores.json", scores)


def _check_wanted(job):
    if not wanted(job.params):
        raise ValueError(PHASE["left_out"])


def _features(job, network, images, protocol, what):
    from stages.measures import inception

    progress = Progress(what, "images").update
    return inception.features(network, images, protocol, job.params["quality"]["batch_size"], progress)


def load_weights(experiment):
    """The weights of the Inception network, from the file or fetched.

    Returns   dict of name -> float32 array
    Raises    ValueError: the file is missing, another one, damaged, or holds anything but tensors; it cannot be fetched
    """
    check_files(experiment)
    settings = experiment["quality"]
    if "weights" in settings:
        path = Path(settings["weights"])
    else:
        path = _fetched()
        weight_files.check_sum("quality", path, settings)
    # num_batches_tracked: counters that only training reads
    return {name: v for name, v in weight_files.tensors(path).items() if not name.endswith("num_batches_tracked")}


def _fetched():
    """torch-fidelity's file in torch's own cache, where torch-fidelity would put it too; fetched where it is not there yet."""
    import torch.hub
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rpartition("/")[2]
    if not path.exists():
        print(f"fetching the Inception weights (91 MiB) from {URL_INCEPTION_V3}", file=sys.stderr)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            start_of_sum = path.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), start_of_sum, progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:  # no network; another checksum
            raise ValueError(
                f"the Inception weights could not be fetched from {URL_INCEPTION_V3} ({error}): bring the file here by other "
                "means and name it as quality.weights (params.yaml)"
            ) from None
    return path


if __name__ == "__main__":
    cli.run(main)
