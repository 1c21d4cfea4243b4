"""Looks into one run: why its images were memorised, which were skipped, and whether that foretells what it gives out.

params    model, diffusion, compute, analyse, score.headline, arms.<arm>.method
reads     artifacts/data, artifacts/counts/<run>, artifacts/model/<run>/round<R>
          artifacts/samples/<run>/part<p> and artifacts/score/<run>/images.parquet, of the headline's weights
          of a text model with the section similarity, artifacts/similarity/<run>/nearest.parquet in the place of the latter
writes    artifacts/analysis/<run>/
              summary.json               what each analysis came to, or {"absent": why there is none}
              loss_by_timestep.parquet   Fig. 3: mean and quartiles of the loss by group and timestep
              loss_groups.parquet        the images of those groups
              extremes.parquet           Fig. 8: distance and energy of the most and the least skipped images
              train_images.parquet       Fig. 9: every training image: skips, augmented, visits, generated copies, lowest ratio (or
                                         minus the largest similarity) among the generated images that it is the nearest of
              moves.parquet              MSR: skip rates before and after each move, of moved images and of those that stayed
              skip_by_timestep.parquet   samples skipped and visited by round and tenth of the timesteps
          Only those files that there is something to write in.
"""

import math

import numpy as np
import pandas as pd

from stages import network, params, randomness, similarity, text
from stages.measures import image_complexity, leaks, loss_profile, memorisation, roc, skip_analysis
from stages.run import cli, device, files
from stages.run.progress import Progress

NO_SKIPS = "no image was skipped"


def main(arguments):
    with cli.stage("analyse", __doc__, arguments, "arm", "seed") as job:
        if "analyse" not in job.params:
            raise ValueError(
                "there is no section analyse: add it, as README shows, or leave this phase out (params.yaml)"
            )
        job.device = device.claim(job.params["compute"])
        run = Run(job)
        tables, summary = {}, {}
        for analysis in (loss_by_timestep, train_images, extremes, emission, moves, skip_by_timestep):
            summary[analysis.__name__] = analysis(run, tables)
        with files.publish(files.analysis_dir(job.run)) as folder:
            folder.mkdir()
            for name, table in tables.items():
                files.save_table(folder / f"{name}.parquet", table)
            files.write_json(folder / "summary.json", summary)


class Run:
    """What the analyses read, and what several of them need."""

    def __init__(self, job):
        self.job, self.settings = job, job.params["analyse"]
        self.train = files.load_array(files.DATA / "train.npy", mmap=True)
        self.heldout = files.load_array(files.DATA / "heldout.npy", mmap=True)
        self.rounds = files.load_counts(job.recipe, job.run)
        self.history = skip_analysis.history(self.rounds, len(self.train))
        self.skips, self.augmented, self.visits = (
            getattr(self.history, name).sum(axis=0) for name in ("skips", "augmented", "visits")
        )
        self.is_text, self.weights = params.is_text(job.params), job.params["score"]["headline"]["weights"]
        self.nearest, self.ratio, memorised = self._copies()
        self.leaks = leaks.given_out(self.nearest, self.ratio, memorised)
        self.emitted = np.zeros(len(self.train), np.int64)
        self.emitted[self.leaks.index] = self.leaks.count

    def _copies(self):
        """The nearest training image of each generated image, its ratio (or minus the similarity), and whether it is a copy: [M] each."""
        from stages.measures import sscd

        if self.is_text and similarity.wanted(self.job.params):
            images = files.load_table(files.similarity_dir(self.job.run) / "nearest.parquet")
            images = images[images.weights == self.weights]
            found = images.similarity.to_numpy(np.float64)
            return images.nearest_train.to_numpy(), -found, found > sscd.MARK
        headline = self.job.params["score"]["headline"]
        images = files.load_table(files.score_dir(self.job.run) / "images.parquet")
        images = images[images.weights == self.weights]
        ratio = images[f"train_{headline['protocol']}"].to_numpy()
        strict = memorisation.PROTOCOLS[headline["protocol"]].strict
        return images.nearest_train.to_numpy(), ratio, memorisation.is_memorised(ratio, headline["threshold"], strict)

    def lowest_ratio(self):
        """[N] float64: lowest ratio among the generated images that each training image is the nearest of; inf if none."""
        lowest = np.full(len(self.train), np.inf)
        np.minimum.at(lowest, self.nearest, self.ratio)
        return lowest

    def distance_to_generated(self):
        """[N] float64: distance of each training image to the nearest generated one, in grey levels of [0, 1]."""
        from stages.measures import neighbours

        parts = range(params.section(self.job.params, "sample", self.job.arm)["parts"])
        samples = [files.load_array(files.samples_dir(self.job.run, p) / f"{self.weights}.npy") for p in parts]
        progress = Progress(f"analyse@{self.job.key} training images against generated ones", "images")
        squared, _ = neighbours.nearest(
            self.train, np.concatenate(samples), 1, device=self.job.device, progress=progress.update
        )
        return np.sqrt(squared[:, 0]) / 255

    def model(self):
        """The final model with the headline's weights, in evaluation mode: base.Model."""
        from stages.diffusion import unet

        height, width, channels = self.train.shape[1:]
        built = (text if self.is_text else network).build(self.job, (channels, height, width))
        source = files.model_dir(self.job.run, self.job.recipe["rounds"]) / f"{self.weights}.safetensors"
        unet.load(built.network, files.load_arrays(source), source)
        built.network.to(self.job.device).eval()
        return built

    def shown(self, built, groups):
        """The images of groups as loss_profile.losses takes them: network, x_0 and labels."""
        import torch

        from stages.diffusion import ddpm

        images = self._of_groups(groups, {"train": self.train, "heldout": self.heldout})
        images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().to(self.job.device)
        x_0 = ddpm.normalise(images)
        if self.is_text:
            from stages.text import latents

            fixed = params.fixed_text(self.job.params, self.job.arm)
            captions = self._of_groups(groups, files.load_json(files.DATA / "captions.json"))
            return latents.profiled(built.frozen, built.network, x_0, [fixed or texts[0] for texts in captions])
        if not built.num_classes:
            return built.network, x_0, None
        labels = {name: files.load_array(files.DATA / f"{name}_labels.npy") for name in ("train", "heldout")}
        labels = torch.from_numpy(np.stack(self._of_groups(groups, labels)))
        return built.network, x_0, labels.to(self.job.device)

    @staticmethod
    def _of_groups(groups, of):
        """What belongs to the images of groups, one group after the other: a list, from `of`: train, heldout -> one for each image."""
        return [of["heldout" if name == "heldout" else "train"][i] for name, g in groups.items() for i in g["index"]]


def loss_by_timestep(run, tables):
    """Fig. 3, with held-out images as simple as the memorised ones as control."""
    settings, experiment = run.settings, run.job.params
    built = run.model()
    if not built.method.predicts_noise:
        return {"absent": "its network does not predict the noise"}
    groups = _loss_groups(run)
    timesteps = np.arange(0, len(built.alpha_bars), settings["timestep_stride"])
    model, x_0, labels = run.shown(built, groups)
    losses = loss_profile.losses(
        model,
        x_0,
        timesteps.tolist(),
        settings["noise_draws"],
        built.alpha_bars.float().to(run.job.device),
        run.job.seed,
        settings["batch_size"],
        experiment["compute"]["precision"],
        Progress(f"analyse@{run.job.key} loss", "timesteps").update,
        labels,
    )
    curves, summary = [], {"select": settings["select"], "noise_draws": settings["noise_draws"]}
    for name, of_group in zip(groups, np.split(losses, len(groups)), strict=True):  # groups are of one size
        mean, low, high = loss_profile.band(of_group)
        curves.append(pd.DataFrame({"group": name, "timestep": timesteps, "mean": mean, "low": low, "high": high}))
        group = groups[name] = groups[name].assign(group=name, mean_loss=of_group.mean(axis=1))
        summary[name] = {
            "images": len(group),
            "emitted": int((group.emitted > 0).sum()),
            "mean_loss": float(group.mean_loss.mean()),
            "pixel_variance": float(group.pixel_variance.mean()),
        }
        if name != "similar":
            summary[name]["similar_is_lower"] = told_apart(-groups["similar"].mean_loss, -group.mean_loss)
    if "heldout" not in groups:
        found = f"{len(run.heldout)} held-out images cannot be matched to {len(groups['similar'])}"
        summary["heldout"] = {"absent": found}
    tables["loss_by_timestep"], tables["loss_groups"] = pd.concat(curves), pd.concat(groups.values())
    return summary


def _loss_groups(run):
    """The images of the groups of Fig. 3, which are of one size.

    Returns   dict of frames: similar, other and, where there are enough held-out images, heldout; with index, closeness (what
              similar images were chosen by), emitted, pixel_variance
    """
    seed = run.job.seed
    distance = run.distance_to_generated() if run.settings["select"] == "l2" else run.lowest_ratio()
    similar = loss_profile.most_similar(distance, run.settings["group_size"])
    other = loss_profile.others(len(run.train), similar, randomness.numpy_generator("other_images", seed))
    groups = {}
    for name, index in (("similar", similar), ("other", other)):
        variance = image_complexity.pixel_variance(run.train[index])
        columns = {
            "index": index,
            "closeness": distance[index],
            "emitted": run.emitted[index],
            "pixel_variance": variance,
        }
        groups[name] = pd.DataFrame(columns)
    if len(run.heldout) >= len(similar):
        variance = image_complexity.pixel_variance(run.heldout)
        index = loss_profile.matched(groups["similar"].pixel_variance.to_numpy(), variance)
        columns = {"index": index, "closeness": np.nan, "emitted": 0, "pixel_variance": variance[index]}
        groups["heldout"] = pd.DataFrame(columns)
    return groups


def train_images(run, tables):
    """Fig. 9, also as a share of visits. The table is there for arms that skip nothing as well: it says what they gave out."""
    tables["train_images"] = pd.DataFrame(
        {
            "index": np.arange(len(run.train)),
            "skips": run.skips,
            "augmented": run.augmented,
            "visits": run.visits,
            "emitted": run.emitted,
            "lowest_ratio": run.lowest_ratio(),
        }
    )
    if not run.skips.any():
        return {"absent": NO_SKIPS}
    rates = skip_analysis.rate(run.skips, run.visits)
    rates = rates[run.visits > 0]
    threshold = run.settings["rare_skip_rate"]
    return {
        "visited": len(rates),
        "never_visited": int((run.visits == 0).sum()),
        "rare_skip_rate": threshold,
        "rarely_skipped_share": float((rates < threshold).mean()),
    }


def extremes(run, tables):
    """Fig. 8: are the most skipped images simpler, and nearer to other training images, than the least skipped ones?"""
    seed = run.job.seed
    if not run.skips.any():
        return {"absent": NO_SKIPS}
    generator = randomness.numpy_generator("skip_ties", seed)
    most, least = skip_analysis.extremes(run.skips, run.settings["extreme_share"], generator)
    if not len(most):
        return {"absent": f"analyse.extreme_share {run.settings['extreme_share']:g} of {len(run.train)} images is none"}
    parts = []
    for name, index in (("most", most), ("least", least)):
        progress = Progress(f"analyse@{run.job.key} {name} skipped images", "images")
        energy = image_complexity.energies(run.train[index])
        parts.append(
            pd.DataFrame(
                {
                    "group": name,
                    "index": index,
                    "skips": run.skips[index],
                    "nearest_other": image_complexity.nearest_other(run.train, index, run.job.device, progress.update),
                    "energy": energy[:, 0],
                    "energy_with_dc": energy[:, 1],
                    "high_share": energy[:, 2],
                }
            )
        )
    tables["extremes"] = pd.concat(parts)
    found = {"images": len(most)}
    for name in ("skips", "nearest_other", "energy", "energy_with_dc", "high_share"):
        values = [part[name].dropna().to_numpy() for part in parts]
        found[name] = {
            group: float(np.median(v)) if len(v) else None for group, v in zip(("most", "least"), values, strict=True)
        }
        if name != "skips":
            found[name]["most_is_lower"] = told_apart(*(-v for v in values))
    return found


def emission(run, tables):
    """Does the number of its skips, or their share of its visits, foretell that an image is given out (section V.C)?"""
    emitted = run.emitted > 0
    found = {"emitted": int(emitted.sum()), "images": len(emitted)}
    if not run.skips.any():
        return found | {"absent": NO_SKIPS}
    if not emitted.any() or emitted.all():
        return found | {"absent": f"{'every' if emitted.any() else 'no'} training image was given out"}
    seen = run.visits > 0
    rates = skip_analysis.rate(run.skips, run.visits)
    return found | {
        "skips": told_apart(run.skips[emitted], run.skips[~emitted]),
        "rate": told_apart(rates[emitted & seen], rates[~emitted & seen]),
    }


def moves(run, tables):
    """Are images that moved skipped less in their new shard, which is what MSR is for?"""
    seed = run.job.seed
    if not run.skips.any():
        return {"absent": NO_SKIPS}
    generator = randomness.numpy_generator("move_pairs", seed)
    found = [skip_analysis.move(run.history, r, generator) for r in range(len(run.rounds) - 1)]
    if not any(len(move.before) for move in found):
        return {"absent": "no image moved"}
    rows = [{"after_round": r} | skip_analysis.premise([move]) for r, move in enumerate(found, start=1)]
    tables["moves"] = pd.DataFrame(rows)
    return {name: _known(value) for name, value in skip_analysis.premise(found).items()}


def skip_by_timestep(run, tables):
    """At which noise levels images are skipped."""
    if not run.skips.any():
        return {"absent": NO_SKIPS}
    skipped, visited = skip_analysis.by_tenth(run.rounds)
    rounds, tenths = np.indices(skipped.shape)
    tables["skip_by_timestep"] = pd.DataFrame(
        {
            "round": rounds.ravel() + 1,
            "tenth": tenths.ravel() + 1,
            "skipped": skipped.ravel(),
            "visited": visited.ravel(),
        }
    )
    return {"rate": [_known(value) for value in skip_analysis.rate(skipped.sum(0), visited.sum(0))]}


def told_apart(group, rest):
    """Area (stages.measures.roc) of a group against the rest, with the sizes of both; None where one of them is empty."""
    if not len(group) or not len(rest):
        return None
    found = roc.area(np.concatenate([group, rest]), np.arange(len(group) + len(rest)) < len(group))
    return {name: _known(value) for name, value in found._asdict().items()} | {"group": len(group), "rest": len(rest)}


def _known(value):
    """None for what does not exist: JSON has no nan."""
    return None if isinstance(value, float) and math.isnan(value) else value


if __name__ == "__main__":
    cli.run(main)
