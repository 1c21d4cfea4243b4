# Before the DAG is built: check params.yaml, renew plan.yaml, ask DVC what must run. No rules here.
# Machine facts (cores, GPUs, partitions) are in the profiles and change no result.
import sys
from pathlib import Path

sys.path[:0] = [str(Path(workflow.basedir).parent), str(Path(workflow.basedir) / "scripts")]

import schedule

EXPERIMENT, STAGES = schedule.prepare(workflow)
WORK_LEFT = schedule.work_left(STAGES, EXPERIMENT, schedule.slots(workflow, EXPERIMENT["compute"]))
GPUS = 0 if EXPERIMENT["compute"]["device"] == "cpu" else 1  # that a stage with a network asks for


def receipt(stage):
    return str(schedule.receipt(stage))


def receipts_to_make():
    return [receipt(stage) for stage in STAGES]


def predecessors(stage):
    return [receipt(name) for name in STAGES.get(stage, [])]


def predecessors_of(phase):
    """Input function of a phase: the receipts that one of its instances waits for."""
    return lambda wildcards: predecessors(f"{phase}@{wildcards.key}")


def most_work_first(phase):
    """Priority of a phase's instances: the longest path to the end goes first."""
    return lambda wildcards: WORK_LEFT.get(f"{phase}@{wildcards.key}", 0)
