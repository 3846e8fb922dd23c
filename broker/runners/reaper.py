"""The reaper of what nobody supervises any more: stray jobs, and what no carrier has told.

A stray job runs on in its runner's queue though its attempt is over, because its supervisor died and no other came.
"""

from itertools import islice

import structlog
from sqlmodel import col, select

from broker.allocations.pools import Pool
from broker.fence import tell
from broker.runners import carrier, registry
from broker.runners.base import UnavailableError
from broker.runs.attempts import OPEN, Attempt
from projects.db.database import Database
from projects.settings import Settings

EVERY_SECONDS = 30.0

log = structlog.get_logger()


def end_strays(settings: Settings, db: Database, pool_id: int) -> int:
    """Cancel every living job of this installation whose attempt is not open, where the jobs of a pool are; returns how
    many.

    Runs on a host that serves the pool, which can reach its jobs. A runner that is unavailable is asked again another
    time. A trainer of a host that nobody supervises ends with its lease; a job would go on to its time limit.
    """
    with db.read() as session:
        pool = session.get_one(Pool, pool_id)
        runner, options = registry.named(pool.runner), pool.runner_options
    try:
        # The jobs are read before the attempts, so that a job whose attempt has just begun is not taken for a stray.
        living = runner.living(settings.runs_dir, options)
        if not living:
            return 0
        with db.read() as session:
            good = {
                (run, token)
                for run, token in session.execute(
                    select(Attempt.run_id, Attempt.token).where(col(Attempt.state).in_(OPEN))
                )
            }
        strays = [job for job in living if (job.run_id, job.token) not in good]
        for job in strays:
            log.warning("cancelling a stray job", job=job.id, run=job.run_id, token=job.token)
            runner.cancel(job, options)
    except UnavailableError as error:
        log.warning("stray jobs could not be looked for; trying again", why=str(error))
        return 0
    return len(strays)


def tell_uncarried(settings: Settings, db: Database) -> None:
    """Tell the admins, once a day, that the store does not take what runs have left on this disk: a supervisor may have
    gone before its carrier had tried, or have been killed."""
    for trouble in islice(carrier.troubles(settings), 1):
        tell(db, carrier.PART, trouble)
