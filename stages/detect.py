"""The text-conditional magnitude of prompts: how well it tells captions that an arm was trained on from captions that it was not.

    python -m stages.detect --arm default --seed 0

params    model, diffusion, compute, detect, sample, arms.<arm>.sample, arms.<arm>.method
reads     artifacts/model/<run>/round<R>, artifacts/data with the captions of training and held-out images
writes    artifacts/detect/<run>/
              prompts.jsonl   a line a prompt and kind of weights: prompt, trained (true or false), raw and rms: mean, first_step, per_step
              scores.json     by kind of weights: number of prompts, mean magnitudes of both groups, and where there are both, the area
                              under the ROC curve with its interval and the rate of found prompts at 1 % false ones

Prompts are first captions: detect.num_prompts of training images, and as many of held-out images that no training image shares.
"""

import json

import numpy as np

from stages import params, text
from stages.run import cli, device, files
from stages.run.progress import Progress

LEFT_OUT = (
    "the magnitude detector is left out: add a section detect with num_prompts: 500, images_per_prompt: 4, num_steps: 50, "
    "guidance: 7.5 and batch_size: 16 (params.yaml)"
)
MEASURES = ("mean", "first_step")
FALSE_SHARE = 0.01  # of the prompts not trained on that may be taken for trained ones


def wanted(experiment):
    return bool(experiment.get("detect"))


def arms(experiment):
    """The arms whose captions are looked at: those that are trained here, with captions."""
    trained = params.trained(experiment) if wanted(experiment) else {}
    return [arm for arm in trained if params.fixed_text(experiment, arm) is None]


def main(arguments):
    with cli.stage("detect", __doc__, arguments, "arm", "seed") as job:
        if not wanted(job.params):
            raise ValueError(LEFT_OUT)
        if job.arm not in arms(job.params):
            raise ValueError(
                f"{job.arm} is trained with one text for all images (train.caption), so no caption tells anything of it"
            )
        job.device = device.claim(job.params["compute"])
        from stages.text import generation

        sampled = params.section(job.params, "sample", job.arm)
        sampled |= {"precision": job.params["compute"]["precision"], "mitigation": None}  # prompts as they are
        shape = files.load_array(files.DATA / "train.npy", mmap=True).shape[1:]
        source = generation.Source(job, sampled, shape)
        prompts, trained = chosen(files.load_json(files.DATA / "captions.json"), job.params["detect"], job.seed)
        lines, scores = [], {"num_trained": int(trained.sum()), "num_unseen": int((~trained).sum())}
        for weights in sampled["weights"]:
            source.load(weights)
            found = _magnitudes(job, source, prompts, f"detect@{job.key} {weights}")
            lines += [
                {"weights": weights, "prompt": prompt, "trained": bool(of_group)} | values
                for prompt, of_group, values in zip(prompts, trained, found, strict=True)
            ]
            scores[weights] = _summary(found, trained)
        with files.publish(files.detect_dir(job.run)) as folder:
            folder.mkdir()
            content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            files.write_text(folder / "prompts.jsonl", content)
            files.write_json(folder / "scores.json", scores)


def chosen(captions, settings, seed):
    """The prompts, each once, in an order that depends on the seed alone.

    captions   dict: train, heldout, each a list of lists of texts
    Returns    list of texts; [n] bool: a training image has that caption
    """
    from stages import randomness

    groups = [list(dict.fromkeys(texts[0] for texts in captions["train"])), text.unseen(captions)]
    generator = randomness.numpy_generator("detect", seed)
    picked = [[group[i] for i in generator.permutation(len(group))[: settings["num_prompts"]]] for group in groups]
    return [*picked[0], *picked[1]], np.arange(sum(map(len, picked))) < len(picked[0])


def _magnitudes(job, source, prompts, what):
    """A dict a prompt: raw and rms, each as magnitude_detector.scores has it."""
    from stages.diffusion import sampling
    from stages.text import generation, magnitude_detector

    settings, frozen = job.params["detect"], source.frozen
    alpha_bars, per_prompt = source.built.alpha_bars, settings["images_per_prompt"]
    asked = [prompt for prompt in prompts for _ in range(per_prompt)]
    steps, progress = {"raw": [], "rms": []}, Progress(what, "images")
    for start in range(0, len(asked), settings["batch_size"]):
        batch = asked[start : start + settings["batch_size"]]
        stop = start + len(batch)
        x_T = sampling.starting_noise(start, stop, source.latent_shape, job.seed).to(job.device)
        cond = frozen.embeddings(batch)
        uncond = frozen.embeddings([""]).expand_as(cond)
        predict = generation.guided(
            source.network, cond, uncond, settings["guidance"], alpha_bars, frozen.prediction_type
        )
        with magnitude_detector.Recorder(
            source.network, frozen.prediction_type, alpha_bars, settings["guidance"]
        ) as recorder:
            precision = job.params["compute"]["precision"]
            sampling.ddim(predict, x_T, alpha_bars, settings["num_steps"], "paper", precision, clip=False)
        for kind, found in steps.items():
            found.append(recorder.per_step(kind))
        progress.update(stop, len(asked))
    steps = {kind: np.concatenate(found).reshape(len(prompts), per_prompt, -1) for kind, found in steps.items()}
    return [{kind: magnitude_detector.scores(found[i]) for kind, found in steps.items()} for i in range(len(prompts))]


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
