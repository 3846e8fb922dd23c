"""Lost attempts, those whose lease has run out as their supervisor, or the host of both, was lost."""

from contextlib import suppress

import structlog

from broker.fence import Fence
from broker.runners import output, processes
from broker.runs import attempts, folders, runs, settlement
from broker.runs.attempts import Attempt
from projects.db.database import Database
from projects.errors import ConflictError
from projects.settings import Settings

log = structlog.get_logger()


def expire(settings: Settings, db: Database, fence: Fence | None = None) -> None:
    """Give up every attempt whose lease has run out: its supervisor, or the host of both, was lost.

    One that a worker of another host may take over is left to it for as long as a lease.
    """
    fence = fence or Fence(db)
    with db.read() as session:
        left = {(one.run_id, one.token) for one in attempts.adoptable(session, lease_seconds=settings.lease_seconds)}
        candidates = [one for one in attempts.expired(session) if (one.run_id, one.token) not in left]
    for attempt in candidates:
        expired, said = False, ""
        with fence("reading what a lost attempt has left", run=attempt.run_id):
            said = _left(settings, db, attempt)
        with fence("giving up a lost attempt", run=attempt.run_id), suppress(ConflictError), db.write() as session:
            expired = settlement.expire(
                session,
                attempt,
                lease_seconds=settings.lease_seconds,
                grace_seconds=settings.stop_grace_seconds,
                most=settings.max_attempts,
                said=said,
            )
        if expired:
            log.warning("an attempt was lost", run=attempt.run_id, token=attempt.token)


def _left(settings: Settings, db: Database, attempt: Attempt) -> str:
    """The sentence that the attempt's trainer has left on this disk, where it failed before its host was lost."""
    with db.read() as session:
        owner = runs.load(session, attempt.run_id).request_id
    if not folders.is_own(settings, attempt.run_id, owner):
        return ""
    return output.left(folders.of_run(settings, attempt.run_id) / f"attempt-{attempt.token}")


def end_lost(settings: Settings, db: Database) -> None:
    """End what still lives on this host of attempts that were given up, so that the next attempt may run anywhere.

    A host that was rebooted, or that reaches the database again, hereby frees the runs that it has lost.
    """
    with db.read() as session:
        lost = attempts.lost_on(session, processes.host(), since_seconds=settings.outage_seconds)
    for attempt in lost:
        process = attempts.process_of(attempt)
        folder = settings.runs_dir / str(attempt.run_id) / f"attempt-{attempt.token}"
        # A supervisor that was cut off as it started its trainer has not told the process.
        found = [process] if process is not None else processes.named_by(str(folder))
        for each in found:
            processes.kill_group(each)
        if all(processes.gone(each) for each in found) and (found or _began_here(attempt)):
            with db.write() as session:
                attempts.surely_over(session, attempt.run_id, attempt.token)


def _began_here(attempt: Attempt) -> bool:
    """Whether all that an attempt of this host may have started would be found here, or ended with an earlier boot."""
    known = attempt.boot_id in ("", processes.boot_id())
    return known or processes.is_of_earlier_boot(attempt.host, attempt.boot_id)
