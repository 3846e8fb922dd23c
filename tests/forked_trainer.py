"""Trainers that are forked from a process that has imported all of it, and that fork their ranks in their turn.

A rank is a process of its own, with all that its parent has started it with, but without the seconds of CPU that the
imports of PyTorch and DeepSpeed would take.
"""

import gc
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import deepspeed.runtime.pipe.engine
import deepspeed.runtime.zero.muon.original_muon
import torch

import trainer.__main__
import trainer.distributed.rank
import trainer.engine.distributed
import trainer.engine.local
import trainer.train
from tests import forked

IMPORTED = (
    deepspeed.runtime.pipe.engine,
    deepspeed.runtime.zero.muon.original_muon,
    trainer.__main__,
    trainer.distributed.rank,
    trainer.engine.distributed,
    trainer.engine.local,
    trainer.train,
)
RANK = [sys.executable, "-m", "trainer.distributed.rank"]

# A collection of garbage in a forked process would look at all of it, and so copy the memory that they share.
gc.freeze()


class Popen(subprocess.Popen[Any]):
    """`subprocess.Popen`, but a rank begins in the copy of this process, where a Python would begin anew."""

    def __init__(
        self, args: Sequence[str], *, env: Mapping[str, str], pass_fds: Sequence[int] = (), **others: Any
    ) -> None:
        def begin() -> None:
            if args[:3] == RANK:
                _become_rank(args[3:], env, pass_fds)

        super().__init__(args, env=env, pass_fds=pass_fds, preexec_fn=begin, **others)


def main() -> None:
    """Be `python -m trainer`, with ranks that are forked."""
    with mock.patch.object(subprocess, "Popen", Popen):
        forked.become("trainer")


def _become_rank(arguments: Sequence[str], environment: Mapping[str, str], kept: Sequence[int]) -> None:
    """Become what `python -m trainer.distributed.rank` is, and end with it."""
    try:
        # With the others closes the one through which the parent would hear that no program has begun.
        opened = sorted({0, 1, 2, *kept})
        for low, high in zip(opened, [*opened[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as a Python that begins does
            signal.signal(number, signal.SIG_IGN)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
        sys.stdin, sys.argv = os.fdopen(0, closefd=False), ["-m", *arguments]
        forked.become(RANK[2])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(1)
