"""Runs of the shared trainer: launched by members on an allocation, from a recipe of the catalogue."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from sqlalchemy import ForeignKey, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from broker import allocations, ledger, publications, series
from broker.allocations import Allocation, AllocationState
from broker.ledger import Account
from broker.pools import Grant, Pool
from broker.series import Point
from projects import limits, pipeline, record
from projects.db import Base, utcnow
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor, Person
from projects.pipeline import Project, Stage
from trainer import check as dry_run
from trainer import config as trainer_config

SAMPLE_TIME_LIMIT = 120
LONGEST_TIME_LIMIT = 30 * 86_400
LONGEST_OVERRIDE = 80


class RunState(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed out"


ACTIVE = frozenset({RunState.QUEUED, RunState.STARTING, RunState.RUNNING, RunState.STOPPING})
ENDED = frozenset(RunState) - ACTIVE
TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.STARTING, RunState.CANCELLED, RunState.FAILED}),
    RunState.STARTING: frozenset({RunState.RUNNING, RunState.STOPPING, RunState.QUEUED, RunState.FAILED}),
    RunState.RUNNING: frozenset({RunState.STOPPING, RunState.QUEUED, *ENDED}),
    RunState.STOPPING: ENDED,
    **dict.fromkeys(ENDED, frozenset()),
}

Kind = Literal["train", "sample"]


class Run(Base):
    """A run. `token` is the fencing token of its newest attempt: only the holder of that token may write for it."""

    __tablename__ = "runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    request_id: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str] = mapped_column(default="train")
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    allocation_id: Mapped[int] = mapped_column(ForeignKey("allocations.id"))
    pool_id: Mapped[int] = mapped_column(ForeignKey("pools.id"))
    requested_by: Mapped[int] = mapped_column(ForeignKey("people.id"))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("runs.id"))
    recipe: Mapped[str]
    overrides: Mapped[dict[str, str]]
    config: Mapped[str]
    total_steps: Mapped[int]
    gpus: Mapped[int]
    time_limit: Mapped[int]
    state: Mapped[str] = mapped_column(default=RunState.QUEUED, index=True)
    reason: Mapped[str] = mapped_column(default="")
    token: Mapped[int] = mapped_column(default=0)
    step: Mapped[int] = mapped_column(default=0)
    tokens: Mapped[int] = mapped_column(default=0)
    unigram_entropy: Mapped[float | None]
    sample: Mapped[str] = mapped_column(default="")
    queued_at: Mapped[datetime] = mapped_column(default=utcnow)
    not_before: Mapped[datetime] = mapped_column(default=utcnow)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


@dataclass(frozen=True)
class Receipt:
    """What a launch answers. Costs in GPU-seconds; `expected` is None until a like run has been measured."""

    run_id: int
    cost: int
    expected: int | None
    left: int


@dataclass(frozen=True)
class CheckpointLink:
    """A published checkpoint."""

    step: int
    url: str


@dataclass(frozen=True)
class RunView:
    """A run as cards show it; GPU-seconds, seconds, tokens per second, nats per token."""

    id: int
    kind: Kind
    project_id: int
    project: str
    recipe: str
    overrides: Mapping[str, str]
    pool: str
    sponsor: str
    gpus: int
    time_limit: int
    requested_by: str
    state: RunState
    reason: str
    attempt: int
    parent_id: int | None
    step: int
    total_steps: int
    tokens: int
    loss: float | None
    rate: float | None
    held_out: float | None
    unigram_entropy: float | None
    spent: int
    account: Account
    checkpoints: tuple[CheckpointLink, ...]
    sample: str
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def eta(self) -> int | None:
        """Seconds until the last step at the present rate, where both are known."""
        if self.state != RunState.RUNNING or not self.rate or not self.step:
            return None
        return round(self.tokens / self.step * (self.total_steps - self.step) / self.rate)


def parse_time_limit(value: str) -> int:
    """A time limit as typed, such as “45m”, “2h” or “1h30m”, in seconds; raises InvalidError."""
    match = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?", value.strip().lower().replace(" ", ""))
    hours, minutes = match.groups() if match else (None, None)
    seconds = int(hours or 0) * 3600 + int(minutes or 0) * 60
    if not 60 <= seconds <= LONGEST_TIME_LIMIT:
        raise InvalidError("A time limit is written like 45m, 2h or 1h30m, from one minute to 720 hours.")
    return seconds


def parse_overrides(value: str) -> dict[str, str]:
    """Overrides as typed, such as “steps=100, seed=7”; raises InvalidError."""
    overrides: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, equals, given = (piece.strip() for piece in part.partition("="))
        if not (name and equals and given) or len(part) > LONGEST_OVERRIDE:
            raise InvalidError("An override is written like steps=100; several are parted by commas.")
        if name in overrides:
            raise InvalidError(f"“{name}” is overridden twice; once is enough.")
        overrides[name] = given
    return overrides


def launch(
    session: Session,
    actor: Actor,
    request_id: str,
    *,
    project_id: int,
    recipe: str,
    time_limit: str,
    gpus: int = 1,
    overrides: str = "",
    allocation_id: int | None = None,
) -> Receipt:
    """Queue a run and say what it will cost; a repeat of the same request returns the same run."""
    earlier = session.scalars(select(Run).where(Run.request_id == request_id)).one_or_none()
    if earlier is not None:
        return _receipt(session, earlier)
    project = pipeline.load(session, project_id)
    person = pipeline.require_member(session, actor, project)
    limits.check(session, actor, limits.Kind.LAUNCH)
    if project.stage != Stage.ACTIVE:
        raise ConflictError(f"“{project.title}” is {project.stage}; only an active project can launch runs.")
    allocation = _spendable(session, project, allocation_id)
    pool = session.get_one(Pool, allocation.pool_id)
    if not 1 <= gpus <= pool.gpus:
        raise InvalidError(f"The pool “{pool.name}” has {pool.gpus} GPUs; ask for 1 to {pool.gpus}.")
    seconds = parse_time_limit(time_limit)
    changes = parse_overrides(overrides)
    if recipe not in recipes():
        raise NotFoundError(f"There is no recipe “{recipe[:60]}”; the recipes are: {', '.join(recipes())}.")
    try:
        config = trainer_config.load_recipe(recipe, changes)
    except trainer_config.ConfigError as error:
        raise InvalidError(str(error)) from error
    refusal = dry_run.check(config, gpus=gpus).refusal
    if refusal is not None:
        raise InvalidError(refusal)
    left = ledger.account(session, allocation.id).left
    if gpus * seconds > left:
        raise ConflictError(
            f"{gpus} GPUs for {seconds // 60} minutes may cost {gpus * seconds:,} GPU-seconds; the allocation has "
            f"{left:,} left. A shorter time limit or fewer GPUs would fit."
        )
    run = Run(
        request_id=request_id,
        project_id=project.id,
        allocation_id=allocation.id,
        pool_id=pool.id,
        requested_by=person.id,
        recipe=recipe,
        overrides=changes,
        config=trainer_config.dump(config),
        total_steps=config.training.steps,
        gpus=gpus,
        time_limit=seconds,
    )
    session.add(run)
    session.flush()
    tell(session, run, "run.queued", by=person, recipe=recipe, overrides=changes, gpus=gpus, time_limit=seconds)
    return _receipt(session, run)


def queue_sample(session: Session, parent: Run) -> int | None:
    """Queue a sample of text from the run's last checkpoint, charged like a run; None where too little is left."""
    if ledger.account(session, parent.allocation_id).left < SAMPLE_TIME_LIMIT:
        return None
    sample = Run(
        request_id=f"sample-{parent.id}",
        kind="sample",
        project_id=parent.project_id,
        allocation_id=parent.allocation_id,
        pool_id=parent.pool_id,
        requested_by=parent.requested_by,
        parent_id=parent.id,
        recipe=parent.recipe,
        overrides={},
        config="",
        total_steps=0,
        gpus=1,
        time_limit=SAMPLE_TIME_LIMIT,
    )
    session.add(sample)
    session.flush()
    tell(session, sample, "run.queued", recipe=parent.recipe, gpus=1, time_limit=SAMPLE_TIME_LIMIT)
    return sample.id


def cancel(session: Session, actor: Actor, run_id: int) -> None:
    """Ask a run to stop; a running one writes a checkpoint first."""
    run = load(session, run_id)
    person = pipeline.require_member(session, actor, session.get_one(Project, run.project_id))
    if run.state in ENDED or run.state == RunState.STOPPING:
        raise ConflictError(f"Run {run.id} is {run.state} already.")
    if run.state == RunState.QUEUED:
        move(session, run, RunState.CANCELLED, reason=f"cancelled by {person.name}", ended_at=utcnow())
        tell(session, run, "run.cancelled", by=person, spent=0)
    else:
        move(session, run, RunState.STOPPING, reason=f"cancelled by {person.name}")
        tell(session, run, "run.stopping", by=person)


def load(session: Session, run_id: int) -> Run:
    """The run's row; raises NotFoundError."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFoundError(f"There is no run {run_id}.")
    return run


def view(session: Session, run_id: int) -> RunView:
    """The run as cards show it; raises NotFoundError."""
    run = load(session, run_id)
    allocation = session.get_one(Allocation, run.allocation_id)
    return RunView(
        id=run.id,
        kind="sample" if run.kind == "sample" else "train",
        project_id=run.project_id,
        project=session.get_one(Project, run.project_id).title,
        recipe=run.recipe,
        overrides=run.overrides,
        pool=session.get_one(Pool, run.pool_id).name,
        sponsor="" if allocation.grant_id is None else session.get_one(Grant, allocation.grant_id).sponsor,
        gpus=run.gpus,
        time_limit=run.time_limit,
        requested_by=session.get_one(Person, run.requested_by).name,
        state=RunState(run.state),
        reason=run.reason,
        attempt=run.token,
        parent_id=run.parent_id,
        step=run.step,
        total_steps=run.total_steps,
        tokens=run.tokens,
        loss=series.newest(session, run.id, "loss"),
        rate=series.newest(session, run.id, "tokens_per_second"),
        held_out=series.newest(session, run.id, "held_out"),
        unigram_entropy=run.unigram_entropy,
        spent=ledger.totals(session, run_id=run.id)[ledger.Movement.CHARGE],
        account=ledger.account(session, run.allocation_id),
        checkpoints=tuple(CheckpointLink(step, url) for step, url in publications.links(session, run.id)),
        sample=run.sample,
        started_at=run.started_at,
        ended_at=run.ended_at,
    )


def of_project(session: Session, project_id: int, *, kind: Kind | None = None, limit: int = 25) -> Sequence[RunView]:
    """The project's runs, of one kind or all, the newest first."""
    query = select(Run.id).where(Run.project_id == project_id).order_by(Run.id.desc()).limit(limit)
    if kind is not None:
        query = query.where(Run.kind == kind)
    ids = session.scalars(query).all()
    return [view(session, run_id) for run_id in ids]


def recipes() -> list[str]:
    """The names of the recipes that runs can be launched from."""
    return trainer_config.recipe_names()


def in_motion(session: Session) -> Mapping[int, set[int]]:
    """The runs that have not ended, by their project."""
    projects: dict[int, set[int]] = {}
    for run_id, project_id in session.execute(select(Run.id, Run.project_id).where(Run.state.in_(ACTIVE))):
        projects.setdefault(project_id, set()).add(run_id)
    return projects


def move(session: Session, run: Run, to: RunState, **values: object) -> None:
    """Take one of the table's transitions, guarded by the state and the token that the caller has seen."""
    if to not in TRANSITIONS[RunState(run.state)]:
        raise ConflictError(f"Run {run.id} is {run.state} and cannot become {to}.")
    session.flush()
    moved = session.execute(
        update(Run)
        .where(Run.id == run.id, Run.state == run.state, Run.token == run.token)
        .values(state=to, **values)
        .returning(Run.id)
    ).one_or_none()
    if moved is None:
        raise ConflictError(f"Run {run.id} has just changed; look again.")
    session.refresh(run)


def tell(session: Session, run: Run, kind: str, *, by: Person | None = None, why: str = "", **told: object) -> None:
    """Append an entry about the run to its project's record. A sample is told as part of the run it samples from."""
    about = {"run": run.parent_id or run.id, "attempt": run.token}
    if run.kind == "sample":
        about["sample"] = run.id
    record.append(session, record.project_stream(run.project_id), kind, by=by, why=why, **about, **told)


def _spendable(session: Session, project: Project, allocation_id: int | None) -> Allocation:
    """The allocation that a run of the project is to draw on: the one named, or the newest approved one."""
    if allocation_id is not None:
        allocation = allocations.load(session, allocation_id)
        if allocation.project_id != project.id:
            raise NotFoundError(f"Allocation {allocation_id} is not one of “{project.title}”.")
    else:
        newest = session.scalars(
            select(Allocation)
            .where(Allocation.project_id == project.id)
            .order_by(Allocation.state != AllocationState.APPROVED, Allocation.id.desc())
        ).first()
        if newest is None:
            raise ConflictError("The project has no allocation yet: /allocation request asks for one.")
        allocation = newest
    if allocation.state != AllocationState.APPROVED:
        raise ConflictError(f"Allocation {allocation.id} is {allocation.state}; a run needs an approved one.")
    if allocation.until <= utcnow():
        raise ConflictError(f"Allocation {allocation.id} ended on {allocation.until:%Y-%m-%d}; ask for a new one.")
    return allocation


def _receipt(session: Session, run: Run) -> Receipt:
    rate = _measured_rate(session, run)
    expected = None
    if rate is not None:
        config = trainer_config.load_recipe(run.recipe, run.overrides)
        seconds = dry_run.check(config, gpus=run.gpus, tokens_per_second=rate).seconds
        expected = None if seconds is None else round(run.gpus * seconds)
    left = ledger.account(session, run.allocation_id).left
    return Receipt(run_id=run.id, cost=run.gpus * run.time_limit, expected=expected, left=left)


def _measured_rate(session: Session, run: Run) -> float | None:
    """Tokens per second of the newest run with the same recipe, pool and number of GPUs, if one has run."""
    return session.scalars(
        select(Point.value)
        .join(Run, Run.id == Point.run_id)
        .where(
            Run.recipe == run.recipe,
            Run.pool_id == run.pool_id,
            Run.gpus == run.gpus,
            Point.series == "tokens_per_second",
        )
        .order_by(Run.id.desc(), Point.step.desc())
        .limit(1)
    ).one_or_none()
