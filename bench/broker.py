"""How long the scheduler thinks, by the length of its queue: `make bench-broker`.

A round loads the queue's state from the database and plans on it; both are timed, apart and together, and the commits
that follow are not. As machines differ, the goals are ratios: to the time that Python takes to load the same rows by
raw SQL and sort them, in turn with the rounds, and to the time of a tenth of the queue. The last line is one JSON
object of values and goals; the status is 1 where a goal is missed.
"""

import random
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert
from sqlalchemy.orm import Session
from sqlmodel import select

from bench.goals import Goal, as_json
from broker.allocations.allocations import Allocation, AllocationState
from broker.allocations.hosts import Host, HostPool
from broker.allocations.ledger import Balance, LedgerRow, Movement
from broker.allocations.pools import Pool
from broker.runs.attempts import Attempt, AttemptState
from broker.runs.runs import Run, RunState
from broker.scheduling import backfill, snapshot
from broker.scheduling.usage import FairUsage
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.people import Person
from projects.projects import Project, Stage

POOLS = 64
HOSTS = 50
GPUS = 64
PROJECTS = 200
ENDED_A_PROJECT = 25
GANG = 8
GANGS = [1, 1, 2, 4, GANG, 16, 32, GPUS]
HOUR = 3600
HOURS = 10**12
LIMITS = [HOUR // 4, HOUR // 2, HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR, 72 * HOUR]
MOST_TIMES_RAW = 3.0
"""The most that a round may take of 1,000 queued runs, in times of raw SQL and sorting."""
MOST_GROWTH = 12.0
"""The most that a round of 10,000 queued runs may take, in rounds of 1,000."""

Row = dict[str, Any]


RAW = (
    "SELECT id, name, gpus, runner, price_weight, most_submitted, preempt_after, gpu_type, host_memory_gib FROM pools "
    "ORDER BY id",
    "SELECT a.run_id, a.pool_id, a.devices, a.reserved, a.charged - a.refunded, a.charged_at_checkpoint, a.state, "
    "a.lease_until, l.at, r.project_id, r.requested_by, r.allocation_id, r.kind, r.gpus, r.host_memory, r.time_limit, "
    "r.used, r.step, r.fork_step, r.total_steps, r.queued_at, r.ended_at, r.preempted_at, r.preempted_for, r.stops_as, "
    "r.state FROM attempts a JOIN runs r ON r.id = a.run_id JOIN ledger l "
    "ON l.run_id = a.run_id AND l.token = a.token AND l.movement = 'reserve' AND l.period = 0 WHERE a.counted = FALSE",
    "SELECT a.id, a.until, b.granted, b.reserved, b.spent FROM allocations a LEFT JOIN balances b "
    "ON b.allocation_id = a.id WHERE a.id IN (SELECT allocation_id FROM runs WHERE state = 'queued')",
    "SELECT name FROM hosts WHERE drained_at IS NOT NULL LIMIT 1",
    "SELECT host, pool_id FROM host_pools ORDER BY pool_id",
    "SELECT project_id, share FROM project_shares",
    "SELECT s.grant_id, g.sponsor, s.share FROM sponsor_shares s JOIN grants g ON g.id = s.grant_id "
    "ORDER BY s.grant_id",
    "SELECT r.pool_id, r.project_id, r.gpus, r.begins_at, r.ends_at FROM reservations r JOIN projects p "
    "ON p.id = r.project_id WHERE r.cancelled_at IS NULL AND r.ends_at > CURRENT_TIMESTAMP AND p.stage NOT IN "
    "('completed', 'stopped') ORDER BY r.id",
    "SELECT name, value FROM policies",
)
"""What a round reads beside the queued runs and the use of projects: the same columns of the same rows."""
RAW_USE = "SELECT project_id, seconds, at FROM fair_usage"
RAW_QUEUED = (
    "SELECT r.id, r.project_id, r.requested_by, r.allocation_id, r.pool_id, r.gpus, r.time_limit - r.used, "
    "r.queued_at, r.not_before, p.stage, r.preempted_at, r.preempted_for, r.host_memory FROM runs r "
    "JOIN projects p ON p.id = r.project_id WHERE r.state = 'queued'"
)


class Times(NamedTuple):
    """Seconds of one round, those of them by the processor's clock, and the runs it would have started.

    `raw` are the seconds that raw SQL and sorting took beside it.
    """

    load: float
    plan: float
    cpu: float
    starts: int
    raw: float

    @property
    def both(self) -> float:
        return self.load + self.plan


def main(
    sizes: Annotated[str, typer.Option(help="Lengths of the queue, with commas.")] = "100,1000,3000,10000",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds at each length.")] = 31,
    database: Annotated[str, typer.Option(help="URL of an empty database; SQLite in a file without it.")] = "",
) -> None:
    """Time rounds of the scheduler at each length of the queue, and hold their ratios against the goals."""
    goals: list[Goal] = []
    both: dict[int, float] = {}
    table = Table("queued runs", "load", "plan", "both", "processor", "raw SQL", "slowest", "of raw", "start")
    with tempfile.TemporaryDirectory() as folder:
        db = Database(database or f"sqlite:///{Path(folder) / 'stoa.db'}")
        db.migrate()
        with db.write() as session:
            furnish(session)
        for size in map(int, sizes.split(",")):
            with db.write() as session:
                queue_up(session, size)
            once(db)
            times = [once(db) for _ in range(rounds)]
            medians = {
                what: statistics.median(getattr(one, what) for one in times)
                for what in ("load", "plan", "both", "cpu", "raw")
            }
            ratio = statistics.median(one.both / one.raw for one in times)
            both[size] = medians["both"]
            shown = [f"{1000 * seconds:.1f} ms" for seconds in (*medians.values(), max(one.both for one in times))]
            table.add_row(f"{size:,}", *shown, f"{ratio:.2f}", str(times[0].starts))
            most = MOST_TIMES_RAW if size == 1000 else None
            goals.append(Goal(f"{size}: seconds to load", medians["load"]))
            goals.append(Goal(f"{size}: seconds to plan", medians["plan"]))
            goals.append(Goal(f"{size}: seconds to load and plan", medians["both"]))
            goals.append(Goal(f"{size}: seconds of the processor", medians["cpu"]))
            goals.append(Goal(f"{size}: times of raw SQL and sorting", ratio, most=most))
        db.close()
    if 1000 in both and 10_000 in both:
        goals.append(Goal("10,000 runs in times of 1,000", both[10_000] / both[1000], most=MOST_GROWTH))
    Console().print(table)
    print(as_json(goals))
    raise typer.Exit(any(goal.missed for goal in goals))


def once(db: Database) -> Times:
    """One round's thinking, and raw SQL and sorting beside it."""
    with db.read() as session:
        began = time.perf_counter()
        raw(session)
        without = time.perf_counter() - began
    with db.read() as session:
        began, cpu = time.perf_counter(), time.process_time()
        state = snapshot.load(session)
        loaded = time.perf_counter()
        decided = backfill.plan(state, whole=False)
        planned, used = time.perf_counter(), time.process_time() - cpu
    return Times(loaded - began, planned - loaded, used, len(decided.starts), without)


def raw(session: Session) -> list[Any]:
    """The queued runs in an order by use and age, by the driver alone, with all else that a round reads."""
    cursor = session.connection().connection.cursor()
    for query in RAW:
        cursor.execute(query)
        cursor.fetchall()
    cursor.execute(RAW_USE)
    use = {project_id: seconds for project_id, seconds, _ in cursor.fetchall()}
    cursor.execute(RAW_QUEUED)
    return sorted(cursor.fetchall(), key=lambda run: (use[run[1]], run[7], run[0]))


def furnish(session: Session) -> None:
    """Pools three quarters in use, projects with an allocation on every pool, and a history that fair-share reads.

    Each run of the last weeks was admitted, charged ten times and given back in part, and is part of the sums of use.
    """
    chance, now = random.Random(7), utcnow()
    people = [{"id": one, "discord_id": str(one), "name": f"P{one}"} for one in range(1, 2 * PROJECTS + 1)]
    session.execute(insert(Person), people)
    session.execute(
        insert(Pool), [{"id": one, "name": f"pool-{one}", "gpu_type": "H200", "gpus": GPUS} for one in pools()]
    )
    session.execute(insert(Host), [{"name": f"host-{one}", "facts": {}, "seen_at": now} for one in range(1, HOSTS + 1)])
    served = [{"host": f"host-{one}", "pool_id": one} for one in range(1, min(HOSTS, POOLS) + 1)]
    session.execute(insert(HostPool), served)
    about = dict.fromkeys(("question", "why", "needs", "goal", "plan", "compute", "release", "learnt"), "")
    projects = [
        {"id": one, "request_id": str(one), "title": f"Project {one}", "stage": Stage.ACTIVE, "lead_id": one} | about
        for one in range(1, PROJECTS + 1)
    ]
    session.execute(insert(Project), projects)
    allocations = [allocation(project, pool) for project in range(1, PROJECTS + 1) for pool in pools()]
    session.execute(insert(Allocation), allocations)
    balances = [{"allocation_id": row["id"], "granted": HOURS, "reserved": 0, "spent": 0} for row in allocations]
    session.execute(insert(Balance), balances)
    used = {"seconds": 1e6, "at": now - timedelta(days=1)}
    session.execute(insert(FairUsage), [used | {"project_id": one} for one in range(1, PROJECTS + 1)])
    runs, attempts, ledger = list[Row](), list[Row](), list[Row]()
    ended = PROJECTS * ENDED_A_PROJECT
    for number in range(1, ended + POOLS * GPUS * 3 // 4 // GANG + 1):
        over = number <= ended
        pool = 1 + number % POOLS
        run = new_run(chance, number, RunState.FINISHED if over else RunState.RUNNING, GANG, pool=pool)
        at = now - timedelta(days=chance.uniform(1, 60)) if over else now - timedelta(minutes=chance.uniform(1, 14))
        cost = GANG * chance.choice(LIMITS)
        first = number // POOLS * GANG % GPUS
        attempt: Row = {"run_id": number, "token": 1}
        moved = attempt | {"allocation_id": run["allocation_id"], "at": at}
        ledger.append(moved | {"movement": Movement.RESERVE, "seconds": cost, "period": 0})
        charge = moved | {"movement": Movement.CHARGE, "seconds": cost // 20}
        ledger += [charge | {"period": period} for period in range(1, 11)]
        if over:
            ledger.append(moved | {"movement": Movement.RELEASE, "seconds": cost // 2, "period": 0})
        state = AttemptState.ENDED if over else AttemptState.RUNNING
        devices = ",".join(map(str, range(first, first + GANG)))
        attempt |= {"state": state, "counted": over, "reserved": cost, "charged": cost // 2, "reason": ""}
        attempts.append(attempt | {"pool_id": pool, "devices": devices})
        runs.append(run)
    for table, rows in ((Run, runs), (Attempt, attempts), (LedgerRow, ledger)):
        session.execute(insert(table), rows)


def queue_up(session: Session, size: int) -> None:
    """Lengthen the queue to `size` runs, of every project and for every pool."""
    chance = random.Random(size)
    queued = len(session.scalars(select(Run.id).where(Run.state == RunState.QUEUED)).all())
    newest = max(session.scalars(select(Run.id)))
    rows = [
        new_run(chance, number, RunState.QUEUED, chance.choice(GANGS), pool=chance.randint(1, POOLS))
        for number in range(newest + 1, newest + 1 + size - queued)
    ]
    session.execute(insert(Run), rows)


def new_run(chance: random.Random, number: int, state: RunState, gpus: int, *, pool: int) -> Row:
    """A run's row, of any project."""
    project = chance.randint(1, PROJECTS)
    about = dict.fromkeys(("reason", "config", "sample"), "")
    return about | {
        "id": number,
        "request_id": str(number),
        "project_id": project,
        "allocation_id": (project - 1) * POOLS + pool,
        "pool_id": pool,
        "requested_by": 2 * project - chance.randint(0, 1),
        "recipe": "demo",
        "overrides": {},
        "total_steps": 1,
        "gpus": gpus,
        "time_limit": chance.choice(LIMITS),
        "state": state,
        "token": 0 if state == RunState.QUEUED else 1,
        "queued_at": utcnow() - timedelta(seconds=chance.uniform(0, 86_400)),
    }


def allocation(project: int, pool: int) -> Row:
    """More hours than all its runs may cost."""
    number = (project - 1) * POOLS + pool
    about = {"id": number, "request_id": str(number), "project_id": project, "pool_id": pool, "requested_by": project}
    until = utcnow() + timedelta(days=30)
    return about | {"seconds": HOURS, "until": until, "justification": "", "state": AllocationState.APPROVED}


def pools() -> range:
    """The pools' ids."""
    return range(1, POOLS + 1)


if __name__ == "__main__":
    typer.run(main)
