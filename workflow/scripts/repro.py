"""Runs one stage with DVC: `python workflow/scripts/repro.py train@ddpm-seed0-round1-shard0 RECEIPT`.

This does what `dvc repro --single-item STAGE` does, in a time that does not grow with the experiment: it reads the stage's own line of
plan.json and its own block of dvc.lock, and leaves its record in a file of its own (stages/run/lock.py). It shares DVC's lock with the
others that do so, and it ends when Snakemake ends. The receipt is written when the stage is done.
"""

import functools
import os
import signal
import sys
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from stages.run import files, lock, plan_file, processes

LOCK_WAIT_S = 3600  # for who holds DVC's lock alone, which takes seconds at a time
STAGE_ENDS_S, DVC_ENDS_S = 10, 2  # after SIGTERM


def read_one_stage(name):
    """Lets DVC see the plan and the record of one stage alone, and write that record elsewhere than into dvc.lock."""
    from dvc.dvcfile import Lockfile
    from dvc.stage.serialize import to_single_stage_lockfile
    from dvc.utils.serialize import LOADERS, load_yaml

    def load(_, **__):
        recorded = lock.entry(name)
        return {"schema": "2.0", "stages": {name: recorded} if recorded else {}}, ""

    def dump_stages(_, stages, **options):
        for stage in stages:
            lock.record(stage.name, to_single_stage_lockfile(stage, **options))

    assert hasattr(Lockfile, "_load") and hasattr(Lockfile, "dump_stages"), "DVC keeps its record in another way"
    Lockfile._load, Lockfile.dump_stages = load, dump_stages
    LOADERS[".json"] = lambda _, **__: plan_file.of_stage(name)
    LOADERS[".yaml"] = functools.cache(load_yaml)  # params.yaml, which DVC reads seven times


def work_side_by_side():
    """Lets several DVC processes put results into the cache at a time, which it is not made for.

    DVC tries to clone a file by making the clone empty under its final name, and removes it where the disk cannot clone: that
    would cut short what another process has just put there, or leave it empty for good after a kill.
    """
    import dvc.rwlock
    from dvc_objects.fs import system

    clone = system.reflink

    def clone_and_rename(source, path):
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        clone(source, temporary)
        os.replace(temporary, path)

    system.reflink = clone_and_rename
    # DVC itself gives up after 3 s
    dvc.rwlock.make_lock = lambda path, **_: processes.DvcLock(path, wait_s=LOCK_WAIT_S)


def survive_an_empty_run_cache():
    """Lets a stage run whose folder in DVC's run cache is empty.

    A kill between making that folder and its first file leaves it so, and DVC would fail on it for good.
    """
    from dvc.stage.cache import StageCache, _get_stage_hash

    load = StageCache._load

    def load_if_any(self, stage):
        key = _get_stage_hash(stage)
        folder = Path(self._get_cache_dir(key)) if key else None
        is_empty = folder is not None and folder.is_dir() and not any(folder.iterdir())
        return None if is_empty else load(self, stage)

    StageCache._load = load_if_any


def repro(name):
    """Runs a stage if DVC finds that it must. Returns its exit status."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    read_one_stage(name)
    work_side_by_side()
    survive_an_empty_run_cache()
    repo = Repo()
    repo.lock = processes.DvcLock(shared=True, wait_s=LOCK_WAIT_S)
    try:
        repo.reproduce(name, single_item=True)
    except (DvcException, ValueError, OSError) as error:
        print(f"error: {': '.join(map(str, filter(None, (error, error.__cause__))))}", file=sys.stderr)
        return 1
    return 0


def end_with_the_stage():
    """After SIGTERM: the stage is told, has time to write its checkpoint, and DVC time to say that it failed."""
    import psutil

    children = psutil.Process().children(recursive=True)
    processes.terminate_children()
    psutil.wait_procs(children, timeout=STAGE_ENDS_S)
    time.sleep(DVC_ENDS_S)
    os._exit(128 + signal.SIGTERM)


def main():
    stage, receipt = sys.argv[1:]
    processes.die_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: None)
    processes.on_sigterm(end_with_the_stage)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    status = repro(stage)
    if status == 0:
        try:
            files.write_text(receipt, f"{stage}\n")
        except OSError as error:
            sys.exit(f"error: {error.strerror}")
    sys.exit(status)


if __name__ == "__main__":
    main()
