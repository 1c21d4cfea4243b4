"""Does an arm memorise less than training less does, and which round of it may be released: from the curves of all arms.

The baseline is the first arm that is trained here. Its curve is what training for less gives: a baseline with one shard is one
training run, whatever the number of its rounds.
"""

import numpy as np

from stages import experiments
from stages.measures import intervals, trade_off
from stages.report import entries
from stages.report.html import DASH, View, number, tally
from stages.run import files

AGAINST, OF_MEMBERSHIP = "against_training_less", "membership_against_training_less"
TOLD_APART = {
    "less": "tells less of which images it was trained on than training less does",
    "more": "tells more of which images it was trained on than training less does",
    "not told apart": "tells as much of which images it was trained on as training less does, as far as can be seen",
}
WORDS = {
    "less": "memorises less than training less",
    "more": "memorises more than training less",
    "not told apart": "is not distinguishable from training less",
}


def baseline_of(settings):
    """The first arm that is trained here, whose curve the others are compared with; None where all are generators from elsewhere."""
    return next(iter(experiments.trained(settings)), None)


def entries_of(report):
    """What summary.json holds of curves: list of (arm, weights, dict).

    against_training_less   of all arms but the baseline that are trained here: verdict (see measures.trade_off.verdict), difference, low,
                            high (shares of the generated images), best, worst (fidelities); reason in the place of a verdict
    membership_against_training_less   the same of the AUC of membership inference (difference, low, high: areas), where both were measured
    rounds                  last_without_copies, t_mem, t_gen, see `landmarks`
    All only with held-out images.
    """
    settings, found = report.settings, []
    if not report.rounds.excess.notna().all():
        return []
    baseline = baseline_of(settings)
    for arm in experiments.trained(settings):
        for weights in experiments.section(settings, "sample", arm)["weights"]:
            rows = report.rounds[(report.rounds.arm == arm) & (report.rounds.weights == weights)]
            entry = {"rounds": landmarks(rows)}
            if arm != baseline and weights in experiments.section(settings, "sample", baseline)["weights"]:
                seeds = experiments.seeds_of(settings, arm)
                each = [_difference(report, arm, baseline, seed, weights) for seed in seeds]
                entry[AGAINST] = _told(trade_off.over_seeds(each))
                attacked = [[_attacked(report, name, seed, weights) for seed in seeds] for name in (arm, baseline)]
                if None not in attacked[0] + attacked[1]:
                    entry[OF_MEMBERSHIP] = _told(trade_off.difference_of_auc(*attacked))
            found.append((arm, weights, entry))
    return found


def steps_until(recipe, run, round_):
    """Optimiser steps of all shards of a run up to the end of a round; NaN where none is trained here."""
    if "generator" in recipe:
        return np.nan
    places = [(r, k) for r in range(1, round_ + 1) for k in range(recipe["shard"]["num_shards"])]
    return sum(int(files.load_arrays(files.counts_file(run, r, k))["optimizer_steps"][0]) for r, k in places)


def landmarks(rows):
    """Rounds of an arm that stand out, as optimiser steps of all shards.

    rows      frame as Report.rounds, of one arm and kind of weights
    Returns   dict: last_without_copies   the last round at which no seed shows copies: the one to release
                    t_mem                 the first round at which any seed does
                    t_gen                 the round with the best fidelity to held-out images, in the mean over seeds
                    None where there is no such round
    Copies are shown where the interval of the excess lies above 0, or a training image is leaked with confidence: a few that surely
    leaked do not lift the interval of their number above 0.
    """
    steps = rows.groupby("round").steps.mean()
    shown = ((rows.excess_low > 0) | (rows.leaked > 0)).groupby(rows["round"]).any()
    without, having = shown.index[~shown], shown.index[shown]
    found = {
        "last_without_copies": without.max() if len(without) else None,
        "t_mem": having.min() if len(having) else None,
        "t_gen": rows.groupby("round").fd_pixels_heldout.mean().idxmin(),
    }
    return {name: None if r is None else int(steps[r]) for name, r in found.items()}


def _difference(report, arm, baseline, seed, weights):
    """The measures.trade_off.Difference of one seed."""
    curves, prompts = {}, {}
    for name in (arm, baseline):
        curves[name], prompts[name] = _curve(report, name, seed, weights)
    shared = prompts[arm] if prompts[arm] is not None and np.array_equal(prompts[arm], prompts[baseline]) else None
    return trade_off.difference(curves[arm], curves[baseline], shared)


def _curve(report, arm, seed, weights):
    """The measures.trade_off.Curve of a run, and the numbers of its images' prompts or None."""
    run, fidelity, influences, excess, prompts = files.run_name(arm, seed), [], [], [], None
    for r in experiments.sampled_rounds(report.settings, arm):
        folder = files.folder("results/score", run, r)
        scores, images = files.load_json(folder / "scores.json"), files.load_table(folder / "images.parquet")
        images = images[images.weights == weights]
        fidelity.append(scores[weights]["fd_pixels_heldout"])
        influences.append(images.influence.to_numpy())
        excess.append(images.excess.to_numpy())
        prompts = images["prompt"].to_numpy() if "prompt" in images else None
    return trade_off.Curve(np.array(fidelity), influences, excess, tuple(scores["largest_hits"])), prompts


def _attacked(report, arm, seed, weights):
    """The measures.trade_off.Curve of a run in membership inference; None where a round of it was not measured."""
    run, contributions = files.run_name(arm, seed), []
    for r in experiments.sampled_rounds(report.settings, arm):
        path = files.folder("results/membership", run, r) / "images.parquet"
        table = files.load_table(path, ["weights", "contribution"]) if path.exists() else None
        if table is None or not (of_weights := table.weights == weights).any():
            return None
        contributions.append(table[of_weights].contribution.to_numpy())
    return _curve(report, arm, seed, weights)[0]._replace(excess=contributions)


def fidelity_errors(folder):
    """Half of the 95 % interval of the fidelity to held-out images, from the draw of the generated images, by kind of weights.

    folder    that of a score phase
    Returns   dict weights -> float; empty where there are no held-out images
    """
    images = files.load_table(folder / "images.parquet")
    if "influence" not in images:
        return {}
    by = ["weights", "prompt" if "prompt" in images else "image"]  # images of one prompt are no independent draws
    pulls, numbers = images.groupby(by).influence.sum(), images.groupby("weights").size()
    return {weights: intervals.half_width_of_sum(pulls[weights] / number) for weights, number in numbers.items()}


def _told(found):
    """A Difference as summary.json holds it."""
    if found.value is None:
        return {"verdict": None, "reason": found.reason}
    numbers = {
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "best": found.best,
        "worst": found.worst,
    }
    return {"verdict": trade_off.verdict(found)} | {name: entries.rounded(value) for name, value in numbers.items()}


def sentence(settings, metrics, arm, weights):
    """The verdict on an arm in words; None where it has none and no reason."""
    found = metrics[arm].get(weights, {}).get(AGAINST)
    if found is None:
        return None
    baseline = baseline_of(settings)
    if found["verdict"] is None:
        return f"{arm}: no verdict against training {baseline} less, as {found['reason']} ({weights} weights)."
    return (
        f"{arm} {WORDS[found['verdict']]}: at equal fidelity to held-out images its excess is {_interval(found)} of the generated "
        f"images, compared with {baseline} stopped early ({weights} weights).{_of_membership(metrics[arm][weights])}"
    )


def _of_membership(of_weights):
    """The verdict on membership in a sentence, with a space before it; "" where there is none."""
    found = of_weights.get(OF_MEMBERSHIP)
    if not found or found["verdict"] is None:
        return ""
    return f" It {TOLD_APART[found['verdict']]}: membership AUC {_auc_interval(found)}."


def _interval(found):
    value, low, high = (f"{100 * found[name]:+.2g}".replace("-", "\u2212") for name in ("difference", "low", "high"))
    return f"{value} % [{low}, {high}]"


def _auc_interval(found):
    value, low, high = (f"{found[name]:+.3f}".replace("-", "\u2212") for name in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]"


def view(settings, metrics):
    """Table and sentences of the page on the curves, for every arm and kind of weights, the headline's first.

    metrics   as in summary.json
    Returns   View
    """
    baseline = baseline_of(settings)
    if baseline is None:
        return View("", "No arm is trained here, so there is no curve of training less to compare with.")
    first, protocol, threshold = entries.headline(settings)
    rows = []
    for weights in [first, *(w for w in entries.WEIGHTS if w != first)]:
        for arm in experiments.trained(settings):
            of_weights = metrics[arm].get(weights, {})
            if "rounds" in of_weights:
                found = of_weights.get(OF_MEMBERSHIP, {})
                of_membership = _auc_interval(found) if found.get("verdict") else DASH
                rows.append((_row(arm, weights, of_weights, arm == baseline), of_membership))
    if not rows:
        return View("", "There is no held-out set, so there is no excess, and nothing to compare.")
    if any(OF_MEMBERSHIP in of_arm.get(weights, {}) for of_arm in metrics.values() for weights in entries.WEIGHTS):
        for row, of_membership in rows:
            row["membership AUC, difference at equal fidelity [95 %]"] = of_membership
    rows = [row for row, _ in rows]
    told = f" {entries.ONE_SEED}" if len(settings["seeds"]) == 1 else ""
    caption = (
        f"Excess for {protocol} at {threshold:g}, in % of the generated images. The difference is that of the curves of an arm and of the "
        f"baseline {baseline} at the same fidelity to held-out images, the mean over the range that both reach, straight between rounds. "
        f"Its interval holds the draw of the generated images in both directions, excess and fidelity{_over(settings)}. Steps are "
        "optimiser steps of all shards. Copies are shown where the excess lies above 0 (95 %) or a training image is leaked with "
        "confidence; t_mem: the first round that shows them. t_gen: the round that comes closest to "
        f"the held-out images.{told}{_number_of_comparisons(metrics)}"
    )
    return View("", caption, rows)


def _number_of_comparisons(metrics):
    """What so many verdicts are worth together, in a sentence with a space before it; "" for one."""
    verdicts = [
        of_arm.get(weights, {}).get(name, {})
        for of_arm in metrics.values()
        for weights in entries.WEIGHTS
        for name in (AGAINST, OF_MEMBERSHIP)
    ]
    num = sum(bool(found.get("verdict")) for found in verdicts)
    if num < 2:
        return ""
    return f" Nothing corrects for the {num} comparisons here: of twenty arms that are no different one is told apart by chance."


def _over(settings):
    return ", and the seeds" if len(settings["seeds"]) > 1 else ""


def _row(arm, weights, of_weights, is_baseline):
    found, rounds = of_weights.get(AGAINST), of_weights["rounds"]
    if is_baseline:
        verdict, difference, shared = "the baseline", DASH, DASH
    elif found is None:
        verdict, difference, shared = "the baseline has no such weights", DASH, DASH
    elif found["verdict"] is None:
        verdict, difference, shared = f"none: {found['reason']}", DASH, DASH
    else:
        verdict, difference = WORDS[found["verdict"]], _interval(found)
        shared = f"{number(found['best'])} to {number(found['worst'])}"
    return {
        "arm": arm,
        "weights": weights,
        "difference at equal fidelity [95 %]": difference,
        "verdict": verdict,
        "fidelities compared": shared,
        "last round without copies": _steps(rounds["last_without_copies"]),
        "t_mem": _steps(rounds["t_mem"]),
        "t_gen": _steps(rounds["t_gen"]),
    }


def _steps(steps):
    return "none" if steps is None else f"step {tally(steps)}"
