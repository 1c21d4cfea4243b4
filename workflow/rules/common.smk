# Runs before the DAG is built: checks params.yaml, renews plan.json, asks DVC which stages must run. There are no rules here.
# Facts about the machine (cores, GPUs, partitions) are in the profiles and change no result.
import sys
from pathlib import Path

sys.path[:0] = [str(Path(workflow.basedir).parent), str(Path(workflow.basedir) / "scripts")]

import schedule

EXPERIMENT, STAGES = schedule.prepare(workflow)
WORK_LEFT = schedule.work_left(STAGES, EXPERIMENT, schedule.slots(workflow, EXPERIMENT["compute"]))


def key_of(block):
    """The key of a block's instances, a wildcard; the key of a block with a single stage is its name."""
    return block if schedule.is_single(block) else "{key}"


def title_of(block):
    """What is printed about a job."""
    return block if schedule.is_single(block) else f"{block} {{wildcards.key}}"


def name_of(block):
    """The name that DVC has for an instance: a function of the wildcards."""
    return lambda wildcards: schedule.stage(block, getattr(wildcards, "key", block))


def receipt(block):
    return str(schedule.receipt(schedule.stage(block, "{key}")))


def receipts_to_make():
    """The receipts that no stage waits for."""
    awaited = {other for waits_for in STAGES.values() for other in waits_for}
    return [str(schedule.receipt(stage)) for stage in STAGES if stage not in awaited]


def predecessors_of(block):
    """Input function of a block: the receipts that one of its instances waits for."""
    name = name_of(block)
    return lambda wildcards: [str(schedule.receipt(other)) for other in STAGES.get(name(wildcards), [])]


def most_work_first(block):
    """Priority of a block's instances: the longest path to the end goes first."""
    name = name_of(block)
    return lambda wildcards: WORK_LEFT.get(name(wildcards), 0)


def threads_of(block):
    return EXPERIMENT["compute"]["threads"] if schedule.needs_device(block) else 1


def gpus_of(block):
    """A stage that runs a network asks for a GPU, unless all stages run on the CPU."""
    return 1 if schedule.needs_device(block) and EXPERIMENT["compute"]["device"] != "cpu" else 0
