"""Which rounds of training stay on the disk: a setting of the machine, which changes no result.

REDISTRIBUTE_KEEP   all (or not set): every shard of every round stays in artifacts/train/ and in DVC's cache
                    needed: a round is removed from both, as a whole folder, once no stage that has yet to run reads it.
                    The last round of each arm stays, so that one more round can follow it

Index lists, skip counts, banks and averaged models lie in other folders and always stay. A removed round does not cause
any stage to run (schedule.py); if a change of params.yaml needs it again, the stages that made it run again.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from pathlib import Path

import checkout

from stages.run import files, lock, processes, room

LOOK_S = 2
SHARD_FOLDER = re.compile(r"artifacts/train/(.+)/round(\d+)/shard\d+")


def rounds_no_longer_needed(instances, pending):
    """Rounds whose shard folders no pending stage writes or reads, but the last of each run.

    instances  from plan.expand
    pending    set of the names of the stages that are still to run
    Returns    set of (run, round)
    """
    users, last = defaultdict(set), defaultdict(int)
    for name, instance in instances.items():
        run, r = instance.run, instance.round
        if instance.phase == "train":
            users[run, r].add(name)
            users[run, r - 1].add(name)  # reads the state that the round before left
            last[run] = max(last[run], r)
        elif instance.phase == "aggregate":
            users[run, r].add(name)
    return {(run, r) for (run, r), names in users.items() if 1 <= r < last[run] and not names & pending}


def check_git():
    """Raises ValueError where there is a repository, but no git to ask which results its branches need."""
    if checkout.has_git() and not shutil.which("git"):
        raise ValueError(
            f"git is not installed, so nothing says which results other branches need: install it, or prune nothing ({room.KEEP}=all)"
        )


def remove_empty_rounds():
    """`dvc pull --allow-missing` and `dvc checkout --allow-missing` make an empty folder in the place of a pruned round, which
    `dvc repro` would take for a round with other contents."""
    for folder in Path("artifacts/train").glob("*/round*"):
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()


class Retention:
    """Prunes while the experiment runs. Opened before its first job, in the process of Snakemake itself.

    instances  from plan.expand
    to_run     names of the stages that this run is to make
    has_run    function: whether a stage of them has run by now
    """

    def __init__(self, instances, to_run, has_run):
        from dvc.repo import Repo

        self.instances, self.pending, self.has_run = instances, set(to_run), has_run
        repo = Repo()
        self.cache = repo.cache.local
        # Other projects may need what lies in a cache that is not this project's own.
        self.own_cache = Path(self.cache.path).resolve().is_relative_to(Path(repo.root_dir, ".dvc").resolve())
        repo.close()
        if not self.own_cache:
            print(
                f"{room.KEEP} = needed: DVC's cache {self.cache.path} may be shared, so rounds leave artifacts/ only; `dvc gc` in it "
                "frees the rest",
                file=sys.stderr,
            )
        self.elsewhere = self._kept_elsewhere()
        self.pruned = None  # rounds that are gone; not looked yet
        self.turn = threading.Lock()

    def watch(self):
        """Prunes from a thread of its own, whenever stages have ended."""

        def look():
            while True:
                try:
                    self.prune()
                except (OSError, ValueError) as error:
                    print(f"nothing more is pruned in this run: {error}", file=sys.stderr, flush=True)
                    return
                time.sleep(LOOK_S)

        threading.Thread(target=look, daemon=True).start()

    def prune(self):
        """Takes the rounds that are no longer needed out of artifacts/ and DVC's cache.

        A kill at any moment leaves nothing that the next call would not take away.
        """
        with self.turn:
            ended = {name for name in self.pending if self.has_run(name)}
            if self.pruned is not None and not ended:
                return
            self.pending -= ended
            rounds = rounds_no_longer_needed(self.instances, self.pending)
            if rounds - (self.pruned or set()):
                with processes.DvcLock():
                    self._prune(rounds)
            self.pruned = rounds

    def _prune(self, rounds):
        lock.fold()
        recorded = _outputs(lock.recorded_stages())
        leaving = {path: oid for path, oid in recorded.items() if _round_of(path) in rounds}
        waste = files.SCRATCH / "pruned"
        for folder in {Path(path).parent for path in leaving}:
            if folder.exists():  # by a rename, so that no stage ever finds a part of a round
                waste.mkdir(parents=True, exist_ok=True)
                folder.rename(waste / uuid.uuid4().hex)
        shutil.rmtree(waste, ignore_errors=True)
        if self.own_cache:
            kept = self.elsewhere | self._with_contents(oid for path, oid in recorded.items() if path not in leaving)
            for oid in leaving.values():
                for part in [*self._contents(oid), oid]:  # the list of the contents last: it says what is left to do
                    if part not in kept:
                        Path(self.cache.oid_to_path(part)).unlink(missing_ok=True)

    def _kept_elsewhere(self):
        """Hashes that a branch, a tag, an experiment of DVC's or the last commit needs by the same rule: all but rounds before
        the last."""
        kept = set()
        for content in _committed_locks():
            outputs = _outputs(content)
            last = defaultdict(int)
            for run, r in filter(None, map(_round_of, outputs)):
                last[run] = max(last[run], r)
            kept |= self._with_contents(
                oid for path, oid in outputs.items() if not (of := _round_of(path)) or of[1] == last[of[0]]
            )
        return kept

    def _with_contents(self, oids):
        return {part for oid in oids for part in (oid, *self._contents(oid))}

    def _contents(self, oid):
        """Hashes of the files of a folder that DVC's cache has; none of a file."""
        path = Path(self.cache.oid_to_path(oid))
        if not oid.endswith(".dir") or not path.exists():
            return []
        return [entry["md5"] for entry in json.loads(path.read_text(encoding="utf-8"))]


def _round_of(path):
    """(run, round) of the folder of a shard; None of any other path."""
    found = SHARD_FOLDER.fullmatch(path)
    return (found[1], int(found[2])) if found else None


def _outputs(recorded):
    """What dvc.lock recorded as outputs: dict path -> hash."""
    return {out["path"]: out["md5"] for entry in recorded.values() for out in entry.get("outs", []) if out.get("md5")}


def _committed_locks():
    """dvc.lock of the last commit and of whatever has a name in git, each content once, as `lock.recorded_stages` returns it."""
    if not checkout.has_git():
        return

    def git(*words):
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else ""

    names = ["HEAD", *git("for-each-ref", "--format=%(refname)").split()]
    blobs = {git("rev-parse", "--verify", "--quiet", f"{name}:./dvc.lock").strip() for name in names} - {""}
    for blob in sorted(blobs):
        try:
            recorded = lock.recorded_stages(git("cat-file", "blob", blob))
            _outputs(recorded)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # half-merged, or a file of another project: nothing that this one could need
        yield recorded
