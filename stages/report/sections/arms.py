"""The main table: what every arm memorises, and how faithful it is, for each kind of weights."""

from stages.measures import frechet
from stages.report import columns, html
from stages.report.columns import FIDELITY_HELDOUT
from stages.report.entries import PROTOCOLS, per_image, weights_of
from stages.report.html import DASH, interval_text, number, with_sd
from stages.run import files
from stages.run.instance import REFERENCE

ANCHOR, TITLE = "arms", "Arms"


def section(report):
    seeds = len(report.settings["seeds"])
    spread = f" Means of {seeds} seeds ± standard deviation." if seeds > 1 else ""
    generated = f"{_generated(report)} generated images per arm and seed"
    caption = f"Protocol {report.headline.protocol}, {generated}.{spread}{_variants(report.settings)}"
    parts = [
        html.table(_rows(report), caption),
        *[html.quiet(sentence) for sentence in [*_fidelity(report), *_fid(report)]],
        html.legend(_meanings(report)),
        html.details("All protocols and thresholds", html.table(_all_rows(report))),
    ]
    return html.section(ANCHOR, "Arms", "\n".join(parts))


def _fidelity(report):
    """Which images the fidelity to held-out images compares, and how much of it is chance: a list of one sentence, or none."""
    path = files.folder("results/score", REFERENCE) / "fidelity.json"
    found, num_heldout = files.load_json(path) if path.exists() else {}, int(report.results.num_heldout.max())
    if not found or not num_heldout:
        return []
    generated = sorted({of_arm["num_images"] for of_arm in report.metrics.values()})
    chance = [frechet.by_chance(found["num_half"], found["distance"], num, num_heldout) for num in generated]
    differ = (
        "Arms with other numbers of images have another bias: generate equally many (sample.num_images) before you compare them."
        if len(generated) > 1
        else "It is the same for all arms, which are compared with the same images."
    )
    return [
        f"{FIDELITY_HELDOUT} compares {_generated(report)} generated images with all {num_heldout:,} held-out ones. Few "
        f"images make it larger: two halves of the held-out images, {found['num_half']:,} each, are {number(found['distance'])} apart by chance. "
        f"So about {' or '.join(number(value) for value in chance)} of each value is no difference between the models and the data. {differ}"
    ]


def _fid(report):
    """How many images each FID compares, and how much of the one to held-out images may be chance: a list of one sentence, or none."""
    path = files.folder("results/quality", REFERENCE) / "chance.json"
    if not (found := files.load_json(path) if path.exists() else {}):
        return []
    apart = ", ".join(
        f"{number(halves['distance'])} ({protocol}, {halves['num_half']:,} each)" for protocol, halves in found.items()
    )
    num_train, num_heldout = report.num_train, int(report.results.num_heldout.max())
    heldout = (
        f"{num_train:,} of the {num_heldout:,} held-out ones, as many as there are training images, so that the two can be compared"
        if num_heldout > num_train
        else f"all {num_heldout:,} held-out ones"
    )
    return [
        f"FID compares {_generated(report)} generated images with the {num_train:,} training images, and FID held out compares them with {heldout}. "
        f"Few images make FID larger: two halves of these held-out images are {apart} apart by chance. No value is corrected for that: compare "
        "arms with equally many generated images, and with no value from elsewhere that has other numbers of images."
    ]


def _generated(report):
    """The numbers of generated images of the arms, in words."""
    return " or ".join(f"{num:,}" for num in sorted({of_arm["num_images"] for of_arm in report.metrics.values()}))


def _variants(settings):
    if not settings["score"].get("variants"):
        return ""
    return (
        " Images are also compared mirrored, shifted, cropped and with brightness and contrast fitted (score.variants), so counts are "
        "higher than under the published protocols, also by chance; the excess is without chance."
    )


def _rows(report):
    """One row per arm and kind of weights, at the headline's protocol and threshold."""
    at = f"{report.headline.threshold:g}"
    more = _of_measures(report)
    rows = []
    for arm, weights, entry in _entries(report):
        by_threshold = entry[report.headline.protocol]
        cell = by_threshold[at]
        rows.append(
            {
                "arm": arm,
                "weights": weights,
                **{f"MQ\u00a0{threshold}": with_sd(other, "count") for threshold, other in by_threshold.items()},
                f"excess at {at} [95 %]": interval_text(cell),
                "excess against baseline": _against_baseline(report, arm, weights),
                f"simplicity at {at}": with_sd(cell, "simplicity"),
                f"distinct at {at}": with_sd(cell, "distinct"),
                **columns.cells("score", entry),
            }
        )
        for phase, names in more.items():
            rows[-1] |= columns.cells(phase, entry.get(phase, {}), names)
    return rows


def _all_rows(report):
    """One row per arm, kind of weights, protocol and threshold."""
    return [
        {
            "arm": arm,
            "weights": weights,
            "protocol": protocol,
            "threshold": threshold,
            "MQ": with_sd(cell, "count"),
            "excess [95 %]": interval_text(cell),
            "simplicity": with_sd(cell, "simplicity"),
            "distinct": with_sd(cell, "distinct"),
        }
        for arm, weights, entry in _entries(report)
        for protocol in PROTOCOLS
        for threshold, cell in entry[protocol].items()
    ]


def _entries(report):
    """(arm, weights, metrics[arm][weights]) of all arms."""
    return [(arm, w, report.metrics[arm][w]) for arm in report.arms for w in weights_of(report.metrics[arm])]


def _of_measures(report):
    """Columns of measures and of membership that the text table has too, and that some arm has numbers of: dict phase -> names."""
    found = {}
    for phase, name in columns.short():
        if phase in (*columns.generic(), "membership") and any(phase in entry for _, _, entry in _entries(report)):
            found.setdefault(phase, []).append(name)
    return found


def _against_baseline(report, arm, weights):
    """The excess compared with the first arm's; a dash for that arm itself, and where its excess is not above 0."""
    baseline, (_, protocol, threshold) = report.arms[0], report.headline
    if arm == baseline or weights not in report.metrics[baseline]:
        return DASH
    value, base = (
        per_image(report.metrics[name][weights][protocol][f"{threshold:g}"], report.metrics[name])["excess"]
        for name in (arm, baseline)
    )
    if value is None or base is None or base <= 0:
        return DASH
    return f"{100 * (value - base) / base:+.0f} %".replace("-", "−")


def _meanings(report):
    interval = (
        "the t-interval of the mean over seeds: it includes the randomness of training, and is wide with few seeds"
        if len(report.settings["seeds"]) > 1
        else "that of the generated images of the one training run; it leaves out the variation between trainings"
    )
    meanings = {
        "MQ": "Number of generated images whose ratio is at or below the threshold (code_sq: below). They are far closer to their "
        f"nearest training image than to their {report.settings['score']['neighbours']} nearest training images on average. "
        "Images that are merely simple count too: even real images that no model has seen can have such a ratio.",
        "excess": "Number of generated images that are copies of a training image, without those that count by chance. The training "
        "images are divided into parts as large as the held-out set and of the same classes. For each part, the generated images "
        "that count against it are added, and those that count against the held-out images are subtracted. Images that are merely "
        f"simple count on both sides and cancel out. It is the number for {_compared(report)}, however few images are held out: "
        f"fewer only widen the interval. The interval is {interval}.",
        "excess against baseline": f"The change of the excess relative to the baseline, the first arm ({report.arms[0]}).",
        "simplicity": "The MQ that real held-out images reach when they take the place of the generated ones. It shows how alike "
        "the images of this data set are. Do not subtract it from the MQ.",
        "distinct": "Number of different training images that the memorised images are copies of: an image copied fifty times counts once.",
        **columns.meanings("score"),
    }
    for phase, names in _of_measures(report).items():
        meanings |= columns.meanings(phase, names)
    return meanings | {"raw, ema": "raw: the weights as trained. ema: their exponential moving average."}


def _compared(report):
    """The training images that the excess is of, in words."""
    compared, num_train = int(report.results.num_compared.min()), report.num_train
    if not 0 < compared < num_train:
        return "all training images"
    return f"{compared:,} of the {num_train:,} training images, as no held-out image has the class of the others"
