"""Run plans: a launch as a member asks for it, kept until the member has seen its cost and confirms it."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy.orm import Session
from sqlmodel import Field, select

from broker.reports import why
from broker.reports.why import Why
from broker.runs import launching
from broker.runs.launching import Order, Quote, Receipt
from broker.runs.runs import Run, Sweep
from projects import people, projects, quotas, rights
from projects.db.columns import Base, foreign_key, integer, row_id, tag_words, timestamp, utcnow, words
from projects.errors import ConflictError, ForbiddenError, NotFoundError
from projects.people import Actor, Person
from projects.quotas import QuotaKind

GOOD_FOR = timedelta(hours=1)


class RunPlan(Base, table=True):
    """An order as typed, with the request id of its future run and the allocation that it was priced on.

    The order of a sweep has its points in `sweep`; `sweep_plan` is about those. No row is ever deleted: a button in an
    old message must never mean another plan.
    """

    __tablename__ = "launch_drafts"  # its first name, which no migration has been worth to change

    id: int = row_id()
    request_id: str = Field(unique=True)
    person_id: int = foreign_key("people.id")
    project_id: int = foreign_key("projects.id")
    allocation_id: int = foreign_key("allocations.id")
    recipe: str
    dataset: str
    overrides: str
    sweep: str = ""
    time_limit: str
    gpus: int = integer()
    name: str = words(default="")
    tags: str = tag_words()
    evaluate: str = ""
    parent_id: int | None = foreign_key("runs.id", default=None)
    fork_step: int | None = integer(default=None)
    discarded: bool = False
    created_at: datetime = timestamp(default=utcnow)


@dataclass(frozen=True)
class Preview:
    """What a member sees before confirming: the run, its cost, and its position in the queue."""

    plan_id: int
    quote: Quote
    queue: Why


def plan_run(session: Session, actor: Actor, request_id: str, order: Order) -> Preview:
    """Keep an order until it is confirmed; a repeat of the same request returns the same plan.

    Raises the errors of a launch.
    """
    project = projects.load(session, order.project_id)
    person = rights.require_member(session, actor, project)
    launching.check_origin(session, order)
    quotas.check(session, actor, QuotaKind.LAUNCH)
    quote = launching.quote(session, order)
    quote.run.requested_by = person.id
    plan = keep(session, person, request_id, order, quote.run.allocation_id)
    return Preview(plan.id, quote, why.forecast(session, quote.run))


def keep(
    session: Session, person: Person, request_id: str, order: Order, allocation_id: int, *, sweep: str = ""
) -> RunPlan:
    """The row of a plan, made unless the same request has made it."""
    plan = session.scalars(select(RunPlan).where(RunPlan.request_id == request_id)).one_or_none()
    if plan is None:
        plan = RunPlan(
            request_id=request_id,
            person_id=person.id,
            project_id=order.project_id,
            allocation_id=allocation_id,
            recipe=order.recipe,
            dataset=order.dataset,
            overrides=order.overrides,
            sweep=sweep,
            time_limit=order.time_limit,
            gpus=order.gpus,
            name=order.name,
            tags=order.tags,
            evaluate=order.evaluate,
            parent_id=None if order.origin is None else order.origin.run_id,
            fork_step=None if order.origin is None else order.origin.step,
        )
        session.add(plan)
        session.flush()
    return plan


def plan_fork(
    session: Session,
    actor: Actor,
    request_id: str,
    run_id: int,
    step: int,
    *,
    overrides: str = "",
    time_limit: str | None = None,
    gpus: int | None = None,
    allocation_id: int | None = None,
    name: str = "",
    tags: str = "",
) -> Preview:
    """Plan a fork: what is not given is as in its parent, but for name and tags. Raises the errors of a launch."""
    order = launching.fork_order(
        session,
        run_id,
        step,
        overrides=overrides,
        time_limit=time_limit,
        gpus=gpus,
        allocation_id=allocation_id,
        name=name,
        tags=tags,
    )
    return plan_run(session, actor, request_id, order)


def plan_rerun(session: Session, actor: Actor, request_id: str, run_id: int, name: str = "", tags: str = "") -> Preview:
    """Plan the same run once more; a fork starts from the same step again. Raises the errors of a launch."""
    order = replace(launching.rerun_order(session, run_id), name=name, tags=tags)
    return plan_run(session, actor, request_id, order)


def confirm(session: Session, actor: Actor, plan_id: int) -> Receipt:
    """Launch the planned run; a second confirmation returns the same run. Raises the errors of a launch."""
    plan = own(session, actor, plan_id)
    launched = _launched(session, plan)
    if launched is not None:
        return launching.receipt(session, launched)
    check_fresh(plan)
    order = order_of(plan)
    launching.check_origin(session, order)
    return launching.launch(session, actor, plan.request_id, order)


def discard(session: Session, actor: Actor, plan_id: int) -> None:
    """Discard a plan, also of a sweep; raises ConflictError if it is launched already."""
    plan = own(session, actor, plan_id)
    launched = _launched(session, plan)
    if launched is not None:
        raise ConflictError(f"It is already launched, as run {launched.id}; /run cancel stops it.")
    sweep = session.scalars(select(Sweep).where(Sweep.request_id == plan.request_id)).one_or_none()
    if sweep is not None:
        raise ConflictError(f"It is already launched, as sweep {sweep.id}; /run cancel stops it.")
    plan.discarded = True


def check_fresh(plan: RunPlan) -> None:
    """Raise ConflictError where the plan is too old to be confirmed."""
    if plan.created_at < utcnow() - GOOD_FOR:
        raise ConflictError("This offer is more than an hour old; run the command again to see what it costs now.")


def own(session: Session, actor: Actor, plan_id: int) -> RunPlan:
    """The actor's own plan, with its row locked, so that two presses of its buttons take turns; raises DomainError."""
    plan = session.get(RunPlan, plan_id, with_for_update={"key_share": True}, populate_existing=True)
    if plan is None:
        raise NotFoundError("There is no such offer; type the command again.")
    person = people.find(session, actor)
    if person is None or person.id != plan.person_id:
        raise ForbiddenError("Only the one who asked for this run can confirm or cancel it.")
    if plan.discarded:
        raise ConflictError("This offer was cancelled; type the command again.")
    return plan


def order_of(plan: RunPlan) -> Order:
    """The order that a plan stands for, on the allocation that it was priced on."""
    return Order(
        project_id=plan.project_id,
        recipe=plan.recipe,
        time_limit=plan.time_limit,
        gpus=plan.gpus,
        overrides=plan.overrides,
        allocation_id=plan.allocation_id,
        origin=launching.origin_of(plan.parent_id, plan.fork_step),
        dataset=plan.dataset,
        name=plan.name,
        tags=plan.tags,
        evaluate=plan.evaluate,
    )


def _launched(session: Session, plan: RunPlan) -> Run | None:
    return session.scalars(select(Run).where(Run.request_id == plan.request_id)).one_or_none()
