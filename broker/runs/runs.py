"""Runs of the shared trainer: their rows, the table of their states, and how they are shown."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import cache

from sqlalchemy import Executable, bindparam, case, func
from sqlalchemy.orm import Session
from sqlmodel import Field, col, select

from broker import configs, publications
from broker.allocations import ledger, nodes
from broker.allocations.allocations import Allocation
from broker.allocations.ledger import Account, Balance, LedgerRow, Movement
from broker.allocations.pools import Grant, Pool
from broker.allocations.units import Unit
from broker.end_reasons import EndReason
from broker.runs import results, series
from broker.runs.results import Scored
from projects import people
from projects.db import transition
from projects.db.columns import (
    Base,
    foreign_key,
    integer,
    json_object,
    number,
    row_id,
    sentence,
    tag_words,
    timestamp,
    utcnow,
    words,
)
from projects.errors import NotFoundError
from projects.people import Person
from projects.projects import Project

SAMPLE_TIME_LIMIT = 600
"""Seconds: a model of many billion weights takes minutes to load."""
DELAYED_AFTER = 5
"""Tries after which a checkpoint that the Hub does not take is told of."""


class RunState(StrEnum):
    """The states of a run."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"


ACTIVE = frozenset({RunState.QUEUED, RunState.STARTING, RunState.RUNNING, RunState.STOPPING})
ENDED = frozenset(RunState) - ACTIVE - {RunState.PAUSED}
TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.STARTING, RunState.PAUSED, RunState.CANCELLED}),
    RunState.STARTING: frozenset({RunState.RUNNING, RunState.STOPPING, RunState.QUEUED, RunState.FAILED}),
    RunState.RUNNING: frozenset({RunState.STOPPING, RunState.QUEUED, *ENDED}),
    RunState.STOPPING: ENDED | {RunState.PAUSED, RunState.QUEUED},
    RunState.PAUSED: frozenset({RunState.QUEUED, RunState.CANCELLED}),
    **dict.fromkeys(ENDED, frozenset()),
}


class RunKind(StrEnum):
    """What a run does. Each kind is a module of that name in `broker/runs/kinds/`."""

    TRAIN = "train"
    SAMPLE = "sample"
    PREPARE = "prepare"
    EVALUATE = "evaluate"
    STUDY = "study"
    PROGRAM = "program"
    BASELINE = "baseline"


class Sweep(Base, table=True):
    """Runs that were launched together, one for each point of a sweep.

    `points` is the sweep as typed; `swept` names the overrides that differ from point to point, with spaces between;
    `overrides` are those that all runs share. Each run has `gpus` and a `time_limit` in seconds.
    """

    __tablename__ = "sweeps"

    id: int = row_id()
    request_id: str = Field(unique=True)
    project_id: int = foreign_key("projects.id", index=True)
    requested_by: int = foreign_key("people.id")
    recipe: str
    points: str
    swept: str
    overrides: dict[str, str] = json_object()
    gpus: int = integer()
    time_limit: int = integer()
    launched_at: datetime = timestamp(default=utcnow)


class Run(Base, table=True):
    """A run. `token` is the fencing token of its newest attempt: only the holder of that token may write for it.

    `time_limit` and `used` are seconds: what all its attempts together may take, and what they have been charged for.
    `parent_id` is the run that a sample is of, or that a fork goes on from at `fork_step`. `end_reason` says why the
    run has ended, is paused or is stopping; a stopping run becomes `stops_as`. An `unfunded` run is paused until its
    allocation can pay for it again. `preempted_at` is when it last made way, for the run `preempted_for`.
    `prompt` is what a member wants a sample to continue. A run of a sweep has its `sweep_id`; its samples do not.
    `host_memory` is what it is predicted to take of a host, in bytes; 0 where that is not predicted. `tags` are words
    with spaces between. `phase` is what its trainer does before its first step, in the trainer's words, and `phase_at`
    since when. `thread_url` is the address of its thread on Discord.
    """

    __tablename__ = "runs"

    id: int = row_id()
    request_id: str = Field(unique=True)
    kind: str = RunKind.TRAIN
    project_id: int = foreign_key("projects.id")
    allocation_id: int = foreign_key("allocations.id")
    pool_id: int = foreign_key("pools.id")
    requested_by: int = foreign_key("people.id")
    parent_id: int | None = foreign_key("runs.id", default=None)
    fork_step: int | None = integer(default=None)
    sweep_id: int | None = foreign_key("sweeps.id", default=None, index=True)
    recipe: str
    overrides: dict[str, str] = json_object()
    config: str
    total_steps: int = integer()
    gpus: int = integer()
    host_memory: int = integer(default=0)
    time_limit: int = integer()
    used: int = integer(default=0)
    state: str = Field(default=RunState.QUEUED, index=True)
    name: str = words(default="")
    tags: str = tag_words()
    reason: str = sentence(default="")
    end_reason: str | None = None
    stops_as: str = RunState.CANCELLED
    unfunded: bool = False
    token: int = integer(default=0)
    step: int = integer(default=0)
    tokens: int = integer(default=0)
    unigram_entropy: float | None = number(default=None)
    phase: str = ""
    phase_at: datetime | None = timestamp(default=None)
    thread_url: str = ""
    sample: str = words(default="")
    prompt: str = words(default="")
    queued_at: datetime = timestamp(default=utcnow)
    not_before: datetime = timestamp(default=utcnow)
    started_at: datetime | None = timestamp(default=None)
    ended_at: datetime | None = timestamp(default=None)
    preempted_at: datetime | None = timestamp(default=None)
    preempted_for: int | None = integer(default=None)


@dataclass(frozen=True)
class CheckpointLink:
    """A published checkpoint."""

    step: int
    url: str


@dataclass(frozen=True)
class RunView:
    """A run as cards show it, in GPU-seconds, seconds, tokens per second, and nats per token. `stages` has the last
    step of each of its stages, if it has any, and `evaluations` what was measured on
    its checkpoints, which lists leave out."""

    id: int
    kind: RunKind
    project_id: int
    project: str
    recipe: str
    overrides: Mapping[str, str]
    pool: str
    unit: Unit
    sponsor: str
    gpus: int
    time_limit: int
    requested_by: str
    state: RunState
    reason: str
    end_reason: EndReason | None
    attempt: int
    parent_id: int | None
    step: int
    total_steps: int
    tokens: int
    loss: float | None
    rate: float | None
    held_out: float | None
    held_out_step: int | None
    unigram_entropy: float | None
    spent: int
    account: Account
    checkpoints: tuple[CheckpointLink, ...]
    sample: str
    started_at: datetime | None
    ended_at: datetime | None
    delayed: str = ""
    nodes: int = 1
    sweep_id: int | None = None
    stages: tuple[int, ...] = ()
    spike: float | None = None
    spike_step: int | None = None
    name: str = ""
    tags: tuple[str, ...] = ()
    evaluations: tuple[Scored, ...] = ()
    phase: str = ""
    phase_at: datetime | None = None

    @property
    def stage(self) -> int:
        """The number, from 1, of the stage that the run is in, or that it ended in."""
        return min(sum(end <= self.step for end in self.stages) + 1, len(self.stages))

    @property
    def eta(self) -> int | None:
        """Seconds until the last step at the present rate; None if the run does not train or has no rate yet."""
        if self.state != RunState.RUNNING or not self.rate or not self.step:
            return None
        return round(self.tokens / self.step * (self.total_steps - self.step) / self.rate)


def load(session: Session, run_id: int) -> Run:
    """The run's row; raises NotFoundError."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFoundError(f"There is no run {run_id}.")
    return run


def reason(session: Session, run: Run) -> str:
    """Why the run ended or waits, with the present names of the people that the sentence refers to."""
    return people.spelt(run.reason, people.marked(session, run.reason))


def view(session: Session, run_id: int) -> RunView:
    """The run as cards show it, with what was measured on its checkpoints; raises NotFoundError."""
    load(session, run_id)
    return replace(views(session, [run_id])[0], evaluations=tuple(results.of_run(session, run_id)))


def views(session: Session, run_ids: Sequence[int]) -> Sequence[RunView]:
    """The runs of these ids as cards show them, in this order; one run takes as many queries as a thousand.

    Raises NotFoundError for an id without a run.
    """
    rows = session.execute(_shown(), {"runs": list(run_ids)}).all()
    names = people.marked(session, *(row[0].reason for row in rows))
    paid = spent_by(session, run_ids)
    published = publications.of_runs(session, run_ids, delayed_after=DELAYED_AFTER)
    found = {
        run.id: RunView(
            id=run.id,
            kind=RunKind(run.kind),
            project_id=run.project_id,
            project=project,
            recipe=run.recipe,
            overrides=run.overrides,
            pool=pool.name,
            unit=pool.unit,
            sponsor=sponsor or "",
            gpus=run.gpus,
            nodes=nodes.count(pool, run.gpus),
            time_limit=run.time_limit,
            requested_by=person,
            state=RunState(run.state),
            reason=people.spelt(run.reason, names),
            end_reason=None if run.end_reason is None else EndReason(run.end_reason),
            attempt=run.token,
            parent_id=run.parent_id,
            step=run.step,
            total_steps=run.total_steps,
            tokens=run.tokens,
            loss=loss,
            rate=rate,
            held_out=held_out,
            held_out_step=held_out_step,
            unigram_entropy=run.unigram_entropy,
            spent=paid.get(run.id, 0),
            account=ledger.account_of(balance),
            checkpoints=tuple(CheckpointLink(step, url) for step, url in published[run.id].links),
            sample=run.sample,
            started_at=run.started_at,
            ended_at=run.ended_at,
            delayed=published[run.id].delayed,
            sweep_id=run.sweep_id,
            stages=configs.stage_ends(run.config),
            spike=spike,
            spike_step=spike_step,
            name=run.name,
            tags=tuple(run.tags.split()),
            phase=run.phase if run.state == RunState.RUNNING else "",
            phase_at=run.phase_at,
        )
        for run, project, pool, sponsor, person, balance, loss, rate, held_out, held_out_step, spike, spike_step in rows
    }
    for run_id in run_ids:
        if run_id not in found:
            raise NotFoundError(f"There is no run {run_id}.")
    return [found[run_id] for run_id in run_ids]


@cache
def _shown() -> Executable:
    """What `views` reads of the runs in the parameter `runs`; made once, as that takes longer than an answer."""
    return (
        select(Run)
        .add_columns(
            col(Project.title),
            Pool,
            col(Grant.sponsor),
            col(Person.name),
            Balance,
            series.newest(col(Run.id), "loss"),
            series.newest(col(Run.id), "tokens_per_second"),
            series.newest(col(Run.id), "held_out"),
            series.newest_step(col(Run.id), "held_out"),
            series.newest(col(Run.id), series.SPIKE),
            series.newest_step(col(Run.id), series.SPIKE),
        )
        .join(Project, col(Project.id) == Run.project_id)
        .join(Pool, col(Pool.id) == Run.pool_id)
        .join(Person, col(Person.id) == Run.requested_by)
        .join(Allocation, col(Allocation.id) == Run.allocation_id)
        .outerjoin(Grant, col(Grant.id) == Allocation.grant_id)
        .outerjoin(Balance, col(Balance.allocation_id) == Run.allocation_id)
        .where(col(Run.id).in_(bindparam("runs", expanding=True)))
        .execution_options(populate_existing=True)
    )


def spent(session: Session, run_id: int) -> int:
    """GPU-seconds that the run was charged for and not refunded."""
    return spent_by(session, [run_id]).get(run_id, 0)


def spent_by(session: Session, run_ids: Sequence[int]) -> Mapping[int, int]:
    """GPU-seconds that each run was charged for and not refunded; runs without a charge are left out."""
    rows = session.execute(_net_charges(), {"runs": list(run_ids)})
    return {run_id: int(seconds) for run_id, seconds in rows if run_id is not None}


@cache
def _net_charges() -> Executable:
    net = case((col(LedgerRow.movement) == Movement.CHARGE, col(LedgerRow.seconds)), else_=-col(LedgerRow.seconds))
    charged = col(LedgerRow.movement).in_((Movement.CHARGE, Movement.REFUND))
    return (
        select(LedgerRow.run_id, func.sum(net))
        .where(col(LedgerRow.run_id).in_(bindparam("runs", expanding=True)), charged)
        .group_by(col(LedgerRow.run_id))
    )


def of_project(
    session: Session, project_id: int, *, kind: RunKind | None = None, tag: str = "", limit: int = 25
) -> Sequence[RunView]:
    """The project's runs, of one kind or all, with one tag or any, the newest first."""
    query = select(Run.id).where(Run.project_id == project_id).order_by(col(Run.id).desc()).limit(limit)
    if kind is not None:
        query = query.where(Run.kind == kind)
    if tag:
        query = query.where((" " + col(Run.tags) + " ").contains(f" {tag} ", autoescape=True))
    return views(session, session.scalars(query).all())


def newest_id(session: Session) -> int:
    """The number of the newest run; 0 where there is none."""
    return session.scalar(select(func.max(col(Run.id)))) or 0


def newest(
    session: Session,
    project_id: int | None = None,
    *,
    states: Collection[RunState] = tuple(RunState),
    kept: bool = False,
    limit: int = 100,
) -> Sequence[tuple[int, str, str, str]]:
    """Id, name, recipe and state of the newest training runs in these states, of one project or of all.

    `kept` selects the runs with a checkpoint on this disk.
    """
    wanted = (Run.kind == RunKind.TRAIN, col(Run.state).in_(states))
    query = select(Run.id, Run.name, Run.recipe, Run.state).where(*wanted)
    if project_id is not None:
        query = query.where(Run.project_id == project_id)
    if kept:
        query = query.where(col(Run.id).in_(publications.runs_kept()))
    rows = session.execute(query.order_by(col(Run.id).desc()).limit(limit))
    return [(number, name, recipe, state) for number, name, recipe, state in rows]


def tags_of(session: Session, project_id: int) -> Sequence[str]:
    """The tags of the project's newest thousand runs that have some, those of the newest run first."""
    tagged = select(Run.tags).where(Run.project_id == project_id, Run.tags != "")
    rows = session.scalars(tagged.order_by(col(Run.id).desc()).limit(1000))
    return list(dict.fromkeys(tag for tags in rows for tag in tags.split()))


def in_motion(session: Session) -> Mapping[int, set[int]]:
    """The runs that are queued, starting, running or stopping, by project."""
    projects: dict[int, set[int]] = {}
    for run_id, project_id in session.execute(select(Run.id, Run.project_id).where(col(Run.state).in_(ACTIVE))):
        projects.setdefault(project_id, set()).add(run_id)
    return projects


def move(session: Session, run: Run, to: RunState, **values: object) -> None:
    """Bring a run to another state by the table, if state and token are still as in hand; raises ConflictError."""
    transition.move(session, run, to, TRANSITIONS, values, name=f"Run {run.id}", seen=["token"])


def nth(session: Session, run: Run) -> int:
    """The number of a run among those of its kind under its parent, from 1."""
    earlier = select(func.count()).where(Run.parent_id == run.parent_id, Run.kind == run.kind, col(Run.id) <= run.id)
    return session.scalars(earlier).one()


def sweep_of_parent(session: Session, run: Run) -> Mapping[str, int]:
    """The sweep of the run's parent, as entries have it; nothing where that is in none."""
    sweep_id = session.get_one(Run, run.parent_id).sweep_id
    return {} if sweep_id is None else {"sweep": sweep_id}
