"""The first page: which models give out training images, how many, how sure that is, which may go out, what to do next.

In words that need no knowledge of the field. The sections below it have the terms and all numbers.
"""

import math
from html import escape

from stages import experiments
from stages.report import entries, html, leaks, trade_off
from stages.report.columns import FIDELITY, FIDELITY_HELDOUT
from stages.report.html import tally
from stages.report.sections import blind_spots

ANCHOR, TITLE = "in_short", None
NOT_YET = 0.5  # of the Frechet distance of the mean image: so far away, a model has learnt little of the images
WORDS = {
    "model": "What was trained by one recipe, an arm of params.yaml, or a generator from elsewhere.",
    "given out": "A generated image is counted as a copy where it is far closer to one training image than to the others around it.",
    "recognised": "Whether an image was trained on can be told from the model itself, by someone who has both (membership inference). An image can "
    "be recognised that is never given out.",
    "leaked, candidate": "A training image is leaked where it is at least 95 % sure that a generated image is a copy of it, below that a candidate.",
    "by chance": "As many of the same images are closer than that to images that no model has seen. What remains is called excess below.",
    "95 %": "The range that holds the true number in 95 of 100 such measurements: it is as wide as the generated images are few.",
    "may go out": "The last state of training, among those measured, at which no copies are shown. That is no proof that there are none.",
}


def section(report):
    settings, metrics = report.settings, report.metrics
    rows, sure = html.table(_rows(report)), {arm: _num_leaked(report, arm) for arm in report.arms}
    steps = [*contradictions(settings, metrics), *too_little_trained(settings, metrics, sure)]
    steps += [*guided_away(settings), blind_spots.sentence(), *next_steps(settings, metrics, sure)]
    listed = "".join(f"<li>{escape(step)}</li>" for step in steps)
    words = html.details("What these words mean", html.terms(WORDS))
    return (
        f'<section class=headline id={ANCHOR} aria-label="In short">\n<p class=answer>{escape(answer(settings, metrics, sure))}</p>\n'
        f"{rows}\n<ul>{listed}</ul>\n{words}</section>"
    )


def answer(settings, metrics, sure):
    """The first sentence: which models give out training images.

    sure   number of training images that are leaked with confidence, by arm: few of many do not lift the interval of their number above 0
    """
    cells = {arm: _cell(settings, metrics, arm) for arm in settings["arms"]}
    if any(cell["excess"] is None for cell in cells.values()):
        return "Whether training images are given out is not known: no images were held out to tell copies from chance."
    leaking = [arm for arm, cell in cells.items() if cell["excess_low"] > 0 or sure[arm]]
    others = [arm for arm in cells if arm not in leaking]
    told = f"Training images are given out by {listed(leaking)}." if leaking else ""
    if others:
        told += f" Of {listed(others)} it is not shown, which is no proof that they give out none."
    return told.strip()


def given_out(cell, num_images, num_leaked):
    """How many of a model's generated images are copies, in words.

    cell         metrics[arm][weights][protocol][threshold]
    num_images   images that it generated
    num_leaked   training images that are leaked with confidence
    """
    if cell["excess"] is None:
        return f"{tally(cell['count'])} of {num_images:,} look like copies; how many do so by chance is not known"
    if cell["count"] == 0:
        return f"none found in {num_images:,} generated images: {html.at_most(num_images)}"
    high = math.ceil(max(cell["excess_high"], 0))
    if cell["excess_low"] > 0:
        low = tally(math.floor(cell["excess_low"]))
        return f"about {tally(round(cell['excess']))} of {num_images:,} generated images (95 %: {low} to {high:,})"
    chance = max(cell["count"] - cell["excess"], 0)
    known = f"{num_leaked:,} training images for sure" if num_leaked else "not shown"
    return (
        f"{known}: {tally(cell['count'])} of {num_images:,} look like copies, about {tally(round(chance))} would by chance; "
        f"up to about {high:,} is possible (95 %)"
    )


def may_go_out(settings, metrics, arm, weights, num_leaked):
    """Which state of an arm's training may be released, in words. num_leaked: training images that are leaked with confidence."""
    rounds, cell = metrics[arm][weights].get("rounds"), _cell(settings, metrics, arm, weights)
    if cell["excess"] is None:
        return "not known"
    if rounds is None:
        return "no" if cell["excess_low"] > 0 or num_leaked else "nothing speaks against it"
    if rounds["last_without_copies"] is None:
        return "none of those measured"
    return f"step {rounds['last_without_copies']:,}"


def recognised(of_weights):
    """How many of the images that a model was trained on can be told from it, in words. of_weights: metrics[arm][weights]."""
    found = of_weights.get("membership")
    if found is None:
        return "not measured"
    auc = f"AUC {html.number(found['auc'])}"
    if found["found_at_1_percent"] is None:
        return auc
    return f"{html.percent(found['found_at_1_percent'])} % of its training images, with 1 % false alarms ({auc})"


def contradictions(settings, metrics):
    """Where two ways of measuring lead to opposite answers: list of sentences."""
    return [*_of_weights(settings, metrics), *_of_membership(settings, metrics), *_of_fidelities(settings, metrics)]


def too_little_trained(settings, metrics, sure):
    """Of which models no copies say nothing, as their images are hardly images of this kind yet: list of sentences. sure: as in `answer`."""
    weights, told = entries.headline(settings).weights, []
    for arm in settings["arms"]:
        entry, mean_image = metrics[arm][weights], metrics[arm]["fd_mean_image"]
        name = FIDELITY if entry[FIDELITY_HELDOUT] is None else FIDELITY_HELDOUT
        if sure[arm] or (_cell(settings, metrics, arm)["excess_low"] or 0) > 0 or entry[name] < NOT_YET * mean_image:
            continue
        told.append(
            f"{arm} is too little trained to conclude anything: {name} is {html.number(entry[name])}, and one average image over and over "
            f"would have {html.number(mean_image)}. Train it longer, and measure again."
        )
    return told


def guided_away(settings):
    """Of which models the count of copies says less than that of others, as their images are made to lower it: list of at most one sentence."""
    made_here = [arm for arm in settings["arms"] if experiments.maker(settings, arm) is not None]
    guided = [
        arm
        for arm in made_here
        if experiments.section(settings, "sample", arm).get("mitigation", {}).get("name") == "amg"
    ]
    if not guided:
        return []
    return [
        f"Images of {listed(guided)} were moved away from the training images by the very ratio that copies are counted by "
        "(sample.mitigation: amg). One may show a training image and not be counted: look at them, and at how many training images are recognised."
    ]


def next_steps(settings, metrics, sure):
    """What to do with this result: list of sentences. sure: as in `answer`."""
    weights, cells = entries.headline(settings).weights, {a: _cell(settings, metrics, a) for a in settings["arms"]}
    if any(cell["excess"] is None for cell in cells.values()):
        return ["Hold images out (data.heldout_share), and measure again: until then every hit is a candidate."]
    leaking = [arm for arm, cell in cells.items() if cell["excess_low"] > 0 or sure[arm]]
    told = []
    if leaking:
        told.append(
            f"Do not release {listed(leaking)} as trained to the end. artifacts/report/leaks.csv lists the images that are given out: "
            "look at the first ones before anything else."
        )
    one_model = [a for a in leaking if not experiments.trains_apart(settings["arms"][a])]  # what make release exports
    earlier = [a for a in one_model if metrics[a][weights].get("rounds", {}).get("last_without_copies") is not None]
    if earlier:
        told.append(f"An earlier state may go out: make release ARM={earlier[0]}")
    unclear = [arm for arm in cells if arm not in leaking]
    if unclear:
        most = max(cells[arm]["excess_high"] / metrics[arm]["num_images"] for arm in unclear)
        told.append(
            f"Of {listed(unclear)}, up to {100 * most:.2g} % of the images could still be copies. More generated images "
            "(sample.num_images) narrow that down."
        )
    return told


def listed(names):
    """a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _rows(report):
    settings, metrics, weights = report.settings, report.metrics, report.headline.weights
    rows, measured = [], any("membership" in metrics[arm][weights] for arm in settings["arms"])
    for arm in settings["arms"]:
        on_list = report.leaks[(report.leaks.arm == arm) & (report.leaks.weights == weights)]
        sure = _num_leaked(report, arm)
        possible = on_list["index"].nunique() - sure
        rows.append(
            {
                "model": arm,
                "training images given out": given_out(_cell(settings, metrics, arm), metrics[arm]["num_images"], sure),
                "which ones": f"{sure:,} of {report.num_train:,} leaked, {possible:,} candidates",
                **({"recognised": recognised(metrics[arm][weights])} if measured else {}),
                "state that may go out": may_go_out(settings, metrics, arm, weights, sure),
            }
        )
    return rows


def _num_leaked(report, arm):
    """Training images that are leaked with the headline's weights, by any seed."""
    of_arm = (report.leaks.arm == arm) & (report.leaks.weights == report.headline.weights)
    return report.leaks[of_arm & (report.leaks.status == leaks.LEAKED)]["index"].nunique()


def _cell(settings, metrics, arm, weights=None):
    headline = entries.headline(settings)
    return metrics[arm][weights or headline.weights][headline.protocol][f"{headline.threshold:g}"]


def _of_weights(settings, metrics):
    told = []
    for arm in settings["arms"]:
        kinds = entries.weights_of(metrics[arm])
        leaks = {w: (_cell(settings, metrics, arm, w)["excess_low"] or 0) > 0 for w in kinds}
        if len(set(leaks.values())) == 2:
            yes, no = sorted(kinds, key=lambda w: not leaks[w])
            told.append(
                f"The two kinds of weights of {arm} disagree: with {yes} weights it gives out training images, with {no} weights that is not shown."
            )
        verdicts = {w: (metrics[arm][w].get("against_training_less") or {}).get("verdict") for w in kinds}
        if {"less", "more"} <= set(verdicts.values()):
            less, more = sorted(kinds, key=lambda w: verdicts[w])
            told.append(f"{arm} memorises less than training less with {less} weights, and more with {more} weights.")
    return told


def _of_membership(settings, metrics):
    weights, told = entries.headline(settings).weights, []
    for arm in settings["arms"]:
        of_copies = (metrics[arm][weights].get("against_training_less") or {}).get("verdict")
        of_members = (metrics[arm][weights].get(trade_off.OF_MEMBERSHIP) or {}).get("verdict")
        if of_copies == "less" and of_members in ("more", "not told apart"):
            told.append(
                f"{arm} gives out fewer copies than training less, but its training images are recognised no less than there: fewer "
                "copies do not hide who was trained on."
            )
    return told


def _of_fidelities(settings, metrics):
    weights = entries.headline(settings).weights
    found = {arm: metrics[arm][weights] for arm in experiments.trained(settings)}
    if len(found) < 2 or any(entry[FIDELITY_HELDOUT] is None for entry in found.values()):
        return []
    to_train, to_unseen = (min(found, key=lambda arm: found[arm][name]) for name in (FIDELITY, FIDELITY_HELDOUT))
    if to_train == to_unseen:
        return []
    return [
        f"{to_train} comes closest to the training images, {to_unseen} to images that no model has seen. The second counts: copies bring a "
        "model closer to its training images."
    ]
