"""Where everything lies, and the only code that reads and writes it.

Nothing is ever written under its final name: a file or folder is made in scratch/, flushed to the disk and renamed, so a
reader finds the old one, the new one or none, never a half. Arrays are safetensors or .npy; no pickle is written or read.
"""

import contextlib
import errno
import io
import json
import os
import shutil
import tokenize
import uuid
from pathlib import Path

import numpy as np

ARTIFACTS = Path("artifacts")
SCRATCH = Path(
    "scratch"
)  # same file system as artifacts/, so that a rename is atomic; outside it, so that no half-made
# file ever enters the hash of a folder
LOGS = Path("logs")

PLAN_OK = ARTIFACTS / "plan.ok"
DATA = ARTIFACTS / "data"
ANALYSIS = ARTIFACTS / "analysis"
QUALITY = ARTIFACTS / "quality"
SIMILARITY = ARTIFACTS / "similarity"
CLIP = ARTIFACTS / "clip"
DETECT = ARTIFACTS / "detect"


def run_name(arm, seed):
    """An arm with one seed: the folder name under every phase."""
    return f"{arm}-seed{seed}"


def shards_dir(run, round_):
    """Index lists of a round: shard<k>.npy, [n] int64 sorted."""
    return ARTIFACTS / "shards" / run / f"round{round_}"


def train_dir(run, round_, shard):
    """Proxy model and state of one shard after a round; pruned as a whole."""
    return ARTIFACTS / "train" / run / f"round{round_}" / f"shard{shard}"


def counts_file(run, round_, shard):
    """What happened to the images of one shard in a round."""
    return ARTIFACTS / "counts" / run / f"round{round_}" / f"shard{shard}.safetensors"


def model_dir(run, round_):
    """The averaged model of a round: raw.safetensors, ema.safetensors."""
    return ARTIFACTS / "model" / run / f"round{round_}"


def samples_dir(run, part):
    """Generated images of one part: <weights>.npy, [M,H,W,C] uint8."""
    return ARTIFACTS / "samples" / run / f"part{part}"


def score_dir(run):
    return ARTIFACTS / "score" / run


def analysis_dir(run):
    """What the phase analyse found out about a run."""
    return ANALYSIS / run


def quality_dir(run):
    """FID and its kin of a run: scores.json. Of REFERENCE: the network, and the features of the training images."""
    return QUALITY / run


def similarity_dir(run):
    """Copy-detection similarities of a run. Of REFERENCE: the network, and the features of the training images."""
    return SIMILARITY / run


def clip_dir(run):
    """CLIP scores of a run."""
    return CLIP / run


def detect_dir(run):
    """Magnitudes of prompts under the model of a run."""
    return DETECT / run


REFERENCE = "reference"  # in the place of a run: no run is called so, as their names end in a seed


REPORT = ARTIFACTS / "report"
METRICS = Path("metrics.json")
PLOTS = Path("plots")


def averages_after(recipe, round_):
    """Whether a round ends with averaging: every one, or every second one where the schedule is alternating."""
    return recipe["redistribute"].get("schedule") != "alternating" or round_ % 2 == 0


def moves_after(recipe, round_):
    """Whether a round ends with images moving: none, every one, or those that do not end with averaging."""
    alternating = recipe["redistribute"].get("schedule") == "alternating"
    return bool(recipe["redistribute"]) and not (alternating and averages_after(recipe, round_))


def current_shards_dir(recipe, run, round_):
    """Index lists that hold in a round: those written after the last move before it, or of round 1."""
    return shards_dir(run, next((r + 1 for r in range(round_ - 1, 0, -1) if moves_after(recipe, r)), 1))


@contextlib.contextmanager
def publish(path):
    """A path in scratch/ to make a file or a folder at, which becomes `path` when the block ends without an error.

    Raises   OSError: with a sentence that names what was being written, when the disk is full or cannot be written to
    """
    path = Path(path)
    temporary = SCRATCH / "unfinished" / f"{uuid.uuid4().hex}-{path.name}"
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():  # a folder cannot be replaced in one step: DVC has removed it, unless a person runs the stage
            shutil.rmtree(path)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise _told(error, path, temporary) from error
    finally:
        with contextlib.suppress(OSError):  # a disk that refuses writing refuses this too: tell the first error
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def _told(error, path, temporary):
    """The same error with a sentence that says what was being written, and how much room there is."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
        return error
    folder = temporary.parent if temporary.parent.exists() else Path()
    free_mib = shutil.disk_usage(folder).free / 2**20
    reason = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}.get(
        error.errno, f"it cannot be written to ({error.strerror})"
    )
    return OSError(
        error.errno,
        f"{path} was not written: {reason}, {free_mib:.0f} MiB are free in {folder.resolve()}; nothing was lost, make room "
        "or mend the folder and run the same command again",
    )


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
    with publish(path) as temporary:
        temporary.write_bytes(data)


def write_text(path, text):
    write_bytes(path, text.encode("utf-8"))


def write_json(path, value):
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_arrays(path, arrays):
    """Named numpy arrays as safetensors. The same arrays always give the same bytes."""
    from safetensors.numpy import save

    write_bytes(path, save({name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}))


def load_arrays(path):
    """Named numpy arrays from safetensors.

    Raises   ValueError: missing, cut short or no safetensors file
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    _exists(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it and run the same command again") from None


def save_array(path, array):
    stream = io.BytesIO()  # numpy writes to a file with an error of its own when the disk is full, which names nothing
    np.save(stream, array, allow_pickle=False)
    write_bytes(path, stream.getvalue())


def load_array(path, mmap=False):
    """One numpy array from .npy, memory-mapped if asked for.

    Raises   ValueError: missing, cut short or no array
    """
    _exists(path)
    try:
        if mmap:
            return np.lib.format.open_memmap(path, mode="r")
        with open(path, "rb") as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it and run the same command again") from None


def load_json(path):
    """Raises   ValueError: missing or no JSON"""
    _exists(path)
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it and run the same command again") from None


def load_table(path, columns=None):
    """A pandas frame from Parquet, or some columns of it.

    Raises   ValueError: missing
    """
    import pandas as pd

    _exists(path)
    return pd.read_parquet(path, columns=columns)


def load_samples(run, num_parts, weights):
    """All generated images of a run with one kind of weights: [M,H,W,C] uint8."""
    return np.concatenate([load_array(samples_dir(run, part) / f"{weights}.npy") for part in range(num_parts)])


def load_generations(run, num_parts):
    """What each generated image of a run was asked for: a list of dicts with index, prompt_used, prompt_original, train_key and
    seed, in the order of the images; None where the images have no prompts."""
    lines = []
    for part in range(num_parts):
        path = samples_dir(run, part) / "generations.jsonl"
        if part == 0 and not path.exists():
            return None
        _exists(path)
        try:
            lines += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}): remove it and run the same command again") from None
    return lines


def load_counts(recipe, run):
    """What happened in training: a list of rounds, each the list of its K shards, each the named arrays of its counts file."""
    return [
        [load_arrays(counts_file(run, r, k)) for k in range(recipe["shard"]["num_shards"])]
        for r in range(1, recipe["rounds"] + 1)
    ]


def load_shards(recipe, run, round_):
    """The K index lists that hold in a round: list of [n] int64."""
    folder = current_shards_dir(recipe, run, round_)
    return [load_array(folder / f"shard{k}.npy") for k in range(recipe["shard"]["num_shards"])]


def _exists(path):
    if not Path(path).exists():
        raise ValueError(f"{path} is missing: run `snakemake` or `dvc repro`, which make what comes before this stage")
