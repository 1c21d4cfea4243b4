"""The text-conditional magnitude of prompts: how well it separates captions that an arm was trained on from others.

    python -m stages.detect --arm default --seed 0

params    model, diffusion, compute, detect, sample, arms.<arm>.sample, arms.<arm>.method
reads     artifacts/model/<run>/round<R>, artifacts/data with the captions of training and held-out images
writes    artifacts/results/detect/<run>/
              prompts.jsonl   one line per prompt and kind of weights: prompt, trained (true or false), raw and rms: mean, first_step, per_step
              scores.json     numbers of prompts; by kind of weights mean magnitudes of both groups, and where there are both, the
                              area under the ROC curve with its interval and the share of prompts found at 1 % false ones

Prompts are first captions: detect.num_prompts of training images, and as many of held-out images that no training image shares.
"""

import json
from dataclasses import dataclass

import numpy as np

from stages import experiments, models
from stages.run import cli, device, files
from stages.run.instance import LIGHT_BYTES, ROW_BYTES, Instance
from stages.run.progress import Progress

# fmt: off
PHASE = {
    "name": "detect",
    "per": "run",
    "arms": "trained",
    "device": True,
    "final": True,
    "needs_captions": True,
    "left_out": "the magnitude detector is left out: add a section detect with num_prompts: 500, images_per_prompt: 4, num_steps: 50, "
    "guidance: 7.5 and batch_size: 16 (params.yaml)",
    "section": {
        "description": "compares the text-conditional magnitude of captions trained on and of unseen captions; leave the section out to skip this",
        "dependentRequired": {"num_prompts": ["images_per_prompt", "num_steps", "guidance", "batch_size"], "guidance": ["num_prompts"]},
        "properties": {
            "num_prompts": {"description": "number of captions trained on, and of unseen captions", "type": "integer", "minimum": 1},
            "images_per_prompt": {"description": "number of images over which the magnitude of a prompt is averaged", "type": "integer", "minimum": 1},
            "num_steps": {"description": "DDIM steps", "type": "integer", "minimum": 1},
            "guidance": {"description": "scale of classifier-free guidance; at 1 the network does not see the empty prompt, so there is no magnitude", "type": "number", "exclusiveMinimum": 1},
            "batch_size": {"description": "images per pass through the network", "type": "integer", "minimum": 1},
        },
    },
    "columns": {
        "trained": {
            "title": "magnitude, captions trained on",
            "meaning": "Root mean square of what a caption adds to the noise prediction, averaged over steps and images. It is large for "
            "captions that the model has memorised.",
            "show": "number",
        },
        "unseen": {
            "title": "magnitude, unseen captions",
            "meaning": "The same for captions that no training image has.",
            "show": "number",
        },
        "auc": {
            "title": "AUC",
            "meaning": "How well the magnitude separates captions trained on from unseen ones: 0.5 is no better than chance, 1 is a "
            "perfect separation.",
            "show": "number",
        },
        "found_at_1_percent": {
            "title": "found at 1 % false",
            "meaning": "Share of the captions trained on that exceed a threshold which at most 1 % of the unseen ones exceed.",
            "show": "number",
        },
        "auc_first_step": {
            "title": "AUC, first step",
            "meaning": "AUC when only the magnitude at the first step is used.",
            "show": "number",
        },
    },
}
# fmt: on
FALSE_SHARE = 0.01  # of the prompts not trained on that may be taken for trained ones
MEASURES = ("mean", "first_step")


@dataclass(frozen=True, kw_only=True)
class Detection(Instance):
    """model, method, architecture   as of a part of the samples"""

    model: str
    method: str
    architecture: str

    writes = ("results/detect",)

    def size(self, scale):  # one line per prompt of either group and kind of weights, with one magnitude per step
        settings = scale.experiment["detect"]
        kinds = len(experiments.section(scale.experiment, "sample", self.arm)["weights"])
        return 2 * settings["num_prompts"] * kinds * (2 * 20 * settings["num_steps"] + ROW_BYTES) + LIGHT_BYTES


def instances(experiment):
    found = []
    for arm, seed in experiments.runs(experiment, arms(experiment)):
        model = experiments.final_model(experiment, arm, seed)
        del model["kind"]  # this phase is there for text-conditioned models alone
        found.append(Detection(block="detect", arm=arm, seed=seed, **model))
    return found


def wanted(experiment):
    """Whether there is a detect phase."""
    return bool(experiment.get("detect"))


def arms(experiment):
    """The arms whose captions are looked at: those that are trained here, with captions."""
    trained = experiments.trained(experiment) if wanted(experiment) else {}
    return [arm for arm in trained if experiments.fixed_text(experiment, arm) is None]


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments) as job:
        if not wanted(job.params):
            raise ValueError(PHASE["left_out"])
        if job.arm not in arms(job.params):
            raise ValueError(
                f"{job.arm} is trained with one text for all images (train.caption), so no caption tells anything of it"
            )
        job.device = device.claim(job.params["compute"])
        from stages.diffusion import sampling
        from stages.text import detection

        settings, sampled = job.params["detect"], experiments.section(job.params, "sample", job.arm)
        sampled |= {"precision": job.params["compute"]["precision"], "mitigation": None}  # prompts as they are
        last = experiments.last_sampled(job.params, job.arm)
        source, _ = models.source(job, job.arm, last, sampled, sampling)
        prompts, trained = detection.chosen(files.load_json(models.CAPTIONS), settings["num_prompts"], job.seed)
        lines, scores = [], {"num_trained": int(trained.sum()), "num_unseen": int((~trained).sum())}
        for weights in sampled["weights"]:
            models.load(job, job.arm, last, weights, source)
            progress = Progress(f"detect@{job.key} {weights}", "images")
            found = detection.magnitudes(source, prompts, settings, progress.update)
            lines += [
                {"weights": weights, "prompt": prompt, "trained": bool(of_group)} | values
                for prompt, of_group, values in zip(prompts, trained, found, strict=True)
            ]
            scores[weights] = _summary(found, trained)
        with files.publish(files.folder("results/detect", job.run)) as folder:
            folder.mkdir()
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            files.write_text(folder / "prompts.jsonl", content)
            files.write_json(folder / "scores.json", scores)


def _summary(found, trained):
    from stages.measures import roc

    summary = {}
    for kind in ("raw", "rms"):
        for measure in MEASURES:
            values = np.array([of_prompt[kind][measure] for of_prompt in found])
            entry = {"trained": _mean(values[trained]), "unseen": _mean(values[~trained])}
            if trained.any() and not trained.all():
                area = roc.area(values, trained)
                entry |= {name: None if np.isnan(value) else value for name, value in area._asdict().items()}
                entry["found_at_1_percent"] = roc.found_share(values, trained, FALSE_SHARE)
            summary[f"{kind}_{measure}"] = entry
    return summary


def _mean(values):
    return float(values.mean()) if len(values) else None


if __name__ == "__main__":
    cli.run(main)
