"""The training images that each arm leaked, beside the generated images that are closest to them."""

from html import escape
from typing import NamedTuple

from stages import experiments, phases
from stages.report import html, leaks
from stages.report.figures import png
from stages.run import files

ANCHOR, TITLE = "gallery", "Leaks"


class Pair(NamedTuple):
    """A generated image and the training image that is nearest to it.

    generated, train   addresses of the pictures (data:image/png;base64,...); None where pictures are not shown
    image, key         number of the generated image, key of the training image
    ratio              their distance, divided by the mean distance to the nearest training images
    copies             how many generated images count as copies of the training image; 0: this one does not count either
    """

    generated: str | None
    train: str | None
    image: int
    key: str
    ratio: float
    copies: int


def section(report):
    weights, protocol, threshold = report.headline
    text = (
        "Left: the generated image. Right: the nearest training image. Below them: the ratio of the generated image "
        f"({protocol}, {weights} weights, seed {report.first_seed}), the number of generated images that are copies of the "
        f"training image at threshold {threshold:g}, and the key of the training image. The lowest ratio comes first; each training "
        "image is shown once. Images that are merely simple count as well: the excess, above, says how many hits go beyond that. "
        "The list for all arms, seeds and weights is in artifacts/report/leaks.csv and leaks.parquet. In the CSV, an apostrophe "
        "stands before a key that a spreadsheet would take for a formula."
    )
    parts = [html.quiet(text)]
    for arm in report.arms:
        copies = leaks.of_run(report.leaks, arm, report.first_seed, weights)
        pairs = read(files.folder("results/score", report.first_place(arm)), weights, copies, _shown(report.settings))
        parts.append(of_arm(arm, pairs, copies.tolist(), report.metrics[arm]["num_images"], report.num_train))
    return html.section(ANCHOR, "Training images that leaked", "\n".join(parts))


def _shown(settings):
    """How many of the pairs have pictures."""
    if "show_images" in (asked := settings.get("report", {})):
        return asked["show_images"]
    shows = phases.module("similarity").shows_pictures(settings) or not experiments.is_text(settings)
    return phases.module("score").GALLERY_IMAGES if shows else 0


def read(folder, weights, copies, shown):
    """The most memorised generated images of a run: list of Pair, the lowest ratio first.

    folder     of the run's scores
    copies     as leaks.of_run returns it
    shown      how many of them, the first ones, have pictures
    """
    gallery = files.load_arrays(folder / "gallery.safetensors")
    images = files.load_table(folder / "images.parquet", ["weights", "image", "nearest_key"])
    key_of = images[images.weights == weights].set_index("image").nearest_key
    return [
        Pair(
            generated=png(gallery["generated"][g]) if g < shown else None,
            train=png(gallery["train"][g]) if g < shown else None,
            image=int(image),
            key=key_of[image],
            ratio=float(gallery["ratio"][g]),
            copies=int(copies.get(gallery["nearest_train"][g], 0)),
        )
        for g, image in enumerate(gallery["image"])
    ]


def of_arm(arm, pairs, copies, num_images, num_train):
    """One arm's part of the section, as HTML.

    pairs        list of Pair
    copies       for each training image that leaked, how many generated images are copies of it
    num_images   images that the arm generated
    num_train    training images
    """
    told = f"{sum(copies):,} of {num_images:,} generated images are copies of {len(copies):,} of the {num_train:,} training images."
    if not copies:
        told = f"None of {num_images:,} generated images counts as a copy of a training image. The closest pairs:"
    elif len(copies) > len(pairs):
        told += f" The {len(pairs)} clearest:"
    return f"<h3>{escape(arm)}</h3>\n{html.quiet(told)}\n{html.gallery(map(_figure, pairs))}"


def _figure(pair):
    copies = "not counted" if pair.copies == 0 else "1 copy" if pair.copies == 1 else f"{pair.copies:,} copies"
    shown = html.pair(pair.generated, pair.train, pair.image, pair.key) if pair.generated else ""
    return html.figure(shown, f"{pair.ratio:.3f} · {copies} · {pair.key}")
