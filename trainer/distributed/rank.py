"""One rank's process: it dies with its parent, trains, and reports its outcome to the parent through a pipe."""

import ctypes
import errno
import os
import signal
import socket
import sys
import traceback
from types import FrameType

from trainer import check
from trainer.config import ConfigError
from trainer.contract import Outcome, Status
from trainer.distributed.ranks import CONNECTION_LOST, STOP_SIGNALS, UNANSWERED, Assignment
from trainer.exits import in_words
from trainer.memory import Device

PR_SET_PDEATHSIG = 1
CONTEXT = 1 << 30
"""Bytes of a GPU that the contexts of a rank take at most beside what PyTorch allocates."""
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "recvValue")
"""What gloo, NCCL and the store say when the rank at the other end is gone."""


def main() -> None:
    """`python -m trainer.distributed.rank PIPE OUT`, as the parent starts it, with the assignment on standard input;
    OUT is there for people who look at the processes."""
    report, assignment = int(sys.argv[1]), Assignment.model_validate_json(sys.stdin.buffer.read())
    _die_with_parent(assignment.parent)
    stop = _StopRequest()
    outcome = _train(assignment, stop)
    os.write(report, outcome.model_dump_json().encode())
    sys.stdout.flush()
    sys.stderr.flush()
    # Skips the interpreter's teardown, in which the threads of collectives can abort a process whose work is done.
    os._exit(outcome.status)


class _StopRequest:
    """Calling it tells whether a stop signal has come; the run then ends after the present step."""

    def __init__(self) -> None:
        self.received = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS | {signal.SIGCHLD})

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        self.received = True

    def __call__(self) -> bool:
        return self.received


def _train(assignment: Assignment, stop: _StopRequest) -> Outcome:
    try:
        from trainer.distributed.parallel_dims import init_distributed
        from trainer.train import TrainingError, train

        try:
            dims = init_distributed(assignment, assignment.config.parallel)
            status, step = train(assignment.config, assignment.out, assignment.start, dims, stop)
        except TrainingError as error:
            full = error.__cause__ is not None and _is_disk_full(error.__cause__)
            return Outcome(status=Status.FAILED, reason=str(error), transient=full)
    except ConfigError as error:
        return Outcome(status=Status.CONFIG, reason=str(error))
    except Exception as error:
        if any(text in str(error) for text in LOST):
            return Outcome(status=Status.FAILED, reason=CONNECTION_LOST, transient=True)
        traceback.print_exc()
        if _is_unanswered(error):
            return Outcome(status=Status.FAILED, reason=UNANSWERED, transient=True)
        if _is_out_of_memory(error):
            return Outcome(status=Status.FAILED, reason=_memory_advice(assignment))
        if _is_disk_full(error):
            reason = f"The disk is full; make room on it. The run ended with {in_words(error)}."
            return Outcome(status=Status.FAILED, reason=reason, transient=True)
        return Outcome(status=Status.FAILED, reason=in_words(error))
    return Outcome(status=status, step=step)


def _is_unanswered(error: Exception) -> bool:
    """Whether another rank has not answered in time. By the message: gloo raises a RuntimeError."""
    said = str(error)
    return "Timed out waiting" in said or "clients joined" in said or "collective operation timeout" in said


def _is_out_of_memory(error: Exception) -> bool:
    """By the message: PyTorch's allocator for CPUs has no exception of its own."""
    return isinstance(error, MemoryError) or any(
        text in str(error).lower() for text in ("out of memory", "can't allocate memory", "cannot allocate memory")
    )


def _is_disk_full(error: BaseException) -> bool:
    """Whether the disk or the quota was full, which may pass. By the message: libraries written in Rust raise no
    OSError for it."""
    return os.strerror(errno.ENOSPC) in str(error) or os.strerror(errno.EDQUOT) in str(error)


def _memory_advice(assignment: Assignment) -> str:
    """Where memory ran out, how much is needed and there, and what would fit."""
    from trainer import hardware

    device = hardware.device(assignment.local_rank)
    memory = hardware.memory(device, assignment.local_world_size)
    where, held = f"rank {assignment.rank}", 0
    if device.type == "cuda":
        where = f"GPU {hardware.gpu_number(assignment.local_rank)}"
        held = hardware.held_by_others(device)
    if assignment.world_size > assignment.local_world_size:
        where += f" of {socket.gethostname()}"
    others = f" Other programs hold {check.readable(held)} of the GPU's memory." if held > CONTEXT else ""
    there = memory - max(0, held - CONTEXT)
    kind: Device = "cuda" if device.type == "cuda" else "cpu"
    needs = check.what_fits(assignment.config, assignment.world_size, there, kind, others_known=bool(others))
    return f"Out of memory on {where}: {needs[0].lower()}{needs[1:]}{others}"


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies. Exits at once where the parent died before that."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(Status.FAILED)


if __name__ == "__main__":
    main()
