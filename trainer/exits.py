"""How a command exits: one sentence on standard error, an exit status, and `outcome.json`. Imports no torch."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from trainer.contract import OUTCOME_FILE, Event, Outcome, Status
from trainer.events import append_event
from trainer.files import write_atomically


class FailedError(Exception):
    """A command cannot do what it was asked, though the configuration is right; the text is one sentence."""


def fail(status: Status, reason: str) -> NoReturn:
    """Print the reason on standard error and exit with the status."""
    print(reason, file=sys.stderr)
    raise typer.Exit(status)


def finish(out: Path, outcome: Outcome, writes: bool = True) -> NoReturn:
    """Exit with the outcome's status. Where `writes`, which is so on one host of a run, append the last event and
    write `outcome.json` before."""
    events = {Status.DONE: Event.FINISHED, Status.STOPPED: Event.STOPPED}
    event = events.get(outcome.status, Event.FAILED)
    # A full disk may be what ended the run; the exit status tells of it all the same.
    with contextlib.suppress(OSError):
        if writes:
            append_event(out, event, **outcome.model_dump(mode="json"))
            write_atomically(out / OUTCOME_FILE, outcome.model_dump_json() + "\n")
    if event == Event.FAILED:
        fail(outcome.status, outcome.reason or "")
    raise typer.Exit(outcome.status)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt within at SIGTERM or SIGINT, and turn whatever error follows from it into that."""
    stopped = False

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Exception:
        # An interrupted import may fail with another error.
        if stopped:
            raise KeyboardInterrupt from None
        raise
    finally:
        if stopped:
            # CPython ends a process by SIGINT where an interrupt, even a caught one, came out of exec() of a text.
            exec("")
        for number, handler in before.items():
            signal.signal(number, handler)
