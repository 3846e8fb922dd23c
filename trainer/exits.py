"""How a command begins and ends: its folder held alone, stops heard, one sentence and the status that goes with it."""

import contextlib
import fcntl
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from trainer.outcome import Outcome, Status, add_event


class FailedError(Exception):
    """What was asked for cannot be done, through no fault of the configuration; the text is one sentence."""


@contextlib.contextmanager
def hold(out: Path, host: int = 0) -> Iterator[None]:
    """Make the folder and hold it alone, or as one of several hosts that share it, an earlier outcome taken away."""
    if out == Path():
        fail(Status.CONFIG, "--out is empty or the folder you stand in; name a folder of the run's own.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / (f".lock.{host}" if host else ".lock")).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fail(Status.CONFIG, f"Another trainer is at work in {out}; give --out another folder.")
            if host == 0:
                (out / "outcome.json").unlink(missing_ok=True)
            yield
    except OSError as error:
        fail(Status.CONFIG, f"The folder {out} cannot be written ({error.strerror}); give --out another.")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """A stop asked for by a signal raises KeyboardInterrupt within, and comes out as that."""
    stopped = False

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Exception:
        # An import that is interrupted may fail in another way.
        if stopped:
            raise KeyboardInterrupt from None
        raise
    finally:
        if stopped:
            # CPython ends a process by SIGINT where an interrupt, even one caught since, came out of exec() of a text.
            exec("")
        for number, handler in before.items():
            signal.signal(number, handler)


def finish(out: Path, outcome: Outcome, leads: bool = True) -> NoReturn:
    """Leave the last event and the outcome in the folder, unless another host does, and exit with its status."""
    names = {Status.DONE: "finished", Status.STOPPED: "stopped"}
    event = names.get(outcome.status, "failed")
    # A full disk may be what ended the run; the exit status says it all the same.
    with contextlib.suppress(OSError):
        if leads:
            add_event(out, event, **outcome.model_dump(mode="json"))
            outcome.write(out)
    if event == "failed":
        fail(outcome.status, outcome.reason or "")
    raise typer.Exit(outcome.status)


def fail(status: Status, reason: str) -> NoReturn:
    print(reason, file=sys.stderr)
    raise typer.Exit(status)
