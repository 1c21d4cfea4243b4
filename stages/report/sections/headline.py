"""The arms compared in sentences: which arm memorises least, how it compares with the baseline, and whether the intervals overlap."""

from html import escape

from stages.report import entries, trade_off
from stages.report.columns import FIDELITY
from stages.report.html import at_most, interval_text, number, tally
from stages.report.sections.in_short import listed


def section(report):
    told = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences(report.settings, report.metrics))
    return f'<section class=compared aria-label="Arms compared"><h2>Arms compared</h2>{told}</section>'


def sentences(settings, metrics):
    """The result in a few sentences: list of texts.

    metrics   as in summary.json
    """
    arms = _Arms(settings, metrics)
    told = (
        _compared(arms) if arms.others else [f"{arms.told(arms.baseline)}. There is no other arm to compare it with."]
    )
    if len(settings["seeds"]) == 1:
        told.append(entries.ONE_SEED)
    if arms.others and arms.held_out:
        told.append(_intervals(arms))
    weights = entries.headline(settings).weights
    told += filter(None, (trade_off.sentence(settings, metrics, arm, weights) for arm in arms.others))
    told += _similarity(arms)
    if not arms.held_out:
        told.append("There is no held-out set, so it is unknown how much of these counts is memorisation.")
    return told


class _Arms:
    """The numbers of all arms that the sentences are about, with the headline's weights, protocol and threshold.

    baseline, others   the first arm, list of the rest
    held_out           whether there are held-out images, so that there is an excess
    what               what arms are compared by: "excess", or "count" without held-out images
    entry, share       by arm: metrics[arm][weights]; count and excess as shares of the generated images
    """

    def __init__(self, settings, metrics):
        weights, protocol, threshold = entries.headline(settings)
        self.metrics = metrics
        self.baseline, *self.others = settings["arms"]
        self.entry = {arm: metrics[arm][weights] for arm in settings["arms"]}
        self.cell = {arm: entry[protocol][f"{threshold:g}"] for arm, entry in self.entry.items()}
        self.held_out = all(cell["excess"] is not None for cell in self.cell.values())
        self.what = "excess" if self.held_out else "count"
        self.share = {arm: entries.per_image(cell, metrics[arm]) for arm, cell in self.cell.items()}

    def least(self, arms):
        """The arm with the lowest share, the first of several."""
        return min(arms, key=lambda arm: self.share[arm][self.what])

    def faithful(self, arm):
        """Whether an arm is no further from the data than the baseline."""
        return self.entry[arm][FIDELITY] <= self.entry[self.baseline][FIDELITY]

    def told(self, arm):
        num_images = f"{self.metrics[arm]['num_images']:,}"
        if not self.cell[arm]["count"]:
            limit = at_most(self.metrics[arm]["num_images"] * self.metrics[arm]["num_seeds"])
            return f"{arm} has no image of {num_images} that counts as a copy ({limit})"
        if not self.held_out:
            return f"{arm} has {tally(self.cell[arm]['count'])} memorised images of {num_images}"
        return f"{arm} has an excess of {interval_text(self.cell[arm])} images of {num_images}"

    def fidelity_told(self, arm):
        ours, base = number(self.entry[arm][FIDELITY]), number(self.entry[self.baseline][FIDELITY])
        return f"({FIDELITY} {ours} against {base}, lower is better)"


def _compared(arms):
    """The arm with the least memorisation among those no less faithful than the baseline, then one that has less at a price."""
    faithful = [arm for arm in arms.others if arms.faithful(arm)]
    best = arms.least(faithful or arms.others)
    change = _change(arms.share[best][arms.what], arms.share[arms.baseline][arms.what])
    told = [f"{arms.told(best)}, the baseline {arms.told(arms.baseline)}: {change}."]
    if best in faithful:
        told.append(f"{best} is no less faithful than the baseline {arms.fidelity_told(best)}.")
    most = arms.share[best][arms.what]
    lower = [arm for arm in arms.others if arm not in faithful and arms.share[arm][arms.what] <= most]
    if lower:
        least = arms.least(lower)
        also = "" if least == best else f"{arms.told(least)}, but "
        told.append(
            f"{also}{least} is less faithful than the baseline {arms.fidelity_told(least)}: images far from the data are "
            "counted as memorised less often, so part of its result may come from lower fidelity."
        )
    return told


def _intervals(arms):
    base = arms.share[arms.baseline]
    apart = [arm for arm in arms.others if _apart(arms.share[arm], base)]
    less = [arm for arm in apart if arms.share[arm]["excess"] < base["excess"]]
    places = {
        "below the baseline's": less,
        "above the baseline's": [arm for arm in apart if arm not in less],
        "overlapping the baseline's, so no clear difference,": [arm for arm in arms.others if arm not in apart],
    }
    parts = [f"{place} for {listed(names)}" for place, names in places.items() if names]
    return f"95 % intervals: {'; '.join(parts)}."


def _similarity(arms):
    """The least similar arm and the baseline, where similarities were measured: a list of one sentence or none."""
    found = {arm: entry["similarity"] for arm, entry in arms.entry.items() if entry.get("similarity")}
    if not found:
        return []
    least = min(found, key=lambda arm: found[arm]["percentile_95"])
    told = [f"{arm} {number(found[arm]['percentile_95'])}" for arm in dict.fromkeys([least, arms.baseline])]
    return [f"Similarity to the nearest training image, 95th percentile: {', '.join(told)}."]


def _apart(cell, other):
    return cell["excess_high"] < other["excess_low"] or cell["excess_low"] > other["excess_high"]


def _change(value, base):
    if value == base:
        return "the same"
    if base <= 0:
        return "no percentage, as the baseline has no excess" if value <= 0 else "more than the baseline"
    percent = round(100 * abs(value - base) / base)
    return f"{percent} % {'less' if value < base else 'more'}"
