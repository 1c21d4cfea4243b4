"""The leak list: which training images each arm leaked, one row per image, arm, seed and kind of weights.

Columns   arm, seed, weights
          index, key          the training image
          count               generated images that are copies of it under the headline's protocol and threshold
          best_ratio, twin    the lowest ratio among them, and the number of the generated image that has it
"""

import csv
import io

from stages import experiments
from stages.measures import leaks, memorisation
from stages.report import entries
from stages.run import files

COLUMNS = ["arm", "seed", "weights", "index", "key", "count", "best_ratio", "twin"]
# A spreadsheet takes a cell that begins so for a formula, and may run it. The last four are the first four in full width.
FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def read(settings):
    """The leak list of all runs, in the order of params.yaml, clearest copies first.

    Returns   frame
    Raises    ValueError: a file of a run is missing
    """
    import pandas as pd

    headline = entries.headline(settings)
    ratio = f"train_{headline.protocol}"
    columns = ["weights", "image", "nearest_train", "nearest_key", ratio]
    frames = []
    for arm in settings["arms"]:
        for seed in experiments.seeds_of(settings, arm):
            images = files.load_table(
                files.folder("results/score", files.run_name(arm, seed), experiments.last_sampled(settings, arm))
                / "images.parquet",
                columns,
            )
            for weights, of_weights in images.groupby("weights", sort=False):
                frames.append(_of_one(of_weights, ratio, headline).assign(arm=arm, seed=seed, weights=weights))
    return pd.concat(frames, ignore_index=True)[COLUMNS]


def _of_one(images, ratio, headline):
    import pandas as pd

    ratios, strict = images[ratio].to_numpy(), memorisation.PROTOCOLS[headline.protocol].strict
    memorised = memorisation.is_memorised(ratios, headline.threshold, strict)
    found = leaks.given_out(images.nearest_train.to_numpy(), ratios, memorised)
    twin = images.iloc[found.twin]
    values = {"index": found.index, "key": twin.nearest_key.to_numpy(), "count": found.count}
    return pd.DataFrame(values | {"best_ratio": found.ratio, "twin": twin.image.to_numpy()})


def of_run(frame, arm, seed, weights):
    """How many copies of each training image one run generated: series of counts by index of the training image."""
    chosen = (frame.arm == arm) & (frame.seed == seed) & (frame.weights == weights)
    return frame[chosen].set_index("index")["count"]


def csv_text(frame):
    """The leak list as CSV that is safe to open in a spreadsheet (see `safe_cell`). Texts are in quotes, whatever they hold."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(frame.columns)
    writer.writerows(frame.assign(key=frame.key.map(safe_cell)).itertuples(index=False))
    return text.getvalue()


def safe_cell(key):
    """A key that no spreadsheet takes for a formula: an apostrophe goes before one that would be, and before one that begins
    with an apostrophe or white space, so that whoever takes one leading apostrophe away has every key back."""
    risky = key.startswith((*FORMULA_STARTS, "'")) or key[:1].isspace()
    return f"'{key}" if risky else key
