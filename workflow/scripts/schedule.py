"""Decides which stage instances must run, once, before Snakemake builds its DAG. Only DVC judges what is stale.

CHANGED   command, parameter or input differs from what dvc.lock recorded, or nothing is recorded, or an output exists
          with other content. An input that is merely missing is not a change: its producer recorded its content.
MISSING   an output does not exist. If DVC's cache has it, it is restored when something needs it.
RUN       CHANGED stages, and stages of the end phases with an output that is MISSING and not in the cache. Also every stage
          that uses a result of these, and every stage that makes a missing input of them.

So a fresh clone with dvc.lock but without artifacts runs everything, and a workspace whose old shard states were pruned
runs nothing.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import how_far
import psutil
import retention

from stages import phases, plan
from stages.phases import is_single
from stages.run import device, files, params, processes, room
from stages.run.instance import Scale, phase_of

RECEIPTS = Path(".snakemake/receipts")
TO_RUN = Path(".snakemake/stages-to-run.json")
BLOCKS = phases.blocks()
SOME_IMAGES = 10_000  # a guess at the training images where only their folder knows: it orders stages, no more


def prepare(workflow):
    """What the Snakefile does before its rules: check, renew the plan, decide. Ends the process with one sentence if it cannot.

    In the main process only; a job on another node reads what was decided.

    workflow   Snakemake's
    Returns    (experiment: params.yaml as a dict, dict of stages to run as `stages_to_run` returns it)
    """
    from dvc.exceptions import DvcException

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # `python` in rules
    os.environ[processes.PARENT_PID] = str(os.getpid())  # what this process starts dies with it
    try:
        if not workflow.is_main_process:
            return params.load(), json.loads(TO_RUN.read_text())
        if workflow.overwrite_configfiles or workflow.config_settings.config:
            raise ValueError(
                "--config and --configfile would change only what Snakemake sees: edit params.yaml instead"
            )
        lock = processes.FileLock(".snakemake/redistribute.lock")
        if not lock.try_acquire():
            raise ValueError(
                f"another snakemake (process {lock.holder()}) is at work in this folder: wait for it or end it"
            )
        workflow.redistribute_lock = lock  # held until this process ends, however it ends
        processes.on_sigterm(processes.terminate_children)  # Snakemake alone would wait for the end of what runs
        experiment = plan.load()
        instances = plan.expand(experiment)
        for change in plan.refresh(instances, dry_run=is_dry_run(workflow)):
            print(change, file=sys.stderr)
        _count_gpus(workflow, experiment["compute"]["device"])
        keeps_all = room.keeps_all()
        mend_rwlock()
        retention.remove_empty_rounds()
        to_run = stages_to_run()
        room.check(
            plan.sizes(experiment, instances), to_run, slots(workflow, experiment["compute"]), is_dry_run(workflow)
        )
    except (ValueError, OSError, DvcException) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # sys.exit would become a traceback of Snakemake's
    shutil.rmtree(RECEIPTS, ignore_errors=True)
    files.write_json(TO_RUN, to_run)
    if not is_dry_run(workflow):
        how_far.tell(work_of(to_run, experiment), has_run)
    if not is_dry_run(workflow) and not keeps_all:
        workflow.redistribute_retention = retention.Retention(instances, to_run, has_run)
        workflow.redistribute_retention.prune()  # what an earlier run left
        workflow.redistribute_retention.watch()
    return experiment, to_run


def is_dry_run(workflow):
    """Whether `snakemake -n` was asked for. (Its own workflow.dryrun is False until the DAG is built, whatever was asked for.)"""
    return workflow.output_settings.dryrun


def stage(block, key):
    """What DVC calls an instance: <block>@<key>, or the block alone where it makes one stage."""
    return block if is_single(block) else f"{block}@{key}"


def receipt(stage):
    """The file that stands for a stage that has run: of one that is called as its block is, the key is called so too."""
    block, _, key = stage.partition("@")
    return RECEIPTS / block / (key or block)


def needs_device(block):
    """Whether the stages of a block run a network, or something as large, on the device of the section compute."""
    return phases.declared(phase_of(block)).get("device", False)


def has_run(stage):
    return receipt(stage).exists()


def _count_gpus(workflow, wanted):
    """Says once for the whole run if there is no GPU; their number is the limit of the resource gpu, unless it was given."""
    if wanted == "cpu":
        return
    gpus = device.visible_gpus()
    if gpus and "gpu" not in workflow.global_resources:
        workflow.global_resources["gpu"] = len(gpus) * device.slots()
    if not gpus and wanted == "cuda":
        raise ValueError(
            "compute.device is cuda, but no GPU is visible: set it to auto or cpu (params.yaml), or look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES"
        )
    if not gpus:
        print("compute.device is auto and there is no GPU: all stages run on the CPU", file=sys.stderr)
        os.environ[device.TOLD] = "1"


def slots(workflow, compute):
    """Stages with a network that can run at a time: jobs on a cluster, cores and threads here, GPUs in both.

    (workflow.cores is an error where there are only jobs.)

    compute   section of params.yaml: device, threads
    """
    given = workflow.resource_settings
    at_a_time = given.nodes or max(1, (given.cores or 1) // compute["threads"])
    if compute["device"] == "cpu" or "gpu" not in workflow.global_resources:
        return at_a_time
    return max(1, min(at_a_time, workflow.global_resources["gpu"].value))


def show_results(workflow):
    """The table, and where the page is; nothing after a dry run."""
    if hasattr(workflow, "redistribute_retention"):
        workflow.redistribute_retention.prune()
    if not is_dry_run(workflow) and Path("metrics.json").exists():
        for view in ("--page", "--table"):
            subprocess.run([sys.executable, "-m", "stages.report", view], check=False)


def stages_to_run():
    """Names of the stages to run, each with the names of those among them that it waits for.

    Checks cached files out that the stages need. Call with no other DVC process at work in the project.
    Returns   dict name -> sorted list of names
    """
    import logging

    logging.getLogger("dvc").setLevel(logging.WARNING)
    from dvc.repo import Repo

    repo = Repo()
    try:
        return processes.with_dvc_lock(lambda: _Analysis(repo).run())
    finally:
        repo.close()


class _Analysis:
    def __init__(self, repo):
        self.repo = repo
        self.stages = {stage.addressing: stage for stage in repo.index.stages}
        self.graph = repo.index.graph
        self.hashes = {}  # path -> hash of what lies there, or None
        self.outs = {out.fs_path: out for stage in self.stages.values() for out in stage.outs}
        self.inside = defaultdict(list)  # path -> outputs that are this path or lie inside it
        for path, out in self.outs.items():
            for folder in _with_parents(path):
                self.inside[folder].append(out)

    def run(self):
        changed = {name for name, stage in self.stages.items() if self._is_changed(stage)}
        final_models = {self._producer_of_model(s) for n, s in self.stages.items() if n.startswith("sample@")}
        ends = {n for n in self.stages if phases.declared(phase_of(n)).get("final")} | (final_models - {None})
        to_run = self._closure(changed, ends)
        return {
            name: sorted(dep.addressing for dep in self.graph.successors(self.stages[name]) if dep.addressing in to_run)
            for name in sorted(to_run)
        }

    def _producer_of_model(self, sample_stage):
        for producer in self.graph.successors(sample_stage):
            if producer.addressing.startswith("aggregate@"):
                return producer.addressing
        return None

    def _closure(self, changed, ends):
        to_run, todo, restored = set(), list(changed), set()
        for name in ends:
            todo += self._missing_producers(self.stages[name].outs, restored)
        while todo:
            name = todo.pop()
            if name in to_run:
                continue
            to_run.add(name)
            stage = self.stages[name]
            if name != "plan":  # its output is always the same, so nobody needs to run because it ran
                todo += [user.addressing for user in self.graph.predecessors(stage)]
            for dependency in stage.deps:
                todo += self._missing_producers(self._outs_under(dependency.fs_path), restored)
        return to_run

    def _missing_producers(self, outs, restored):
        """Makers of those outputs that are neither in the workspace nor in the cache; cached ones are brought back."""
        makers = []
        for out in outs:
            if out.exists or out.fs_path in restored:
                continue
            if out.hash_info and out.use_cache and not out.changed_cache():
                out.checkout(force=True)
                self.hashes.pop(out.fs_path, None)
                restored.add(out.fs_path)
            else:
                makers.append(out.stage.addressing)
        return makers

    def _outs_under(self, path):
        """Outputs that are this path, lie inside it, or contain it."""
        above = [self.outs[folder] for folder in _with_parents(path)[1:] if folder in self.outs]
        return self.inside.get(path, []) + above

    def _is_changed(self, stage):
        if stage.cmd_changed or not stage.deps:
            return True
        for out in stage.outs:
            if not out.hash_info or (out.exists and self._hash(out) != out.hash_info):
                return True
        return any(self._dependency_changed(dependency) for dependency in stage.deps)

    def _dependency_changed(self, dependency):
        from dvc.dependency import ParamsDependency

        if isinstance(dependency, ParamsDependency):
            return bool(dependency.status())
        if not dependency.hash_info:
            return True
        outs = self._outs_under(dependency.fs_path)
        missing = [out for out in outs if not out.exists]
        if missing or not dependency.exists:
            made_here = self.outs.get(dependency.fs_path)
            if not outs:
                return True
            return made_here is not None and made_here.hash_info != dependency.hash_info
        return self._hash(dependency) != dependency.hash_info

    def _hash(self, file):
        if file.fs_path not in self.hashes:
            self.hashes[file.fs_path] = file.get_hash()
        return self.hashes[file.fs_path]


def _with_parents(path):
    return [path, *map(str, Path(path).parents)]


def work_of(to_run, experiment):
    """Work of each stage by itself, in images passed through the network forward and back: an estimate from params.yaml."""
    instances = plan.expand(experiment)
    scale = Scale(experiment, SOME_IMAGES, experiment["data"].get("num_train", SOME_IMAGES))
    return {name: instances[name].work(scale) for name in to_run}


def work_left(to_run, experiment, slots):
    """Work from the start of each stage to the end of the experiment along the longest path: what has most of it should start
    first, or one long stage is left alone at the end.

    The K shards of a round, or the parts of a sample, take turns where there are fewer slots than that.

    to_run       from `stages_to_run`
    slots        stages that can run at a time
    Returns      dict name -> int, for the stages of to_run
    """
    work = work_of(to_run, experiment)
    instances = plan.expand(experiment).values()
    place = {i.name: (i.block, i.arm, i.seed, i.round) for i in instances if i.shard is not None or i.part is not None}
    side_by_side = Counter(place.values())
    users = {name: [] for name in to_run}
    for name, waits_for in to_run.items():
        for producer in waits_for:
            users[producer].append(name)
    left = {}
    todo = list(to_run)
    while todo:
        name = todo[-1]
        unknown = [user for user in users[name] if user not in left]
        if unknown:
            todo += unknown
            continue
        turns = -(-side_by_side.get(place.get(name), 1) // slots)
        left[name] = turns * work[name] + max((left[user] for user in users[name]), default=0)
        todo.pop()
    return left


def mend_rwlock():
    """Takes stale entries out of DVC's table of files in use: one left by a killed process whose pid is in use again, or a
    table that was cut short, would block or stop every later run."""
    path = Path(".dvc/tmp/rwlock")
    with contextlib.suppress(FileNotFoundError):
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            holders = [entry["pid"] for entry in table.get("write", {}).values()]
            holders += [entry["pid"] for entries in table.get("read", {}).values() for entry in entries]
        except (ValueError, TypeError, AttributeError, KeyError):
            path.unlink()
            return
        if holders and not any(_is_dvc(pid) for pid in holders):
            path.unlink()


def _is_dvc(pid):
    with contextlib.suppress(psutil.Error):
        return any("dvc" in word or "repro.py" in word for word in psutil.Process(pid).cmdline())
    return False
