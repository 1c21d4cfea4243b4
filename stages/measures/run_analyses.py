"""What one run says of its images: which were memorised, which were skipped, and whether one foretells the other.

N training images, M generated ones, H W C height, width and channels of an image, K shards, R rounds, S timesteps looked at. Every analysis returns

    summary   dict that JSON can hold; {"absent": reason} where there is nothing to say
    tables    dict name -> pandas frame; empty likewise
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stages import randomness
from stages.measures import image_complexity, leaks, loss_profile, neighbours, roc, skip_analysis

NO_SKIPS = {"absent": "no image was skipped"}


@dataclass
class Run:
    """One run, and what several analyses need of it.

    train                       [N,H,W,C] uint8
    heldout                     [...,H,W,C] uint8: images that were not trained on, of any number
    rounds                      list of R rounds, each the list of its K shards, each the named arrays of its counts file
    history                     skip_analysis.History
    skips, augmented, visits    [N] int64: of each training image over all rounds
    emitted                     [N] int64: generated images that are copies of it
    lowest_ratio                [N] float64: lowest ratio among the generated images that it is the nearest of; inf if none
    """

    train: np.ndarray
    heldout: np.ndarray
    rounds: list
    history: skip_analysis.History
    skips: np.ndarray
    augmented: np.ndarray
    visits: np.ndarray
    emitted: np.ndarray
    lowest_ratio: np.ndarray


def run_of(train, heldout, rounds, nearest, ratio, memorised):
    """A run, from what it left behind.

    nearest     [M] int64: index of the nearest training image of each generated image
    ratio       [M] float64: how near, the lower the nearer: a ratio of distances, or minus a similarity
    memorised   [M] bool: the generated image is a copy of that training image
    Returns     Run
    """
    history = skip_analysis.history(rounds, len(train))
    totals = (getattr(history, name).sum(axis=0) for name in ("skips", "augmented", "visits"))
    found = leaks.given_out(nearest, ratio, memorised)
    emitted, lowest = np.zeros(len(train), np.int64), np.full(len(train), np.inf)
    emitted[found.index] = found.count
    np.minimum.at(lowest, nearest, ratio)
    return Run(train, heldout, rounds, history, *totals, emitted, lowest)


def train_images(run, rare_skip_rate):
    """Fig. 9, also as a share of visits. Arms that skip nothing have the table as well: it says what they leaked.

    rare_skip_rate   the summary says which share of the images was skipped at less than this share of its visits
    """
    columns = {
        "index": np.arange(len(run.train)),
        "skips": run.skips,
        "augmented": run.augmented,
        "visits": run.visits,
        "emitted": run.emitted,
        "lowest_ratio": run.lowest_ratio,
    }
    tables = {"train_images": pd.DataFrame(columns)}
    if not run.skips.any():
        return NO_SKIPS, tables
    rates = skip_analysis.rate(run.skips, run.visits)[run.visits > 0]
    summary = {
        "visited": len(rates),
        "never_visited": int((run.visits == 0).sum()),
        "rare_skip_rate": rare_skip_rate,
        "rarely_skipped_share": float((rates < rare_skip_rate).mean()),
    }
    return summary, tables


def extremes(run, share, seed, device, progress):
    """Fig. 8: are the most skipped images simpler, and nearer to other training images, than the least skipped ones?

    share      of the images in each of the two groups, in (0, 0.5]
    device     that distances are computed on
    progress   function of a group's name, which gives a function (images done, images)
    """
    if not run.skips.any():
        return NO_SKIPS, {}
    generator = randomness.numpy_generator("skip_ties", seed)
    groups = dict(zip(("most", "least"), skip_analysis.extremes(run.skips, share, generator), strict=True))
    if not len(groups["most"]):
        return {"absent": f"analyse.extreme_share {share:g} of {len(run.train)} images is none"}, {}
    parts = {name: _complexity(run, name, index, device, progress(name)) for name, index in groups.items()}
    summary = {"images": len(groups["most"])}
    for name in ("skips", "nearest_other", "energy", "energy_with_dc", "high_share"):
        values = {group: part[name].dropna().to_numpy() for group, part in parts.items()}
        summary[name] = {group: float(np.median(v)) if len(v) else None for group, v in values.items()}
        if name != "skips":
            summary[name]["most_is_lower"] = told_apart(*(-v for v in values.values()))
    return summary, {"extremes": pd.concat(parts.values())}


def _complexity(run, group, index, device, progress):
    energy = image_complexity.energies(run.train[index])
    columns = {
        "group": group,
        "index": index,
        "skips": run.skips[index],
        "nearest_other": image_complexity.nearest_other(run.train, index, device, progress),
        "energy": energy[:, 0],
        "energy_with_dc": energy[:, 1],
        "high_share": energy[:, 2],
    }
    return pd.DataFrame(columns)


def emission(run):
    """Does the number of its skips, or their share of its visits, predict that an image leaks (section V.C)?"""
    emitted = run.emitted > 0
    summary = {"emitted": int(emitted.sum()), "images": len(emitted)}
    if not run.skips.any():
        return summary | NO_SKIPS, {}
    if not emitted.any() or emitted.all():
        return summary | {"absent": f"{'every' if emitted.any() else 'no'} training image leaked"}, {}
    seen = run.visits > 0
    rates = skip_analysis.rate(run.skips, run.visits)
    summary |= {
        "skips": told_apart(run.skips[emitted], run.skips[~emitted]),
        "rate": told_apart(rates[emitted & seen], rates[~emitted & seen]),
    }
    return summary, {}


def moves(run, seed):
    """Are images that moved skipped less in their new shard, which is what MSR is for?"""
    if not run.skips.any():
        return NO_SKIPS, {}
    generator = randomness.numpy_generator("move_pairs", seed)
    found = [skip_analysis.move(run.history, r, generator) for r in range(len(run.rounds) - 1)]
    if not any(len(move.before) for move in found):
        return {"absent": "no image moved"}, {}
    rows = [{"after_round": r} | skip_analysis.premise([move]) for r, move in enumerate(found, start=1)]
    summary = {name: _known(value) for name, value in skip_analysis.premise(found).items()}
    return summary, {"moves": pd.DataFrame(rows)}


def skip_by_timestep(run):
    """At which noise levels images are skipped."""
    if not run.skips.any():
        return NO_SKIPS, {}
    skipped, visited = skip_analysis.by_tenth(run.rounds)
    rounds, tenths = np.indices(skipped.shape)
    columns = {
        "round": rounds.ravel() + 1,
        "tenth": tenths.ravel() + 1,
        "skipped": skipped.ravel(),
        "visited": visited.ravel(),
    }
    rates = skip_analysis.rate(skipped.sum(0), visited.sum(0))
    return {"rate": [_known(value) for value in rates]}, {"skip_by_timestep": pd.DataFrame(columns)}


def distance_to_generated(train, samples, device, progress):
    """Distance of each training image to the nearest generated one, in grey levels of [0, 1]: [N] float64.

    train, samples   [N,H,W,C], [M,H,W,C] uint8
    progress         as in neighbours.nearest
    """
    squared, _ = neighbours.nearest(train, samples, 1, device=device, progress=progress)
    return np.sqrt(squared[:, 0]) / 255


def loss_groups(run, closeness, size, seed):
    """The images of Fig. 3, in groups of one size.

    closeness   [N] float64, the lower the nearer to what was generated: `distance_to_generated` or Run.lowest_ratio
    size        of a group, at most
    Returns     dict of frames: similar, other and, where there are enough held-out images, heldout; with index, closeness, emitted,
                pixel_variance
    """
    similar = loss_profile.most_similar(closeness, size)
    other = loss_profile.others(len(run.train), similar, randomness.numpy_generator("other_images", seed))
    groups = {}
    for name, index in (("similar", similar), ("other", other)):
        variance = image_complexity.pixel_variance(run.train[index])
        groups[name] = _group(index, closeness[index], run.emitted[index], variance)
    if len(run.heldout) >= len(similar):
        variance = image_complexity.pixel_variance(run.heldout)
        index = loss_profile.matched(groups["similar"].pixel_variance.to_numpy(), variance)
        groups["heldout"] = _group(index, np.nan, 0, variance[index])
    return groups


def _group(index, closeness, emitted, variance):
    return pd.DataFrame({"index": index, "closeness": closeness, "emitted": emitted, "pixel_variance": variance})


def loss_by_timestep(groups, losses, timesteps, num_heldout):
    """Fig. 3, with held-out images as simple as the memorised ones as control.

    groups        of `loss_groups`, which are of one size
    losses        [n,S] float64: of the images of all groups, one group after the other
    timesteps     [S] int
    num_heldout   number of held-out images there are
    """
    curves, images, summary = [], {}, {}
    for (name, group), of_group in zip(groups.items(), np.split(losses, len(groups)), strict=True):
        mean, low, high = loss_profile.band(of_group)
        curves.append(pd.DataFrame({"group": name, "timestep": timesteps, "mean": mean, "low": low, "high": high}))
        group = images[name] = group.assign(group=name, mean_loss=of_group.mean(axis=1))
        summary[name] = {
            "images": len(group),
            "emitted": int((group.emitted > 0).sum()),
            "mean_loss": float(group.mean_loss.mean()),
            "pixel_variance": float(group.pixel_variance.mean()),
        }
        if name != "similar":
            summary[name]["similar_is_lower"] = told_apart(-images["similar"].mean_loss, -group.mean_loss)
    if "heldout" not in groups:
        found = f"{num_heldout} held-out images cannot be matched to {len(groups['similar'])}"
        summary["heldout"] = {"absent": found}
    return summary, {"loss_by_timestep": pd.concat(curves), "loss_groups": pd.concat(images.values())}


def told_apart(group, rest):
    """How well a score tells a group from the rest: area under the ROC curve (stages.measures.roc), and the sizes of both.

    group, rest   [n], [m] numbers
    Returns       dict: auc, low, high, group, rest; None where one of the two is empty
    """
    if not len(group) or not len(rest):
        return None
    found = roc.area(np.concatenate([group, rest]), np.arange(len(group) + len(rest)) < len(group))
    return {name: _known(value) for name, value in found._asdict().items()} | {"group": len(group), "rest": len(rest)}


def _known(value):
    """None for what does not exist: JSON has no nan."""
    return None if isinstance(value, float) and math.isnan(value) else value
