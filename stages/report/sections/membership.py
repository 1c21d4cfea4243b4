"""What the membership phase adds to the report: columns of results.parquet, entries of summary.json, a section of the page.

Where the phase is left out, and for an arm whose model is not at hand, there is neither column nor entry.
"""

import numpy as np

from stages import experiments, phases
from stages.measures import intervals
from stages.measures import membership as attacks
from stages.report import columns, figures, html
from stages.report.columns import FIDELITY_HELDOUT
from stages.report.entries import mean_and_sd, rounded
from stages.report.html import DASH, number, percent
from stages.run import files
from stages.run.instance import REFERENCE

ANCHOR, TITLE = "membership", "Membership"
UNTRAINED = "untrained"  # key of scores.json
SHARES_FOUND = ["found_at_1_percent", "found_at_01_percent"]
OF_ATTACKS = [f"auc_{attack}" for attack in attacks.ATTACKS]
INTERVALS = ["auc", *SHARES_FOUND, *OF_ATTACKS]  # columns that have <name>_low and <name>_high
ENDS = [f"{name}_{end}" for name in INTERVALS for end in ("low", "high")]
CURVE_POINTS = 60


def with_columns(scores, settings, place):
    """The rows of a run and round with a column membership_<name> for each, by the row's kind of weights; NaN where there is none."""
    if phases.module("membership").wanted(settings):
        found = _scores(place)
        for name in [*columns.of("membership"), *ENDS]:
            by_weights = {weights: _numbers(found.get(weights, {})).get(name) for weights in scores.weights.unique()}
            scores[f"membership_{name}"] = scores.weights.map(by_weights).astype(float)
    return scores


def _numbers(entry):
    """An entry of scores.json by column: that of the best attack, and of each attack the area with its interval."""
    of_attacks = entry.get("attacks", {}).items()
    return entry | {f"auc_{name}_{end}": told[f"auc_{end}"] for name, told in of_attacks for end in ("low", "high")}


def _scores(place):
    """scores.json of a round of a run, or of the reference; {} where there is none."""
    path = files.folder("results/membership", place) / "scores.json"
    return files.load_json(path) if path.exists() else {}


def summary(report, arm, weights):
    """{"membership": means over seeds, with <name>_low and <name>_high}. The interval is that of the one seed; of several
    it holds the images, which all seeds share, and the seeds (intervals.over_seeds); {} where nothing was measured."""
    results = report.results
    rows = results[(results.arm == arm) & (results.weights == weights)].drop_duplicates("seed")
    rows = rows.rename(columns=lambda name: name.removeprefix("membership_"))
    if "auc" not in rows or rows.auc.isna().any():
        return {}
    entry = mean_and_sd(rows, columns.of("membership"))
    if len(rows) == 1:
        return {"membership": entry | mean_and_sd(rows, ENDS)}
    for name in INTERVALS:
        ends = _over_seeds(rows[name], rows[f"{name}_low"], rows[f"{name}_high"])
        entry |= {f"{name}_{end}": rounded(value) for end, value in zip(("low", "high"), ends, strict=True)}
    return {"membership": entry}


def _over_seeds(values, lows, highs):
    """Interval of the mean over seeds of an area or a share, from those of the seeds over their images: [S] each. NaN where a seed has none.
    The error of a mean over seeds with the same images is at most the mean of their errors."""
    if not (lows.notna() & highs.notna()).all():
        return np.nan, np.nan
    low, high = intervals.over_seeds(values.tolist(), (values - lows).mean(), (highs - values).mean())
    return max(0.0, low), min(1.0, high)


def section(report):
    if not phases.module("membership").wanted(report.settings):
        return ""
    weights, untrained = report.headline.weights, _scores(REFERENCE)
    measured = {arm: entry for arm in report.arms if (entry := report.metrics[arm].get(weights, {}).get("membership"))}
    rows = [_row(arm, entry, _chosen(report, arm)) for arm, entry in measured.items()]
    if UNTRAINED in untrained:
        rows.append(_row(_before(report), _numbers(untrained[UNTRAINED]), untrained[UNTRAINED]["chosen"]))
    told = [*_control(report, untrained, measured), *_absent(report, measured)]
    notes = "".join(html.quiet(sentence) for sentence in told)
    if not rows:
        return html.section(ANCHOR, "Membership", notes)
    caption = (
        f"Can one tell from a model whether it was trained on an image? {_num_images(report, measured, untrained)} with {weights} weights, of "
        "the last round that is sampled. Attack and timestep are those that do best on one half of the images, judged on the other half, "
        "and the other way round. 95 % intervals are over the images"
        + (", and the seeds." if len(report.settings["seeds"]) > 1 else ".")
    )
    parts = [html.table(rows, caption), notes, html.legend(columns.meanings("membership"))]
    return html.section(ANCHOR, "Membership", "\n".join([*parts, html.panels(_figures(report, measured))]))


def _before(report):
    """What the network before training is called: that of a text model has been trained on other images."""
    return "pretrained model" if experiments.is_text(report.settings) else "untrained network"


def _row(name, entry, chosen):
    meant = columns.of("membership")
    return {
        "arm": name,
        f"{meant['auc']['title']} [95 %]": with_interval(entry, "auc", number),
        **{f"{meant[found]['title']} (%) [95 %]": with_interval(entry, found, percent) for found in SHARES_FOUND},
        **{f"{meant[name]['title']} [95 %]": with_interval(entry, name, number) for name in OF_ATTACKS},
        "best attack": " and ".join(dict.fromkeys(f"{one.replace('_', ', t = ')}" for one in chosen)),
    }


def with_interval(entry, name, show):
    """A number of an entry with its interval; without one where nothing is known of it."""
    if entry[name] is None:
        return DASH
    ends = [entry[f"{name}_{end}"] for end in ("low", "high")]
    return show(entry[name]) + ("" if None in ends else f" [{show(ends[0])}, {show(ends[1])}]")


def _chosen(report, arm):
    return _scores(report.first_place(arm))[report.headline.weights]["chosen"]


def _num_images(report, measured, untrained):
    entries = [_scores(report.first_place(arm))[report.headline.weights] for arm in measured] or [untrained[UNTRAINED]]
    num = entries[0]["num_images"]
    return f"{num:,} training images and as many held-out ones of the same classes,"


def _control(report, untrained, measured):
    """What the untrained network says of the images themselves, and of which arms it says nothing: list of sentences."""
    told = []
    if UNTRAINED in untrained:
        entry = untrained[UNTRAINED]
        auc = with_interval(entry, "auc", number)
        alike = entry["auc_low"] is not None and entry["auc_low"] <= 0.5 <= entry["auc_high"]
        told.append(_of_text(auc, alike) if experiments.is_text(report.settings) else _of_pixels(auc, alike))
    trained = experiments.trained(report.settings)
    if foreign := [arm for arm in measured if arm not in trained]:
        told.append(
            f"Of {', '.join(foreign)}, trained elsewhere, there is no untrained network to compare with: training and held-out images that "
            "differ by themselves would be told apart as well."
        )
    return told


def _of_pixels(auc, alike):
    """alike: the network before training does not tell the images apart, as far as can be seen"""
    if alike:
        return (
            f"A network that was never trained cannot tell the images apart (AUC {auc}): the split gives nothing away."
        )
    return (
        f"A network that was never trained tells the images apart too (AUC {auc}): training and held-out images differ by themselves, and "
        "part of every number here is that difference."
    )


def _of_text(auc, alike):
    if alike:
        return (
            f"The pretrained model cannot tell the images apart before it is trained on them (AUC {auc}): neither the split gives anything "
            "away, nor what the model has seen before."
        )
    return (
        f"The pretrained model tells the images apart before it is trained on them (AUC {auc}): training and held-out images differ by "
        "themselves, or it has seen some of them before; part of every number here is that difference."
    )


def _absent(report, measured):
    """Why arms have no number: list of sentences."""
    told = []
    for arm in report.arms:
        if arm not in measured:
            reason = _scores(report.first_place(arm)).get(
                "absent", "its model is not at hand, or measured with another arm"
            )
            told.append(f"{arm} is left out, as {reason}.")
    return told


def _figures(report, measured):
    weights, curves = report.headline.weights, {}
    places = {arm: report.first_place(arm) for arm in measured}
    for name, place in [*places.items(), (_before(report), REFERENCE)]:
        path = files.folder("results/membership", place) / "images.parquet"
        if path.exists():
            score = files.load_table(path, ["score"]).score.to_numpy()
            false = np.unique(np.r_[0, np.geomspace(2 / len(score), 1, CURVE_POINTS)[:-1]])
            curves[name] = (np.r_[false, 1], np.r_[attacks.roc_curve(score, false), 1])
    rounds = report.rounds[report.rounds.weights == weights] if measured else report.rounds.iloc[:0]
    label = f"{FIDELITY_HELDOUT} (squared [0, 1] pixel range)"
    return [
        html.figure(
            figures.roc(curves, report.arms),
            f"Training images found against held-out images taken for them, {weights} weights, seed {report.first_seed}. Dotted: chance.",
        ),
        html.figure(
            figures.auc_against_fidelity(rounds, report.arms, FIDELITY_HELDOUT, label),
            f"Membership AUC against fidelity, {weights} weights: one line per arm and seed, one marker per round, with 95 % intervals. "
            "Lower means less is told of who was trained on, further left more faithful.",
        ),
    ]
