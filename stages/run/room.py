"""How much room an experiment takes on the disk, from params.yaml alone, and whether there is so much.

P parameters of the network, N training images, M generated images, K shards, R rounds. float32 has 4 bytes.
"""

import math
import os
import sys
from pathlib import Path

from stages import image_sets, params, plan
from stages.diffusion import unet
from stages.run import files
from stages.text import model as pipeline

KEEP = "REDISTRIBUTE_KEEP"  # in the environment: all, or needed, under which snakemake prunes (workflow/scripts/retention.py)
ANYWAY = "REDISTRIBUTE_ANY_ROOM"  # in the environment: a run is not refused for want of room
MIB = 2**20
INCEPTION_BYTES = 96 * MIB  # the weights in float32
LIGHT_BYTES = MIB // 10  # a report, a list: what no setting makes large
ROW_BYTES = 150  # of a table with a row per image: a dozen numbers and the image's name, compressed


def outputs(experiment):
    """What each stage leaves on the disk.

    experiment   params.yaml as a dict
    Returns      dict name of a stage -> (path, bytes); None where only the images themselves would say
    """
    found = image_sets.stored(experiment["data"])
    if found is None:
        return None
    num_images, shape = found
    pixels = math.prod(shape)
    num_train = experiment["data"].get("num_train", num_images)
    if params.is_text(experiment):
        weights = 4 * pipeline.num_values(experiment["model"]["pipeline"], "unet")
    else:
        weights = 4 * unet.num_parameters(experiment["model"], shape[2])
    expanded = plan.expand(experiment)
    made = {"data": (files.DATA, num_images * (pixels + 8 + 30))}  # pixels, label, name
    for key, item in expanded["shard"].items():
        made[f"shard@{key}"] = files.shards_dir(item["run"], 1), 8 * num_train
    averages = {arm: bool(params.section(experiment, "train", arm)["ema_decay"]) for arm in params.trained(experiment)}
    for key, item in expanded["train"].items():  # weights, EMA, two moments of Adam
        made[f"train@{key}"] = (
            files.train_dir(item["run"], item["round"], item["shard"]),
            (3 + averages[item["arm"]]) * weights,
        )
    for key, item in expanded["aggregate"].items():  # weights, EMA
        made[f"aggregate@{key}"] = files.model_dir(item["run"], item["round"]), (1 + averages[item["arm"]]) * weights
    for key, item in expanded["redistribute"].items():
        made[f"redistribute@{key}"] = Path(item["next_shards"]), 8 * num_train
    generated = {}
    for key, item in expanded["sample"].items():
        settings = params.section(experiment, "sample", item["arm"])
        num = (settings["num_images"] or num_train) * len(settings["weights"])
        generated[item["run"]] = num
        made[f"sample@{key}"] = files.samples_dir(item["run"], item["part"]), num * pixels // settings["parts"]
    for key, item in expanded["score"].items():
        made[f"score@{key}"] = files.score_dir(item["run"]), generated[item["run"]] * ROW_BYTES + LIGHT_BYTES
    for key, item in expanded["analyse"].items():
        made[f"analyse@{key}"] = files.analysis_dir(item["run"]), num_train * ROW_BYTES + LIGHT_BYTES
    for key, item in expanded["quality"].items():
        features = len(experiment["quality"]["protocols"]) * (4 * 2048 * num_train + 8 * 2048**2)
        is_reference = key == files.REFERENCE
        made[f"quality@{key}"] = (
            files.quality_dir(item["run"]),
            features + INCEPTION_BYTES if is_reference else LIGHT_BYTES,
        )
    made["report"] = files.REPORT, 20 * LIGHT_BYTES
    return made


def needed(made, stages, slots, rounds_kept=None):
    """Bytes that a run takes beside what is there: its outputs, and the checkpoints of the stages at work.

    made         of `outputs`
    stages       names of those that run
    slots        stages that may train at a time; each has two checkpoints while it writes one
    rounds_kept  rounds of a run whose train outputs lie on the disk at a time; None: all
    Returns      dict phase -> bytes
    """
    by_phase, by_round = {}, {}
    for name in made.keys() & set(stages):
        phase, (path, size) = name.split("@")[0], made[name]
        if phase == "train" and rounds_kept is not None:
            run, round_ = path.parts[-3:-1]
            rounds = by_round.setdefault(run, {})
            rounds[round_] = rounds.get(round_, 0) + size
        else:
            by_phase[phase] = by_phase.get(phase, 0) + size
    for rounds in by_round.values():
        kept = sorted(rounds.values(), reverse=True)[:rounds_kept]
        by_phase["train"] = by_phase.get("train", 0) + sum(kept)
    at_work = [made[name][1] for name in made.keys() & set(stages) if name.startswith(("train@", "sample@"))]
    by_phase["checkpoints"] = 2 * sum(sorted(at_work, reverse=True)[:slots])
    return by_phase


def keeps_all():
    """Whether nothing is to be pruned, from the environment.

    Raises    ValueError: neither all nor needed
    """
    text = os.environ.get(KEEP, "all")
    if text not in ("all", "needed"):
        raise ValueError(f"{KEEP} is {text!r} in the environment, expected all or needed")
    return text == "all"


def check(experiment, stages=None, slots=1, dry_run=False):
    """Compares what a run needs with what is free where artifacts/ lies, and says so where it is much.

    stages    names of those that run; None: those whose output is not there
    Raises    ValueError: clearly too little, unless this is a dry run or REDISTRIBUTE_ANY_ROOM is set
    """
    made = outputs(experiment)
    if made is None:
        return
    if stages is None:
        stages = [name for name, (path, _) in made.items() if not path.exists()]
    # Of a run that is pruned as it goes on, the round at work and the one before it lie there.
    by_phase = needed(made, stages, slots, None if keeps_all() else 2)
    total, place = sum(by_phase.values()), _existing(files.ARTIFACTS)
    free = files.free_room(place)
    if free == math.inf:
        return
    most = ", ".join(
        f"{phase} {files.text_of_size(size)}"
        for phase, size in sorted(by_phase.items(), key=lambda item: -item[1])[:3]
        if size
    )
    told = (
        f"this run writes about {files.text_of_size(total)} ({most}), and {files.text_of_size(free, math.floor)} are free on the "
        f"disk of {place.resolve()}"
    )
    if 0.9 * total > free and not dry_run and ANYWAY not in os.environ:
        raise ValueError(
            f"{told}: make room, ask for fewer rounds, shards, arms or images (params.yaml), or set {KEEP}=needed in the "
            f"environment, which prunes rounds as the run goes on; {ANYWAY}=1 runs it all the same"
        )
    if total > 2**30 or total > free / 2:
        print(told, file=sys.stderr)


def _existing(path):
    return path if path.exists() else Path()
