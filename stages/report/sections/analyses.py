"""The analyses of all runs (stages.analyse) in words, rows and figures, for the section Analyses of the page.

Figures show the first seed, tables all seeds. Where a group is too small for a conclusion, the text says so.
"""

from html import escape
from typing import NamedTuple

import numpy as np

from stages import experiments
from stages.report import figures, html
from stages.report.html import DASH, number, tally
from stages.run import files

ANCHOR, TITLE = "analyses", "Analyses"
FEW = 10  # images or pairs: from a smaller group the page draws no conclusion
GROUPS = {
    "similar": "most like a generated image",
    "other": "other training images",
    "heldout": "held out, equally simple",
}


class Block(NamedTuple):
    """One analysis on the page.

    title, text
    rows      of the table: dicts of plain texts; [] for none
    panels    (SVG or None, caption)
    details   rows of a second table, folded away; [] for none
    """

    title: str
    text: str
    rows: list
    panels: list
    details: list


class Analyses:
    """The analyses of all runs, read when they are needed."""

    def __init__(self, settings):
        self.arms, self.seeds = list(experiments.trained(settings)), settings["seeds"]
        self.all_arms = list(settings["arms"])  # an arm has one colour in all figures of the page
        self.headline = settings["score"]["headline"]
        by_sscd = experiments.copies_by_sscd(settings)
        ratio = f"{self.headline['protocol']} at {self.headline['threshold']:g}"
        self.copies = "similarity by SSCD above 0.5" if by_sscd else ratio  # what counts as a copy
        self.runs = [(arm, seed) for arm in self.arms for seed in self.seeds]
        self.found = {key: files.load_json(self.folder(*key) / "summary.json") for key in self.runs}

    def folder(self, arm, seed):
        return files.folder("results/analyse", files.run_name(arm, seed))

    def table(self, name, arm, seed):
        return files.load_table(self.folder(arm, seed) / f"{name}.parquet")

    def having(self, analysis):
        """(arm, seed, its result) of the runs that have this analysis."""
        each = [(arm, seed, self.found[arm, seed][analysis]) for arm, seed in self.runs]
        return [one for one in each if "absent" not in one[2]]

    def drawn(self, analysis):
        """The same of the first seed: what figures show."""
        return [one for one in self.having(analysis) if one[1] == self.seeds[0]]

    def without(self, analysis):
        """Why arms have no such analysis, as sentences with a leading space; '' if all have it."""
        names = {}
        for arm, seed in self.runs:
            reason = self.found[arm, seed][analysis].get("absent")
            if reason:
                name = arm if len(self.seeds) == 1 else f"{arm} seed {seed}"
                names.setdefault(reason, []).append(name)
        return "".join(f" None for {', '.join(listed)}: {reason}." for reason, listed in names.items())


def section(report):
    if "analyse" not in report.settings or not experiments.trained(report.settings):
        return ""
    parts = [html.quiet("Figures show the first seed, tables show all seeds."), *map(_shown, blocks(report.settings))]
    return html.section(ANCHOR, "Analyses", "\n".join(parts))


def _shown(block):
    """A block as HTML."""
    panels = html.panels(html.figure(svg, caption) for svg, caption in block.panels)
    folded = html.details("Each move", html.table(block.details)) if block.details else ""
    rows = html.table(block.rows) if block.rows else ""
    return f"<h3>{escape(block.title)}</h3>\n{html.quiet(block.text)}\n{rows}\n{panels}{folded}"


def blocks(settings):
    """All analyses, in the order of the page: list of Block.

    Raises   ValueError: a file of a run is missing
    """
    analyses = Analyses(settings)
    return [make(analyses) for make in (_loss, _extremes, _rates, _emission, _moves, _timesteps)]


def _loss(analyses):
    rows, panels = [], []
    for arm, seed, found in analyses.having("loss_by_timestep"):
        rows.append(
            {
                "arm": arm,
                "seed": str(seed),
                "images per group": str(found["similar"]["images"]),
                "of the first group leaked": str(found["similar"]["emitted"]),
                **{f"loss, {label}": number(found[name].get("mean_loss")) for name, label in GROUPS.items()},
                "lower than others": _area(found["other"]["similar_is_lower"]),
                "lower than held out": _area(found["heldout"].get("similar_is_lower")),
            }
        )
    for arm, seed, found in analyses.drawn("loss_by_timestep"):
        similar = found["similar"]
        caption = (
            f"{arm}: of the {similar['images']} training images most like a generated one, {similar['emitted']} count as "
            f"leaked. Lines: means. Bands: the middle half of the images. Each loss is a mean over {found['noise_draws']} noise draws."
        )
        if "absent" in found["heldout"]:
            caption += f" There is no control: {found['heldout']['absent']}."
        else:
            verdict = _verdict(found["heldout"]["similar_is_lower"], "lower", "higher")
            caption += f" Compared with equally simple held-out images, their loss is {verdict}."
        panels.append((figures.loss_by_timestep(analyses.table("loss_by_timestep", arm, seed), arm, GROUPS), caption))
    text = (
        "Loss of three groups of equal size: the training images that come nearest to a generated image; other training images; and "
        "held-out images, each matched to an image of the first group by its pixel variance. The same noise is added to all. A "
        "simple image has a low loss even if it was not memorised, so what matters is how far the first group lies below the third. "
        "The last two columns: take one image from the first group and one from the other; in how many of these pairs does the first "
        "have the lower loss (mean over timesteps)? 50 % is chance; with a 95 % interval (DeLong)."
    )
    text += analyses.without("loss_by_timestep")
    return Block("Loss against timestep (Fig. 3 of the paper)", text, rows, panels, [])


def _extremes(analyses):
    rows, panels = [], []
    measures = {"nearest_other": "distance to the nearest other", "energy": "energy", "high_share": "high-band share"}
    for arm, seed, found in analyses.having("extremes"):
        row = {"arm": arm, "seed": str(seed), "images per group": str(found["images"])}
        for name, label in {"skips": "skips", **measures}.items():
            row[f"{label}, most / least"] = f"{number(found[name]['most'])} / {number(found[name]['least'])}"
            if name != "skips":
                row[f"lower {label}"] = _area(found[name]["most_is_lower"])
        rows.append(row)
    for arm, seed, found in analyses.drawn("extremes"):
        table = analyses.table("extremes", arm, seed)
        for name, label, lower, higher in (
            ("nearest_other", "distance to the nearest other training image", "nearer", "further"),
            ("energy", "Fourier energy of the grey image without DC", "lower", "higher"),
        ):
            values = {f"{g} skipped": table[table.group == g][name].to_numpy() for g in ("most", "least")}
            caption = f"{arm}, the {found['images']} most and the {found['images']} least skipped images. For the most skipped it is "
            caption += f"{_verdict(found[name]['most_is_lower'], lower, higher)}."
            panels.append((figures.two_histograms(values, label, arm), caption))
    text = (
        "Medians of the most and of the least skipped images: Euclidean distance to the nearest other training image, with grey levels "
        "in [0, 1]; energy of the grey image's Fourier transform without its constant part, which equals the pixel variance; and the "
        "share of that energy above a quarter of the Nyquist frequency. Each 'lower' column: the share of pairs, one image of each "
        "group, in which the more skipped image has the lower value. 50 % is "
        f"chance; with a 95 % interval (DeLong).{analyses.without('extremes')}"
    )
    return Block("Most and least skipped images (Fig. 8)", text, rows, panels, [])


def _rates(analyses):
    rows, rates, threshold = [], {}, None
    for arm, seed, found in analyses.having("train_images"):
        threshold = found["rare_skip_rate"]
        rows.append(
            {
                "arm": arm,
                "seed": str(seed),
                "images visited": f"{found['visited']:,}",
                f"skipped at less than {number(100 * threshold)} % of their visits": f"{number(100 * found['rarely_skipped_share'])} %",
            }
        )
    for arm, seed, _ in analyses.drawn("train_images"):
        table = analyses.table("train_images", arm, seed)
        table = table[table.visits > 0]
        rates[arm] = (table.skips / table.visits).to_numpy()
    caption = "Share of the training images (vertical) that were skipped at no more than a given share of their visits (horizontal)."
    panels = [(figures.skip_rates(rates, analyses.all_arms, threshold), caption)] if rates else []
    text = (
        "The skip counts of the histogram under Training, divided by how often each image was visited, so that runs of different "
        f"length can be compared.{analyses.without('train_images')}"
    )
    return Block("How often images are skipped (Fig. 9)", text, rows, panels, [])


def _emission(analyses):
    rows = []
    for arm, seed in analyses.runs:
        found = analyses.found[arm, seed]["emission"]
        row = {"arm": arm, "seed": str(seed), "leaked": f"{found['emitted']:,} of {found['images']:,}"}
        if "absent" in found:
            row |= {"by skips": DASH, "by skips per visit": DASH}
            verdict = f"not known: {found['absent']}"
        else:
            row |= {"by skips": _area(found["skips"]), "by skips per visit": _area(found["rate"])}
            verdict = _verdict(found["skips"], "more often", "less often")
        rows.append(row | {"leaked images were skipped": verdict})
    text = (
        "Were the images that the run leaked skipped more often than the others? The area under the ROC curve: take one image that "
        "leaked and one that did not; in how many of these pairs was the first skipped more often? 50 % is chance; with a 95 % "
        f"interval (DeLong). An image has leaked if it is the nearest training image of a generated image that counts as memorised "
        f"({analyses.copies}, {analyses.headline['weights']} weights)."
    )
    return Block("Does an image's skip count predict that it leaks?", text, rows, [], [])


def _moves(analyses):
    rows, details = [], []
    for arm, seed, found in analyses.having("moves"):
        rows.append({"arm": arm, "seed": str(seed)} | _move_cells(found))
        rows[-1]["so"] = _moved_verdict(found)
        for move in analyses.table("moves", arm, seed).to_dict("records"):
            details.append({"arm": arm, "seed": str(seed), "after round": str(move["after_round"])} | _move_cells(move))
    text = (
        "How often images were skipped, as a share of their visits, in the round before and the round after they moved to the next "
        "shard. The most skipped images move, and extreme values fall back by themselves (regression to the mean), so the fall of "
        "all moved images says little. Compare the pairs instead: a moved image and one that stayed, from the same shard and with the "
        "same number of skips before, where the tie was broken at random. Difference: the change of the moved images minus that of "
        f"the others, in percentage points, with a 95 % interval; below 0, moving helps.{analyses.without('moves')}"
    )
    return Block("Are moved images skipped less in their new shard?", text, rows, [], details)


def _move_cells(found):
    def change(before, after):
        return f"{_share(found[before])} → {_share(found[after])}"

    interval = DASH
    if _known(found["difference"]):
        interval = number(100 * found["difference"])
        if _known(found["low"]):
            interval += f" [{number(100 * found['low'])}, {number(100 * found['high'])}]"
    return {
        "moved": tally(found["moved"]),
        "all moved, skipped %": change("before", "after"),
        "pairs": tally(found["pairs"]),
        "moved of the pairs": change("pair_before_moved", "pair_after_moved"),
        "stayed of the pairs": change("pair_before_stayed", "pair_after_stayed"),
        "difference [95 %]": interval,
    }


def _moved_verdict(found):
    if found["pairs"] < FEW:
        return f"{found['pairs']} pairs are too few for a conclusion"
    if found["high"] < 0:
        return "moved images are skipped less"
    if found["low"] > 0:
        return "moved images are skipped more"
    return "no difference is shown"


def _timesteps(analyses):
    rows, lines = [], {}
    for arm, seed, found in analyses.having("skip_by_timestep"):
        cells = {f"{10 * i}-{10 * (i + 1)} %": _share(rate) for i, rate in enumerate(found["rate"])}
        rows.append({"arm": arm, "seed": str(seed)} | cells)
    for arm, _, found in analyses.drawn("skip_by_timestep"):
        lines[arm] = [np.nan if rate is None else 100 * rate for rate in found["rate"]]
    panels = [
        (
            figures.skip_by_timestep(lines, analyses.all_arms),
            "Share of the visited images that were skipped, for each tenth of the timesteps.",
        )
    ]
    text = (
        "Share (%) of the visited images that were skipped, for each tenth of the timesteps, from almost clean images on the left to "
        f"almost pure noise on the right.{analyses.without('skip_by_timestep')}"
    )
    return Block("Skipping by timestep", text, rows, panels if lines else [], [])


def _verdict(area, more, less):
    """What an area says about its group, in a few words."""
    if area is None:
        return "not known, as one of the groups is empty"
    if min(area["group"], area["rest"]) < FEW:
        return f"not known: a group of {min(area['group'], area['rest'])} is too small for a conclusion"
    if area["low"] is None:
        return f"{more if area['auc'] == 1 else less} without exception"
    if area["low"] > 0.5:
        return more
    return less if area["high"] < 0.5 else f"neither clearly {more} nor clearly {less}"


def _area(area):
    """An area as a share of pairs with its interval."""
    if area is None:
        return DASH
    text = f"{100 * area['auc']:.0f} %"
    return text if area["low"] is None else f"{text} [{100 * area['low']:.0f}, {100 * area['high']:.0f}]"


def _share(value):
    return number(100 * value) if _known(value) else DASH


def _known(value):
    return value is not None and not np.isnan(value)
