"""The plan: every stage instance of the experiment with what it depends on, derived from params.yaml alone.

dvc.yaml loops over plan.json because DVC's templates have no arithmetic and cannot say "round r - 1". The file is committed
like a lock file. `python -m stages.plan` checks params.yaml, and renews plan.json when the structure of the experiment
changed (arms, seeds, shards, rounds, parts). It then also removes the results of instances that left the plan, because a
stage that reads a whole folder would read them too, and ends with an error that says to run the same command again.
"""

import json
import shutil
import sys
from dataclasses import dataclass

from stages import experiments, image_sets, phases, rules
from stages.diffusion import unet
from stages.run import files, lock, plan_file, processes, room
from stages.run.instance import START_UP, Instance, Scale
from stages.text import model as pipeline

PHASE = {"name": "plan", "per": "experiment"}


def load():
    """The experiment of params.yaml, all of it checked, the files that it names included; what is left out is told on stderr.

    Raises   ValueError: one sentence
    """
    experiment = rules.load()
    if experiments.is_text(experiment):
        folder = experiment["model"]["pipeline"]
        files.check_outside(folder, f"model.pipeline = {folder}", "the model")
        pipeline.check(folder)
    phases.check_files(experiment)
    for sentence in left_out(experiment):
        print(sentence, file=sys.stderr)
    return experiment


def left_out(experiment):
    """Which phases are left out, and the safety checker of a model with captions: a sentence each."""
    told = phases.left_out(experiment)
    if experiments.is_text(experiment) and pipeline.has_safety_checker(folder := experiment["model"]["pipeline"]):
        told.append(f"the safety checker of {folder} is left out, as what it blacks out could not be measured")
    return told


def expand(experiment):
    """All stage instances of an experiment, a pure function of its parameters: dict name -> stages.run.instance.Instance.

    Names are those of DVC: <block>@<key>, or the block alone where it makes one stage.
    """
    found = {}
    for instance in phases.instances(experiment):
        found[instance.block if phases.is_single(instance.block) else instance.name] = instance
    return found


def text(plan):
    """The content of plan.json: by block and key the fields of each instance.

    plan   of `expand`
    """
    listed = {block: {} for block in phases.blocks()}
    for instance in plan.values():
        if phases.is_single(instance.block):
            listed[instance.block] = {k: v for k, v in instance.item().items() if k != "run"}
        else:
            listed[instance.block][instance.key] = instance.item()
    listed = {block: items for block, items in listed.items() if items or not phases.is_single(block)}
    return plan_file.text(listed)


def scale(experiment):
    """How large an experiment is (stages.run.instance.Scale); None where only the images themselves would say."""
    found = image_sets.stored(experiment["data"])
    if found is None:
        return None
    num_images, shape = found
    if experiments.is_text(experiment):
        num_parameters = pipeline.num_values(experiment["model"]["pipeline"], "unet")
    else:
        num_parameters = unet.num_parameters(experiment["model"], shape[2])
    return Scale(experiment, num_images, experiment["data"].get("num_train", num_images), shape, 4 * num_parameters)


def sizes(experiment, plan):
    """What each stage is expected to write: dict name -> (its first path, bytes); None where only the images themselves would say."""
    if (size := scale(experiment)) is None:
        return None
    made = {name: instance for name, instance in plan.items() if instance.outputs()}
    return {name: (instance.outputs()[0], instance.size(size)) for name, instance in made.items()}


def refresh(plan, dry_run=False):
    """Makes plan.json, artifacts/ and dvc.lock agree with a plan.

    plan      of `expand`
    dry_run   write plan.json, which DVC needs to say what would run, but remove nothing
    Returns   list of sentences that say what was changed; empty if all agreed
    """
    changes = []
    old = plan_file.PLAN_FILE.read_text(encoding="utf-8") if plan_file.PLAN_FILE.exists() else ""
    new = text(plan)
    if old != new:
        before = _stages_of(old)
        added, removed = plan.keys() - before, before - plan.keys()
        files.write_text(plan_file.PLAN_FILE, new)
        names = (
            f"now has {len(added)} new stages and {len(removed)} fewer old ones" if added or removed else "was renewed"
        )
        changes.append(f"plan.json {names}")
    stray = _stray_artifacts(plan)
    gone = sorted(lock.names() - plan.keys())
    if not dry_run:
        for path in stray:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if gone:
            with processes.DvcLock():
                lock.remove(gone)
    if stray or gone:
        verb = "would be removed" if dry_run else "were removed"
        changes.append(
            f"{len(stray)} folders or files of artifacts/ and {len(gone)} entries of dvc.lock that belong to no stage of the "
            f"plan {verb} (DVC's cache keeps their contents)"
        )
    return changes


def _stages_of(old):
    """Names of the stages of an earlier plan.json; none where it cannot be read, as after a merge with conflicts."""
    single = {block for block in phases.blocks() if phases.is_single(block)}
    try:
        listed = json.loads(old)["plan"]
        return single | {f"{block}@{key}" for block, keys in listed.items() if block not in single for key in keys}
    except (ValueError, TypeError, KeyError, AttributeError):
        return set()


def _stray_artifacts(plan):
    """Paths under artifacts/ that no instance makes, the topmost of each."""
    expected = {path for instance in plan.values() for path in instance.outputs()}
    on_the_way = {parent for path in expected for parent in path.parents}
    stray = []

    def visit(folder):
        for path in sorted(folder.iterdir()):
            if path in expected:
                continue
            if path in on_the_way:
                visit(path)
            elif path.name != ".gitignore":
                stray.append(path)

    if files.ARTIFACTS.is_dir():
        visit(files.ARTIFACTS)
    return stray


@dataclass(frozen=True, kw_only=True)
class Check(Instance):
    start_up = START_UP // 4

    def outputs(self):
        return [files.PLAN_OK]


def instances(experiment):
    return [Check(block="plan")]


def main(arguments):
    with experiments.stage(PHASE, __doc__, arguments):
        experiment = load()
        plan = expand(experiment)
        changes = refresh(plan)
        room.check(sizes(experiment, plan))
        files.write_text(files.PLAN_OK, "params.yaml was found valid and plan.json up to date\n")
        if changes:
            print("; ".join(changes), file=sys.stderr)
            raise ValueError(
                "the structure of the experiment changed and the plan was renewed: run the same command again"
            )


if __name__ == "__main__":
    from stages.run import cli

    cli.run(main)
