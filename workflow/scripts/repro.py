"""Runs one stage with DVC: `python workflow/scripts/repro.py train@ddpm-seed0-round1-shard0 RECEIPT`.

This is `dvc --wait-for-lock repro --single-item STAGE`, the only form of it that several processes can use at a time. It adds
what DVC lacks for runs of days: it ends when Snakemake ends, it replaces dvc.lock in one step instead of emptying and
rewriting it, and it does not wait for a lock for ever. The receipt is written when the stage is done.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))
from stages.run import files, processes

LOCK_WAIT_S = 3600  # of DVC's repository lock, which is held for seconds at a time
STAGE_ENDS_S, DVC_ENDS_S = 10, 2  # after SIGTERM


@contextlib.contextmanager
def modify_yaml_atomically(path, fs=None):
    """DVC's modify_yaml, but the file is replaced by a rename. DVC's own truncates it first: a kill then leaves no record."""
    from dvc.utils.serialize import dumps_yaml, parse_yaml, parse_yaml_for_update

    # DVC's own keeps comments, which nobody writes into dvc.lock, and takes 11 s for 1,440 stages where this takes 3.
    parse = parse_yaml if Path(path).name == "dvc.lock" else parse_yaml_for_update
    before = Path(path).read_text(encoding="utf-8") if os.path.exists(path) else ""
    data = parse(before, path) if before else {}
    yield data
    after = dumps_yaml(data)
    if after != before:
        files.write_text(path, after)


def limit_lock_wait():
    """DVC waits for its repository lock without end: end it with a sentence instead."""
    import dvc.lock

    wait_without_end = dvc.lock.Lock.lock

    def lock(self):
        timer = threading.Timer(LOCK_WAIT_S, give_up)
        timer.daemon = True
        timer.start()
        try:
            wait_without_end(self)
        finally:
            timer.cancel()

    def give_up():
        print(
            f"error: another DVC process has held .dvc/tmp/lock for {LOCK_WAIT_S} s: end it and run again",
            file=sys.stderr,
        )
        os._exit(1)

    dvc.lock.Lock.lock = lock
    dvc.lock.DEFAULT_TIMEOUT = 0.6  # sixth of it = time between two tries


def end_with_the_stage():
    """After SIGTERM: the stage is told, has time to write its checkpoint, and DVC time to say that it failed."""
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
    import dvc.dvcfile
    from dvc.cli import main as dvc_main

    assert hasattr(dvc.dvcfile, "modify_yaml"), "DVC writes dvc.lock in another way: adapt modify_yaml_atomically"
    dvc.dvcfile.modify_yaml = modify_yaml_atomically
    limit_lock_wait()
    status = dvc_main(["--wait-for-lock", "repro", "--single-item", stage])
    if status == 0:
        try:
            files.write_text(receipt, f"{stage}\n")
        except OSError as error:
            sys.exit(f"error: {error.strerror}")
    sys.exit(min(status, 1))


if __name__ == "__main__":
    main()
