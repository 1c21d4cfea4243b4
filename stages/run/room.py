"""Checks whether the disk has the room that a run needs, from the size that each of its stages is expected to write."""

import math
import os
import sys
from pathlib import Path

from stages.run import files
from stages.run.instance import phase_of

KEEP = "REDISTRIBUTE_KEEP"  # in the environment: all, or needed, under which snakemake prunes (workflow/scripts/retention.py)
ANYWAY = "REDISTRIBUTE_ANY_ROOM"  # in the environment: a run is not refused for want of room


def needed(made, stages, slots, rounds_kept=None):
    """Bytes that a run takes beside what is there: its outputs, and the checkpoints of the stages at work.

    made         dict name of a stage -> (path, bytes) of what it is expected to write
    stages       names of those that run
    slots        stages that may train at a time; each has two checkpoints while it writes one
    rounds_kept  rounds of a run whose train outputs lie on the disk at a time; None: all
    Returns      dict phase -> bytes
    """
    by_phase, by_round = {}, {}
    for name in made.keys() & set(stages):
        phase, (path, size) = phase_of(name), made[name]
        if phase == "train" and rounds_kept is not None:
            run, round_ = path.parts[-3:-1]
            rounds = by_round.setdefault(run, {})
            rounds[round_] = rounds.get(round_, 0) + size
        else:
            by_phase[phase] = by_phase.get(phase, 0) + size
    for rounds in by_round.values():
        kept = sorted(rounds.values(), reverse=True)[:rounds_kept]
        by_phase["train"] = by_phase.get("train", 0) + sum(kept)
    at_work = [made[name][1] for name in made.keys() & set(stages) if phase_of(name) in ("train", "sample")]
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


def check(made, stages=None, slots=1, dry_run=False):
    """Compares what a run needs with what is free where artifacts/ lies, and says so where it is much.

    made      as for `needed`; None where only the images themselves would say
    stages    names of those that run; None: those whose output is not there
    Raises    ValueError: clearly too little, unless this is a dry run or REDISTRIBUTE_ANY_ROOM is set
    """
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
