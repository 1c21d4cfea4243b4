"""Paths of all files, and the only code that reads and writes them.

Nothing is ever written under its final name: a file or folder is made in scratch/, flushed to the disk and renamed, so a
reader finds the old one, the new one or none, but never half of one. A folder of artifacts/ lists the checksums of its files;
a file with a different checksum is not read. Arrays are safetensors or .npy; no pickle is written or read.

numpy takes 0.2 s to import, which the launcher of each stage would pay: only the functions that need it import it.
"""

import contextlib
import ctypes
import errno
import hashlib
import io
import json
import math
import os
import shutil
import tokenize
import uuid
from pathlib import Path

ARTIFACTS = Path("artifacts")
# On the file system of artifacts/, so that a rename is atomic; outside it, so that no half-made file ever enters the hash of a folder.
SCRATCH = Path("scratch")
LOGS = Path("logs")

PLAN_OK = ARTIFACTS / "plan.ok"
DATA = ARTIFACTS / "data"
RANGE = DATA / "range.json"
DUPLICATES = ARTIFACTS / "results" / "data"
REPORT = ARTIFACTS / "report"
SUMMARY = REPORT / "summary.json"
METRICS = Path("metrics.json")
PLOTS = Path("plots")


def run_name(arm, seed):
    """An arm with one seed: the folder name under every phase."""
    return f"{arm}-seed{seed}"


def folder(name, run, round_=None, shard=None, part=None):
    """Where results lie: artifacts/<name>/<run>[/round<r>][/shard<k> | /part<p>]. What the report reads lies under results/.

    name   shards           index lists of a round: shard<k>.npy, [n] int64 sorted
           train            proxy model and state of one shard after a round; pruned as a whole
           results/counts   what happened to the images of one shard in a round
           model            the averaged model of a round: raw.safetensors, ema.safetensors
           samples          generated images of one part of a round: <weights>.npy, [M,H,W,C] uint8; a generator from elsewhere has no
                            round
           results/<phase>  what a phase that measures found out about a run, or about a round of it
    """
    path = ARTIFACTS / name / run
    for prefix, number in (("round", round_), ("shard", shard), ("part", part)):
        path = path if number is None else path / f"{prefix}{number}"
    return path


def place(run, round_):
    """The name of what is sampled and measured, below artifacts/samples and artifacts/results/<phase>: <run>[/round<r>]."""
    return run if round_ is None else f"{run}/round{round_}"


def counts_file(run, round_, shard):
    """What happened to the images of one shard in a round: named arrays, see stages.train."""
    return folder("results/counts", run, round_, shard) / "counts.safetensors"


def check_outside(path, what, whose):
    """Raises ValueError if a path that a user names lies in artifacts/, from which all is removed that no stage makes."""
    if Path(path).resolve().is_relative_to(ARTIFACTS.resolve()):
        raise ValueError(f"{what} lies in artifacts/, which is cleared of what no stage makes: move {whose}")


@contextlib.contextmanager
def publish(path, num_bytes=0):
    """A path in scratch/ to make a file or a folder at, which becomes `path` when the block ends without an error.

    A folder gets a list of the checksums of its files, CHECKSUMS, which every reader here looks at.

    num_bytes   what it will take up at least, where that is known: too little room is then told before anything is made
    Raises      OSError: with a sentence that says what was being written and how much room it needs, when the disk is full or
                cannot be written to; the old file or folder is then as it was
    """
    path = Path(path)
    temporary = SCRATCH / "unfinished" / f"{_owner}~{uuid.uuid4().hex}-{path.name}"
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        if free_room(temporary.parent) < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield temporary
        if temporary.is_dir():
            _list_checksums(temporary)
        _flush(temporary)
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise _told(error, path, temporary, num_bytes) from error
    finally:
        with contextlib.suppress(OSError):  # a disk that refuses writing refuses this too: tell the first error
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def free_room(folder):
    """Bytes that are free where a folder lies; infinite where the file system does not say, as some over a network."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else math.inf


_owner = "other"


def own_unfinished(owner):
    """From now on this process makes its unfinished files in the name of `owner`. Removes what a killed process of that name
    left of its own: call it when no other process of that name can be at work.

    owner   such as a stage instance whose lock is held; without '~'
    """
    global _owner  # noqa: PLW0603 (a process is one stage)
    _owner = owner
    for left in (SCRATCH / "unfinished").glob(f"{owner}~*"):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


class NotWrittenError(OSError):
    """What could not be written: the sentence, and num_bytes, the room that it needs as far as is known."""

    num_bytes = 0

    def __str__(self):
        return self.strerror


REFUSALS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file may not be so large here",
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO), "it cannot be written to"),
}


def _told(error, path, temporary, num_bytes):
    """The same error with a sentence that says what was being written, how much room it needs and how much there is."""
    of_another_file = isinstance(error.filename, str) and not (
        path.is_relative_to(error.filename)  # a folder on the way to it
        or Path(error.filename).is_relative_to(path.parent)
        or Path(error.filename).is_relative_to(SCRATCH)
    )
    if error.errno not in REFUSALS or of_another_file:
        return error
    written = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file()) if temporary.is_dir() else 0
    needed = max(num_bytes, written + getattr(error, "num_bytes", 0))
    folder = temporary.parent if temporary.parent.exists() else Path()
    free = shutil.disk_usage(folder).free
    reason = REFUSALS[error.errno]
    if not reason.startswith(("the disk", "a file")):
        reason += f" ({os.strerror(error.errno)})"
    told = NotWrittenError(
        error.errno,
        f"{path} was not written: {reason}, it needs {text_of_size(needed)} and {text_of_size(free, math.floor)} are free in "
        f"{folder.resolve()}; nothing was lost, make room or mend the folder and run the same command again",
    )
    told.num_bytes = needed
    return told


def text_of_size(num_bytes, rounded=math.ceil):
    """0.1 MiB, 12 MiB, 3.4 GiB. What is needed is rounded up, what is free should be rounded down (math.floor)."""
    unit, name = (2**30, "GiB") if num_bytes >= 2**30 else (2**20, "MiB")
    size = num_bytes / unit
    return f"{rounded(size)} {name}" if size >= 10 else f"{rounded(size * 10) / 10:.1f} {name}"


def _replace(new, path):
    """`new` takes the place of `path`. A folder is exchanged for the old one in one step; that then lies at `new`.

    Where the system cannot exchange, a kill between two renames leaves no folder at all, but never a half.
    """
    if not path.is_dir():
        os.replace(new, path)
    elif not _exchanged(new, path):
        aside = new.with_name(f"{new.name}-old")
        os.replace(path, aside)
        try:
            os.replace(new, path)
        except OSError:
            os.replace(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchanged(one, other):
    """Exchanges two paths by Linux's renameat2, which Python has no name for. Returns False where there is no such thing."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_fdcwd, rename_exchange = -100, 2
    if libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(number, os.strerror(number))


# A file's MD5 is also its name in DVC's cache, so a damaged copy there can be named.
CHECKSUMS = "checksums.json"


def _md5(path):
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _list_checksums(folder):
    found = {p.relative_to(folder).as_posix(): _md5(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / CHECKSUMS).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def checksum(path):
    """MD5 of a file, in hexadecimal digits: of an artifact the listed one, which its readers compare it with.

    Raises   ValueError: the list is damaged
    """
    path = Path(path)
    return (_listed_checksum(path) if path.is_relative_to(ARTIFACTS) else None) or _md5(path)


def _listed_checksum(path):
    """What the list beside a file says, None where there is none: files of their own, and folders made before there were lists."""
    list_file = path.parent / CHECKSUMS
    try:
        return json.loads(list_file.read_text(encoding="utf-8"))[path.name]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{list_file}, the checksums of that folder, is damaged or does not name {path.name}: {_made_again(path.parent)}"
        ) from None


def _made_again(path):
    return f"remove {path} and run the same command again"


@contextlib.contextmanager
def _reading(path, *broken, whole=True):
    """Looks at a file before it is read, and tells in one sentence what is wrong with it.

    broken   errors that say that it is cut short or of another kind
    whole    all of it is to be read, so that its checksum is compared first
    Raises   ValueError: missing, damaged, broken, or not to be read by this user
    """
    path = Path(path)
    try:
        if not path.exists():
            raise ValueError(
                f"{path} is missing: run `snakemake` or `dvc repro`, which make what comes before this stage"
            )
        listed = _listed_checksum(path) if whole else None
        if listed is not None and _md5(path) != listed:
            raise ValueError(
                f"{path} is damaged: its content has another checksum than when it was written. DVC's cache may hold the same "
                f"damaged file: remove {path.parent}, and files/md5/{listed[:2]}/{listed[2:]} in the cache (.dvc/cache), and run "
                "`snakemake`, which makes it again"
            )
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): mend the disk or its permissions") from None
    try:
        yield path
    except PermissionError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): mend its permissions") from None
    except broken as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}): {_made_again('it')}") from None


def _flush(path):
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())


def _flush_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path, data):
    with publish(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_text(path, text):
    write_bytes(path, text.encode("utf-8"))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_arrays(path, arrays):
    """Named numpy arrays as safetensors. The same arrays always give the same bytes."""
    import numpy as np
    from safetensors.numpy import save

    write_bytes(path, save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}))


def load_arrays(path):
    """Named numpy arrays from safetensors.

    Raises   ValueError: missing, damaged, cut short or no safetensors file
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    with _reading(path, SafetensorError):
        return load_file(path)


def save_array(path, array):
    import numpy as np

    stream = io.BytesIO()  # numpy writes to a file with an error of its own when the disk is full, which names nothing
    np.save(stream, array, allow_pickle=False)
    write_bytes(path, stream.getvalue())


# What numpy says of a file that is no .npy, or is cut short.
NO_ARRAY = (ValueError, EOFError, SyntaxError, tokenize.TokenError)


def load_array(path, mmap=False):
    """One numpy array from .npy, memory-mapped if asked for.

    Raises   ValueError: missing, damaged, cut short or no array
    """
    import numpy as np

    with _reading(path, *NO_ARRAY):
        if mmap:
            return np.lib.format.open_memmap(path, mode="r")
        with open(path, "rb") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def shape_of(path):
    """The shape of the array in a .npy file, from its header: the rest of the file is not read, however large it is.

    Raises   ValueError: missing, cut short, no array, or a damaged header
    """
    import numpy as np

    with _reading(path, *NO_ARRAY, whole=False):
        return np.lib.format.open_memmap(path, mode="r").shape


def load_json(path):
    """Raises   ValueError: missing, damaged or no JSON"""
    with _reading(path, ValueError):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def save_table(path, table):
    """A pandas frame as Parquet, without its index."""
    write_bytes(path, table.to_parquet(index=False))


def load_table(path, columns=None):
    """A pandas frame from Parquet, or some columns of it.

    Raises   ValueError: missing, damaged or no Parquet
    """
    import pandas as pd

    with _reading(path, ValueError, OSError):
        return pd.read_parquet(path, columns=columns)


def load_samples(run, round_, num_parts, weights):
    """All generated images of a run and round with one kind of weights: [M,H,W,C] uint8. round_: None without rounds."""
    import numpy as np

    return np.concatenate(
        [load_array(folder("samples", run, round_, part=part) / f"{weights}.npy") for part in range(num_parts)]
    )


def load_generations(run, round_, num_parts):
    """What each generated image of a run and round was asked for: a list of dicts with index, prompt_used, prompt_original, train_key (None
    where one text stands for all images) and seed, in the order of the images; None where the images have no prompts."""
    lines = []
    for part in range(num_parts):
        path = folder("samples", run, round_, part=part) / "generations.jsonl"
        if part == 0 and not path.exists():
            return None
        with _reading(path, ValueError):
            lines += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return lines


def prompt_numbers(generations):
    """Which generated images share a prompt: [M] int64, one number per prompt; None where they have no prompts, or one text for all.

    generations   from load_generations
    """
    import numpy as np

    if generations is None or generations[0]["train_key"] is None:
        return None
    return np.unique([line["prompt_original"] for line in generations], return_inverse=True)[1]
