"""A real Slurm for the tests: slurmctld and two nodes of eight GPUs on this host, in a folder of their own."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.absent import absent
from tests.patience import PATIENCE, wait_for
from tests.ports import free_ports

CONF = """
ClusterName=stoa
FirstJobId={ports[3]}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
SlurmUser={user}
SlurmdUser={user}
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/ctld.log
SlurmdLogFile={folder}/log/%n.log
ReturnToService=1
SlurmdTimeout=300
KillWait=60
MinJobAge=300
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=100000
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} {node} Feature=first
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} {node} Feature=second
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "CPUs=16 Boards=1 SocketsPerBoard=2 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=2000000 Gres=gpu:h200:8"
GRES = "NodeName=n[1-2] Name=gpu Type=h200 File={folder}/dev/gpu[0-7]\n"


class Cluster:
    """The running daemons, and what a test asks of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("state", "spool/n1", "spool/n2", "log", "dev"):
            (folder / name).mkdir(parents=True)
        for number in range(8):
            (folder / "dev" / f"gpu{number}").symlink_to("/dev/null")  # a regular file would make no device visible
        user = pwd.getpwuid(os.getuid()).pw_name
        self.conf.write_text(
            CONF.format(host=socket.gethostname(), ports=free_ports(4), user=user, folder=folder, node=NODE)
        )
        (folder / "gres.conf").write_text(GRES.format(folder=folder))

    def start(self, name: str) -> None:
        """Start `ctld`, `n1` or `n2`."""
        program = ["slurmctld", "-D", "-i"] if name == "ctld" else ["slurmd", "-D", "-N", name]
        path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
        program[0] = shutil.which(program[0], path=path) or program[0]
        with (self.folder / "log" / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [*program, "-f", str(self.conf)],
                env={"PATH": path, "SLURM_CONF": str(self.conf)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )

    def end(self, name: str) -> None:
        """Kill a node's daemon; its jobs live on."""
        self.daemons[name].kill()
        self.daemons[name].wait()

    def hang(self) -> None:
        """Let the controller answer nobody."""
        self.daemons["ctld"].send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self.daemons["ctld"].send_signal(signal.SIGCONT)

    def ask(self, *command: str) -> str:
        """What a command of Slurm's answers."""
        environment = {"PATH": os.environ["PATH"], "SLURM_CONF": str(self.conf)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        return (done.stdout + done.stderr).strip()

    def ready(self) -> None:
        """Wait until both nodes are idle."""
        wait_for(lambda: self.ask("sinfo", "-h", "-t", "idle", "-o", "%D") == "2", "two idle nodes")

    def processes(self) -> list[int]:
        """The daemons' and the jobs' processes: those that were started with this cluster's configuration."""
        mark = f"SLURM_CONF={self.conf}".encode()
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with suppress(OSError):
                if mark in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
        return [pid for pid in found if pid != os.getpid()]

    def clear(self) -> None:
        """Take away all jobs, with what a node that was given up still runs, and put both nodes to work."""
        self.go_on()
        for name, daemon in self.daemons.items():
            if daemon.poll() is not None:
                self.start(name)
        self.ask("scancel", "--full", "--signal=KILL", "--me")
        self.ask("scancel", "--me")
        own = {daemon.pid for daemon in self.daemons.values()}
        for pid in set(self.processes()) - own:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ask("scontrol", "update", "nodename=n[1-2]", "state=resume")
        self.ready()

    def stop(self) -> None:
        """End all of it."""
        self.ask("scancel", "--me")
        for daemon in self.daemons.values():
            daemon.kill()
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in self.daemons.values():
            daemon.wait()


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """Slurm, with nothing in its queue."""
    if not shutil.which("sbatch") or not shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        absent("the tests on Slurm", "it is not installed (Debian: apt-get install slurm-wlm)")
    with running() as cluster:
        yield cluster


@pytest.fixture
def clusters(slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Cluster]]:
    """Two clusters, neither of which is that of the environment."""
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    with running() as other:
        yield {"one": slurm, "two": other}
        slurm.clear()


@contextmanager
def running() -> Iterator[Cluster]:
    """A cluster of two idle nodes, which ends with the block."""
    folder = Path(tempfile.mkdtemp(prefix="stoa-slurm-"))
    cluster = Cluster(folder)
    try:
        for name in ("ctld", "n1", "n2"):
            cluster.start(name)
        cluster.ready()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
