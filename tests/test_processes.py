"""Processes that die with their parent, and locks that die with their holder, with real processes and real SIGKILLs."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
from conftest import ROOT

from stages.run import processes

HEAD = f"import os, subprocess, sys, time; sys.path.insert(0, {str(ROOT)!r}); from stages.run import processes\n"
# A stage: ties itself to its parent, says its pid, and would live for a minute.
STAGE = f"{HEAD}processes.die_with_parent(); print(os.getpid(), flush=True); time.sleep(60)"


@pytest.fixture
def started():
    """Popen with clean-up: start(code, ...) runs Python code, start([...]) a command."""
    running, pids = [], []

    def start(command, **environment):
        command = [sys.executable, "-c", command] if isinstance(command, str) else command
        inherited = {k: v for k, v in os.environ.items() if k not in (processes.PARENT_PID, "DVC_STAGE")}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**inherited, **environment}
        )
        running.append(process)
        return process

    start.pids = pids
    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()
    for pid in pids:
        if psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)


def pid_told(process, started):
    line = process.stdout.readline().strip()
    assert line.isdigit(), line
    started.pids.append(int(line))
    return int(line)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_gone(pid, within_s):
    deadline = time.monotonic() + within_s
    while lives(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not lives(pid)


def parent_of(code, between="", **environment):
    """Code of a process that ties itself to its parent, as repro.py does, and starts a stage."""
    command = (
        f'["/bin/sh", "-c", sys.executable + " -c \\"$STAGE\\"; {between}"]'
        if between
        else '[sys.executable, "-c", os.environ["STAGE"]]'
    )
    return f"{HEAD}processes.die_with_parent(); subprocess.Popen({command}); time.sleep(60)"


def test_a_stage_is_killed_with_its_parent(started):
    parent = started(parent_of(STAGE), STAGE=STAGE)
    stage = pid_told(parent, started)
    assert lives(stage)
    os.kill(parent.pid, signal.SIGKILL)
    assert is_gone(stage, within_s=5)


def test_a_stage_may_hear_of_the_death_of_its_parent_and_save_its_work(started, tmp_path):
    """`kill` of DVC, by SIGKILL or SIGTERM: the stage gets SIGTERM, even inside C code that lasts for minutes."""
    stage = (
        f"{HEAD}import hashlib, signal\nprocesses.die_with_parent(signal.SIGTERM)\nsignal.signal(signal.SIGTERM, lambda *_: None)\n"
        f"def save():\n    open({str(tmp_path / 'saved')!r}, 'w').close()\n    os._exit(0)\n"
        "processes.on_sigterm(save)\nprint(os.getpid(), flush=True)\nhashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"
    )
    parent = started(parent_of(stage), STAGE=stage)
    pid = pid_told(parent, started)
    os.kill(parent.pid, signal.SIGTERM)
    assert is_gone(pid, within_s=5)
    assert (tmp_path / "saved").exists()


def test_sigterm_reaches_everything_that_a_process_started(started):
    """As snakemake passes it on to DVC and the stages."""
    head = (
        f"{HEAD}import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\nprocesses.on_sigterm(processes.terminate_children)\n"
        "subprocess.Popen([sys.executable, '-c', os.environ['MIDDLE']])\nwhile True: time.sleep(1)"
    )
    middle = "import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', os.environ['STAGE']]); time.sleep(60)"
    first = started(head, MIDDLE=middle, STAGE="import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    stage = pid_told(first, started)
    between = psutil.Process(stage).ppid()
    started.pids.append(between)
    first.send_signal(signal.SIGTERM)
    assert is_gone(stage, within_s=5) and is_gone(between, within_s=5)
    assert lives(first.pid)


def test_without_it_a_stage_outlives_its_parent(started):
    """What the test above would miss if the stage died of something else."""
    parent = started(parent_of(STAGE), STAGE="import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    stage = pid_told(parent, started)
    os.kill(parent.pid, signal.SIGKILL)
    assert not is_gone(stage, within_s=0.5)


def test_a_stage_is_killed_with_its_grandparent_across_a_shell_that_stays(started):
    parent = started(parent_of(STAGE, between="true"), STAGE=STAGE)
    stage = pid_told(parent, started)
    shell = psutil.Process(stage).parent()
    assert shell.name() == "sh" and shell.ppid() == parent.pid  # it did not exec
    started.pids.append(shell.pid)
    os.kill(parent.pid, signal.SIGKILL)
    assert is_gone(stage, within_s=5)


def test_a_whole_chain_dies_with_its_head(started):
    """snakemake, repro.py and the stage: each is tied to the one before, so killing the first ends all."""
    middle = parent_of(STAGE)
    head = f"{HEAD}os.environ[processes.PARENT_PID] = str(os.getpid()); subprocess.Popen([sys.executable, '-c', os.environ['MIDDLE']]); time.sleep(60)"
    first = started(head, MIDDLE=middle, STAGE=STAGE)
    stage = pid_told(first, started)
    second = psutil.Process(stage).parent()
    assert second.ppid() == first.pid
    started.pids.append(second.pid)
    os.kill(first.pid, signal.SIGKILL)
    assert is_gone(stage, within_s=5) and is_gone(second.pid, within_s=1)


def test_a_parent_that_died_before_the_call_is_noticed_by_its_pid(started):
    gone = subprocess.Popen(["true"])
    gone.wait()
    stage = started(STAGE, **{processes.PARENT_PID: str(gone.pid)})
    assert stage.wait(timeout=20) == -signal.SIGKILL
    assert stage.stdout.read() == ""


def test_an_orphan_that_was_told_no_pid_is_noticed_by_its_new_parent(started, tmp_path):
    """Its parent ends at once and the orphan falls to process 1 (or to a reaper of this machine, which cannot be told apart)."""
    code = f"import os, time\nos.setsid()\nwhile os.getppid() == {{}}: time.sleep(0.01)\nprint(os.getppid(), flush=True)\n{STAGE}"
    orphan = f'p = os.getpid()\nsubprocess.Popen([sys.executable, "-c", {code!r}.format(p)])'
    first = started(HEAD + orphan)
    assert first.wait(timeout=20) == 0
    new_parent = first.stdout.readline().strip()
    if new_parent != "1":
        pid_told(first, started)
        pytest.skip(f"orphans fall to process {new_parent} here")
    assert first.stdout.readline() == ""  # killed before it says its pid


def test_a_stage_whose_parent_is_no_head_of_a_chain_lives_on(started):
    """`dvc repro` by hand: nobody passed a pid, and the parent is alive."""
    stage = started(STAGE)
    pid_told(stage, started)
    assert stage.poll() is None


@pytest.mark.parametrize(("name", "survives"), [("dvc", True), ("init", False)])
def test_process_1_of_a_container_may_be_dvc_itself(tmp_path, name, survives):
    """`docker run image dvc repro`: every stage was a child of process 1, took itself for an orphan and was killed."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespaces here")
    (tmp_path / "stage.py").write_text(f"{HEAD}processes.die_with_parent(); print('alive', flush=True)")
    first = tmp_path / name
    first.write_text(f"#!/bin/sh\n{sys.executable} {tmp_path}/stage.py; echo $?\n")
    first.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k != processes.PARENT_PID}
    done = subprocess.run([*unshare, first], capture_output=True, text=True, env=environment, timeout=30, check=False)
    assert done.stdout.split() == (["alive", "0"] if survives else ["137"])


HOLDER = f"{HEAD}lock = processes.FileLock(sys.argv[1]); print(lock.try_acquire(), flush=True); "


def held_elsewhere(started, path, code="time.sleep(60)"):
    holder = started([sys.executable, "-c", HOLDER + code, str(path)])
    assert holder.stdout.readline().strip() == "True"
    return holder


def test_a_lock_is_exclusive_names_its_holder_and_goes_with_a_kill(started, tmp_path, capsys):
    path = tmp_path / "locks" / "stage"
    holder = held_elsewhere(started, path)
    lock = processes.FileLock(path)
    assert not lock.try_acquire() and lock.holder() == str(holder.pid)
    with pytest.raises(TimeoutError, match=f"^stage x is held by process {holder.pid}: gave up after 0 s$"):
        lock.acquire("stage x", wait_s=0.3)
    assert capsys.readouterr().err == f"stage x is held by process {holder.pid}: waiting for it\n"  # once
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock.acquire("stage x", wait_s=5)
    assert lock.holder() == str(os.getpid())
    lock.release()


def test_a_lock_excludes_a_second_one_of_the_same_process(tmp_path):
    first, second = processes.FileLock(tmp_path / "lock"), processes.FileLock(tmp_path / "lock")
    assert first.try_acquire() and not second.try_acquire()
    first.release()
    first.release()  # as in a finally
    assert second.try_acquire() and not first.try_acquire()
    second.release()


def test_who_waits_gets_the_lock_when_it_is_released(tmp_path, capsys):
    first, second = processes.FileLock(tmp_path / "lock"), processes.FileLock(tmp_path / "lock")
    assert first.try_acquire()
    threading.Timer(0.3, first.release).start()
    second.acquire("the lock", wait_s=10)
    assert not first.try_acquire()
    second.release()
    assert capsys.readouterr().err.count("waiting for it") == 1


def test_a_child_of_the_holder_does_not_keep_the_lock(started, tmp_path):
    """A stage that is killed may leave a child behind for a moment, e.g. nvidia-smi."""
    holder = held_elsewhere(
        started,
        tmp_path / "lock",
        "child = subprocess.Popen(['sleep', '60'], close_fds=False); print(child.pid, flush=True); time.sleep(60)",
    )
    child = pid_told(holder, started)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert lives(child)
    lock = processes.FileLock(tmp_path / "lock")
    lock.acquire("the lock", wait_s=2)
    lock.release()


def test_the_holder_of_a_lock_that_nobody_made_is_unknown(tmp_path):
    assert processes.FileLock(tmp_path / "none").holder() == "?"
    (tmp_path / "empty").touch()
    assert processes.FileLock(tmp_path / "empty").holder() == "?"


def test_dvc_lock_excludes_dvc_and_is_released_after_an_error(tmp_path, monkeypatch):
    from dvc.lock import Lock, LockError

    monkeypatch.chdir(tmp_path)

    def dvc_cannot_lock():
        with pytest.raises(LockError):
            Lock(".dvc/tmp/lock", ".dvc/tmp").lock()
        return "done"

    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0)
    with processes.DvcLock() as ours:
        assert ours.is_locked and dvc_cannot_lock() == "done"
    assert not ours.is_locked

    with pytest.raises(KeyError), processes.DvcLock(shared=True):
        raise KeyError
    theirs = Lock(".dvc/tmp/lock", ".dvc/tmp")
    theirs.lock()
    for shared in (False, True):
        with pytest.raises(
            TimeoutError, match=re.escape(".dvc/tmp/lock is held by another DVC process: gave up after 0.2 s")
        ):
            processes.DvcLock(shared=shared, wait_s=0.2).lock()
    theirs.unlock()
    with processes.DvcLock(shared=True), processes.DvcLock(shared=True):  # two who share it
        assert dvc_cannot_lock() == "done"
        with pytest.raises(TimeoutError):
            processes.DvcLock(wait_s=0.1).lock()
    theirs.lock()
    theirs.unlock()
