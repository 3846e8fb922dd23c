"""The parent of the ranks: it starts them, passes stop signals on, and combines their outcomes. Imports no torch.

A rank dies with its parent, stays in its process group, and reports its outcome through a pipe. It is not torchrun,
which turns every exit status into 1, gives each rank a session of its own, and whose ranks outlive its being killed.
"""

import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import BaseModel

from trainer import allocator, check
from trainer.checkpoint.resume import StartingPoint
from trainer.config import ConfigError, TrainConfig
from trainer.contract import Outcome, Status
from trainer.distributed.oom_kills import OomKills
from trainer.memory import device_here, host_bytes_here
from trainer.metrics import last_metrics

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
CONNECTION_LOST = "The connection to another rank was lost, which ended before this one."
UNANSWERED = "Another rank did not answer in time: it or the network between the ranks hangs; the logs may say more."
SECONDS_TO_REPORT = 2.0
"""How long the other ranks have to report their own reason once a rank has failed; then they are killed."""


class Assignment(BaseModel):
    """What a rank is started with. `local_rank` and `local_world_size` count this host's ranks alone, `parent` is a
    process id, `listener` the file descriptor of the socket at which the ranks meet, on rank 0 only."""

    config: TrainConfig
    out: Path
    start: StartingPoint
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    parent: int
    listener: int | None


@dataclass(frozen=True)
class Host:
    """One of the `count` hosts of a run. They meet at `rendezvous` (address and port, of host 0); the others reach this
    host by `address`, or where it is None by the address that routes to the rendezvous."""

    number: int = 0
    count: int = 1
    rendezvous: tuple[str, int] = ("127.0.0.1", 0)
    address: str | None = None


def host(number: int, count: int, rendezvous: str | None, address: str | None) -> Host:
    """This host, from the options of the command line. Raises ConfigError."""
    if number >= count:
        raise ConfigError(f"--host ({number}) counts from 0 and must be less than --hosts ({count}).")
    if count == 1:
        return Host()
    name, _, port = (rendezvous or "").rpartition(":")
    if not name or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(
            f"--rendezvous must be ADDRESS:PORT of host 0, the same at each of the {count} starts, not {rendezvous!r}."
        )
    return Host(number, count, (name, int(port)), address)


@dataclass
class Rank:
    """A rank's process, as its parent knows it; `report` is the reading end of its pipe, `out_of_memory` why it
    was killed, where the kernel killed processes for want of memory just then."""

    process: subprocess.Popen[bytes]
    report: int
    ended: bool = False
    killed_by_us: bool = False
    out_of_memory: str = ""

    def outcome(self, number: int, advice: str) -> Outcome:
        """The outcome that the ended process reported, or one that names the signal or the status it ended with.
        `advice` is what to say of the host's memory where that was used up."""
        with os.fdopen(self.report, "rb") as pipe:
            report = pipe.read()
        if report:
            return Outcome.model_validate_json(report)
        status = self.process.returncode
        if status < 0:
            why = f", {self.out_of_memory}. {advice}" if self.out_of_memory else "."
            reason = f"Rank {number} was killed by {signal.Signals(-status).name}{why}"
            return Outcome(status=Status.FAILED, reason=reason, transient=True)
        return Outcome(status=Status.FAILED, reason=f"Rank {number} ended with status {status} and gave no reason.")


def run(out: Path, config: TrainConfig, start: StartingPoint, count: int, here: Host) -> Outcome:
    """Train in the run folder `out` on `count` ranks of this host, to the last step or to a stop signal.

    Raises ConfigError if this host cannot listen at the rendezvous, or has no route to it.
    """
    # Ranks inherit the blocked mask: a signal waits until the rank has a handler, and reaches this process in `_wait`.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGCHLD})
    oom_kills = OomKills()
    with _listener(here) as listener:
        port = listener.getsockname()[1] if listener else here.rendezvous[1]
        environment = _environment(here, port, count)
        ranks = []
        for number in range(count):
            rank = here.number * count + number
            listens = listener.fileno() if listener and rank == 0 else None
            assignment = Assignment(
                config=config,
                out=out,
                start=start,
                rank=rank,
                world_size=count * here.count,
                local_rank=number,
                local_world_size=count,
                parent=os.getpid(),
                listener=listens,
            )
            ranks.append(_start(assignment, environment))
    order = _wait(ranks, oom_kills)
    last = last_metrics(out, 1)
    step = last[0]["step"] if last else None
    advice = _memory_advice(config, count * here.count, count) if any(rank.out_of_memory for rank in ranks) else ""
    outcomes = [rank.outcome(here.number * count + number, advice) for number, rank in enumerate(ranks)]
    return _combine([outcomes[i] for i in order if not ranks[i].killed_by_us], step)


def _memory_advice(config: TrainConfig, world_size: int, count: int) -> str:
    """A sentence on the memory that `count` of all ranks need of this host, and what would fit."""
    if device_here() == "cpu":
        return check.what_fits(config, world_size, host_bytes_here() // count, "cpu")
    return check.what_fits_host(config, count, None, host_bytes_here())


def _listener(here: Host) -> AbstractContextManager[socket.socket | None]:
    """The socket at which the ranks meet: host 0 binds it before any rank starts."""
    if here.number:
        return nullcontext()
    try:
        return socket.create_server(here.rendezvous)
    except OSError as error:
        address = ":".join(map(str, here.rendezvous))
        raise ConfigError(f"--rendezvous {address} cannot be held on this host ({error.strerror}).") from error


def _environment(here: Host, port: int, count: int) -> dict[str, str]:
    """Environment variables for the ranks' libraries: rendezvous, network interface, threads, allocator."""
    interface = "lo" if here.count == 1 else _interface(here)
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    return {
        "WORLD_SIZE": str(count * here.count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": here.rendezvous[0],
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": interface,
        "NCCL_SOCKET_IFNAME": interface,
        "OMP_NUM_THREADS": str(threads),
        **allocator.environment(os.environ),
    }


def _interface(here: Host) -> str:
    """The name of the network interface that has this host's address."""
    address = here.address
    try:
        if address is None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect(here.rendezvous)
                address = str(probe.getsockname()[0])
        if ipaddress.ip_address(socket.gethostbyname(address)).is_loopback:
            return "lo"
    except OSError as error:
        raise ConfigError(f"--rendezvous {here.rendezvous[0]} cannot be reached from this host ({error}).") from error
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address == address for known in addresses):
            return name
    raise ConfigError(f"--address {address} is no address of this host.")


def _start(assignment: Assignment, environment: dict[str, str]) -> Rank:
    reading, writing = os.pipe()
    own = {"RANK": str(assignment.rank), "LOCAL_RANK": str(assignment.local_rank)}
    # A file in memory, as a command line has too little room for thousands of sources.
    with open(os.memfd_create("assignment"), "w+b") as told:
        told.write(assignment.model_dump_json().encode())
        told.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-m", "trainer.distributed.rank", str(writing), str(assignment.out)],
            env=os.environ | environment | own,
            stdin=told,
            pass_fds=[writing] if assignment.listener is None else [writing, assignment.listener],
        )
    os.close(writing)
    return Rank(process, reading)


def _wait(ranks: list[Rank], oom_kills: OomKills) -> list[int]:
    """Wait for all ranks, pass stop signals on, and kill the ranks that outlive a failed one.

    Returns the indices of the ranks in the order they ended in.
    """
    order: list[int] = []
    deadline = None
    while len(order) < len(ranks):
        received = signal.sigtimedwait(STOP_SIGNALS | {signal.SIGCHLD}, 0.5)
        oom_kills.look()
        running = [rank for rank in ranks if not rank.ended]
        if received and received.si_signo in STOP_SIGNALS:
            for rank in running:
                rank.process.send_signal(signal.SIGTERM)
        for number, rank in enumerate(ranks):
            if not rank.ended and rank.process.poll() is not None:
                rank.ended = True
                order.append(number)
                if rank.process.returncode == -signal.SIGKILL:
                    rank.out_of_memory = oom_kills.cause
                if rank.process.returncode not in (Status.DONE, Status.STOPPED) and deadline is None:
                    deadline = time.monotonic() + SECONDS_TO_REPORT
        if deadline is not None and time.monotonic() > deadline:
            for rank in ranks:
                if not rank.ended and not rank.killed_by_us:
                    rank.killed_by_us = True
                    rank.process.kill()
    return order


def _combine(outcomes: list[Outcome], step: int | None) -> Outcome:
    """The outcome that caused the others, of the outcomes in the order the ranks ended in.

    A wrong configuration comes first, then a transient failure such as a killed rank, then any other failure, then a
    lost connection or a rank that did not answer, which follow from another rank's end.
    """

    def precedence(outcome: Outcome) -> int:
        if outcome.status != Status.FAILED:
            return 0 if outcome.status == Status.CONFIG else 4
        if outcome.reason in (CONNECTION_LOST, UNANSWERED):
            return 3
        return 1 if outcome.transient else 2

    first = min(outcomes, key=precedence)
    return first.model_copy(update={"step": step if first.step is None else first.step})
