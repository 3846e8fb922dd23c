"""The parent of the ranks: starts them, passes a stop on to them, makes one outcome of their ends. Imports no torch.

A rank lives no longer than its parent, stays in its process group, and reports its end through a pipe.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from trainer.outcome import Outcome, Status, last_step

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}
SECONDS_TO_FOLLOW = 2.0
"""How long the others may take to report their own reason once a rank has failed."""


class Assignment(BaseModel):
    """What a rank is started with: its place, its folder, and the file descriptors it inherits."""

    out: Path
    resume: Path | None
    rank: int
    ranks: int
    parent: int
    report: int
    port: int
    listener: int | None


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


def run(out: Path, resume: Path | None, count: int) -> Outcome:
    """Train in `out` on `count` ranks, by the configuration that lies there, to the end or to a stop."""
    # Blocked here and inherited: a signal waits until the rank can answer it, and reaches this process in `_wait`.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS | {signal.SIGCHLD})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ranks = [_start(out, resume, rank, count, listener) for rank in range(count)]
    order = _wait(ranks)
    outcomes = [rank.outcome(number) for number, rank in enumerate(ranks)]
    return _combine([outcomes[i] for i in order if not ranks[i].killed_by_us], last_step(out))


def _start(out: Path, resume: Path | None, rank: int, count: int, listener: socket.socket) -> Rank:
    reading, writing = os.pipe()
    leads = rank == 0
    port = listener.getsockname()[1]
    assignment = Assignment(
        out=out,
        resume=resume,
        rank=rank,
        ranks=count,
        parent=os.getpid(),
        report=writing,
        port=port,
        listener=listener.fileno() if leads else None,
    )
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": str(threads),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer.rank", assignment.model_dump_json()],
        env=environment,
        stdin=subprocess.DEVNULL,
        pass_fds=[writing, listener.fileno()] if leads else [writing],
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
    """One outcome of the ranks', in the order they ended: a wrong configuration first, then a lost rank, then the
    first failure (the others lose their connection because of it)."""
    wrong = [outcome for outcome in outcomes if outcome.status == Status.CONFIG]
    failed = [outcome for outcome in outcomes if outcome.status == Status.FAILED]
    lost = [outcome for outcome in failed if outcome.transient]
    first = next(iter([*wrong, *lost, *failed, *outcomes]))
    return first.model_copy(update={"step": step if first.step is None else first.step})
