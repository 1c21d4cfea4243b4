"""The phases of the pipeline, in the order of their blocks in dvc.yaml. Each is declared once, by its own module stages/<phase>.py.

A module declares what the rest of the project must know of its phase: as plain data, PHASE, and in functions of the experiment
(params.yaml as a dict).

PHASE   name
        per             what one instance is for: experiment, run (an arm with one seed), round, shard, sampled (a round whose model
                        is sampled), or part (of its images)
        reference       True: there is one more instance, for what all runs share
        arms            trained: the arms that are trained here have the phase; all: generators from elsewhere too
        device          True: it computes on the device of the section compute, so it asks for its threads and a GPU
        final           True: its results are wanted in the end, and not only by a later phase
        reads_phases    True: its results depend on the PHASE of every phase
        section         JSON schema of its section of params.yaml
        arms_override   True: an arm may override its keys
        text_keys       keys of the section that only a model with captions has; needs_captions: the whole phase needs captions
        arm_section     JSON schema of the section of that name of an arm
        left_out        the message where the section is missing; left_out_told: "always", or only where images have captions
        title, columns, figures   of a phase that measures: what the report shows, see stages/report/sections/measures.py

instances(experiment)                list of stages.run.instance.Instance
check(experiment)                    raises ValueError if settings do not go together
check_sizes(experiment, num_train)   raises ValueError if they do not go with the number of training images
check_files(experiment)              raises ValueError if a file that they name is missing or the wrong one
wanted(experiment)                   whether there is such a phase; there always is one where the function is missing
"""

import functools
import importlib

from stages.run import declarations, params
from stages.run.instance import Instance, phase_of

DVC_FILE = declarations.STAGES.parent / "dvc.yaml"


@functools.cache
def blocks():
    """Names of the blocks of dvc.yaml, in its order: tuple; a phase has one, or several where instances differ in what they depend on."""
    return tuple(params.read(DVC_FILE)["stages"])


@functools.cache
def names():
    """Names of the phases, in the order of the pipeline: tuple."""
    return tuple(dict.fromkeys(map(phase_of, blocks())))


def declared(phase):
    """PHASE of a phase; {} of one that there is not."""
    return declarations.phases().get(phase, {})


def module(phase):
    """The module of a phase."""
    return importlib.import_module(f"stages.{phase}")


def modules():
    """The modules of all phases, in the order of the pipeline: list."""
    return [module(name) for name in names()]


def instances(experiment):
    """All stage instances of an experiment, a pure function of its parameters: list of Instance, phase by phase."""
    found = []
    for each in modules():
        own = getattr(each, "instances", None)
        found += own(experiment) if own else [Instance(block=each.PHASE["name"])]
    return found


def is_single(block):
    """Whether a block makes one stage, which is called as the block is, and not one a key."""
    return declared(phase_of(block))["per"] == "experiment"


def check(experiment):
    """Raises ValueError if settings of a phase do not go together."""
    for each in modules():
        if hasattr(each, "check"):
            each.check(experiment)


def check_sizes(experiment, num_train):
    """Raises ValueError if settings do not go with the number of training images: one sentence a phase, all of them at once."""
    told = []
    for each in modules():
        try:
            if hasattr(each, "check_sizes"):
                each.check_sizes(experiment, num_train)
        except ValueError as error:
            told.append(str(error))
    if told:
        raise ValueError("; ".join(told))


def check_files(experiment):
    """Raises ValueError if a file or folder that params.yaml names is missing, or another one than it says."""
    for each in modules():
        if hasattr(each, "check_files"):
            each.check_files(experiment)


def left_out(experiment):
    """Which phases are left out: a sentence each. Of most that is told only where images have captions, or where the section is there but says
    too little."""
    told = []
    for each in modules():
        phase = each.PHASE
        if "left_out" in phase and not each.wanted(experiment):
            has_captions = "pipeline" in experiment["model"]
            if has_captions or phase.get("left_out_told") == "always" or phase["name"] in experiment:
                told.append(phase["left_out"])
    return told
