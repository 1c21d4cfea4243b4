"""Checkpoints of train and sample stages, in scratch/: a stage that was killed resumes from one and reaches the same result."""

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import time

from stages.run import files, processes

DEFAULT_MINUTES = 5
# After SIGTERM a scheduler waits, then kills: Slurm after 30 s, docker stop after 10 s. A step has so long to end.
GRACE_S = 8
# Where a step is slower, SIGTERM could not wait for its end: then every step is followed by a checkpoint.
SLOW_STEP_S = GRACE_S / 2


class Checkpoint:
    """The state of one stage instance, written every `checkpoint_minutes` of params.yaml and at SIGTERM, a scheduler's warning.

    It is only taken up by a stage with the same settings, inputs and code, and it is removed on success.

    job        of cli.stage
    settings   what the result depends on: a list that JSON can hold
    inputs     paths of the files that it depends on
    code       paths of the source files that it depends on
    """

    def __init__(self, job, settings, inputs, code):
        digest = hashlib.sha256(json.dumps([settings, str(job.device)], sort_keys=True).encode())
        for path in inputs:
            digest.update(files.checksum(path).encode())
        for path in code:
            digest.update(path.read_bytes())
        self.folder = files.SCRATCH / job.phase / job.key
        self.path = self.folder / digest.hexdigest()[:32]
        self.every_s = 60 * job.params.get("checkpoint_minutes", DEFAULT_MINUTES)
        self.saved_at = self.looked_at = time.monotonic()
        self.is_slow = self.told_to_stop = False
        self.where = "its last checkpoint or its beginning"
        self.ended = threading.Event()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)
            processes.on_sigterm(self._stop_in_time)

    def _on_sigterm(self, *_):
        self.told_to_stop = True

    def _stop_in_time(self):
        if not self.ended.wait(GRACE_S):
            print(f"stopped within a step: the same command goes on from {self.where}", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGTERM)

    def look(self):
        """Whether a checkpoint is due. Call it after each step, so that slow steps are noticed."""
        now = time.monotonic()
        self.is_slow = now - self.looked_at > SLOW_STEP_S
        self.looked_at = now
        return self.told_to_stop or self.is_slow or now - self.saved_at >= self.every_s

    def save_if_due(self, arrays, where):
        """Writes what `arrays()` returns, named numpy arrays, if it is time; ends the process if it is told to stop.

        A disk that is full costs the checkpoint, not the stage.

        where   how far the stage is, for the line on stderr
        """
        told = (
            self.told_to_stop
        )  # SIGTERM from here on is for the next call, or the process would end without a checkpoint
        if told or self.is_slow or self.look():
            try:
                with files.publish(self.path) as folder:
                    files.save_arrays(folder / "state.safetensors", arrays())
                self.where = where
            except OSError as error:
                print(f"warning: {error}", file=sys.stderr, flush=True)
            self.saved_at = self.looked_at = time.monotonic()
            self.is_slow = False
        if told:
            self.ended.set()
            print(f"stopped at {where}: the same command goes on from {_there(self.where, where)}", file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)

    def saved(self):
        """The named arrays of an interrupted stage, or None; a damaged checkpoint is told and removed."""
        if not self.path.exists():
            return None
        try:
            return files.load_arrays(self.path / "state.safetensors")
        except ValueError:
            print(f"the checkpoint {self.path} is damaged: the stage begins anew", file=sys.stderr, flush=True)
            self.remove()
            return None

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)


def _there(saved, where):
    return "there" if saved == where else saved
