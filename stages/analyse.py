"""Analyses one run: the loss of memorised images, which images were skipped, and whether skips predict which images leak.

params    model, diffusion, compute, analyse, score.headline, arms.<arm>.method
reads     artifacts/data, artifacts/results/counts/<run>, artifacts/model/<run>/round<R>
          artifacts/samples/<run>/round<r>/part<p> of the last round that is sampled and artifacts/results/score/<run>/round<r>/images.parquet, of the headline's weights
          a text model with the section similarity: artifacts/results/similarity/<run>/round<r>/nearest.parquet instead of images.parquet
writes    artifacts/results/analyse/<run>/
              summary.json               the result of each analysis, or {"absent": why there is none}
              loss_by_timestep.parquet   Fig. 3: mean and quartiles of the loss by group and timestep
              loss_groups.parquet        the images of those groups
              extremes.parquet           Fig. 8: distance and energy of the most and the least skipped images
              train_images.parquet       Fig. 9: every training image: skips, augmented, visits, generated copies, lowest ratio (or
                                         minus the largest similarity) among the generated images that it is nearest to
              moves.parquet              MSR: skip rates before and after each move, of moved images and of those that stayed
              skip_by_timestep.parquet   samples skipped and visited by round and tenth of the timesteps
          A file is written only where there is something to write in it.
"""

from dataclasses import dataclass

import numpy as np

from stages import experiments, models
from stages.run import cli, device, files
from stages.run.instance import LIGHT_BYTES, ROW_BYTES, Instance
from stages.run.progress import Progress

# fmt: off
PHASE = {
    "name": "analyse",
    "per": "run",
    "arms": "trained",
    "device": True,
    "final": True,
    "section": {
        "description": "analyses in addition to the scores; leave the section out to skip them",
        "required": ["group_size"],
        "properties": {
            "group_size": {"description": "images per group in the comparison of losses, at most half of the training images", "type": "integer", "minimum": 1, "maximum": 1024},
            "noise_draws": {"description": "number of noise draws over which a loss is averaged at each timestep", "default": 2, "type": "integer", "minimum": 1},
            "timestep_stride": {"description": "the loss is measured at every n-th timestep; 1: at all timesteps", "default": 20, "type": "integer", "minimum": 1},
            "batch_size": {"description": "images per pass through the network", "default": 128, "type": "integer", "minimum": 1},
            "select": {"description": "how memorised training images are chosen. l2: smallest distance to a generated image. ratio: lowest ratio (text model with the section similarity: largest similarity) among the generated images whose nearest training image they are", "default": "l2", "enum": ["l2", "ratio"]},
            "extreme_share": {"description": "share of the training images that count as the most skipped, and as the least skipped", "default": 0.1, "type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
            "rare_skip_rate": {"description": "an image counts as rarely skipped if it is skipped at less than this share of its visits", "default": 0.27, "type": "number", "exclusiveMinimum": 0, "maximum": 1},
        },
    },
}
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Analysis(Instance):
    """nearest   folder of what says which training image is nearest to a generated one; the others as of a part of the samples"""

    model: str
    method: str
    kind: str
    architecture: str
    samples: str
    nearest: str

    writes = ("results/analyse",)

    def size(self, scale):
        return scale.num_train * ROW_BYTES + LIGHT_BYTES


def instances(experiment):
    if "analyse" not in experiment:
        return []
    found = []
    for arm, seed in experiments.runs(experiment, experiments.trained(experiment)):
        phase = "similarity" if experiments.copies_by_sscd(experiment) else "score"
        run, last = files.run_name(arm, seed), experiments.last_sampled(experiment, arm)
        read = {"samples": files.folder("samples", run, last), "nearest": files.folder(f"results/{phase}", run, last)}
        read = {name: str(path) for name, path in read.items()}
        model = experiments.final_model(experiment, arm, seed)
        found.append(Analysis(block="analyse", arm=arm, seed=seed, **read, **model))
    return found


def check(experiment):
    """Raises ValueError if there are fewer timesteps than the stride of the losses."""
    analyse, diffusion = experiment.get("analyse"), experiment["diffusion"]
    if analyse and diffusion and analyse["timestep_stride"] > diffusion["num_timesteps"]:
        raise ValueError(
            f"analyse.timestep_stride is {analyse['timestep_stride']}, expected at most diffusion.num_timesteps = "
            f"{diffusion['num_timesteps']}"
        )


def check_sizes(experiment, num_train):
    """Raises ValueError if a group is more than half of the training images."""
    if (analyse := experiment.get("analyse")) and 2 * analyse["group_size"] > num_train:
        raise ValueError(
            f"analyse.group_size is {analyse['group_size']}, expected at most half of the {num_train} training images: "
            "as many others are drawn to compare the memorised ones with"
        )


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments, check) as job:
        if "analyse" not in job.params:
            raise ValueError(
                "there is no section analyse: add it, as README shows, or leave this phase out (params.yaml)"
            )
        job.device = device.claim(job.params["compute"])
        from stages.measures import run_analyses

        settings = job.params["analyse"]
        train, heldout = (files.load_array(files.DATA / f"{part}.npy", mmap=True) for part in ("train", "heldout"))
        rounds = experiments.load_counts(job.recipe, job.run)
        run = run_analyses.run_of(train, heldout, rounds, *_copies(job))
        found = {
            "loss_by_timestep": _loss_by_timestep(job, run, settings),
            "train_images": run_analyses.train_images(run, settings["rare_skip_rate"]),
            "extremes": run_analyses.extremes(
                run,
                settings["extreme_share"],
                job.seed,
                job.device,
                lambda group: Progress(f"analyse@{job.key} {group} skipped images", "images").update,
            ),
            "emission": run_analyses.emission(run),
            "moves": run_analyses.moves(run, job.seed),
            "skip_by_timestep": run_analyses.skip_by_timestep(run),
        }
        with files.publish(files.folder("results/analyse", job.run)) as folder:
            folder.mkdir()
            for _, tables in found.values():
                for name, table in tables.items():
                    files.save_table(folder / f"{name}.parquet", table)
            files.write_json(folder / "summary.json", {name: summary for name, (summary, _) in found.items()})


def _copies(job):
    """The generated images with the headline's weights: of each its nearest training image, its ratio (or minus its similarity), and
    whether it is a copy: three [M] arrays."""
    from stages.measures import memorisation, sscd

    headline, last = job.params["score"]["headline"], experiments.last_sampled(job.params, job.arm)
    if experiments.copies_by_sscd(job.params):
        images = files.load_table(files.folder("results/similarity", job.run, last) / "nearest.parquet")
        images = images[images.weights == headline["weights"]]
        found = images.similarity.to_numpy(np.float64)
        return images.nearest_train.to_numpy(), -found, found > sscd.MARK
    images = files.load_table(files.folder("results/score", job.run, last) / "images.parquet")
    images = images[images.weights == headline["weights"]]
    ratio = images[f"train_{headline['protocol']}"].to_numpy()
    strict = memorisation.PROTOCOLS[headline["protocol"]].strict
    return images.nearest_train.to_numpy(), ratio, memorisation.is_memorised(ratio, headline["threshold"], strict)


def _loss_by_timestep(job, run, settings):
    """The losses of the final model on groups of images: summary and tables, as run_analyses has them."""
    from stages.measures import loss_profile, run_analyses

    if not experiments.predicts_noise(job.params, job.arm):
        return {"absent": "its network does not predict the noise"}, {}
    model = models.build(job, job.arm)
    closeness = _distance(job, run.train) if settings["select"] == "l2" else run.lowest_ratio
    groups = run_analyses.loss_groups(run, closeness, settings["group_size"], job.seed)
    index = [("heldout" if name == "heldout" else "train", group["index"]) for name, group in groups.items()]
    last = experiments.last_sampled(job.params, job.arm)
    models.load_network(job, job.arm, last, job.params["score"]["headline"]["weights"], model)
    shown, x_0, labels = models.profiled(job, job.arm, model, {"train": run.train, "heldout": run.heldout}, index)
    timesteps = np.arange(0, len(model.alpha_bars), settings["timestep_stride"])
    losses = loss_profile.losses(
        shown,
        x_0,
        timesteps.tolist(),
        settings["noise_draws"],
        model.alpha_bars.float().to(job.device),
        job.seed,
        settings["batch_size"],
        job.params["compute"]["precision"],
        Progress(f"analyse@{job.key} loss", "timesteps").update,
        labels,
    )
    summary, tables = run_analyses.loss_by_timestep(groups, losses, timesteps, len(run.heldout))
    return {"select": settings["select"], "noise_draws": settings["noise_draws"]} | summary, tables


def _distance(job, train):
    """[N] float64: distance of each training image to the nearest generated one with the headline's weights."""
    from stages.measures import run_analyses

    num_parts = experiments.section(job.params, "sample", job.arm)["parts"]
    last = experiments.last_sampled(job.params, job.arm)
    samples = files.load_samples(job.run, last, num_parts, job.params["score"]["headline"]["weights"])
    progress = Progress(f"analyse@{job.key} training images against generated ones", "images")
    return run_analyses.distance_to_generated(train, samples, job.device, progress.update)


if __name__ == "__main__":
    cli.run(main)
