"""The trade-off: each arm's excess compared with the excess of the baseline, trained for less, at the same fidelity."""

from stages import experiments
from stages.measures.trade_off import Point, compare
from stages.report import entries
from stages.report.columns import FIDELITY
from stages.report.html import DASH, View, number

WORDS = {
    "below": "below the line",
    "above": "above the line",
    "not told apart": "no clear difference from the line",
    "more faithful": "outside: more faithful than the baseline at any training length",
    "less faithful": "outside: less faithful than the baseline at any training length",
}


def controls(settings):
    """Arms that are the baseline trained for less and otherwise the same: fewer rounds, epochs or steps.

    settings   params.yaml; the first arm that is trained is the baseline
    Returns    list of names, the shortest training first
    """
    baseline, *others = experiments.trained(settings)

    def passes(arm):
        recipe = settings["arms"][arm]
        train = recipe.get("train", {})  # an audited generator has none
        return recipe.get("rounds", 0) * train.get("epochs", train.get("steps", 0))

    def rest(arm):
        recipe = settings["arms"][arm]
        train = settings.get("train", {}) | recipe.get("train", {})
        unit = "steps" if "steps" in train else "epochs"
        return {**recipe, "rounds": unit, "train": {key: value for key, value in train.items() if key != unit}}

    shorter = [arm for arm in others if rest(arm) == rest(baseline) and passes(arm) < passes(baseline)]
    return sorted(shorter, key=passes)


def view(settings, metrics):
    """Table and sentences of the page on the trade-off, at the headline's protocol and threshold, for every kind of weights.

    metrics   as in metrics.json
    Returns   View
    """
    if not experiments.trained(settings):
        return View("", "No arm is trained here, so there is no early-stopped baseline to compare with.")
    baseline, stopped = next(iter(experiments.trained(settings))), controls(settings)
    first, protocol, threshold = entries.headline(settings)
    at = f"{threshold:g}"
    if not stopped:
        return View(
            "",
            f"No arm is the baseline {baseline} trained for less and otherwise the same, so it is unknown how much the excess would "
            "fall by early stopping alone: add such an arm as a control.",
        )
    sentences, rows = [], []
    for weights in [first, *(w for w in entries.WEIGHTS if w != first)]:
        points = {
            arm: _point(metrics[arm], weights, protocol, at) for arm in settings["arms"] if weights in metrics[arm]
        }
        if baseline not in points:
            continue
        if None in points.values():
            return View("", "There is no held-out set, so there is no excess to compare.")
        line = [points[arm] for arm in [*stopped, baseline] if arm in points]
        if len(line) < 2:
            continue
        compared = {arm: compare(point, line) for arm, point in points.items() if arm not in (*stopped, baseline)}
        sentences.append(_sentence(weights, compared))
        rows += [_row(arm, weights, points[arm], comparison) for arm, comparison in compared.items()]
    told = f" {entries.ONE_SEED}" if len(settings["seeds"]) == 1 else ""
    caption = (
        f"The line joins the baseline {baseline} and the same recipe stopped early ({', '.join(stopped)}) by straight segments. "
        f"The excess is for {protocol} at {at}, in % of the generated images. The interval of the difference includes the "
        f"uncertainty of the line's end points, but not that of {FIDELITY}. {' '.join(sentences)}{told}"
    )
    return View("", caption, rows)


def _point(metrics_of_arm, weights, protocol, threshold):
    """Point of an arm in % of its generated images; None without held-out images."""
    cell = metrics_of_arm[weights][protocol][threshold]
    if cell["excess"] is None:
        return None
    percent = 100 / metrics_of_arm["num_images"]
    half_width = (cell["excess_high"] - cell["excess_low"]) / 2
    return Point(metrics_of_arm[weights][FIDELITY], percent * cell["excess"], percent * half_width)


def _sentence(weights, compared):
    arms_by_verdict = {verdict: [] for verdict in WORDS}
    for arm, comparison in compared.items():
        arms_by_verdict[comparison.verdict].append(arm)
    parts = [f"{WORDS[verdict]}: {', '.join(arms)}" for verdict, arms in arms_by_verdict.items() if arms]
    return f"With {weights} weights, at equal fidelity, {'; '.join(parts) or 'there is no other arm to compare'}."


def _row(arm, weights, point, comparison):
    difference = DASH
    if comparison.difference is not None:
        low, high = comparison.difference - comparison.half_width, comparison.difference + comparison.half_width
        difference = f"{number(comparison.difference)} [{number(low)}, {number(high)}]"
    return {
        "arm": arm,
        "weights": weights,
        FIDELITY: number(point.fidelity),
        "excess %": number(point.excess),
        "line %": number(comparison.line),
        "difference [95 %]": difference,
        "verdict": WORDS[comparison.verdict],
    }
