"""The training images that each arm leaked or may have leaked, beside the generated images that are closest to them."""

import math
from html import escape
from typing import NamedTuple

from stages.measures import confidence
from stages.report import html, leaks, privacy
from stages.report.figures import png
from stages.run import files

ANCHOR, TITLE = "gallery", "Leaks"
FEW = 50  # held-out images: with 24 the confidence was seen to be too high in the middle of its scale


class Pair(NamedTuple):
    """A generated image and the training image that is nearest to it.

    generated, train   addresses of the pictures (data:image/png;base64,...); None where pictures are not shown
    image, key         number of the generated image, key of the training image
    ratio              their distance, divided by the mean distance to the nearest training images
    copies             how many generated images count as copies of the training image, at least 1
    status             leaked or candidate, see stages.report.leaks
    confidence         that the generated image is a copy; NaN where it is not known
    """

    generated: str | None
    train: str | None
    image: int
    key: str
    ratio: float
    copies: int
    status: str
    confidence: float


def section(report):
    weights, protocol, threshold = report.headline
    text = (
        "Left: the generated image. Right: the nearest training image. Below them: the ratio of the generated image "
        f"({protocol}, {weights} weights, seed {report.first_seed}), the number of generated images that count as copies of the "
        f"training image at threshold {threshold:g}, how sure it is, and the key of the training image. The lowest ratio comes first; "
        f"each training image is shown once, and none that does not count. {_how_sure(report)} "
        "The list for all arms, seeds and weights is in artifacts/report/leaks.csv and leaks.parquet. In the CSV, an apostrophe "
        "stands before a key that a spreadsheet would take for a formula."
    )
    parts = [html.quiet(text), f"<p class=quiet>{html.link(files.REPORT / 'leaks.csv', 'The leak list.')}</p>"]
    for arm in report.arms:
        listed = leaks.of_run(report.leaks, arm, report.first_seed, weights)
        pairs = read(files.folder("results/score", report.first_place(arm)), weights, listed, report.settings)
        parts.append(of_arm(arm, pairs, listed, report.metrics[arm]["num_images"], report.num_train))
    return html.section(ANCHOR, "Training images that leaked", "\n".join(parts))


def _how_sure(report):
    num_heldout = int(report.results.num_heldout.iloc[0])
    if not num_heldout:
        return (
            "There are no held-out images, so nothing says how often such a ratio comes by chance: there is no confidence, and all are "
            "candidates. data.heldout_share holds some out."
        )
    return (
        "Images that are merely simple count as well. So each has a confidence that it is a copy, from how often the same generated "
        "images come so near to as many held-out images, which no model has seen; among images with a confidence of 0.8 about 8 in 10 "
        f"are copies. Below {confidence.LEAKED:g} it is a candidate, for you to look at."
        + (
            f" With {num_heldout:,} held-out images alone, values of 0.3 to 0.7 are too high."
            if num_heldout < FEW
            else ""
        )
    )


def read(folder, weights, listed, settings):
    """The most memorised generated images of a run among those that count: list of Pair, the lowest ratio first.

    folder     of the run's scores
    listed     as leaks.of_run returns it
    settings   params.yaml: how many of them, the first ones, have pictures, and whether images are called by their names
    """
    shown = privacy.num_pictures(settings)
    gallery = files.load_arrays(folder / "gallery.safetensors")
    images = files.load_table(folder / "images.parquet", ["weights", "image", "nearest_key"])
    key_of = images[images.weights == weights].set_index("image").nearest_key
    return [
        Pair(
            generated=png(gallery["generated"][g]) if g < shown else None,
            train=png(gallery["train"][g]) if g < shown else None,
            image=int(image),
            key=privacy.name(settings, key_of[image], index),
            ratio=float(gallery["ratio"][g]),
            copies=int(row["count"]),
            status=row.status,
            confidence=float(row.confidence),
        )
        for g, (image, index) in enumerate(zip(gallery["image"], gallery["nearest_train"], strict=True))
        if index in listed.index
        for row in [listed.loc[index]]
    ]


def of_arm(arm, pairs, listed, num_images, num_train):
    """One arm's part of the section, as HTML.

    pairs        list of Pair
    listed       as leaks.of_run returns it
    num_images   images that the arm generated
    num_train    training images
    """
    leaked = int((listed.status == leaks.LEAKED).sum())
    told = (
        f"{listed['count'].sum():,} of {num_images:,} generated images count as copies of {len(listed):,} of the {num_train:,} training "
        f"images: {leaked:,} leaked, {len(listed) - leaked:,} candidates."
    )
    if not len(listed):
        told = (
            f"None of {num_images:,} generated images counts as a copy of a training image: {html.at_most(num_images)}."
        )
    elif len(listed) > len(pairs):
        told += f" The {len(pairs)} clearest:"
    shown = html.gallery(map(_figure, pairs)) if pairs else ""
    return f"<h3>{escape(arm)}</h3>\n{html.quiet(told)}\n{shown}"


def _figure(pair):
    copies = "1 copy" if pair.copies == 1 else f"{pair.copies:,} copies"
    sure = pair.status + ("" if math.isnan(pair.confidence) else f", confidence {_two_digits(pair.confidence)}")
    shown = html.pair(pair.generated, pair.train, pair.image, pair.key) if pair.generated else ""
    return html.figure(shown, f"{pair.ratio:.3f} · {copies} · {sure} · {pair.key}")


def _two_digits(confidence):
    """Rounded down, so that nothing below a limit seems to reach it, and nothing looks certain."""
    return f"{min(math.floor(100 * confidence + 1e-9) / 100, 0.99):.2f}"
