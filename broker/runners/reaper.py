"""The reaper of what nobody supervises any more: attempts whose lease has run out, and stray jobs.

A stray job runs on in Slurm though its attempt is over, because its supervisor died and no other came.
"""

from contextlib import suppress

import structlog
from sqlalchemy import exists
from sqlmodel import col, select

from broker.allocations.pools import Launcher, Pool
from broker.runners import slurm
from broker.runs import attempts, settlement
from broker.runs.attempts import OPEN, Attempt
from projects.db.database import Database
from projects.errors import ConflictError
from projects.settings import Settings

EVERY_SECONDS = 30.0

log = structlog.get_logger()


def expire(settings: Settings, db: Database) -> None:
    """Give up every attempt whose lease has run out: its supervisor, or the host of both, was lost."""
    with db.read() as session:
        candidates = attempts.expired(session)
    for attempt in candidates:
        expired = False
        with suppress(ConflictError), db.write() as session:
            expired = settlement.expire(
                session, attempt, grace_seconds=settings.stop_grace_seconds, most=settings.max_attempts
            )
        if expired:
            log.warning("an attempt was lost", run=attempt.run_id, token=attempt.token)


def end_strays(settings: Settings, db: Database) -> int:
    """Cancel every living job of this installation whose attempt is not open; how many.

    A local trainer that nobody supervises ends with its lease; a job would go on to its time limit. Does
    nothing where no pool is Slurm's, and tries again another time where Slurm is away.
    """
    with db.read() as session:
        if not session.scalar(select(exists().where(col(Pool.launcher) == Launcher.SLURM))):
            return 0
    try:
        # First the jobs and then the attempts: a job that is in neither answer cannot be taken for a stray one.
        living = [job for job in slurm.jobs(settings.runs_dir) if job.state not in slurm.ENDED]
        with db.read() as session:
            good = {
                (run, token)
                for run, token in session.execute(
                    select(Attempt.run_id, Attempt.token).where(col(Attempt.state).in_(OPEN))
                )
            }
        strays = [job for job in living if (job.run_id, job.token) not in good and job.state != "COMPLETING"]
        for job in strays:
            log.warning("cancelling a stray job", job=job.number, run=job.run_id, token=job.token)
            slurm.cancel(job)
    except slurm.AwayError as away:
        log.warning("stray jobs could not be looked for; trying again", why=str(away))
        return 0
    return len(strays)
