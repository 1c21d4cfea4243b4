"""FID, KID, Inception score, precision and recall of an arm's generated images against the training images.

    python -m stages.quality --reference              the network, and the features of the training images
    python -m stages.quality --arm ddpm --seed 0      the measures of one run, which read that

params    compute, image_quality.protocols, image_quality.batch_size; where the weights come from: image_quality.weights, sha256, download
reads     artifacts/data/train.npy as it is, no flips; the Inception weights
          for a run: artifacts/quality/reference, artifacts/samples/<run>/part<p> of exactly the parts of the plan
writes    artifacts/quality/reference/
              inception.safetensors    the checked weights, which every run uses: one network for both sides of a distance
              <protocol>.safetensors   features [N,2048] float32 of the training images, their mean and cov in float64
          artifacts/quality/<run>/scores.json    by kind of weights and protocol, as method/quality.py names them

The reference is a stage of its own because its features are the same for every run: of an experiment of 17 arms that would be
850,000 images through the network instead of 50,000. It takes 0.5 GB a protocol at 50,000 images.
"""

from stages import inception_weights, params
from stages.run import cli, device, files
from stages.run.progress import Progress


def main(arguments):
    cli.stage_with_reference("quality", __doc__, arguments, reference, measure)


def reference(job):
    _check_wanted(job)
    job.device = device.claim(job.params["compute"])
    from stages.measures import frechet, inception

    settings = job.params["quality"]
    weights = inception_weights.load(job.params)
    network = inception.build(weights, settings.get("weights", "the fetched file")).to(job.device)
    train = files.load_array(files.DATA / "train.npy", mmap=True)
    with files.publish(files.quality_dir(files.REFERENCE)) as folder:
        files.save_arrays(folder / "inception.safetensors", weights)
        for protocol in settings["protocols"]:
            features = _features(job, network, train, protocol, f"quality@{job.key} {protocol}")[0]
            mean, cov = frechet.feature_moments(features)
            files.save_arrays(folder / f"{protocol}.safetensors", {"features": features, "mean": mean, "cov": cov})


def measure(job):
    _check_wanted(job)
    job.device = device.claim(job.params["compute"])
    from stages import randomness
    from stages.measures import image_quality, inception

    folder = files.quality_dir(files.REFERENCE)
    source = folder / "inception.safetensors"
    network = inception.build(files.load_arrays(source), source).to(job.device)
    sample_settings = params.section(job.params, "sample", job.arm)
    rng_seed = (
        randomness.seed_of("quality", job.seed) % 2**32
    )  # what numpy's RandomState takes, which torch-fidelity uses
    scores = {weights: {} for weights in sample_settings["weights"]}
    for protocol in job.params["quality"]["protocols"]:
        train = files.load_arrays(folder / f"{protocol}.safetensors")
        for weights in sample_settings["weights"]:
            images = files.load_samples(job.run, sample_settings["parts"], weights)
            what = f"quality@{job.key} {weights} {protocol}"
            features, logits = _features(job, network, images, protocol, what)
            moments = train["mean"], train["cov"]
            scores[weights][protocol] = image_quality.measures(
                features, logits, train["features"], moments, rng_seed, job.device
            )
    with files.publish(files.quality_dir(job.run)) as folder:
        files.write_json(folder / "scores.json", scores)


def _check_wanted(job):
    if not inception_weights.wanted(job.params):
        raise ValueError(inception_weights.LEFT_OUT)


def _features(job, network, images, protocol, what):
    from stages.measures import inception

    progress = Progress(what, "images").update
    return inception.features(network, images, protocol, job.params["quality"]["batch_size"], progress)


if __name__ == "__main__":
    cli.run(main)
