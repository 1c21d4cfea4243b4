"""Arrays that several stages need and that take long to compute: computed once, and kept in scratch/."""

import hashlib
import json

import numpy as np

from stages.run import files, processes
from stages.run.progress import Progress


def keep(name, settings, inputs, count, rows):
    """An array that the first stage to ask for it makes, while others wait, and that all others read.

    name       of what it holds: the folder in scratch/ it lies in
    settings   what it depends on beside the content of the files `inputs`: a list that JSON can hold
    inputs     paths of files
    count      its number of rows
    rows       function that yields its rows, some at a time: arrays [n,...] of numbers; only called where it is not there yet
    Returns    [count,...] float32 array, memory-mapped
    """
    digest = hashlib.sha256(json.dumps(settings).encode())
    for path in inputs:
        with open(path, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    path = files.SCRATCH / name / f"{digest.hexdigest()[:32]}.npy"
    lock = processes.FileLock(f"{path}.lock")
    lock.acquire(f"the making of {path}")
    try:
        if not path.exists():
            _make(path, name, count, rows())
    finally:
        lock.release()
    return files.load_array(path, mmap=True)


def _make(path, name, count, blocks):
    progress, done = Progress(name, "rows"), 0
    with files.publish(path) as temporary, open(temporary, "wb") as stream:
        for block in blocks:
            if not done:
                header = {"descr": "<f4", "fortran_order": False, "shape": (count, *block.shape[1:])}
                np.lib.format.write_array_header_1_0(stream, header)
            stream.write(block.astype("<f4").tobytes())
            done += len(block)
            progress.update(done, count)
