"""Which device a stage computes on. Snakemake only counts GPUs; here a stage claims a particular one."""

import contextlib
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stages.run import files, processes

LOCK_FOLDER = Path(tempfile.gettempdir()) / "redistribute-gpu"  # one for all projects and users of the machine
SLOTS = "REDISTRIBUTE_GPU_SLOTS"  # stages that may share one GPU; small networks leave most of a large card idle
TOLD = "REDISTRIBUTE_TOLD_CPU"  # set where whoever started this stage has already said that there is no GPU
_claimed = []  # locks live as long as the process


def visible_gpus():
    """Ids of the GPUs this process may use: what CUDA_VISIBLE_DEVICES names, else all. Neither starts CUDA nor imports torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        ids = [token.strip() for token in named.split(",")]
        return list(itertools.takewhile(lambda gpu: gpu not in ("", "-1"), ids))  # CUDA stops at the first such too
    if not shutil.which("nvidia-smi"):
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        raise TimeoutError("nvidia-smi -L gave no answer in 60 s: look at the driver, or set device to cpu") from None
    return [str(index) for index, _ in enumerate(re.findall(r"^GPU \d+:", listed.stdout, re.MULTILINE))]


def slots():
    """Stages that may share one GPU, from the environment.

    Raises    ValueError: no whole number of at least 1
    """
    text = os.environ.get(SLOTS, "1")
    if not re.fullmatch(r"[1-9]\d*", text):
        raise ValueError(f"{SLOTS} is {text!r} in the environment, expected a whole number of at least 1")
    return int(text)


def claim_gpu(ids, folder=LOCK_FOLDER, slots=1, wait_s=0.0):
    """Locks one slot of one of these GPUs until this process ends, however it ends.

    Free devices are taken before second slots of busy ones.
    Returns   (id, lock)
    Raises    TimeoutError: all slots stay taken for wait_s seconds
    """
    folder.mkdir(parents=True, exist_ok=True)
    _open_to_all(folder, 0o777)
    start = time.monotonic()
    while True:
        for slot in range(slots):
            for gpu in ids:
                lock = processes.FileLock(folder / f"{gpu.replace('/', '_')}-slot{slot}.lock")
                if lock.try_acquire():
                    _open_to_all(lock.path, 0o666)
                    return gpu, lock
        if time.monotonic() - start >= wait_s:
            raise TimeoutError(
                f"all {len(ids)} GPUs ({', '.join(ids)}, {slots} stages each) are taken: give snakemake --resources "
                f"gpu={len(ids) * slots}, or set {SLOTS} to let more stages share one"
            )
        time.sleep(0.5)


def _open_to_all(path, mode):
    """The umask closes new files to other users, who want to lock them too."""
    with contextlib.suppress(PermissionError):  # not ours: whoever made it did this
        path.chmod(mode)


def claim(compute):
    """The torch device of this stage, with its CPU threads set, and with fp32 arithmetic.

    compute   section of params.yaml: device auto | cpu | cuda, threads
    Raises    ValueError: device is cuda and no GPU can be used
              TimeoutError: every GPU is taken by another stage for ten minutes
    """
    import torch

    torch.set_num_threads(compute["threads"])
    allow_tf32(False)
    if compute["device"] == "cpu":
        return torch.device("cpu")
    if _claimed:  # several stages in one process, as in an audit
        return torch.device("cuda")
    ids = visible_gpus()
    if ids:
        gpu, lock = claim_gpu(ids, slots=slots(), wait_s=600)
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before torch first asks for GPUs: CUDA reads it only then
        if torch.cuda.is_available():
            _claimed.append(lock)
            return torch.device("cuda")
        lock.release()
    if compute["device"] == "cuda":
        found = f"torch {torch.__version__} cannot use GPU {gpu} here" if ids else "no GPU is visible"
        raise ValueError(
            f"compute.device is cuda, but {found}: set it to auto or cpu (params.yaml), or look at nvidia-smi, the driver and "
            "CUDA_VISIBLE_DEVICES"
        )
    if TOLD not in os.environ:
        print("compute.device is auto and there is no GPU: this stage runs on the CPU", file=sys.stderr)
    return torch.device("cpu")


def allow_tf32(allowed):
    """Whether a GPU may round the factors of fp32 products to 10 bits of mantissa; torch itself allows it in convolutions."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def compile_mode(compute, device):
    """How a training step on this device is compiled: off, inductor or graph. Says where compiled code is kept for later stages.

    compute   section of params.yaml: maybe compile; an `off` without quotes is false in YAML 1.1
    Raises    ValueError: graph on a CPU
    """
    mode = compute.get("compile")
    if mode == "graph" and device.type == "cpu":
        raise ValueError(
            "compute.compile is graph, which only a GPU can run, but this stage runs on the CPU: set it to off or inductor "
            "(params.yaml)"
        )
    if mode == "inductor":
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((files.SCRATCH / "compiled").absolute()))
    return mode if mode in ("inductor", "graph") else "off"


def memory(device):
    """Bytes of a GPU's memory that one stage may take: its share, where several stages use the GPU; None for the CPU."""
    import torch

    if torch.device(device).type == "cpu":
        return None
    return torch.cuda.get_device_properties(device).total_memory // slots()


class LargestBatch:
    """How many images of a kind fit into the memory of a GPU at once, measured while one batch of them is generated.

    Make it before the batch, with all weights on the device.
    """

    def __init__(self, device):
        import torch

        self.device = torch.device(device)
        if self.device.type != "cpu":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)

    def told(self, batch_size):
        """A sentence on it after a batch of so many images; "" on the CPU, and where not at least twice as many fit."""
        import torch

        if self.device.type == "cpu":
            return ""
        taken = max(1, torch.cuda.max_memory_allocated(self.device) - self.before)
        has = memory(self.device)
        # A tenth is left for what torch does not count, such as the context of CUDA.
        fitting = int(0.9 * (has - self.before) * batch_size / taken)
        if fitting < 2 * batch_size:
            return ""
        return (
            f"a batch of {batch_size} images takes {taken / 1e9:.2g} GB of the {has / 1e9:.0f} GB that this stage may have: about "
            f"{fitting} would fit, which may be faster (sample.batch_size)"
        )


def is_out_of_memory(error):
    """Whether an exception of torch says that the memory of the device, or of the machine, is full."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
