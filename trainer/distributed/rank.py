"""A rank's process: tied to its parent's life before anything else, its end reported through the pipe."""

import ctypes
import errno
import os
import signal
import sys
import traceback
from types import FrameType

from trainer import check
from trainer.config import ConfigError
from trainer.distributed.ranks import STOP_SIGNALS, Assignment
from trainer.outcome import CONNECTION_LOST, Outcome, Status

PR_SET_PDEATHSIG = 1
# What gloo, NCCL and the store say when a rank at the other end is gone.
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited", "recvValue")


def main() -> None:
    report, assignment = int(sys.argv[1]), Assignment.model_validate_json(sys.argv[2])
    _tie_to(assignment.parent)
    stop = _Stop()
    outcome = _train(assignment, stop)
    os.write(report, outcome.model_dump_json().encode())
    sys.stdout.flush()
    sys.stderr.flush()
    # Past the interpreter's teardown, where the collectives' threads can abort a process that has done its work.
    os._exit(outcome.status)


class _Stop:
    """Becomes true at the first stop signal."""

    def __init__(self) -> None:
        self.asked = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS | {signal.SIGCHLD})

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def _train(assignment: Assignment, stop: _Stop) -> Outcome:
    try:
        from trainer.distributed.parallel_dims import join
        from trainer.train import TrainingError, train

        try:
            place = join(assignment, assignment.config.parallel)
            status, step = train(assignment.config, assignment.out, assignment.start, place, stop)
        except TrainingError as error:
            return Outcome(status=Status.FAILED, reason=str(error))
    except ConfigError as error:
        return Outcome(status=Status.CONFIG, reason=str(error))
    except Exception as error:
        if any(text in str(error) for text in LOST):
            return Outcome(status=Status.FAILED, reason=CONNECTION_LOST, transient=True)
        traceback.print_exc()
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
        if _is_out_of_memory(error):
            reason = _advice(assignment)
        return Outcome(status=Status.FAILED, reason=reason, transient=_is_disk_full(error))
    return Outcome(status=status, step=step)


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch's allocator for CPUs has no exception of its own."""
    return isinstance(error, MemoryError) or any(
        text in str(error).lower() for text in ("out of memory", "can't allocate memory", "cannot allocate memory")
    )


def _is_disk_full(error: Exception) -> bool:
    """Whether there was no room to write, which another moment may have; libraries in Rust raise no OSError for it."""
    return os.strerror(errno.ENOSPC) in str(error) or os.strerror(errno.EDQUOT) in str(error)


def _advice(assignment: Assignment) -> str:
    from trainer import hardware

    device = hardware.device(assignment.local_rank)
    memory = hardware.memory(device, assignment.local_ranks)
    return f"Out of memory. {check.what_fits(assignment.config, assignment.ranks, memory)}"


def _tie_to(parent: int) -> None:
    """Die when the parent does. If it was gone before the tie held, leave now."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(Status.FAILED)


if __name__ == "__main__":
    main()
