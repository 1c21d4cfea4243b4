"""How a process depends on others: it ends with its parent, reacts to SIGTERM at once, and its locks are released when it ends."""

import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path

PARENT_PID = "REDISTRIBUTE_PARENT_PID"


def die_with_parent(number=signal.SIGKILL):
    """From now on this process gets a signal when its parent dies, so no stage outlives the DVC that started it.

    number   the signal: SIGTERM for a process that saves its work and ends

    The kernel's signal is only sent for a death after the call. A parent that died before it is found by its pid, which it
    passed on in an environment variable; failing that, by having become a child of process 1, unless that is the DVC which
    started it, as in a container.
    """
    expected = int(os.environ.get(PARENT_PID, "0")) or None
    os.environ[PARENT_PID] = str(os.getpid())  # for the children of this process
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, number)
    parent = os.getppid()
    if parent == expected or (expected is None and (parent != 1 or _is_dvc(parent))):
        return
    if expected and _is_ancestor(expected):  # a shell stands between, which the kernel's signal does not pass
        threading.Thread(target=_watch, args=(expected, number), daemon=True).start()
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _is_dvc(pid):
    import psutil

    return any("dvc" in Path(word).name for word in psutil.Process(pid).cmdline())


def _is_ancestor(pid):
    import psutil

    return pid in [parent.pid for parent in psutil.Process().parents()]


def _watch(pid, number):
    while _is_ancestor(pid):
        time.sleep(1)
    os.kill(os.getpid(), number)


def on_sigterm(action):
    """Calls `action()` in a thread of its own as soon as SIGTERM comes, even while the main thread is inside torch.

    Only where a handler for SIGTERM is set, and that handler, which Python runs when torch is left, is called as well. For the
    main thread; one action a process.
    """
    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)  # the system's own handler writes the signal's number

    def listen():
        while number := os.read(heard, 1):
            if number[0] == signal.SIGTERM:
                action()

    threading.Thread(target=listen, daemon=True).start()


def terminate_children():
    """Sends SIGTERM to every process that this one started, directly or not."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()


class FileLock:
    """An advisory lock on a file, released by the kernel when its holder dies. The file names the holder."""

    def __init__(self, path):
        self.path = Path(path)
        self._stream = None

    def try_acquire(self):
        """True if this process now holds the lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(self.path, "a+")  # noqa: SIM115 (held open as long as the lock)
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            return False
        os.set_inheritable(stream.fileno(), False)
        with contextlib.suppress(OSError):  # a full disk: the lock holds, and its holder is not known
            os.ftruncate(stream.fileno(), 0)
            os.write(stream.fileno(), str(os.getpid()).encode())
        self._stream = stream
        return True

    def holder(self):
        """pid of the holder, as text; '?' where it cannot be read."""
        try:
            return self.path.read_text().strip() or "?"
        except OSError:
            return "?"

    def acquire(self, what, wait_s=None):
        """Waits for the lock and says once for whom.

        wait_s   longest wait; None waits for ever
        Raises   TimeoutError: after wait_s seconds
        """
        start, told = time.monotonic(), False
        while not self.try_acquire():
            if not told:
                print(f"{what} is held by process {self.holder()}: waiting for it", file=sys.stderr, flush=True)
                told = True
            if wait_s is not None and time.monotonic() - start > wait_s:
                raise TimeoutError(f"{what} is held by process {self.holder()}: gave up after {wait_s:.0f} s")
            time.sleep(0.2)

    def release(self):
        if self._stream:
            self._stream.close()
            self._stream = None


class DvcLock:
    """DVC's lock of the repository, or another lock file of DVC's, held alone as DVC holds it, or shared.

    Who shares it (the launchers, workflow/scripts/repro.py) does not wait for the others who share it; `dvc repro`, `dvc gc` and
    whoever else holds it alone wait for all of them, and they for that one. It has what DVC asks of a lock.
    """

    def __init__(self, path=".dvc/tmp/lock", shared=False, wait_s=600):
        self.path, self.shared, self.wait_s = Path(path), shared, wait_s
        self._stream = None

    @property
    def is_locked(self):
        return self._stream is not None

    def lock(self):
        """Waits for the lock.

        Raises   TimeoutError: others hold it for wait_s seconds
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(self.path, "a")  # noqa: SIM115 (held open as long as the lock)
        start = time.monotonic()
        while True:
            try:
                fcntl.flock(stream, (fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - start > self.wait_s:
                    stream.close()
                    raise TimeoutError(
                        f"{self.path} is held by another DVC process: gave up after {self.wait_s} s"
                    ) from None
                time.sleep(0.02)
        self._stream = stream

    def unlock(self):
        self._stream.close()
        self._stream = None

    def __enter__(self):
        self.lock()
        return self

    def __exit__(self, *_):
        self.unlock()
