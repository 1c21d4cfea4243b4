"""A Slurm of two nodes on this machine, for tests: its own munge, slurmctld and slurmd, all in one folder.

Only a link in /etc/slurm leads to it while it runs, as Snakemake's plugin hides SLURM_CONF from the srun inside of a job.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

NODES = ("n1", "n2")
LINK = Path("/etc/slurm/slurm.conf")
CONF = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
# One host plays all nodes: no cgroups, and what a node has is what is written here.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
GresTypes=gpu
# Without accounting Snakemake asks squeue, which must still know a job that has ended.
MinJobAge=3600
# A node that does not answer for so long is down and its jobs go elsewhere.
SlurmdTimeout=10
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=6000 Gres=gpu:1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=6000 Gres=gpu:1
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def installed():
    """Whether Slurm's and munge's daemons are on this machine, and this is root, as which they run here."""
    return os.geteuid() == 0 and all(map(shutil.which, ("slurmctld", "slurmd", "munged")))


class Cluster:
    """.env: environment in which sbatch, squeue and the like speak to it."""

    def __init__(self, root):
        self.root = Path(root)
        self.name = f"redistribute{os.getpid()}"
        self.env = {"SLURM_CONF": str(self.root / "slurm.conf")}
        self.daemons = {}

    def start(self):
        """Raises   FileExistsError: this machine belongs to a Slurm already"""
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.root / name).mkdir(parents=True)
        gpus = []
        for node in NODES:  # Slurm wants a device file of each; any file will do
            (self.root / f"gpu-{node}").touch()
            gpus.append(f"NodeName={node} Name=gpu File={self.root}/gpu-{node}\n")
        (self.root / "gres.conf").write_text("".join(gpus))
        with contextlib.ExitStack() as stack:
            ports = []
            for _ in range(3):
                free = stack.enter_context(socket.socket())
                free.bind(("127.0.0.1", 0))
                ports.append(free.getsockname()[1])
        content = CONF.format(root=self.root, name=self.name, host=socket.gethostname(), ports=ports)
        (self.root / "slurm.conf").write_text(content)
        LINK.symlink_to(self.root / "slurm.conf")
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        places = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
        self._start(
            "munge", "munged", "--foreground", "--force", f"--key-file={key}",
            *(f"--{option}={self.root / name}" for option, name in places.items()),
        )  # fmt: skip
        self._wait((self.root / "munge.socket").exists, "munged made no socket")
        self._start("slurmctld", "slurmctld", "-D", "-i")
        for node in NODES:
            self.start_node(node)
        self._wait(lambda: self.states() == dict.fromkeys(NODES, "idle"), "the nodes are not idle")

    def start_node(self, node):
        self._start(node, "slurmd", "-D", "-N", node)

    def _start(self, name, *command):
        with open(self.root / f"{name}.out", "w") as log:
            self.daemons[name] = subprocess.Popen(
                command, env={**os.environ, **self.env}, stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self, true, otherwise, wait_s=60):
        deadline = time.monotonic() + wait_s
        while not true():
            if time.monotonic() > deadline:
                said = "".join(path.read_text()[-2000:] for path in sorted(self.root.glob("*.out")))
                raise TimeoutError(f"{otherwise} after {wait_s} s: {self.states()}\n{said}")
            time.sleep(0.3)

    def ask(self, *command):
        return subprocess.run(
            command, env={**os.environ, **self.env}, capture_output=True, text=True, check=False
        ).stdout

    def states(self):
        """State of each node, as sinfo says: dict node -> idle, alloc, mix, down, ..."""
        lines = self.ask("sinfo", "--noheader", "--Node", "--format=%N %t").split("\n")
        return dict(line.split() for line in lines if line)

    def jobs_on(self, node):
        """Jobs that run on a node: dict job -> what the job is for, as Snakemake named it."""
        lines = self.ask("squeue", "--noheader", "--states=running", f"--nodelist={node}", "--format=%A %k").split("\n")
        return dict(line.split(" ", 1) for line in lines if line)

    def kill_node(self, node):
        """Everything of a node at once, as when its power goes: slurmd, its steps and whatever they started."""
        doomed = {self.daemons[node].pid}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if (environment.get("SLURM_CONF"), environment.get("SLURMD_NODENAME")) == (
                    self.env["SLURM_CONF"],
                    node,
                ):
                    doomed.add(process.pid)
                    if (parent := process.parent()) and parent.name().startswith("slurmstepd"):
                        doomed.add(parent.pid)
        for pid in doomed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.daemons.pop(node).wait()

    def stop(self):
        self.ask("scancel", "--user=root", "--full")
        time.sleep(1)
        for node in NODES:
            if node in self.daemons:
                self.kill_node(node)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            daemon.kill()
            daemon.wait()
        if LINK.is_symlink() and LINK.readlink() == self.root / "slurm.conf":
            LINK.unlink()
