"""The leak list: which training images each arm leaked, one row per image, arm, seed and kind of weights.

A generated image that counts as a copy may do so by chance, so it is a candidate until its confidence is high enough.

Columns   arm, seed, weights
          index, key          the training image
          status              leaked, or candidate: its confidence is below stages.measures.confidence.LEAKED, or not known
          confidence          that its clearest copy is one, see stages.measures.confidence; NaN without held-out images of its class
          count               generated images that are copies of it under the headline's protocol and threshold
          best_ratio          the lowest ratio among them; the clearest copy is the one that has it
          matched_ratio, heldout_ratio   ratio of that generated image among as many training images as there are held-out ones, and
                              among these; NaN without held-out images
          twin, generated     the number of that generated image, and its file where the images come from a folder, else its number
          variant             the variant of it that is nearest (stages.measures.variants); "as is" without score.variants
          duplicates          how many other training images are the same as it or nearly so
"""

import csv
import io

import numpy as np

from stages import experiments
from stages.measures import confidence, leaks, memorisation
from stages.report import duplicates, entries, privacy
from stages.run import files

COLUMNS = ["arm", "seed", "weights", "index", "key", "status", "confidence", "count", "best_ratio", "matched_ratio", "heldout_ratio", "twin", "generated", "variant", "duplicates"]  # fmt: skip
LEAKED, CANDIDATE = "leaked", "candidate"
TEXTS = ["key", "generated"]  # names that come from outside
# A spreadsheet takes a cell that begins so for a formula, and may run it. The last four are the first four in full width.
FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def read(settings):
    """The leak list of all runs, in the order of params.yaml; of each run the most confident first, then the lowest ratio.

    Returns   frame
    Raises    ValueError: a file of a run is missing
    """
    import pandas as pd

    headline = entries.headline(settings)
    frames = []
    for arm in settings["arms"]:
        for seed in experiments.seeds_of(settings, arm):
            images = files.load_table(
                files.folder("results/score", files.run_name(arm, seed), experiments.last_sampled(settings, arm))
                / "images.parquet"
            )
            for weights, of_weights in images.groupby("weights", sort=False):
                frames.append(_of_one(of_weights, headline).assign(arm=arm, seed=seed, weights=weights))
    listed = pd.concat(frames, ignore_index=True)
    listed["duplicates"] = duplicates.others_of(listed["index"])
    listed = listed[COLUMNS]
    listed["key"] = [privacy.name(settings, key, i) for key, i in zip(listed.key, listed["index"], strict=True)]
    return listed


def _of_one(images, headline):
    """images   rows of images.parquet of one kind of weights; those columns that rest on held-out images, variants or a folder may be missing"""
    import pandas as pd

    ratios, strict = images[f"train_{headline.protocol}"].to_numpy(), memorisation.PROTOCOLS[headline.protocol].strict
    memorised = memorisation.is_memorised(ratios, headline.threshold, strict)
    found = leaks.given_out(images.nearest_train.to_numpy(), ratios, memorised)
    twin = images.iloc[found.twin].reset_index(drop=True)
    sure, unknown = twin.get("confidence", np.full(len(twin), np.nan)), np.full(len(twin), np.nan)
    listed = pd.DataFrame(
        {
            "index": found.index,
            "key": twin.nearest_key,
            "status": np.where(sure >= confidence.LEAKED, LEAKED, CANDIDATE),
            "confidence": sure,
            "count": found.count,
            "best_ratio": found.ratio,
            "matched_ratio": twin.get("matched_ratio", unknown),
            "heldout_ratio": twin.get(f"heldout_{headline.protocol}", unknown),
            "twin": twin.image,
            "generated": twin.get("generated", twin.image.astype(str)),
            "variant": twin.get("variant", np.full(len(twin), "as is")),
        }
    )
    return listed.sort_values("confidence", ascending=False, kind="stable", na_position="last")


def num_leaked(folder, headline):
    """How many training images were leaked with confidence, by kind of weights: dict. folder: that of a score phase."""
    images = files.load_table(folder / "images.parquet")
    return {
        weights: int((_of_one(of_weights, headline).status == LEAKED).sum())
        for weights, of_weights in images.groupby("weights", sort=False)
    }


def of_run(frame, arm, seed, weights):
    """The rows of one run, by index of the training image."""
    chosen = (frame.arm == arm) & (frame.seed == seed) & (frame.weights == weights)
    return frame[chosen].set_index("index")


def csv_text(frame):
    """The leak list as CSV that is safe to open in a spreadsheet (see `safe_cell`). Texts are in quotes, whatever they hold."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(frame.columns)
    safe = frame.assign(**{name: frame[name].map(safe_cell) for name in TEXTS}).astype(object)
    writer.writerows(safe.where(safe.notna(), "").itertuples(index=False))
    return text.getvalue()


def safe_cell(key):
    """A key that no spreadsheet takes for a formula: an apostrophe goes before one that would be, and before one that begins
    with an apostrophe or white space, so that whoever takes one leading apostrophe away has every key back."""
    risky = key.startswith((*FORMULA_STARTS, "'")) or key[:1].isspace()
    return f"'{key}" if risky else key
