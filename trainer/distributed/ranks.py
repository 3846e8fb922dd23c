"""The parent of the ranks: starts them, passes a stop on to them, makes one outcome of their ends. Imports no torch.

A rank lives no longer than its parent, stays in its process group, and reports its end through a pipe.
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

from trainer import allocator
from trainer.checkpoint.folders import Start
from trainer.config import ConfigError, TrainConfig
from trainer.outcome import CONNECTION_LOST, Outcome, Status, last_metrics

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
SECONDS_TO_FOLLOW = 2.0
"""How long the others may take to report their own reason once a rank has failed."""


class Assignment(BaseModel):
    """What a rank is started with: its place, its folder, and the file descriptors it inherits."""

    config: TrainConfig
    out: Path
    start: Start
    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    parent: int
    listener: int | None


@dataclass(frozen=True)
class Host:
    """This host among those of a run, which meet at `rendezvous`; `address` is what the others reach it by."""

    number: int = 0
    count: int = 1
    rendezvous: tuple[str, int] = ("127.0.0.1", 0)
    address: str | None = None


def host(number: int, count: int, rendezvous: str | None, address: str | None) -> Host:
    """From the command line's options. Raises ConfigError."""
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
    process: subprocess.Popen[bytes]
    report: int
    ended: bool = False
    killed_by_us: bool = False

    def outcome(self, number: int) -> Outcome:
        """Its own report; a signal's name if it died of one."""
        with os.fdopen(self.report, "rb") as pipe:
            report = pipe.read()
        if report:
            return Outcome.model_validate_json(report)
        status = self.process.returncode
        if status < 0:
            reason = f"Rank {number} was killed by {signal.Signals(-status).name}."
            return Outcome(status=Status.FAILED, reason=reason, transient=True)
        return Outcome(status=Status.FAILED, reason=f"Rank {number} ended with status {status} and gave no reason.")


def run(out: Path, config: TrainConfig, start: Start, count: int, here: Host) -> Outcome:
    """Train in `out` on `count` ranks of this host, to the end or to a stop.

    Raises ConfigError if the rendezvous cannot be held or reached from here.
    """
    # Blocked here and inherited: a signal waits until the rank can answer it, and reaches this process in `_wait`.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGCHLD})
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
                ranks=count * here.count,
                local_rank=number,
                local_ranks=count,
                parent=os.getpid(),
                listener=listens,
            )
            ranks.append(_start(assignment, environment))
    order = _wait(ranks)
    last = last_metrics(out, 1)
    step = last[0]["step"] if last else None
    outcomes = [rank.outcome(here.number * count + number) for number, rank in enumerate(ranks)]
    return _combine([outcomes[i] for i in order if not ranks[i].killed_by_us], step)


def _listener(here: Host) -> AbstractContextManager[socket.socket | None]:
    """The socket at which the ranks meet, held by host 0 from before they start."""
    if here.number:
        return nullcontext()
    try:
        return socket.create_server(here.rendezvous)
    except OSError as error:
        address = ":".join(map(str, here.rendezvous))
        raise ConfigError(f"--rendezvous {address} cannot be held on this host ({error.strerror}).") from error


def _environment(here: Host, port: int, count: int) -> dict[str, str]:
    """What the ranks' libraries read: where to meet, over which network, with how many threads each."""
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
    """The network interface of this host's address; without one given, that on the way to the rendezvous."""
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
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.distributed.rank", str(writing), assignment.model_dump_json()],
        env=os.environ | environment | own,
        stdin=subprocess.DEVNULL,
        pass_fds=[writing] if assignment.listener is None else [writing, assignment.listener],
    )
    os.close(writing)
    return Rank(process, reading)


def _wait(ranks: list[Rank]) -> list[int]:
    """Wait for all ranks, passing stops on and ending what outlives a failure; the order they ended in."""
    order: list[int] = []
    deadline = None
    while len(order) < len(ranks):
        received = signal.sigtimedwait(STOP_SIGNALS | {signal.SIGCHLD}, 0.5)
        running = [rank for rank in ranks if not rank.ended]
        if received and received.si_signo in STOP_SIGNALS:
            for rank in running:
                rank.process.send_signal(signal.SIGTERM)
        for number, rank in enumerate(ranks):
            if not rank.ended and rank.process.poll() is not None:
                rank.ended = True
                order.append(number)
                if rank.process.returncode not in (Status.DONE, Status.STOPPED) and deadline is None:
                    deadline = time.monotonic() + SECONDS_TO_FOLLOW
        if deadline is not None and time.monotonic() > deadline:
            for rank in ranks:
                if not rank.ended and not rank.killed_by_us:
                    rank.killed_by_us = True
                    rank.process.kill()
    return order


def _combine(outcomes: list[Outcome], step: int | None) -> Outcome:
    """One outcome of the ranks', which come in the order they ended: the one that the others follow from."""

    def order(outcome: Outcome) -> int:
        if outcome.status != Status.FAILED:
            return 0 if outcome.status == Status.CONFIG else 4
        if outcome.reason == CONNECTION_LOST:
            return 3
        return 1 if outcome.transient else 2

    first = min(outcomes, key=order)
    return first.model_copy(update={"step": step if first.step is None else first.step})
