"""CLIP score of an arm's generated images: how well they fit their prompts. Only for models with captions.

    python -m stages.clip --arm default --seed 0

params    compute, clip
reads     artifacts/samples/<run>[/round<r>]/part<p> of exactly the parts of the plan, with the prompts; the folder clip.model
writes    artifacts/results/clip/<run>[/round<r>]/
              images.parquet   one row per generated image and kind of weights: cosine with the original prompt and with the prompt used
              scores.json      the model's name and checksums, preprocessing, and by kind of weights 100 times the means

The prompt used differs from the original where a mitigation put words into it. A score against the prompt used then judges an image
by words that nobody asked for.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import experiments
from stages.run import cli, device, files, weight_files
from stages.run.instance import LIGHT_BYTES, ROW_BYTES, Instance
from stages.run.progress import Progress

# fmt: off
PHASE = {
    "name": "clip",
    "per": "sampled",
    "arms": "all",
    "device": True,
    "final": True,
    "needs_captions": True,
    "left_out": "the CLIP score is left out, as params.yaml names no CLIP model: add a section clip with model: FOLDER, preprocess: clip and "
    "batch_size: 64",
    "section": {
        "description": "how well generated images fit their prompts (CLIP score); without a model the phase is left out",
        "dependentRequired": {"model": ["preprocess", "batch_size"]},
        "properties": {
            "model": {"description": "folder of a CLIP model in transformers' layout, such as that of ViT-B/16", "type": "string", "minLength": 1},
            "preprocess": {"description": "how images are prepared for CLIP: clip as the model's own preprocessor does, dcr as for the published scores, with the pixels of SSCD", "enum": ["clip", "dcr"]},
            "batch_size": {"description": "images per pass through CLIP; changes results in the last digits", "type": "integer", "minimum": 1},
        },
    },
    "columns": {
        "original": {
            "title": "CLIP score, original prompt",
            "meaning": "100 times the mean cosine between the CLIP embeddings of image and prompt; higher means a better fit. The original "
            "prompt lacks the words that a mitigation put in; the prompt used has them.",
            "show": "number",
        },
        "used": {
            "title": "CLIP score, prompt used",
            "meaning": "The same, with the prompt that the images were generated from.",
            "show": "number",
        },
    },
}
# fmt: on
PROMPTS = ("original", "used")


@dataclass(frozen=True, kw_only=True)
class ClipScores(Instance):
    """model   folder of the CLIP model"""

    model: str

    writes = ("results/clip",)

    def size(self, scale):
        return scale.num_generated(self.arm) * ROW_BYTES + LIGHT_BYTES


def instances(experiment):
    if not wanted(experiment):
        return []
    prompted = [arm for arm in experiment["arms"] if experiments.maker(experiment, arm) is not None]
    model = experiment["clip"]["model"]
    return [ClipScores(block="clip", **place, model=model) for place in experiments.sampled(experiment, prompted)]


def wanted(experiment):
    """Whether there is a CLIP score: its section names the folder of a model."""
    return "model" in experiment.get("clip", {})


def check_files(experiment):
    """Raises ValueError if the folder of the model is not there, lacks a file, or would be removed with artifacts/."""
    if wanted(experiment):
        from stages.measures import clip_score

        folder = Path(experiment["clip"]["model"])
        files.check_outside(folder, f"clip.model = {folder}", "it")
        try:
            clip_score.check(folder)
        except ValueError as error:
            raise ValueError(f"{error}, or mend clip.model (params.yaml)") from None


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments) as job:
        if not wanted(job.params):
            raise ValueError(PHASE["left_out"])
        job.device = device.claim(job.params["compute"])
        import pandas as pd

        from stages.measures import clip_score

        settings, sampled = job.params["clip"], experiments.section(job.params, "sample", job.arm)
        asked = files.load_generations(job.run, job.round, sampled["parts"])
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
            images = files.load_samples(job.run, job.round, sampled["parts"], weights)
            progress = Progress(f"clip@{job.key} {weights}", "images").update
            found = clip_score.image_embeddings(clip, images, settings["preprocess"], settings["batch_size"], progress)
            cosines = {which: clip_score.scores(found, texts[which]) for which in PROMPTS}
            rows.append(pd.DataFrame({"weights": weights, "image": np.arange(len(images)), **cosines}))
            scores[weights] = {which: float(100 * values.mean()) for which, values in cosines.items()}
        with files.publish(files.folder("results/clip", job.run, job.round)) as folder:
            folder.mkdir()
            pd.concat(rows, ignore_index=True).to_parquet(folder / "images.parquet", index=False)
            files.write_json(folder / "scores.json", scores)


def _used(folder, settings):
    sums = {path.name: weight_files.sha256(path) for path in sorted(folder.glob("*.safetensors"))}
    return {"model": folder.name, "sha256": sums, "preprocess": settings["preprocess"]}


if __name__ == "__main__":
    cli.run(main)
