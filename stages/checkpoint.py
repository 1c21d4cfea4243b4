"""What a train or sample stage has so far, in scratch/, so that one that was killed goes on from there to the same result."""

import hashlib
import json
import shutil
import signal
import sys
import threading
import time

from stages import files

DEFAULT_MINUTES = 5


class Checkpoint:
    """The state of one stage instance, written every `checkpoint_minutes` of params.yaml and at SIGTERM, a scheduler's warning.

    It is only taken up by a stage with the same settings and the same inputs, and it is removed on success.

    job        of cli.stage
    settings   what the result depends on: a list that JSON can hold
    inputs     paths of the files that it depends on
    """

    def __init__(self, job, settings, inputs):
        digest = hashlib.sha256(json.dumps([settings, str(job.device)], sort_keys=True).encode())
        for path in inputs:
            with open(path, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        self.folder = files.SCRATCH / job.phase / job.key
        self.path = self.folder / f"{digest.hexdigest()[:32]}.safetensors"
        self.every_s = 60 * job.params.get("checkpoint_minutes", DEFAULT_MINUTES)
        self.last = time.monotonic()
        self.told_to_stop = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number, frame):
        self.told_to_stop = True

    def save_if_due(self, arrays):
        """Writes what `arrays()` returns, named numpy arrays, if it is time or the stage is told to stop."""
        if self.told_to_stop or time.monotonic() - self.last >= self.every_s:
            files.save_arrays(self.path, arrays())
            self.last = time.monotonic()

    def stop_if_told(self, where):
        """Ends the process after SIGTERM, with one line on stderr.

        where   how far the stage is, for that line
        """
        if self.told_to_stop:
            print(f"stopped at {where}: the same command goes on from there", file=sys.stderr)
            sys.exit(128 + signal.SIGTERM)

    def saved(self):
        """The named arrays of an interrupted stage, or None."""
        return files.load_arrays(self.path) if self.path.exists() else None

    def remove(self):
        shutil.rmtree(self.folder, ignore_errors=True)
