"""What the arms were trained with and how: rounds, passes through the network, skips, and curves over the epochs."""

from stages import experiments
from stages.report import figures, html
from stages.report.html import number, percent, tally
from stages.run import files

ANCHOR, TITLE = "training", "Training"
NUMBERS = files.PLOTS / "training.csv"


def section(report):
    if not experiments.trained(report.settings):
        return ""
    seeds = len(report.settings["seeds"])
    of_seeds = f" per seed, as means over {seeds} seeds" if seeds > 1 else ""
    caption = (
        f"Sums over rounds and shards{of_seeds}. Forward images: images passed through the network in training, including the "
        "second pass of augmented images. Moved: how many times an image changed shard."
    )
    content = f"{html.table(_rows(report), caption)}\n{html.panels(_panels(report))}"
    return html.section(ANCHOR, "Training", content)


def _rows(report):
    """One row per arm that is trained here."""
    trained = experiments.trained(report.settings)
    entries = {arm: report.metrics[arm]["training"] for arm in trained}
    base = next(iter(entries.values()))["forward_images"]
    spent = sorted({name for entry in entries.values() for name in entry.get("spent", {})})
    return [
        {
            "arm": arm,
            "rounds": str(trained[arm]["rounds"]),
            "shards": str(trained[arm]["shard"]["num_shards"]),
            "a round": _round_length(experiments.section(report.settings, "train", arm)),
            "optimiser steps": tally(entry["optimizer_steps"]),
            "forward images": tally(entry["forward_images"]),
            "against baseline": f"{entry['forward_images'] / base:.2f} ×",
            "skipped\u00a0%": percent(entry["skipped_share"]),
            "augmented\u00a0%": percent(entry["augmented_share"]),
            "moved": tally(entry["moved"]),
            **{name: number(entry.get("spent", {}).get(name)) for name in spent},
        }
        for arm, entry in entries.items()
    ]


def _round_length(train):
    return f"{tally(train['steps'])} steps" if "steps" in train else f"{tally(train['epochs'])} epochs"


def _panels(report):
    def over_epochs(column, done):
        percent = report.epochs.assign(percent=100 * report.epochs[column])
        drawn = figures.over_epochs(percent, report.arms, "percent", f"{done} (% of the images visited)")
        never = {"skipped": "No arm skipped an image.", "augmented": "No arm augmented an image."}[done]
        return html.figure(drawn, _caption(report, column, done), never, NUMBERS)

    loss_label = "training loss (mean squared error)"
    return [
        html.figure(
            figures.over_epochs(report.epochs, report.arms, "loss", loss_label, log=True),
            "Training loss over all images visited, including skipped ones. Markers: the end of a round.",
            numbers=NUMBERS,
        ),
        over_epochs("skipped_share", "skipped"),
        over_epochs("augmented_share", "augmented"),
        html.figure(
            figures.skip_histogram(report.histogram, report.arms),
            "How often each training image was skipped, over all shards it was in.",
            "No arm skipped an image.",
            files.PLOTS / "skip_histogram.csv",
        ),
    ]


def _caption(report, column, done):
    """What a curve shows, and the arms that it leaves out."""
    never = [arm for arm in report.arms if report.metrics[arm].get("training", {}).get(column) == 0]
    text = f"Images {done} in training."
    return text + (f" Not drawn, because nothing was {done}: {', '.join(never)}." if never else "")
