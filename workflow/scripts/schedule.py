"""Decides which stage instances must run, once, before Snakemake builds its DAG. Only DVC judges what is stale.

CHANGED   command, parameter or input differs from what dvc.lock recorded, or nothing is recorded, or an output exists
          with other content. An input that is merely missing is not a change: its producer recorded its content.
MISSING   an output does not exist. If DVC's cache has it, it is restored when something needs it.
RUN       CHANGED stages, and stages of the end phases with an output that is MISSING and not in the cache. Also every stage
          that uses a result of these, and every stage that makes a missing input of them.

So a fresh clone with dvc.lock but without artifacts runs everything, and a workspace whose old shard states were pruned
runs nothing.
"""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import checkout
import how_far
import messages
import psutil
import retention

from stages import phases, plan
from stages.phases import is_single
from stages.run import device, files, lock, params, processes, room
from stages.run.instance import Scale, phase_of

RECEIPTS = Path(".snakemake/receipts")
FOLD_S = 30
FOLDING = threading.Lock()
BLOCKS = phases.blocks()
SOME_IMAGES = 10_000  # a guess at the training images where only their folder knows: it orders stages, no more


def prepare(workflow):
    """What the Snakefile does before its rules: check, renew the plan, decide. Ends the process with one sentence if it cannot.

    In the main process only; a job of its own, as on another node, is that of one stage and needs to know of no other.

    workflow   Snakemake's
    Returns    (experiment: params.yaml as a dict, dict of stages to run as `stages_to_run` returns it)
    """
    from dvc.exceptions import DvcException

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # `python` in rules
    os.environ[processes.PARENT_PID] = str(os.getpid())  # what this process starts dies with it
    try:
        if not workflow.is_main_process:
            return params.read(), {}
        if workflow.overwrite_configfiles or workflow.config_settings.config:
            raise ValueError(
                "--config and --configfile would change only what Snakemake sees: edit params.yaml instead"
            )
        only = processes.FileLock(".snakemake/redistribute.lock")
        if not only.try_acquire():
            raise ValueError(
                f"another snakemake (process {only.holder()}) is at work in this folder: wait for it or end it"
            )
        workflow.redistribute_lock = only  # held until this process ends, however it ends
        files.own_unfinished("snakemake")
        processes.on_sigterm(processes.terminate_children)  # Snakemake alone would wait for the end of what runs
        checkout.tell_dvc()
        experiment = plan.load()
        mend_rwlock()
        fold_records()
        instances = plan.expand(experiment)
        for change in plan.refresh(instances, dry_run=is_dry_run(workflow)):
            print(change, file=sys.stderr)
        _count_gpus(workflow, experiment["compute"]["device"])
        keeps_all = room.keeps_all()
        if not keeps_all:
            retention.check_git()
        retention.remove_empty_rounds()
        to_run = stages_to_run()
        room.check(
            plan.sizes(experiment, instances), to_run, slots(workflow, experiment["compute"]), is_dry_run(workflow)
        )
    except (ValueError, OSError, DvcException) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # sys.exit would become a traceback of Snakemake's
    shutil.rmtree(RECEIPTS, ignore_errors=True)
    _speak(workflow, experiment, to_run)
    if not is_dry_run(workflow):
        keep_folding()
    if not is_dry_run(workflow) and not keeps_all:
        workflow.redistribute_retention = retention.Retention(instances, to_run, has_run)
        workflow.redistribute_retention.prune()  # what an earlier run left
        workflow.redistribute_retention.watch()
    return experiment, to_run


def _speak(workflow, experiment, to_run):
    """Sets up what is printed from here on."""

    def name_of(rule, wildcards):
        return stage(rule, wildcards.get("key", rule))

    clock = None
    if not is_dry_run(workflow):
        clock = how_far.HowFar(tasks_of(to_run, experiment), to_run, slots(workflow, experiment["compute"]))
    workflow.redistribute_messages = messages.Messages(to_run, name_of, clock)
    messages.replace_handler(workflow.output_settings, workflow.redistribute_messages)
    if clock:
        how_far.tell(clock, workflow.redistribute_messages.show_how_far)


def limit_no_starts(workflow):
    """Takes away Snakemake's default limit of 100 starts a second; a limit that the user gives stays.

    With a limit, each pass of the scheduler orders the next one a second later, beside those that ends of jobs bring. So passes
    add up: after a thousand jobs a thousand a second, each over all jobs that are ready.
    """
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit is not None and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


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
    if not is_dry_run(workflow) and files.SUMMARY.exists():
        for view in ("--page", "--table"):
            subprocess.run([sys.executable, "-m", "stages.report", view], check=False)


def show_failures(workflow):
    """The last thing that a run says that has failed."""
    workflow.redistribute_messages.show_failures()


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
        with processes.DvcLock() as repo.lock:
            return _Analysis(repo).run()
    finally:
        repo.close()


def fold_records():
    """Puts the records of the stages that have ended into dvc.lock."""
    with FOLDING, processes.DvcLock(shared=True):  # `dvc repro` writes dvc.lock while it holds the lock alone
        lock.fold()


def keep_folding():
    """Folds records from time to time in a thread of its own, and when this process ends; after a kill, its next start does."""

    def fold():
        try:
            fold_records()
        except (OSError, ValueError) as error:
            print(f"dvc.lock could not be renewed, the next start does it: {error}", file=sys.stderr, flush=True)

    def from_time_to_time():
        while True:
            time.sleep(FOLD_S)
            fold()

    threading.Thread(target=from_time_to_time, daemon=True).start()
    atexit.register(fold)


class Pipeline:
    """What dvc.yaml and plan.json say, and what dvc.lock recorded.

    stages     name of a stage -> its cmd, deps, params and outs, as DVC resolves them
    recorded   name of a stage -> what it says of the last time that it ran
    makers     path of an output -> the stage that makes it
    producers  name of a stage -> names of those whose outputs it reads
    """

    def __init__(self, repo):
        from dvc.dvcfile import Lockfile, load_file
        from dvc.utils.serialize import load_yaml

        self.recorded = lock.recorded_stages()
        Lockfile._load = lambda *_, **__: ({"schema": "2.0", "stages": self.recorded}, "")
        self.file = load_file(repo, "dvc.yaml")
        self.experiment = load_yaml(params.PARAMS_FILE)
        self.stages = {name: self.file.resolver.resolve_one(name)[name] for name in self.file.resolver.get_keys()}
        self.makers = {path: name for name, stage in self.stages.items() for path in paths(stage["outs"])}
        self.inside = defaultdict(list)  # path -> outputs that are this path or lie inside it
        for path in self.makers:
            for folder in _with_parents(path):
                self.inside[folder].append(path)
        self.outs_under = functools.cache(self._outs_under)
        self.producers = {
            name: {self.makers[out] for path in stage["deps"] for out in self.outs_under(path)}
            for name, stage in self.stages.items()
        }

    def _outs_under(self, path):
        """Outputs that are this path, lie inside it, or contain it."""
        above = [folder for folder in _with_parents(path)[1:] if folder in self.makers]
        return self.inside.get(path, []) + above

    def recorded_hash(self, name, kind, path):
        """Hash of one of the files that a stage read (deps) or made (outs), None if there is none."""
        items = self.recorded.get(name, {}).get(kind, [])
        return next((item.get("md5") for item in items if item["path"] == path), None)

    def setting(self, key):
        """The value of a key of params.yaml, such as arms.ddpm.train; None where there is none, which no stage has recorded."""
        value = self.experiment
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


class _Analysis:
    """What DVC would find, stage by stage, but asked once for all of them: the pipeline, the hashes and the cache are DVC's."""

    def __init__(self, repo):
        self.repo, self.pipeline, self.hashes = repo, Pipeline(repo), Hashes(repo)
        self.stages, self.producers, self.outs_under = (
            self.pipeline.stages,
            self.pipeline.producers,
            self.pipeline.outs_under,
        )

    def run(self):
        changed = {name for name in self.stages if self._is_changed(name)}
        final_models = {self._producer_of_model(name) for name in self.stages if name.startswith("sample@")}
        ends = {n for n in self.stages if phases.declared(phase_of(n)).get("final")} | (final_models - {None})
        to_run = self._closure(changed, ends)
        return {name: sorted(self.producers[name] & to_run) for name in sorted(to_run)}

    def _producer_of_model(self, sample_stage):
        return next((name for name in self.producers[sample_stage] if name.startswith("aggregate@")), None)

    def _closure(self, changed, ends):
        users = defaultdict(list)
        for name, producers in self.producers.items():
            for producer in producers:
                users[producer].append(name)
        to_run, todo, restored = set(), list(changed), set()
        for name in ends:
            todo += self._missing_producers(paths(self.stages[name]["outs"]), restored)
        while todo:
            name = todo.pop()
            if name in to_run:
                continue
            to_run.add(name)
            if name != "plan":  # its output is always the same, so nobody needs to run because it ran
                todo += users[name]
            for path in self.stages[name]["deps"]:
                todo += self._missing_producers(self.outs_under(path), restored)
        return to_run

    def _missing_producers(self, outs, restored):
        """Makers of those outputs that are neither in the workspace nor in the cache; cached ones are brought back."""
        return [
            self.pipeline.makers[path]
            for path in outs
            if not (os.path.exists(path) or path in restored or self._is_restored(path, restored))
        ]

    def _is_restored(self, path, restored):
        recorded = self.pipeline.recorded_hash(self.pipeline.makers[path], "outs", path)
        if not recorded or not os.path.exists(self.repo.cache.local.oid_to_path(recorded)):
            return False
        out = next(out for out in self.pipeline.file.stages[self.pipeline.makers[path]].outs if out.def_path == path)
        if not out.use_cache or out.changed_cache():
            return False
        out.checkout(force=True)
        restored.add(path)
        return True

    def _is_changed(self, name):
        stage, recorded = self.stages[name], self.pipeline.recorded.get(name, {})
        if recorded.get("cmd") != stage["cmd"] or not stage["deps"]:
            return True
        for path in paths(stage["outs"]):
            md5 = self.pipeline.recorded_hash(name, "outs", path)
            if not md5 or (os.path.exists(path) and self.hashes.of(path) != md5):
                return True
        values = recorded.get("params", {}).get(params.PARAMS_FILE, {})
        if any(key not in values or values[key] != self.pipeline.setting(key) for key in stage.get("params", [])):
            return True
        return any(self._dependency_changed(name, path) for path in stage["deps"])

    def _dependency_changed(self, name, path):
        md5 = self.pipeline.recorded_hash(name, "deps", path)
        if not md5:
            return True
        outs = self.outs_under(path)
        if not os.path.exists(path) or not all(map(os.path.exists, outs)):
            maker = self.pipeline.makers.get(path)
            return not outs or (maker is not None and self.pipeline.recorded_hash(maker, "outs", path) != md5)
        return self.hashes.of(path) != md5


class Hashes:
    """Hashes of files and folders as DVC takes them, each once. What was hashed stays in DVC's state.

    Those of artifacts/ are taken all at once, as asking the state file by file is most of the time that they take.
    """

    def __init__(self, repo):
        from dvc_data.fsutils import _localfs_info
        from dvc_data.hashfile.build import _get_hashes

        self.repo, self.known = repo, {}
        self.contents = {}  # folder of artifacts/ -> what lies in it: dict path from there -> hash
        root = Path(repo.root_dir)
        infos = {
            str(root / folder / name): _localfs_info(str(root / folder / name))
            for folder, _, names in os.walk(files.ARTIFACTS)
            for name in names
        }
        for path, (_, found, _) in _get_hashes(list(infos), repo.fs, "md5", infos, repo.state).items():
            *folders, name = Path(path).relative_to(root).parts
            self.known["/".join([*folders, name])] = found.value
            for i in range(1, len(folders) + 1):
                self.contents.setdefault("/".join(folders[:i]), {})["/".join([*folders[i:], name])] = found.value

    def of(self, path):
        """MD5 of a file or folder that exists."""
        if path not in self.known:
            self.known[path] = self._of_folder(path) if path in self.contents else self._as_dvc(path)
        return self.known[path]

    def _of_folder(self, path):
        listed = [{"md5": md5, "relpath": name} for name, md5 in sorted(self.contents[path].items())]
        return hashlib.md5(json.dumps(listed).encode(), usedforsecurity=False).hexdigest() + ".dir"

    def _as_dvc(self, path):
        from dvc_data.hashfile.build import build

        repo = self.repo
        found = build(
            repo.cache.local, str(Path(repo.root_dir, path)), repo.fs, "md5", ignore=repo.dvcignore, dry_run=True
        )
        return found[2].hash_info.value


def paths(outs):
    """Paths of outputs as dvc.yaml lists them: a path, or {path: options}."""
    return [next(iter(out)) if isinstance(out, dict) else out for out in outs]


def _with_parents(path):
    """A relative path and the folders that it lies in: a/b/c, a/b, a."""
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(len(parts), 0, -1)]


def work_of(to_run, experiment):
    """Work of each stage by itself, in images passed through the network forward and back: an estimate from params.yaml."""
    return {name: task.start_up + task.images for name, task in tasks_of(to_run, experiment).items()}


def tasks_of(to_run, experiment):
    """The same, with start-up and images of each stage apart: dict name -> how_far.Work."""
    instances = plan.expand(experiment)
    scale = Scale(experiment, SOME_IMAGES, experiment["data"].get("num_train", SOME_IMAGES))
    of_stage = {name: (instances[name], instances[name].work(scale)) for name in to_run}
    return {
        name: how_far.Work(instance.block, instance.start_up, work - instance.start_up)
        for name, (instance, work) in of_stage.items()
    }


def work_left(to_run, experiment, slots):
    """Work from the start of each stage to the end of the experiment along the longest path: what has most of it should start
    first, or one long stage is left alone at the end.

    The K shards of a round, or the parts of a sample, take turns where there are fewer slots than that.

    to_run       from `stages_to_run`
    slots        stages that can run at a time
    Returns      dict name -> int, for the stages of to_run
    """
    if not to_run:
        return {}
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
