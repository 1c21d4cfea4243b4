# Before the DAG is built: check params.yaml, renew plan.yaml, ask DVC what must run. Jobs on other nodes read the answer.
# Machine facts (cores, GPUs, partitions) are in the profiles and change no result.
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path[:0] = [str(Path(workflow.basedir).parent), str(Path(workflow.basedir) / "scripts")]

os.environ["PATH"] = (
    f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # `python` in rules and stages
)

import schedule

from stages import device, params, plan, processes

RECEIPTS = Path(".snakemake/receipts")
TO_RUN = Path(".snakemake/stages-to-run.json")


def stop(sentence):
    """Ends Snakemake with one sentence instead of a traceback."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.stdout.flush()
    os._exit(1)


def decide():
    """Names of the stages to run, each with those it waits for; see workflow/scripts/schedule.py."""
    if not workflow.is_main_process:
        return json.loads(TO_RUN.read_text())
    try:
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
        experiment = params.load()
        plan.check_source(experiment)
        for change in plan.refresh(plan.expand(experiment), dry_run=workflow.dryrun):
            print(change, file=sys.stderr)
        say_device(experiment["compute"]["device"])
        schedule.mend_rwlock()
        to_run = schedule.stages_to_run()
    except (ValueError, OSError, TimeoutError) as error:
        stop(error)
    shutil.rmtree(RECEIPTS, ignore_errors=True)
    TO_RUN.parent.mkdir(exist_ok=True)
    TO_RUN.write_text(json.dumps(to_run))
    return to_run


def say_device(wanted):
    """Once for the whole run: which devices there are. Their number is the limit of the resource gpu, unless given."""
    if wanted == "cpu":
        return
    gpus = device.visible_gpus()
    if gpus and "gpu" not in workflow.global_resources:
        slots = int(os.environ.get(device.SLOTS, "1"))
        workflow.global_resources["gpu"] = len(gpus) * slots
    if not gpus and wanted == "cuda":
        raise ValueError(
            "compute.device is cuda, but no GPU is visible: set it to auto or cpu (params.yaml), or look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES"
        )
    if not gpus:
        print("compute.device is auto and there is no GPU: all stages run on the CPU", file=sys.stderr)
        os.environ[device.TOLD] = "1"


os.environ[processes.PARENT_PID] = str(os.getpid())  # what this process starts dies with it
STAGES = decide()
WORK_LEFT = schedule.work_left(STAGES, config)


def receipt(stage):
    return str(RECEIPTS / stage.replace("@", "/"))


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


def show_results():
    """The table and where the page is; nothing after a dry run."""
    if not workflow.dryrun and Path("metrics.json").exists():
        for view in ("--page", "--table"):
            subprocess.run([sys.executable, "-m", "stages.report", view], check=False)
