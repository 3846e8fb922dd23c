"""Why a run waits: the reason, its position, the factors of its priority, and its expected start.

The answers come from the same plan of the same state that the scheduler decides by.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import hosts, ledger, pools, reservations, sponsor_shares
from broker.allocations.pools import Pool
from broker.allocations.units import Unit, in_hours
from broker.publishing import disk
from broker.runners import registry
from broker.runs import runs
from broker.runs.attempts import Attempt
from broker.runs.runs import Run, RunState
from broker.scheduling import backfill, decisions, fairshare, snapshot
from broker.scheduling.backfill import Funds, Placement, Plan, QueueState, Waiting, WaitReason
from broker.scheduling.fairshare import Groups, Standing
from projects import parse
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError
from projects.projects import Project
from trainer.check import readable

MOST_RESERVATIONS = 3
UNBORN = 0
"""The highest number of a run that has none yet; several have this one and those below it."""


@dataclass(frozen=True)
class Factors:
    """What decides a run's position: its group's standing, its project's in the group, then the run's age in seconds.

    `group` is None on a pool of which no sponsor has set a part aside. `sponsor` is the one whose own the project is
    there, empty for the others.
    """

    project: Standing
    age: float
    group: Standing | None = None
    sponsor: str = ""


@dataclass(frozen=True)
class Why:
    """Why a run is where it is. `position`, of `length`, and `factors` are None unless the run is queued.

    `expected` is the latest start if no other run comes before this one; None if that is unknown. `decided_at` is when
    the scheduler made the decision that is replayed.
    """

    run_id: int
    project: str
    pool: str
    unit: Unit
    gpus: int
    state: RunState
    reason: str
    position: int | None
    length: int
    factors: Factors | None
    expected: datetime | None
    decided_at: datetime | None = None


def why(session: Session, run_id: int) -> Why:
    """Why the run waits, or that it does not wait; raises NotFoundError."""
    run = runs.load(session, run_id)
    refusal = ""
    if run.state == RunState.QUEUED:
        explainer = _Explainer(session, snapshot.load(session))
        for placement in explainer.plan.queues[run.pool_id]:
            if placement.run.id == run_id:
                return _told_of_absence(session, explainer.of(placement), placement, run)
        refusal = explainer.plan.refusals[run_id]
    pool = session.get_one(Pool, run.pool_id)
    return Why(
        run_id=run.id,
        project=_called(session.get_one(Project, run.project_id)),
        pool=pool.name,
        unit=pool.unit,
        gpus=run.gpus,
        state=RunState(run.state),
        reason=f"It cannot start: {refusal}." if refusal else _not_queued(session, run, pool),
        position=None,
        length=0,
        factors=None,
        expected=run.started_at,
    )


def replayed(session: Session, run_id: int, at: datetime) -> Why:
    """Why the run waited at a moment, as `why` answered then: by the decision of the scheduler that was in force.

    Titles are those of today. Raises NotFoundError where no decision from before the moment is kept, and ConflictError
    where the run neither waited nor ran.
    """
    run = runs.load(session, run_id)
    kept = decisions.replay(session, at)
    explainer = _Explainer(session, kept.state, low=kept.low)
    for placements in explainer.plan.queues.values():
        for placement in placements:
            if placement.run.id == run_id:
                return replace(explainer.of(placement), decided_at=kept.decided_at)
    held = next((one for one in kept.state.held if one.run_id == run_id and one.open), None)
    refusal = explainer.plan.refusals.get(run_id, "")
    if held is None and not refusal:
        raise ConflictError(f"Run {run_id} was neither waiting nor running at {at:%F %T} UTC.")
    pool = session.get_one(Pool, run.pool_id if held is None else held.pool_id)
    return Why(
        run_id=run.id,
        project=_called(session.get_one(Project, run.project_id)),
        pool=pool.name,
        unit=pool.unit,
        gpus=run.gpus,
        state=RunState.QUEUED if held is None else RunState.RUNNING,
        reason=f"It cannot start: {refusal}." if held is None else f"It had its {pool.unit.plural} on “{pool.name}”.",
        position=None,
        length=0,
        factors=None,
        expected=None,
        decided_at=kept.decided_at,
    )


def moment(value: str) -> datetime:
    """A moment of the past as typed, in UTC where it says no offset, or the beginning of a day; raises InvalidError."""
    at = parse.moment(value if ":" in value or value.strip().endswith("ago") else f"{value} 00:00", past=True)
    if at > utcnow():
        raise InvalidError(f"{at:%F %T} UTC is in the future; leave the time out to ask about now.")
    return at


def queue(session: Session, pool: str | None = None, *, limit: int = 25) -> list[Why]:
    """The first `limit` runs in the queue of each pool, or of one pool, in order; raises NotFoundError."""
    only = None if pool is None else pools.named(session, pool).id
    explainer = _Explainer(session, snapshot.load(session))
    return [
        explainer.of(placement)
        for pool_id, placements in explainer.plan.queues.items()
        if only in (None, pool_id)
        for placement in placements[:limit]
    ]


def forecast(session: Session, run: Run) -> Why:
    """Where a run that is not queued yet would stand if it were queued now."""
    return forecasts(session, [run])[0]


def forecasts(session: Session, runs: Sequence[Run]) -> list[Why]:
    """Where runs that are not queued yet would stand if they were queued now, in this order."""
    state = snapshot.load(session)
    funds: dict[int, Funds] = {}
    new: dict[int, Waiting] = {}
    for number, run in enumerate(runs, UNBORN + 1 - len(runs)):
        account = ledger.account(session, run.allocation_id)
        funds[run.allocation_id] = Funds(account.left, account.reserved, None)
        new[number] = Waiting(
            id=number,
            project_id=run.project_id,
            person_id=run.requested_by,
            allocation_id=run.allocation_id,
            pool_id=run.pool_id,
            gpus=run.gpus,
            seconds=run.time_limit,
            queued_at=state.now,
            not_before=None,
            memory=run.host_memory,
        )
    state = replace(state, waiting=[*state.waiting, *new.values()], funds=funds | dict(state.funds))
    explainer = _Explainer(session, state)
    placed = {each.run.id: each for queue in explainer.plan.queues.values() for each in queue}
    return [explainer.of(placed[number]) for number in new]


class _Explainer:
    """Explains the runs of a queue by the plan that the scheduler makes of a state; `low` is the disk."""

    def __init__(self, session: Session, state: QueueState, *, low: bool | None = None) -> None:
        self.session = session
        self.state = state
        self.low = disk.recorded_low(session) if low is None else low
        self.plan: Plan = backfill.plan(state)
        self.pools = {pool.id: pool for pool in state.pools}
        self.units = {pool.id: pool.unit for pool in pools.every(session)}
        waiting = {run.project_id for run in state.waiting}
        shared = fairshare.among(waiting | set(state.usage), state.shares)
        self.groups: dict[int, Groups[int]] = {pool.id: state.groups.get(pool.id, Groups()) for pool in state.pools}
        self.standings = {
            pool_id: groups.standings_within(state.usage, shared) for pool_id, groups in self.groups.items()
        }
        aside = sponsor_shares.listed(session) if state.groups else []
        self.sponsors = {one.grant_id: one.sponsor for one in aside}
        projects = session.scalars(select(Project).where(col(Project.id).in_(waiting)))
        self.titles = {project.id: _called(project) for project in projects}

    def of(self, placement: Placement) -> Why:
        run = placement.run
        pool = self.pools[run.pool_id]
        return Why(
            run_id=run.id,
            project=self.titles[run.project_id],
            pool=pool.name,
            unit=self.units[pool.id],
            gpus=run.gpus,
            state=RunState.QUEUED,
            reason=f"{self._preempted(run)}{self._reason(placement)}{self._made_room(run)}",
            position=placement.position,
            length=len(self.plan.queues[run.pool_id]),
            factors=self._factors(run),
            # When the runner's own queue starts what Stoa has submitted, Stoa does not know.
            expected=None if pool.queue or self.low else self.plan.expected(placement, self.state.now),
        )

    def _factors(self, run: Waiting) -> Factors:
        project, age = self.standings[run.pool_id][run.project_id], (self.state.now - run.queued_at).total_seconds()
        groups = self.groups[run.pool_id]
        if run.pool_id not in self.state.groups:
            return Factors(project, age)
        group = groups.group(run.project_id)
        return Factors(project, age, groups.standings()[group], self.sponsors.get(group, ""))

    def _reserved(self, run: Waiting) -> str:
        """The reservations of other projects that the run would overlap if it started now."""
        ends_at = self.state.now + timedelta(seconds=run.seconds)
        said = [
            f"{self.units[run.pool_id].count(one.gpus)} of pool {self.pools[run.pool_id].name} "
            f"{'are' if one.gpus > 1 else 'is'} reserved for project P{one.project_id} "
            f"{reservations.period(one.begins_at, one.ends_at)}"
            for one in self.state.reserved
            if one.pool_id == run.pool_id and one.project_id != run.project_id and one.begins_at < ends_at
        ]
        return f"{'; '.join(said[:MOST_RESERVATIONS])}."

    def _preempted(self, run: Waiting) -> str:
        """The sentence that the run was preempted, and for which run; empty for a run that was not."""
        if run.preempted_at is None or run.preempted_for is None:
            return ""
        other = self.session.get_one(Run, run.preempted_for)
        return f"Preempted for run {other.id} of project P{other.project_id} at {run.preempted_at:%F %H:%M} UTC. "

    def _made_room(self, run: Waiting) -> str:
        """The sentence that names the runs that make way for this one; empty if none does."""
        found = [one.run_id for one in self.state.held if one.makes_way_for == run.id]
        verb = "make way" if len(found) > 1 else "makes way"
        return f" Run {' and run '.join(map(str, found))} {verb} for it, after a checkpoint." if found else ""

    def _reason(self, placement: Placement) -> str:
        run, pool = placement.run, self.pools[placement.run.pool_id]
        unit = self.units[pool.id]
        limits = self.state.limits
        match placement.waits_for:
            case None if self.low:
                return "The disk is nearly full: no run starts until there is room."
            case None:
                return "Nothing holds it up."
            case WaitReason.PAUSED:
                return "Its project is paused: nothing of it starts before its lead resumes the project."
            case WaitReason.DRAINED:
                return pool.drained
            case WaitReason.HOURS:
                return (
                    f"Its allocation's other runs hold the hours: it may cost {unit.hours(run.cost)}, and "
                    f"{in_hours(placement.free)} are not promised to them."
                )
            case WaitReason.EARLIER_ATTEMPT:
                return f"Not before {run.not_before:%F %T} UTC: an earlier attempt may still be stopping."
            case WaitReason.PROJECT_LIMIT:
                return f"Its project already has the most runs it may have at once: {limits.most_running_a_project}."
            case WaitReason.PERSON_LIMIT:
                return f"Its person already has the most runs one may have at once: {limits.most_running_a_person}."
            case WaitReason.GPUS if pool.queue:
                most = f"at most {pool.most_submitted} jobs submitted to {pool.queue}"
                return f"Stoa keeps {most} on “{pool.name}”, and has that many."
            case WaitReason.GPUS:
                return f"It waits for {unit.plural}: {run.gpus} needed, {max(0, placement.free)} free on “{pool.name}”."
            case WaitReason.MEMORY:
                free, host = readable(max(0, placement.free)), readable(pool.host_bytes or 0)
                return (
                    f"It waits for memory of its host: about {readable(run.memory)} needed, and of {host} on "
                    f"“{pool.name}” the runs there leave {free}."
                )
            case WaitReason.BEHIND:
                ahead = backfill.blocker(self.state, self.plan, placement)
                if ahead is None:
                    return f"It is behind runs of higher priority{' and reservations' if self.state.reserved else ''}."
                first = f"run {ahead}" if ahead > UNBORN else "one launched with it"
                return f"It is behind {first}, which would start later if this one started now."
            case WaitReason.RESERVED:
                return self._reserved(run)


def _called(project: Project) -> str:
    """The project's name in a public list, without the title if a moderator has hidden the project."""
    return f"P{project.id}" if project.hidden else project.title


def _told_of_absence(session: Session, found: Why, placement: Placement, run: Run) -> Why:
    """The answer `found`, with a sentence added if no worker of the pool is there."""
    absence = hosts.absence(session, session.get_one(Pool, run.pool_id))
    if not absence or placement.waits_for is WaitReason.DRAINED:
        return found
    reason = absence if placement.waits_for is None else f"{found.reason} {absence}"
    return replace(found, reason=reason, expected=None)


def _not_queued(session: Session, run: Run, pool: Pool) -> str:
    reason, queue = runs.reason(session, run).rstrip("."), registry.named(pool.runner).queue
    match run.state:
        case RunState.STARTING:
            said, absence = session.get_one(Attempt, (run.id, run.token)).waiting, hosts.absence(session, pool)
            if not said and absence:
                return absence
            if queue:
                why = _begun(said or "It has not said what it waits for")
                return f"{_begun(queue)} decides when it starts. {why}.{absence and f' {absence}'}"
            return f"{_begun(said)}." if said else f"It has its {pool.unit.plural} and is starting."
        case RunState.RUNNING:
            return "It is running."
        case RunState.STOPPING if run.stops_as == RunState.QUEUED:
            return f"{_begun(reason)}."
        case RunState.STOPPING:
            return "It is stopping."
        case RunState.PAUSED if run.unfunded:
            return f"It resumes by itself once its allocation can pay for it: {reason}."
        case RunState.PAUSED:
            said = f"It was {reason}; " if reason.startswith("paused by") else ""
            return f"{said}/run resume continues it."
    return reason and f"{_begun(reason)}."


def _begun(said: str) -> str:
    """A text as the beginning of a sentence."""
    return said[:1].upper() + said[1:]
