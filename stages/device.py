"""Which device a stage computes on. Snakemake only counts GPUs; which one a stage gets is claimed here."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stages import processes

LOCK_FOLDER = Path(tempfile.gettempdir()) / "redistribute-gpu"  # one for all projects and users of the machine
SLOTS = "REDISTRIBUTE_GPU_SLOTS"  # stages that may share one GPU; small networks leave most of a large card idle
TOLD = "REDISTRIBUTE_TOLD_CPU"  # set where whoever started this stage has already said that there is no GPU
_claimed = []  # locks live as long as the process


def visible_gpus():
    """Ids of the GPUs this process may use: what CUDA_VISIBLE_DEVICES names, else all. Neither starts CUDA nor imports torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [token.strip() for token in named.split(",") if token.strip() and token.strip() != "-1"]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    return [str(index) for index, _ in enumerate(re.findall(r"^GPU \d+:", listed.stdout, re.MULTILINE))]


def claim_gpu(ids, folder=LOCK_FOLDER, slots=1, wait_s=0.0):
    """Locks one slot of one of these GPUs until this process ends, however it ends.

    Free devices are taken before second slots of busy ones.
    Returns   (id, lock)
    Raises    TimeoutError: all slots stay taken for wait_s seconds
    """
    folder.mkdir(mode=0o777, parents=True, exist_ok=True)
    start = time.monotonic()
    while True:
        for slot in range(slots):
            for gpu in ids:
                lock = processes.FileLock(folder / f"{gpu.replace('/', '_')}-slot{slot}.lock")
                if lock.try_acquire():
                    return gpu, lock
        if time.monotonic() - start >= wait_s:
            raise TimeoutError(
                f"all {len(ids)} GPUs ({', '.join(ids)}, {slots} stages each) are taken: give snakemake --resources "
                f"gpu={len(ids) * slots}, or set {SLOTS} to let more stages share one"
            )
        time.sleep(0.5)


def claim(compute):
    """The torch device of this stage, with its CPU threads set.

    compute   section of params.yaml: device auto | cpu | cuda, threads
    Raises    ValueError: device is cuda and no GPU can be used
              TimeoutError: every GPU is taken by another stage for ten minutes
    """
    import torch

    torch.set_num_threads(compute["threads"])
    if compute["device"] == "cpu":
        return torch.device("cpu")
    ids = visible_gpus()
    if not ids or not torch.cuda.is_available():
        if compute["device"] == "cuda":
            found = f"CUDA_VISIBLE_DEVICES is {os.environ['CUDA_VISIBLE_DEVICES']!r}" if ids else "no GPU is visible"
            raise ValueError(
                f"compute.device is cuda, but {found} and torch {torch.__version__} cannot use a GPU here: set it to auto "
                "or cpu (params.yaml), or look at nvidia-smi and the driver"
            )
        if TOLD not in os.environ:
            print("compute.device is auto and there is no GPU: this stage runs on the CPU", file=sys.stderr)
        return torch.device("cpu")
    gpu, lock = claim_gpu(ids, slots=int(os.environ.get(SLOTS, "1")), wait_s=600)
    _claimed.append(lock)
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    return torch.device("cuda")
