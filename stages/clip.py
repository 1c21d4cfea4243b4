"""CLIP score of an arm's generated images: how well they fit their prompts. Of models with captions only.

    python -m stages.clip --arm default --seed 0

params    compute, clip
reads     artifacts/samples/<run>/part<p> of exactly the parts of the plan, with the prompts; the folder clip.model
writes    artifacts/clip/<run>/
              images.parquet   one row a generated image and kind of weights: cosine with the original prompt and with that used
              scores.json      the model's name and checksums, preprocessing, and by kind of weights 100 times the means

The prompt used differs from the original where a mitigation put words into it: scored against the prompt used, an image is judged
by words that nobody asked for.
"""

from pathlib import Path

import numpy as np

from stages import params
from stages.run import cli, device, files, weight_files
from stages.run.progress import Progress

LEFT_OUT = (
    "the CLIP score is left out, as params.yaml names no CLIP model: add a section clip with model: FOLDER, preprocess: clip and "
    "batch_size: 64"
)
PROMPTS = ("original", "used")


def wanted(experiment):
    """Whether there is a CLIP score: its section names the folder of a model."""
    return "model" in experiment.get("clip", {})


def check(experiment):
    """Raises ValueError if the folder of the model is not there, lacks a file, or would be removed with artifacts/."""
    if wanted(experiment):
        from stages.measures import clip_score

        folder = Path(experiment["clip"]["model"])
        if folder.resolve().is_relative_to(files.ARTIFACTS.resolve()):
            raise ValueError(
                f"clip.model = {folder} lies in artifacts/, which is cleared of what no stage makes: move it"
            )
        clip_score.check(folder)


def main(arguments):
    with cli.stage("clip", __doc__, arguments, "arm", "seed") as job:
        if not wanted(job.params):
            raise ValueError(LEFT_OUT)
        job.device = device.claim(job.params["compute"])
        import pandas as pd

        from stages.measures import clip_score

        settings, sampled = job.params["clip"], params.section(job.params, "sample", job.arm)
        asked = files.load_generations(job.run, sampled["parts"])
        if asked is None:
            raise ValueError(
                f"the images of {job.run} have no prompts, so there is no CLIP score: use a model with captions"
            )
        clip = clip_score.load(settings["model"])
        clip.model.to(job.device)
        texts = {
            which: clip_score.text_embeddings(clip, [line[f"prompt_{which}"] for line in asked], settings["batch_size"])
            for which in PROMPTS
        }
        rows, scores = [], _used(Path(settings["model"]), settings)
        for weights in sampled["weights"]:
            images = files.load_samples(job.run, sampled["parts"], weights)
            progress = Progress(f"clip@{job.key} {weights}", "images").update
            found = clip_score.image_embeddings(clip, images, settings["preprocess"], settings["batch_size"], progress)
            cosines = {which: clip_score.scores(found, texts[which]) for which in PROMPTS}
            rows.append(pd.DataFrame({"weights": weights, "image": np.arange(len(images)), **cosines}))
            scores[weights] = {which: float(100 * values.mean()) for which, values in cosines.items()}
        with files.publish(files.clip_dir(job.run)) as folder:
            folder.mkdir()
            pd.concat(rows, ignore_index=True).to_parquet(folder / "images.parquet", index=False)
            files.write_json(folder / "scores.json", scores)


def _used(folder, settings):
    sums = {path.name: weight_files.sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    return {"model": folder.name, "sha256": sums, "preprocess": settings["preprocess"]}


if __name__ == "__main__":
    cli.run(main)
