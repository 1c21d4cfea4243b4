"""Exports the model of one arm as a folder that diffusers loads, with a model card: `python workflow/scripts/release.py ddpm`.

    make release ARM=ddpm [ROUND=3] [SEED=0] [WEIGHTS=ema]

Without ROUND it is the last round that shows no copies, as the report names it. The folder is release/<arm>-seed<S>-round<r>-
<weights>. A model of pixels becomes a DDIMPipeline; one with captions a copy of model.pipeline with the trained UNet.
"""

import argparse
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))
from stages import experiments, rules
from stages.report import entries, leaks, trade_off
from stages.run import cli, files

RELEASE = Path("release")


def main(words):
    parser = argparse.ArgumentParser(
        prog="make release", description="Exports a model for diffusers, with a model card."
    )
    parser.add_argument("arm", help="an arm that is trained here (make release ARM=...)")
    parser.add_argument(
        "--round", type=int, help="a round that is sampled; the last one that shows no copies if left out (ROUND=...)"
    )
    parser.add_argument("--seed", type=int, help="a seed of params.yaml; the first if left out (SEED=...)")
    parser.add_argument("--weights", choices=["raw", "ema"], help="those of the headline if left out (WEIGHTS=...)")
    asked = parser.parse_args(words)
    experiment = rules.load()
    _check(experiment, asked)
    seed = experiment["seeds"][0] if asked.seed is None else asked.seed
    weights = asked.weights or experiment["score"]["headline"]["weights"]
    metrics = files.load_json(files.SUMMARY)
    round_ = _round(experiment, metrics, asked.arm, weights) if asked.round is None else asked.round
    job = SimpleNamespace(phase="sample", params=experiment, arm=asked.arm, seed=seed, device="cpu")
    found = _measured(job, round_, weights)
    target = RELEASE / f"{files.run_name(asked.arm, seed)}-round{round_}-{weights}"
    if target.exists():
        raise ValueError(f"{target} exists already: remove it, or move it away")
    with files.publish(target) as folder:
        folder.mkdir(parents=True)
        _save(job, round_, weights, folder)
        files.write_text(folder / "README.md", _card(job, round_, weights, found, metrics))
    print(f"{target}: {_excess(found)}")


def _check(experiment, asked):
    """Raises ValueError if there is no such arm, seed, round or kind of weights."""
    trained = experiments.trained(experiment)
    if asked.arm not in trained:
        raise ValueError(f"ARM is {asked.arm}, expected one of the arms that are trained here: {', '.join(trained)}")
    kinds = experiments.section(experiment, "sample", asked.arm)["weights"]
    rounds = experiments.sampled_rounds(experiment, asked.arm)
    for name, found, expected in (
        ("SEED", asked.seed, experiment["seeds"]),
        ("WEIGHTS", asked.weights, kinds),
        ("ROUND", asked.round, rounds),
    ):
        if found is not None and found not in expected:
            why = " (sample_rounds): only what was measured is released" if name == "ROUND" else ""
            raise ValueError(f"{name} is {found}, expected one of {', '.join(map(str, expected))}{why}")
    if experiments.trains_apart(experiment["arms"][asked.arm]):
        num_models = experiment["arms"][asked.arm]["shard"]["num_shards"]
        raise ValueError(
            f"{asked.arm} is the mean of the predictions of {num_models} models (shard.combine: predictions), and a pipeline of diffusers holds "
            "one: release an arm with one model"
        )
    if not experiments.predicts_noise(experiment, asked.arm):
        raise ValueError(
            f"the network of {asked.arm} does not predict the noise of an image, so no pipeline of diffusers can use it"
        )


def _round(experiment, metrics, arm, weights):
    """The last round that shows no copies, for each seed."""
    steps = metrics[arm][weights].get("rounds", {}).get("last_without_copies")
    if steps is None:
        raise ValueError(
            f"every round of {arm} shows copies of training images ({weights} weights), or none was measured: say which one to "
            f"release in spite of that (ROUND=, one of {', '.join(map(str, experiments.sampled_rounds(experiment, arm)))})"
        )
    runs = [files.run_name(arm, seed) for seed in experiment["seeds"]]

    def mean_steps(round_):  # as the report has them
        return sum(trade_off.steps_until(experiment["arms"][arm], run, round_) for run in runs) / len(runs)

    return min(experiments.sampled_rounds(experiment, arm), key=lambda round_: abs(mean_steps(round_) - steps))


def _measured(job, round_, weights):
    """What the score phase found at the headline's protocol and threshold: dict."""
    folder = files.folder("results/score", files.run_name(job.arm, job.seed), round_)
    scores, curves = files.load_json(folder / "scores.json"), files.load_table(folder / "curves.parquet")
    headline = job.params["score"]["headline"]
    at = curves[
        (curves.weights == weights)
        & (curves.protocol == headline["protocol"])
        & ((curves.threshold - headline["threshold"]).abs() < 1e-9)
    ]
    leaked = leaks.num_leaked(folder, entries.headline(job.params))[weights]
    return scores | scores[weights] | at.iloc[0].to_dict() | {"leaked": leaked}


def _save(job, round_, weights, folder):
    """The model itself, in diffusers' layout."""
    from stages import models
    from stages.diffusion import weights as named_weights

    path = files.folder("model", files.run_name(job.arm, job.seed), round_) / f"{weights}.safetensors"
    model = models.build(job, job.arm)
    named_weights.load(model.network, files.load_arrays(path), path)
    if experiments.is_text(job.params):
        shutil.copytree(job.params["model"]["pipeline"], folder, dirs_exist_ok=True)
        shutil.rmtree(folder / "unet")
        model.network.save_pretrained(folder / "unet")
        return
    import diffusers

    from stages.diffusion import unet

    schedule = job.params["diffusion"]
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=schedule["num_timesteps"],
        beta_start=schedule["beta_start"],
        beta_end=schedule["beta_end"],
        beta_schedule="linear",
        clip_sample=True,
        set_alpha_to_one=experiments.section(job.params, "sample", job.arm)["protocol"] == "clean",
        steps_offset=1,
        timestep_spacing="leading",
    )
    diffusers.DDIMPipeline(unet=unet.untold(model.network), scheduler=scheduler).save_pretrained(folder)


def _excess(found):
    if found["excess"] != found["excess"]:  # NaN
        return f"{found['count']} of {found['num_images']} generated images count as memorised; no image is held out, so no excess is known"
    low, high = found["excess_low"], found["excess_high"]
    told = "which cannot be told from 0" if low <= 0 else "MORE THAN CHANCE: this model gives out training images"
    sure = f"; {found['leaked']:,} TRAINING IMAGES ARE GIVEN OUT FOR SURE" if found["leaked"] else ""
    return f"excess {found['excess']:.1f} [{low:.1f}, {high:.1f}] of {found['num_images']} generated images (95 %), {told}{sure}"


def _card(job, round_, weights, found, metrics):
    """The model card, in Markdown."""
    recipe, data, headline = job.params["arms"][job.arm], job.params["data"], job.params["score"]["headline"]
    steps = trade_off.steps_until(recipe, files.run_name(job.arm, job.seed), round_)
    verdict = trade_off.sentence(job.params, metrics, job.arm, weights)
    fidelity = "not measured" if found["fd_pixels_heldout"] is None else f"{found['fd_pixels_heldout']:.4g}"
    return f"""# {job.arm}, round {round_}, seed {job.seed}, {weights} weights

| | |
| --- | --- |
| training data | {data["name"]}: {found["num_train"]:,} images, {found["num_heldout"]:,} held out |
| method | {recipe["method"]["name"]}, {recipe["shard"]["num_shards"]} shard(s), round {round_} of {recipe["rounds"]}, {steps:,} optimiser steps |
| fidelity | Frechet distance of pixels {found["fd_pixels"]:.4g} to the training images, {fidelity} to held-out images |
| memorisation | {_excess(found)}; protocol {headline["protocol"]} at {headline["threshold"]:g} |

{verdict or ""}

## What this does not promise

- The excess counts generated images that are nearly equal, pixel by pixel, to a training image. Copies that are mirrored, shifted, cropped or
  otherwise changed, and single features of a person, are not counted.
- It holds for {found["num_images"]:,} images that were generated by this model. More images, other prompts or other samplers may show others.
- An excess that cannot be told from 0 may still be as high as the upper end of its interval.
- It says nothing of membership: whether an image was in the training set can be inferred from a model that copies none.
"""


if __name__ == "__main__":
    cli.run(main)
