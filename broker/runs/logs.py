"""A run's attempts and its log: how each attempt ended, and the last lines that the trainer wrote."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import pieces, store
from broker.allocations.pools import Pool
from broker.allocations.units import Unit
from broker.runs import folders, runs
from broker.runs.attempts import Attempt
from broker.runs.runs import Run, RunState
from broker.store import StoreError
from projects import text
from projects.cleaning import without_terminal_codes
from projects.settings import Settings
from trainer.contract import LOG_FILE

log = structlog.get_logger()
MOST_BYTES = 64 * 1024
LONGEST_LINE = 1000
BEFORE = 4 * 1024
"""Bytes read before the part that is shown, so that a terminal's sequence which begins there is known as one."""


@dataclass(frozen=True)
class AttemptSummary:
    """An attempt with its state, the reason of its end, and the GPU-seconds charged and not refunded."""

    token: int
    state: str
    host: str
    spent: int
    reason: str


@dataclass(frozen=True)
class Log:
    """A run's attempts, the oldest first.

    `lines` are the last lines of the newest log; None if no log is on this host or in the store. `store` says so where
    the store does not answer.
    """

    run_id: int
    unit: Unit
    attempts: Sequence[AttemptSummary]
    lines: Sequence[str] | None
    of_attempt: int = 0
    store: str = ""


def read(session: Session, settings: Settings, run_id: int) -> Log:
    """The attempts and the log of a run; raises NotFoundError. The log is looked for in this host's home folder, and
    then in the store."""
    run = runs.load(session, run_id)
    unit = session.get_one(Pool, run.pool_id).unit
    rows = session.scalars(select(Attempt).where(Attempt.run_id == run_id).order_by(col(Attempt.token))).all()
    attempts = [
        AttemptSummary(row.token, row.state, row.host, row.charged - row.refunded, _reason(session, run, row))
        for row in rows
    ]
    mine = folders.is_own(settings, run_id, run.request_id)
    folder = folders.of_run(settings, run_id)
    try:
        there = store.of(settings)
        for attempt in reversed(attempts):
            tail = _last_bytes(folder / f"attempt-{attempt.token}" / LOG_FILE) if mine else None
            home = str(settings.home)
            if tail is None and there is not None:
                carried = store.attempt_folder(run_id, run.request_id, attempt.token)
                tail = pieces.tail(there, f"{carried}/{LOG_FILE}", MOST_BYTES + BEFORE)
                home = pieces.home(there, carried) or home
            if tail is not None:
                return Log(run_id, unit, attempts, _lines(tail, home), attempt.token)
    except StoreError as error:
        log.warning("a log could not be read from the store", run=run_id, why=str(error))
        return Log(run_id, unit, attempts, None, store="the store does not answer now")
    return Log(run_id, unit, attempts, None)


def _reason(session: Session, run: Run, attempt: Attempt) -> str:
    """Why the attempt ended; if the run was paused or cancelled by it, who or what requested that."""
    stopped = attempt.token == run.token and run.state in (RunState.PAUSED, RunState.CANCELLED)
    return runs.reason(session, run) if stopped and attempt.reason else attempt.reason


def _last_bytes(path: Path) -> bytes | None:
    """The last bytes of a log, at most those that are shown and BEFORE; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_BYTES - BEFORE))
            return file.read(MOST_BYTES + BEFORE)
    except OSError:
        return None


def _lines(tail: bytes, home: str) -> list[str]:
    """The lines of the end of a log, without terminal codes and without the paths below its host's `home`."""
    before, data = tail[:-MOST_BYTES], tail[-MOST_BYTES:]
    # Lone bytes are kept as such until terminal codes, some of which are single bytes, are gone.
    said = without_terminal_codes((before + data).decode("utf-8", "surrogateescape"))
    said = said.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    lines = said.replace("\r", "\n").replace(home, "…").splitlines()
    if before and len(lines) > 1:
        lines = lines[1:]  # its beginning is not there
    elif before:
        lines = [line[-LONGEST_LINE:] for line in lines]
    shown = [f"{line[: len(line) - len(line.lstrip(' '))]}{text.cleaned(line)}" for line in lines]
    return [line for line in shown if line.strip()]
