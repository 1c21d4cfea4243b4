"""The command line that all stages share: arguments, checks, locks, errors in one sentence, and a record of the run time."""

import argparse
import contextlib
import datetime
import importlib.metadata
import os
import platform
import signal
import sys
import time
import traceback
from types import SimpleNamespace

from stages.run import device, files, params, processes
from stages.run.instance import REFERENCE


def run(main):
    """Runs `main(arguments)` of a stage and ends the process: 0, or 1 with one sentence on stderr.

    The full traceback is printed as well where REDISTRIBUTE_DEBUG is set.
    """
    if "DVC_STAGE" in os.environ:  # started by DVC; by hand, a stage may outlive its shell (nohup)
        processes.die_with_parent(signal.SIGTERM)  # train and sample write a checkpoint and end
    try:
        main(sys.argv[1:])
    except (ValueError, FloatingPointError, OSError, TimeoutError, RuntimeError) as error:
        if "REDISTRIBUTE_DEBUG" in os.environ:
            traceback.print_exc()
        sentence = str(error)
        if isinstance(error, RuntimeError):
            if not device.is_out_of_memory(error):
                raise
            sentence = (
                f"the memory does not suffice ({sentence.splitlines()[0]}): use a smaller batch_size, smaller images or a smaller "
                "network (params.yaml); nothing was written"
            )
        if isinstance(error, OSError) and error.strerror:
            sentence = f"{error.filename} cannot be used ({error.strerror})" if error.filename else error.strerror
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as ended:
        if ended.code != 128 + signal.SIGTERM:
            raise
        sys.stderr.flush()
        os._exit(ended.code)  # whoever sent SIGTERM does not wait for torch to tidy up


FIELDS = {
    "experiment": (),
    "run": ("arm", "seed"),
    "round": ("arm", "seed", "round"),
    "shard": ("arm", "seed", "round", "shard"),
    "sampled": ("arm", "seed", "round"),
    "part": ("arm", "seed", "round", "part"),
}
SAMPLED = ("sampled", "part")  # of these a generator from elsewhere has no round


@contextlib.contextmanager
def stage(phase, description, arguments, prepare):
    """One stage instance: checked parameters and arguments, its lock held, its time recorded.

    phase       PHASE of its module: `per` says what it is run for, and so which arguments it has; with `reference`, one instance takes
                --reference in the place of all of them
    prepare     function of the job: checks it and adds to it before the lock is taken
    Yields      namespace with phase (its name), params, device, key, and the arguments
    Raises      ValueError: params.yaml is wrong
    """
    name, chosen = phase["name"], {}
    of_all = phase.get("reference") and arguments == ["--reference"]
    if not of_all:
        parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", description=description)
        for field in FIELDS[phase["per"]]:
            needed = field != "round" or phase["per"] not in SAMPLED
            parser.add_argument(f"--{field}", type=str if field == "arm" else int, required=needed)
        chosen = vars(parser.parse_args(arguments))
    job = SimpleNamespace(phase=name, params=params.load(), device="cpu", **chosen)
    prepare(job)
    places = [f"{field}{value}" if field != "arm" else value for field, value in chosen.items() if value is not None]
    job.key = REFERENCE if of_all else "-".join(places) or name

    lock = processes.FileLock(files.SCRATCH / "locks" / f"{name}@{job.key}")
    lock.acquire(f"stage {name}@{job.key}")
    files.own_unfinished(f"{name}@{job.key}")
    started = time.monotonic()
    try:
        yield job
        try:
            _record_time(job, time.monotonic() - started)
        except OSError as error:  # a time costs a number on the page: no reason to lose days of training
            print(f"warning: {error.strerror}", file=sys.stderr)
    finally:
        lock.release()


def _record_time(job, seconds):
    """Time and machine of a finished instance, for the report. In logs/, which no hash covers."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "diffusers", "transformers", "snakemake", "dvc", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    files.write_json(
        files.LOGS / "timing" / job.phase / f"{job.key}.json",
        {
            "phase": job.phase,
            "key": job.key,
            "arm": getattr(job, "arm", None),
            "seed": getattr(job, "seed", None),
            "seconds": round(seconds, 3),
            "device": str(job.device),
            "threads": job.params["compute"]["threads"],
            "machine": _machine(),
            "versions": versions,
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        },
    )


def _machine():
    """Kind of processor and number of cores: what results depend on, not whose machine it is."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as info:
        model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores"
