"""The scheduler: gives up expired attempts, picks queued runs by fair share, preempts, and notifies the workers.

The database is the truth. A decision is written first and sent after; a message that was lost is sent again. Each part
of a round, and each run in it, stands behind a fence: its error is logged and told to the admins, and the rest goes on.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import structlog
from kombu.exceptions import OperationalError
from sqlalchemy import func
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import hosts, pools
from broker.allocations.pools import Pool
from broker.fence import Fence
from broker.publishing import disk, publisher
from broker.reviews import allocation_expiry
from broker.runners import lost_attempts, reaper, registry
from broker.runners.shim import since_boot
from broker.runs import attempts, control, evaluations, inputs, runs, settlement
from broker.runs.attempts import OPEN, Attempt
from broker.runs.kinds.kind import kind_of
from broker.runs.leases import StaleError
from broker.runs.runs import Run
from broker.scheduling import backfill, decisions, host_memory, preemption, snapshot, tasks, usage
from broker.scheduling.backfill import Decision, Limits, Plan, QueueState
from broker.scheduling.decisions import Keeper
from projects import health, policies, projects
from projects.db.columns import utcnow
from projects.db.database import Database, is_away
from projects.errors import ConflictError
from projects.log import Seldom
from projects.projects import Project
from projects.settings import Settings

NOTIFY_AGAIN_SECONDS = 5.0
LOOK_SECONDS = 0.1
"""The pause between two looks for a new run, while the scheduler waits for its next round."""
REMOVE_OLD_SECONDS = 3600.0

log = structlog.get_logger()


def admit(session: Session, decision: Decision, limits: Limits) -> int:
    """Take a run for its devices, in a short transaction of its own. Returns the attempt's token.

    Raises ConflictError where what the plan counted on has meanwhile been taken. Two schedulers may have planned on
    different moments: the pools' rows let one of them admit at a time, so that none of the limits is ever passed.
    """
    session.execute(select(Pool.id).order_by(col(Pool.id)).with_for_update(key_share=True)).all()
    run = runs.load(session, decision.run_id)
    project = session.get_one(Project, run.project_id)
    if not projects.may_compute(project):
        raise ConflictError(f"“{project.title}” is {project.stage}; nothing of it starts.")
    pool = session.get_one(Pool, run.pool_id)
    counted = [(col(Run.project_id) == run.project_id, limits.most_running_a_project, "of its project")]
    counted.append((col(Run.requested_by) == run.requested_by, limits.most_running_a_person, "of who launched it"))
    if registry.named(pool.runner).queue:
        counted.append((col(Run.pool_id) == run.pool_id, pool.most_submitted, "submitted to its pool"))
    for whose, most, words in counted:
        held = col(Attempt.state).in_(OPEN)
        under_way = session.scalar(select(func.count()).join_from(Attempt, Run).where(held, whose)) or 0
        if under_way >= most:
            raise ConflictError(f"{under_way} runs {words} are already under way, the most there may be.")
    host_memory.check(session, run, pool)
    return attempts.admit(session, run.id, decision.devices)


class Scheduler:
    """One round after another; two schedulers at once do no harm, since every write is guarded."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.settings = settings
        self.db = db
        self.fence = Fence(db)
        self.notified: dict[int, tuple[int, float]] = {}
        self.takeovers: dict[tuple[int, int, str], float] = {}
        self.strays_ended_at = time.monotonic()
        self.log_again = Seldom()
        self.was_away = False
        self.expires_from = -math.inf
        self.keeper = Keeper()
        self.newest = 0
        self.old_removed_at = -math.inf

    def run_forever(self) -> None:
        """Go round until the process is ended."""
        while True:
            began = since_boot()
            try:
                self.round()
                health.beat(self.settings, "scheduler")
            except Exception as error:
                self._say(error)
                if is_away(error):
                    self.was_away = True
                    health.beat(self.settings, "scheduler")  # a restart would not bring the database back
            self._pause()
            # A round that hung, or a host that slept, has kept the supervisors from renewing as well.
            self.was_away |= since_boot() - began > self.settings.tick_seconds + self.settings.lease_seconds / 2

    def _pause(self) -> None:
        """Wait for a tick, or until a run is launched; while the database is away, for a tick."""
        until, known = time.monotonic() + self.settings.tick_seconds, self.newest
        while (left := until - time.monotonic()) > 0 and self.newest == known:
            time.sleep(min(left, LOOK_SECONDS))
            with suppress(SQLAlchemyError), self.db.read() as session:
                self.newest = runs.newest_id(session)

    def _say(self, error: Exception) -> None:
        """Log what ended a round, once a minute while the database is away."""
        if not is_away(error):
            log.error("a round failed; trying again", exc_info=error)
        elif self.log_again.is_due():
            log.warning("the database could not be reached; trying again", error=str(getattr(error, "orig", error)))

    def round(self) -> None:
        """Give up expired attempts and hopeless runs, admit runs that fit, and notify the workers of all that waits.

        Raises only what says that the database is away.
        """
        with self.fence("giving up lost attempts"):
            self._expire()
        with self.fence("ending runs that were cancelled before they began"):
            self._withdraw_cancelled()
        with self.fence("updating the allocations"):
            allocation_expiry.update_all(self.db, utcnow(), self.fence)
        with self.fence("adding up the usage"):
            self._add_usage()
        with self.fence("queueing runs that can be paid again"):
            self._revive()
        with self.fence("queueing evaluations of checkpoints"):
            self._evaluate()
        with self.fence("planning"):
            self._start_runs()
        with self.fence("notifying the workers"):
            self._notify()
        if time.monotonic() - self.old_removed_at > REMOVE_OLD_SECONDS:
            self.old_removed_at = time.monotonic()
            with self.fence("removing old decisions"):
                self._remove_old_decisions()
        if time.monotonic() - self.strays_ended_at > reaper.EVERY_SECONDS:
            self.strays_ended_at = time.monotonic()
            self._notify_reapers()

    def _expire(self) -> None:
        """Give up lost attempts; after an outage of the database, supervisors first have a lease's time to renew."""
        if self.was_away:
            self.db.answers()
            self.was_away = False
            self.expires_from = since_boot() + self.settings.lease_seconds
        if since_boot() >= self.expires_from:
            lost_attempts.expire(self.settings, self.db, self.fence)

    def _start_runs(self) -> None:
        """Plan, pause the runs that nobody can pay for, let runs make way, and admit those that start now."""
        with self.db.read() as session:
            state, low = snapshot.load(session, fence=self.fence), disk.recorded_low(session)
        with self.fence("keeping what the decision is made by"):
            self.keeper.keep(self.db, state, low=low)
        planned = self._plan(state)
        for run_id in planned.refusals:
            self._try("pausing a run without funds", run_id, partial(control.pause_unfunded, run_id=run_id))
        if not self._has_room():
            return
        with self.fence("preempting"):
            if chosen := preemption.preemptions(state, planned):
                planned = self._plan(preemption.asked(state, chosen))
            for one in chosen:
                self._try(
                    "preempting for a run",
                    one.for_run,
                    partial(control.preempt, run_ids=one.run_ids, for_run=one.for_run),
                )
        for decision in planned.starts:
            with self.fence("admitting a run", run=decision.run_id):
                self._admit(decision, state.limits)

    def _plan(self, state: QueueState) -> Plan:
        """The plan of all pools; where one pool cannot be planned, that of the others, each by itself."""
        try:
            return backfill.plan(state, whole=False)
        except Exception as error:
            log.error("the pools cannot be planned together; planning each by itself", exc_info=error)
        plans = []
        for pool in state.pools:
            with self.fence(f"planning the pool “{pool.name}”"):
                waiting = [run for run in state.waiting if run.pool_id == pool.id]
                plans.append(backfill.plan(replace(state, pools=[pool], waiting=waiting), whole=False))
        return Plan(
            starts=[start for plan in plans for start in plan.starts],
            queues={pool: queue for plan in plans for pool, queue in plan.queues.items()},
            refusals={run: why for plan in plans for run, why in plan.refusals.items()},
        )

    def _has_room(self) -> bool:
        """Whether the disk has room for runs to start; makes room where it has not."""
        try:
            room = disk.admits(self.settings, self.db)
            if not room:
                disk.tidy(self.settings, self.db)
        except OSError as error:
            log.warning("the disk could not be used; trying again", error=str(error))
            return False
        return room

    def _withdraw_cancelled(self) -> None:
        with self.db.read() as session:
            candidates = attempts.cancelled_unclaimed(session)
        for attempt in candidates:
            end = partial(settlement.withdraw, run_id=attempt.run_id, token=attempt.token)
            self._try("ending a cancelled run", attempt.run_id, end)

    def _add_usage(self) -> None:
        with self.db.read() as session:
            if not usage.any_ended(session):
                return
        with self.db.write() as session:
            usage.add_ended(session)

    def _remove_old_decisions(self) -> None:
        with self.db.read() as session:
            days = policies.current(session).decision_days
        decisions.remove_old(self.db, days)

    def _revive(self) -> None:
        """Queue again what was paused because nobody could pay for it, where somebody can."""
        with self.db.read() as session:
            revivable = control.revivable(session)
        for run_id in revivable:
            self._try("queueing a run that can be paid again", run_id, partial(control.revive, run_id=run_id))

    def _evaluate(self) -> None:
        """Queue the evaluations that were ordered with a run, of the checkpoints that have come."""
        with self.db.read() as session:
            due = evaluations.due(session)
        for run_id in due:
            self._try("queueing an evaluation", run_id, partial(evaluations.queue_due, run_id=run_id))

    def _try(self, part: str, run_id: int, change: Callable[[Session], object]) -> None:
        """Change a run in a transaction of its own, fenced; a change that comes too late is left out."""
        with self.fence(part, run=run_id), suppress(ConflictError, StaleError), self.db.write() as session:
            change(session)

    def _admit(self, decision: Decision, limits: Limits) -> None:
        try:
            with self.db.write() as session:
                token = admit(session, decision, limits)
        except ConflictError as conflict:
            log.info("not admitted", run=decision.run_id, why=str(conflict))
        else:
            log.info("admitted", run=decision.run_id, token=token, devices=decision.devices)

    def _notify(self) -> None:
        with self.db.read() as session:
            unclaimed = attempts.unclaimed(session, since_seconds=NOTIFY_AGAIN_SECONDS)
            unpublished = publisher.waiting(session)
            unsupervised = attempts.unsupervised(session, lease_seconds=self.settings.lease_seconds)
            adoptable = attempts.adoptable(session, lease_seconds=self.settings.lease_seconds)
            named = hosts.named_pools(session)
            queues = {pool.id: tasks.pool_queue(pool.name) for pool in pools.every(session) if pool.id in named}
            places = attempts.last_hosts(session, [run_id for run_id, _ in unpublished], named)
            sampling = {} if self.settings.store else self._places_of_inputs(session, unclaimed)
            if self.settings.store:  # any publisher reads from the store what lies on a host that is away
                there = {host.name for host in hosts.every(session) if not host.is_away}
                places = {run_id: host for run_id, host in places.items() if host in there}
        try:
            asked = [(one, tasks.inbox(one.host)) for one in unsupervised]
            if since_boot() >= self.expires_from:
                asked += [(one, queues.get(one.pool_id, tasks.ANY_POOL)) for one in adoptable]
            self._notify_takeovers(asked)
            for attempt in unclaimed:
                where = sampling.get(attempt.run_id) or queues.get(attempt.pool_id, tasks.ANY_POOL)
                tasks.notify_start(attempt.run_id, attempt.token, where)
                with self.db.write() as session:
                    attempts.notified(session, attempt.run_id, attempt.token)
            self._notify_publishers(unpublished, places)
        except (OperationalError, OSError) as error:
            if self.log_again.is_due("queue"):
                log.warning("the queue could not be reached; trying again", error=str(error))

    @staticmethod
    def _places_of_inputs(session: Session, unclaimed: Sequence[Attempt]) -> Mapping[int, str]:
        """The inbox of the host that has the checkpoints which a run is about on its disk, where that is there and
        serves the pool."""
        found: dict[int, str] = {}
        waiting = [(one, runs.load(session, one.run_id)) for one in unclaimed]
        about_others = [(one, run) for one, run in waiting if not kind_of(run).trains]
        known = hosts.every(session) if about_others else []
        for one, run in about_others:
            host = inputs.host(session, run)
            serving = hosts.of_pool(known, session.get_one(Pool, one.pool_id))
            if any(other.name == host and not (other.is_away or other.is_drained) for other in serving):
                found[one.run_id] = tasks.inbox(host)
        return found

    def _notify_reapers(self) -> None:
        """Ask a worker of each pool to end its stray jobs, where a job may outlive the lease of its attempt."""
        with self.fence("ending stray jobs"):
            with self.db.read() as session:
                named = hosts.named_pools(session)
                every = [(pool.id, pool.name, pool.runner) for pool in pools.every(session)]
            for pool_id, name, runner in every:
                with self.fence(f"asking for stray jobs of the pool “{name}”"):
                    if registry.named(runner).bound_to_host:
                        continue
                    try:
                        tasks.notify_reaper(pool_id, tasks.pool_queue(name) if pool_id in named else tasks.ANY_POOL)
                    except (OperationalError, OSError):
                        return  # the queue is away for the other pools as well

    def _notify_takeovers(self, asked: Sequence[tuple[Attempt, str]]) -> None:
        """Ask in a queue for another supervisor, and again only after it must have come: each message starts a process.

        A queue that was asked before its host was lost says nothing of another one.
        """
        before, self.takeovers = self.takeovers, {}
        for attempt, queue in asked:
            key = (attempt.run_id, attempt.token, queue)
            at = before.get(key, -math.inf)
            if time.monotonic() - at > self.settings.lease_seconds / 3:
                tasks.notify_takeover(*key)
                at = time.monotonic()
            self.takeovers[key] = at

    def _notify_publishers(self, unpublished: Sequence[tuple[int, int]], places: Mapping[int, str]) -> None:
        """Notify at once of a checkpoint that has just become the next, and now and then of one that stays the next.

        `places` has the host of each run whose checkpoints lie on that host alone.
        """
        before, self.notified = self.notified, {}
        for run_id, step in unpublished:
            known, at = before.get(run_id, (-1, 0.0))
            if step != known or time.monotonic() - at > NOTIFY_AGAIN_SECONDS:
                place = places.get(run_id)
                tasks.notify_publish(run_id, tasks.PUBLISH if place is None else tasks.publish_queue(place))
                at = time.monotonic()
            self.notified[run_id] = (step, at)
