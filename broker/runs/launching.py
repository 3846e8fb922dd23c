"""Launching runs: new ones, the same again, and forks from a step of another run, with what each will cost."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import catalogue, configs, publications
from broker.allocations import allocations, corpora, ledger, nodes, payers, pools
from broker.allocations.allocations import Allocation
from broker.allocations.pools import Pool
from broker.allocations.units import Unit
from broker.runners import registry
from broker.runs import entries, estimates, evaluation_plans, naming, preparing, readings
from broker.runs.evaluation_plans import Evaluated
from broker.runs.kinds.kind import kind_of
from broker.runs.runs import Run, RunKind, RunState, load
from projects import parse, projects, quotas, rights, text
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.people import Actor, Person
from projects.projects import Project
from projects.quotas import QuotaKind
from trainer import check as dry_run
from trainer.check import Reading, Stage
from trainer.config import TrainConfig

LONGEST_TIME_LIMIT = 30 * 86_400
LONGEST_OVERRIDE = 80


@dataclass(frozen=True)
class Receipt:
    """The answer to a launch, in seconds of what its pool counts. `expected` is None if no like run was measured.

    `basis` says what the expectation rests on, or why there is none. `promised` is what the allocation's queued runs
    may cost: it is not reserved yet, and part of `left`.
    """

    run_id: int
    unit: Unit
    cost: int
    expected: int | None
    left: int
    promised: int
    basis: str = ""


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a fork starts from."""

    run_id: int
    step: int


@dataclass(frozen=True)
class Order:
    """A run as a member orders it, as typed; its recipe must train on `dataset`, if one is given. `evaluate` names the
    tasks that its checkpoints are given."""

    project_id: int
    recipe: str
    time_limit: str
    gpus: int = 1
    overrides: str = ""
    allocation_id: int | None = None
    origin: Origin | None = None
    dataset: str = ""
    kind: RunKind = RunKind.TRAIN
    name: str = ""
    tags: str = ""
    evaluate: str = ""


@dataclass(frozen=True)
class Grounds:
    """What an order rests on, whatever its configuration: who pays, where it runs, for how many seconds, the recipe."""

    project: Project
    allocation: Allocation
    pool: Pool
    seconds: int
    body: str


@dataclass(frozen=True)
class Quote:
    """What an order comes to, with nothing queued: a run that is in no session, and what it would be and cost.

    `cost`, `expected`, `left` and `promised` as in a Receipt; `tokens` are those of the steps that a fork has before
    it; `memory` is in bytes on each GPU, by the trainer's own check; `saves_at` and `saves_after` as in an Estimate;
    `stages` are those of the run, if it has any, `reads` what it reads of the pool's corpora, and `copies` the bytes of
    those that the pool lacks, by name. `evaluated` is what its checkpoints are given, and `is_afresh` says that a fork
    goes on without its parent's optimizer state.
    """

    run: Run
    pool: Pool
    cost: int
    expected: int | None
    basis: str
    left: int
    promised: int
    parameters: int
    tokens: int
    memory: int
    saves_at: int
    saves_after: float | None
    evaluated: Evaluated | None
    stages: Sequence[Stage]
    reads: Sequence[Reading]
    copies: Mapping[str, int]
    is_afresh: bool

    @property
    def nodes(self) -> int:
        """How many nodes of its pool the run would have."""
        return nodes.count(self.pool, self.run.gpus)

    @property
    def too_short(self) -> bool:
        """Whether the time limit is expected to end the run before its first checkpoint of new steps."""
        return self.saves_after is not None and self.saves_after > self.run.time_limit

    @property
    def memory_needed(self) -> str:
        """`memory` as people read it."""
        return dry_run.readable(self.memory)


def parse_time_limit(value: str) -> int:
    """A time limit as typed, such as “45m”, “2h” or “1h30m”, in seconds; raises InvalidError."""
    seconds = parse.duration(value) or 0
    if not 60 <= seconds <= LONGEST_TIME_LIMIT:
        raise InvalidError("A time limit is written like 45m, 2h or 1h30m, from one minute to 720 hours.")
    return seconds


def parse_overrides(value: str) -> dict[str, str]:
    """Overrides as typed, such as “steps=100, seed=7”; raises InvalidError."""
    overrides: dict[str, str] = {}
    value = text.cleaned(value)
    if found := re.search(r"=\s*([0-9.]*(?:,\s*[0-9][0-9.e+-]*)+)\s*(?:,|$)", value.lower()):
        raise InvalidError(_about_commas("".join(found[1].split())))
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, equals, given = (piece.strip() for piece in part.partition("="))
        if not (name and equals and given) or len(part) > LONGEST_OVERRIDE:
            raise InvalidError("An override is written like steps=100; separate several with commas.")
        if name in overrides:
            raise InvalidError(f"“{name}” is overridden twice; give it once.")
        overrides[name] = given
    return overrides


def _about_commas(number: str) -> str:
    """The sentence for a number that was typed with commas: what would be right."""
    parts = number.split(",")
    right = [number.replace(",", ".")] if len(parts) == 2 and "." not in parts[0] else []
    if parts[0].isdecimal() and parts[0] != "0" and all(len(part) == 3 and part.isdecimal() for part in parts[1:]):
        right.append(number.replace(",", ""))
    return f"“{number[:40]}” is no number: write {' or '.join(right)[:60] or 'a point, as in 0.001, and no comma'}."


def launch(session: Session, actor: Actor, request_id: str, order: Order) -> Receipt:
    """Queue the ordered run and return its cost; a repeated request returns the same run.

    Raises DomainError if the run is refused.
    """
    earlier = session.scalars(select(Run).where(Run.request_id == request_id)).one_or_none()
    if earlier is not None:
        return receipt(session, earlier)
    project = projects.load(session, order.project_id)
    person = rights.hold_member(session, actor, project)
    quotas.check(session, actor, QuotaKind.LAUNCH)
    run, _ = draw_up(session, order)
    run.request_id, run.requested_by = request_id, person.id
    session.add(run)
    session.flush()
    quotas.check_project(session, QuotaKind.LAUNCH, project.id)
    evaluated = evaluation_plans.add(session, run.id, order.evaluate)
    tell_queued(session, run, evaluated, by=person)
    return receipt(session, run)


def tell_queued(session: Session, run: Run, evaluated: Evaluated | None = None, *, by: Person) -> None:
    """Append the entry that the run is queued, with what was ordered."""
    asked: dict[str, Any] = {"recipe": run.recipe, "overrides": run.overrides}
    asked |= {"gpus": run.gpus, "time_limit": run.time_limit}
    asked |= {key: said for key, said in (("name", run.name), ("tags", run.tags)) if said}
    asked |= {} if evaluated is None else {"evaluate": evaluated._asdict()}
    origin = origin_of(run.parent_id, run.fork_step)
    if origin is None:
        entries.tell(session, run, "run.queued", by=by, **asked)
    else:
        entries.tell(session, run, "run.forked", by=by, parent=origin.run_id, from_step=origin.step, **asked)


def quote(session: Session, order: Order) -> Quote:
    """The run that an order would launch, and its cost; raises what a launch does, but for rights. Only reads."""
    run, config = draw_up(session, order)
    pool = session.get_one(Pool, run.pool_id)
    report = dry_run.check(config, gpus=run.gpus, device="cpu" if pool.is_cpu else "cuda")
    estimate = estimates.estimate(session, run)
    first = run.fork_step or 0
    tokens = config.tokens_per_step * (run.total_steps - first)
    return Quote(
        run=run,
        pool=pool,
        cost=run.gpus * run.time_limit,
        expected=estimate.cost,
        basis=estimate.basis,
        left=ledger.account(session, run.allocation_id).left,
        promised=_promised(session, run.allocation_id),
        parameters=report.parameters,
        tokens=tokens,
        memory=report.memory_per_gpu,
        saves_at=estimate.saves_at,
        saves_after=estimate.saves_after,
        evaluated=evaluation_plans.parse(order.evaluate),
        stages=dry_run.what_stages(config, {}, first),
        reads=readings.of_run(session, pool.id, config, tokens, first),
        copies={corpus.name: corpus.bytes for corpus in preparing.copied(session, run)},
        is_afresh=order.origin is not None and begins_afresh(session, order.origin),
    )


def pool_of(session: Session, project_id: int, allocation_id: int | None) -> Pool:
    """The pool that a run of the project would have; raises NotFoundError and ConflictError."""
    allocation = payers.spendable(session, projects.load(session, project_id), allocation_id)
    return session.get_one(Pool, allocation.pool_id)


def grounds(session: Session, order: Order) -> Grounds:
    """What an order rests on; raises those errors of a launch that do not depend on its overrides or its cost."""
    project = projects.load(session, order.project_id)
    if not projects.may_compute(project):
        raise ConflictError(f"“{project.title}” is {project.stage}; runs are launched while a project is under way.")
    allocation = payers.spendable(session, project, order.allocation_id)
    pool = session.get_one(Pool, allocation.pool_id)
    nodes.check(pool, order.gpus)
    seconds = parse_time_limit(order.time_limit)
    return Grounds(project, allocation, pool, seconds, catalogue.recipe_text(session, order.recipe))


def draw_up(session: Session, order: Order) -> tuple[Run, TrainConfig]:
    """The run of an order, in no session yet, and its configuration; raises the errors of a launch."""
    on = grounds(session, order)
    project, allocation, pool, seconds, body = on.project, on.allocation, on.pool, on.seconds, on.body
    changes = parse_overrides(order.overrides)
    config = configs.read(body, changes)
    if order.dataset:
        catalogue.check_trains_on(session, order.recipe, config, order.dataset)
    corpora.check_on_pool(session, order.recipe, config, pool)
    evaluated = evaluation_plans.parse(order.evaluate)
    if evaluated is not None and evaluated.needs_data and registry.named(pool.runner).fills_store:
        raise ConflictError(
            f"“{evaluated.needs_data}” reads the run's data, which evaluations on “{pool.name}” do not have; leave it "
            "out of “evaluate”."
        )
    if config.base is not None and registry.named(pool.runner).fills_store:
        raise InvalidError(
            f"The machines of “{pool.name}” cannot fetch the base {config.base} from the Hub; take another pool."
        )
    if order.kind == RunKind.TRAIN:
        check_fit(config, order.gpus, pool)
    origin = order.origin
    if order.allocation_id is None:
        allocation = payers.or_another(session, allocation, order.gpus * seconds)
    if origin is not None and config.training.steps <= origin.step:
        raise InvalidError(f"The fork would end at step {config.training.steps}, where step {origin.step} is done.")
    check_left(session, allocation.id, order.gpus, seconds)
    run = Run(
        request_id="",
        kind=order.kind,
        project_id=project.id,
        allocation_id=allocation.id,
        pool_id=allocation.pool_id,
        parent_id=None if origin is None else origin.run_id,
        fork_step=None if origin is None else origin.step,
        recipe=order.recipe,
        overrides=changes,
        config=configs.spelt_out(body, changes),
        total_steps=0 if order.kind == RunKind.PREPARE else config.training.steps,
        gpus=order.gpus,
        host_memory=host_memory(config, order.gpus, pool) if order.kind == RunKind.TRAIN else 0,
        time_limit=seconds,
        name=naming.parse_name(order.name),
        tags=naming.parse_tags(order.tags),
    )
    return run, config


def fork_order(
    session: Session,
    run_id: int,
    step: int,
    *,
    overrides: str = "",
    time_limit: str | None = None,
    gpus: int | None = None,
    allocation_id: int | None = None,
    name: str = "",
    tags: str = "",
) -> Order:
    """The order for a fork of a run at a step; what is not given is as in the run, but for name and tags.

    Raises DomainError.
    """
    parent = _trained(session, run_id)
    count, limit = parent.gpus if gpus is None else gpus, time_limit or _same_time(parent)
    return Order(
        project_id=parent.project_id,
        recipe=parent.recipe,
        time_limit=limit,
        gpus=count,
        overrides=typed(parent.overrides | parse_overrides(overrides)),
        allocation_id=allocation_id or payers.payer(session, parent.allocation_id, count * parse_time_limit(limit)),
        origin=Origin(parent.id, step),
        name=name,
        tags=tags,
        evaluate=evaluation_plans.typed(session, parent.id),
    )


def origin_of(parent_id: int | None, fork_step: int | None) -> Origin | None:
    """The checkpoint that a fork starts from; None for other runs: a sample has a parent and no step."""
    return None if parent_id is None or fork_step is None else Origin(parent_id, fork_step)


def check_origin(session: Session, order: Order) -> None:
    """Raise NotFoundError unless a fork's checkpoint is complete on this disk or, for a pool whose hosts reach the Hub,
    open there.

    The run's row stays locked, so that the checkpoint is not removed before the transaction ends.
    """
    origin = order.origin
    if origin is None:
        return
    session.get_one(Run, origin.run_id, with_for_update={"key_share": True})
    steps, where = publications.readable(session, origin.run_id), "here or open on the Hub"
    if registry.named(pool_of(session, order.project_id, order.allocation_id).runner).fills_store:
        steps, where = publications.kept(session, origin.run_id), "on this disk"
    if origin.step not in steps:
        kept = ", ".join(map(str, steps)) or "none"
        raise NotFoundError(
            f"Run {origin.run_id} has no checkpoint of step {origin.step} {where}; it has: {kept[:300]}."
        )


def begins_afresh(session: Session, origin: Origin) -> bool:
    """Whether a fork begins with a new optimizer state, as its checkpoint is on the Hub alone, and there without."""
    if not origin.step or origin.step in publications.kept(session, origin.run_id):
        return False
    return not configs.keeps_state(_trained(session, origin.run_id).config, origin.step)


def rerun_order(session: Session, run_id: int) -> Order:
    """The order for the same run once more."""
    run = _trained(session, run_id)
    return Order(
        project_id=run.project_id,
        recipe=run.recipe,
        time_limit=_same_time(run),
        gpus=run.gpus,
        overrides=typed(run.overrides),
        allocation_id=payers.payer(session, run.allocation_id, run.gpus * run.time_limit),
        origin=origin_of(run.parent_id, run.fork_step),
        evaluate=evaluation_plans.typed(session, run.id),
    )


def prepare(
    session: Session,
    actor: Actor,
    request_id: str,
    *,
    project_id: int,
    recipe: str,
    time_limit: str,
    gpus: int = 1,
    allocation_id: int | None = None,
) -> Receipt:
    """Queue a run that prepares a recipe's data, by a process for each GPU, charged like any other.

    Several nodes share the work where they share a disk. Raises DomainError.
    """
    order = Order(project_id, recipe, time_limit, gpus, allocation_id=allocation_id, kind=RunKind.PREPARE)
    if session.scalars(select(Run.id).where(Run.request_id == request_id)).one_or_none() is None:
        preparing.check(session, recipe, lambda: pool_of(session, order.project_id, order.allocation_id))
        preparing.check_nodes(pool_of(session, order.project_id, order.allocation_id), gpus)
    return launch(session, actor, request_id, order)


def as_typed(seconds: int) -> str:
    """A time limit as one would type it, in whole minutes, rounded up."""
    return f"{math.ceil(seconds / 60)}m"


def _same_time(run: Run) -> str:
    """The run's time limit for another one; raises InvalidError where extensions made it longer than a run may have."""
    if run.time_limit > LONGEST_TIME_LIMIT:
        raise InvalidError(
            f"Run {run.id} was extended to {run.time_limit / 3600:.0f} hours in all, and a run begins with at most "
            f"{LONGEST_TIME_LIMIT // 3600}: launch or fork it with a time limit of your own, and extend that later."
        )
    return as_typed(run.time_limit)


def check_fit(config: TrainConfig, gpus: int, pool: Pool) -> None:
    """Raise InvalidError if the trainer's own check refuses the configuration on that many GPUs of the pool, by its
    layout or by the memory it needs of a GPU or of the host."""
    refusal = _refusal(config, gpus, pool)
    if refusal is not None:
        fits = [str(other) for other in nodes.sizes(pool) if pool.nodes > 1 and _refusal(config, other, pool) is None]
        raise InvalidError(
            f"{refusal} As it is, it fits {', '.join(fits)} {pool.unit.plural} of “{pool.name}”." if fits else refusal
        )


def host_memory(config: TrainConfig, gpus: int, pool: Pool) -> int:
    """Bytes that a run which trains is predicted to take of each of its hosts."""
    count = nodes.count(pool, gpus)
    return dry_run.check(config, gpus, device="cpu" if pool.is_cpu else "cuda", nodes=count).host_memory


def _refusal(config: TrainConfig, gpus: int, pool: Pool) -> str | None:
    count = nodes.count(pool, gpus)
    return dry_run.check(
        config,
        gpus,
        gpu_memory=pools.memory_each(pool, gpus // count),
        device="cpu" if pool.is_cpu else "cuda",
        host_bytes=pools.host_bytes(pool),
        gpu_type=None if pool.is_cpu else pool.gpu_type,
        nodes=count,
    ).refusal


def check_left(session: Session, allocation_id: int, gpus: int, seconds: int) -> None:
    """Raise ConflictError unless the allocation has `gpus` × `seconds` GPU-seconds left.

    The error's sentence names another allocation of the project that can pay, where there is one.
    """
    account = ledger.account(session, allocation_id)
    if gpus * seconds > account.left:
        cost, left = ledger.too_much(gpus * seconds, account.left)
        allocation = allocations.view(session, allocation_id)
        unit, other = allocation.unit, payers.naming_another(session, allocation.project_id, gpus * seconds)
        raise ConflictError(
            f"It may cost {cost} {unit.in_hours}, with {left} left: less time or fewer {unit.plural} would fit.{other}"
        )


def receipt(session: Session, run: Run) -> Receipt:
    """The most that the rest of the run may cost, and what it is expected to cost."""
    seconds = run.time_limit - run.used
    estimate = estimates.estimate(session, run)
    left = ledger.account(session, run.allocation_id).left
    promised = _promised(session, run.allocation_id)
    unit = session.get_one(Pool, run.pool_id).unit
    return Receipt(run.id, unit, run.gpus * seconds, estimate.cost, left, promised, estimate.basis)


def _promised(session: Session, allocation_id: int) -> int:
    """GPU-seconds that the queued runs of an allocation may cost."""
    cost = func.sum(col(Run.gpus) * (col(Run.time_limit) - Run.used))
    queued = (col(Run.allocation_id) == allocation_id) & (col(Run.state) == RunState.QUEUED)
    return int(session.scalar(select(cost).where(queued)) or 0)


def _trained(session: Session, run_id: int) -> Run:
    run = load(session, run_id)
    if not kind_of(run).trains:
        raise ConflictError(f"{kind_of(run).what_it_is(run)}; only a run that trains can be run again.")
    return run


def typed(overrides: Mapping[str, str]) -> str:
    """Overrides as one would type them."""
    return ", ".join(f"{name}={value}" for name, value in overrides.items())
