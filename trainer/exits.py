"""How a command exits: one sentence on standard error, an exit status, and `outcome.json`. Imports no torch."""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from trainer.contract import OUTCOME_FILE, Event, Outcome, Status
from trainer.events import append_event
from trainer.files import write_atomically
from trainer.schema import ConfigError, as_unicode

PACKAGE = Path(__file__).parent


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
def one_sentence(interrupts: bool = True) -> Iterator[None]:
    """Turn whatever error ends a command into one sentence on standard error and the exit status that goes with it.
    Where `interrupts`, a stop signal ends it with Status.STOPPED and no sentence."""
    if not sys.stderr.isatty():
        # Turns off the bars of libraries, which read the variable when they are imported; ours look at the terminal.
        os.environ.setdefault("TQDM_DISABLE", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name of a file that is no text in the terminal's encoding is still printed.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with interruptible() if interrupts else contextlib.nullcontext():
            yield
            sys.stdout.flush()
    except (typer.Exit, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the panics of libraries in Rust are no Exception
        outcome = outcome_of(error)
        _end_output()
        if outcome.reason:
            fail(outcome.status, outcome.reason)
        raise typer.Exit(outcome.status) from None


def _end_output() -> None:
    """Let go of a standard output that takes no more, such as one on a full disk: Python would try again at its end,
    and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of a command that an error, or a stop signal as KeyboardInterrupt, has ended; its reason is one
    sentence."""
    match error:
        case KeyboardInterrupt():
            return Outcome(status=Status.STOPPED)
        case ConfigError():
            return Outcome(status=Status.CONFIG, reason=_line(str(error)))
        case FailedError():
            return Outcome(status=Status.FAILED, reason=_line(str(error)))
        case MemoryError():
            return Outcome(status=Status.FAILED, reason="The memory of this machine is used up; give the command more.")
        case OSError():
            what = as_unicode(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else "A file"
            reason = f"{_line(what)} cannot be used ({_line(error.strerror or str(error))}); see to it and try again."
            return Outcome(status=Status.FAILED, reason=reason)
    return Outcome(status=Status.FAILED, reason=in_words(error))


def in_words(error: BaseException) -> str:
    """An error that nobody expected: its kind, the first line of its message, and the file and line of the trainer that
    it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if PACKAGE in Path(frame.filename).parents] or frames
    place = ""
    if ours:
        file = Path(ours[-1].filename)
        name = file.relative_to(PACKAGE.parent) if PACKAGE in file.parents else file.name
        place = f" ({name}, line {ours[-1].lineno})"
    return f"{type(error).__name__}: {_line(str(error)) or 'no message'}{place}"


def _line(message: str) -> str:
    """The first line of a message."""
    return as_unicode(message).strip().partition("\n")[0]


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
