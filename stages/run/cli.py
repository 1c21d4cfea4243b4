"""What all stages share on the command line: arguments, checks, locks, one sentence for an error, a record of the time."""

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

from stages import params
from stages.run import device, files, processes


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


@contextlib.contextmanager
def stage(phase, description, arguments, *fields):
    """One stage instance: checked parameters and arguments, its lock held, its time recorded.

    fields    of "arm", "seed", "round", "shard", "part": what the phase is run for
    Yields    namespace with params and phase, and with arm, recipe and run if the phase has an arm, and the other fields
    Raises    ValueError: params.yaml is wrong, or has no such arm, seed, round, shard or part
    """
    parser = argparse.ArgumentParser(prog=f"python -m stages.{phase}", description=description)
    for field in fields:
        kind = str if field == "arm" else int
        parser.add_argument(f"--{field}", type=kind, required=True)
    chosen = vars(parser.parse_args(arguments))
    job = SimpleNamespace(phase=phase, params=params.load(), device="cpu", **chosen)
    _check_fields(job, chosen)
    if "arm" in chosen:
        job.recipe = job.params["arms"][job.arm]
        job.run = files.run_name(job.arm, job.seed)
    job.key = "-".join([f"{f}{chosen[f]}" if f != "arm" else chosen[f] for f in fields]) or phase

    lock = processes.FileLock(files.SCRATCH / "locks" / f"{phase}@{job.key}")
    lock.acquire(f"stage {phase}@{job.key}")
    files.own_unfinished(f"{phase}@{job.key}")
    started = time.monotonic()
    try:
        yield job
        try:
            _record_time(job, time.monotonic() - started)
        except OSError as error:  # a time costs a number on the page: no reason to lose days of training
            print(f"warning: {error.strerror}", file=sys.stderr)
    finally:
        lock.release()


def stage_with_reference(phase, description, arguments, reference, measure):
    """One stage instance of a phase of two kinds: `--reference`, for what all runs share, and those of an arm and seed.

    reference, measure   functions of the job, which claim its device
    """
    of_all = arguments == ["--reference"]
    with stage(phase, description, *([[]] if of_all else [arguments, "arm", "seed"])) as job:
        if of_all:
            job.key = files.REFERENCE
        (reference if of_all else measure)(job)


def _check_fields(job, chosen):
    arms = job.params["arms"]
    if "arm" in chosen and job.arm not in arms:
        raise ValueError(f"there is no arm {job.arm}, expected one of {', '.join(arms)} (params.yaml, arms)")
    if (
        "arm" in chosen
        and "generator" in arms[job.arm]
        and job.phase not in ("sample", "score", "quality", "similarity", "clip")
    ):
        raise ValueError(f"arms.{job.arm} is a generator from elsewhere, which has no phase {job.phase} (params.yaml)")
    if "seed" in chosen and job.seed not in (seeds := params.seeds_of(job.params, job.arm)):
        raise ValueError(f"there is no seed {job.seed}, expected one of {seeds} (params.yaml, seeds)")
    if "round" in chosen and not 1 <= job.round <= arms[job.arm]["rounds"]:
        raise ValueError(f"round {job.round} of {job.arm} does not exist, expected 1 to {arms[job.arm]['rounds']}")
    if "shard" in chosen and job.shard not in range(num := arms[job.arm]["shard"]["num_shards"]):
        raise ValueError(f"shard {job.shard} of {job.arm} does not exist, expected 0 to {num - 1}")
    if "part" in chosen and job.part not in range(num := params.section(job.params, "sample", job.arm)["parts"]):
        raise ValueError(f"part {job.part} of {job.arm} does not exist, expected 0 to {num - 1}")


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
