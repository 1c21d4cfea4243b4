"""Effective model memorisation (Gu et al. 2023): the largest training set that a recipe memorises to 90 %.

    python workflow/scripts/emm.py 8 16 32 64     or  make emm SIZES="8 16 32 64"

The experiment of params.yaml runs with each of these numbers of training images (data.num_train), in copies under scratch/emm. Everything
else of the recipe stays, its epochs included, so fewer images mean fewer steps; batches and neighbours that are larger than the training set, or than
a shard of it, become as large as that. Phases that measure something else are left out, and so are generators from elsewhere, which no number
of images here changes. An arm that samples from another arm's model is a recipe of its own, as with sample.mitigation.

A generated image is memorised where it is less than a third as far from its nearest training image as from the second. The share is the highest over the
rounds that are sampled (sample_rounds), with the headline's weights. Writes scratch/emm/emm.csv and emm.svg, and prints the share by arm
and size, and the largest size at which it is at least 90 %.
"""

import copy
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[2]))
import seeds

from stages import experiments, rules
from stages.report import figures
from stages.run import cli, files, params

FOLDER = Path("scratch/emm")
LEAST = 0.9  # share of the generated images
PROTOCOL = "third"  # of measures.memorisation
NOT_NEEDED = ("quality", "similarity", "membership", "copying", "clip", "detect", "analyse")


def sized(experiment, num_train):
    """The experiment with so many training images: dict.

    Raises   ValueError: it says otherwise how many images are held out; no arm is trained here; fewer images than shards
    """
    if "num_train" not in experiment["data"]:
        raise ValueError("data.num_train is missing: a sweep over the number of training images needs it (params.yaml)")
    found = copy.deepcopy({name: section for name, section in experiment.items() if name not in NOT_NEEDED})
    found["data"]["num_train"] = num_train
    found["arms"] = {arm: recipe for arm, recipe in found["arms"].items() if experiments.maker(found, arm)}
    if not found["arms"]:
        raise ValueError("no arm is trained here, so none memorises more or fewer images (params.yaml, arms)")
    most = max(2, num_train // 2)
    found["score"]["neighbours"] = min(found["score"]["neighbours"], most)
    for arm, recipe in found["arms"].items():
        mitigation = experiments.section(found, "sample", arm).get("mitigation", {})
        if mitigation.get("neighbours", 0) > most:
            recipe["sample"]["mitigation"] = mitigation | {"neighbours": most}
    for arm, recipe in experiments.trained(found).items():
        if (num_shards := recipe["shard"]["num_shards"]) > num_train:
            raise ValueError(f"{num_train} training images are fewer than the {num_shards} shards of {arm}")
        smallest = num_train // num_shards
        if experiments.section(found, "train", arm)["batch_size"] > smallest:
            recipe["train"]["batch_size"] = smallest
    return found


def shares(settings, folder):
    """Share of the generated images that are memorised, by arm and seed: frame with arm, seed, round (of the highest share) and share.

    settings   params.yaml of a copy: of `sized`
    folder     of the copy, with its results
    """
    weights, rows = settings["score"]["headline"]["weights"], []
    for place in experiments.sampled(settings):
        run = files.run_name(place["arm"], place["seed"])
        curves = files.load_table(folder / files.folder("results/score", run, place["round"]) / "curves.parquet")
        (share,) = curves[(curves.weights == weights) & (curves.protocol == PROTOCOL)].share
        rows.append(place | {"share": share})
    found = pd.DataFrame(rows)
    return found.loc[found.groupby(["arm", "seed"], sort=False).share.idxmax()].reset_index(drop=True)


def largest(of_arm):
    """The effective model memorisation of an arm, in words: the largest size up to which no share is below LEAST.

    of_arm   frame with num_train and share, the mean of its seeds, ascending in num_train
    """
    sizes, enough = of_arm.num_train.tolist(), (of_arm.share >= LEAST).tolist()
    if all(enough):
        return f"at least {sizes[-1]}"
    if not enough[0]:
        return f"less than {sizes[0]}"
    first = enough.index(False)
    return f"{sizes[first - 1]} to {sizes[first]}"


def main(words):
    if not words or not all(word.isdecimal() and int(word) for word in words):
        raise ValueError(
            f"the sizes are {' '.join(words) or 'missing'}, expected numbers of training images, such as 8 16 32 64"
        )
    params.at_root()
    experiment, found = rules.load(), []
    sizes = sorted({int(word) for word in words})
    each = {num_train: sized(experiment, num_train) for num_train in sizes}  # all are looked at before the first runs
    for num_train, settings in each.items():
        folder = FOLDER / f"n{num_train}"
        seeds.make(folder, seeds._from_anywhere(settings, settings["seeds"]))
        print(f"{num_train} training images run in {folder}")
        if code := seeds.run(folder):
            sys.exit(code)
        found.append(shares(settings, folder).assign(num_train=num_train))
    table = pd.concat(found, ignore_index=True)[["arm", "seed", "num_train", "round", "share"]]
    files.write_text(FOLDER / "emm.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    means = table.groupby(["arm", "num_train"], sort=False).share.mean().reset_index()
    files.write_text(FOLDER / "emm.svg", figures.share_against_size(means, list(experiment["arms"]), LEAST))
    for arm, of_arm in means.groupby("arm", sort=False):
        listed = ", ".join(f"{100 * row.share:.1f} % at {row.num_train}" for row in of_arm.itertuples())
        print(f"{arm}: memorised {listed}; memorises 90 % up to a training set of {largest(of_arm)}")


if __name__ == "__main__":
    cli.run(main)
