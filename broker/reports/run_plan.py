"""Drafts: a launch as it was asked for, kept until the member who asked has seen its cost and confirms it."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session
from sqlmodel import Field, select

from broker.reports import why
from broker.reports.why import Why
from broker.runs import launching
from broker.runs.launching import Order, Quote, Receipt
from broker.runs.runs import Run
from projects import lifecycle, people, quotas
from projects.db.columns import Base, foreign_key, integer, row_id, timestamp, utcnow
from projects.errors import ConflictError, ForbiddenError, NotFoundError
from projects.people import Actor
from projects.quotas import QuotaKind

GOOD_FOR = timedelta(hours=1)


class LaunchDraft(Base, table=True):
    """An order as typed, under the request id that its run is to have; the allocation is the one it was priced on.

    None is ever deleted: a button that is still about must not come to mean another one.
    """

    __tablename__ = "launch_drafts"

    id: int = row_id()
    request_id: str = Field(unique=True)
    person_id: int = foreign_key("people.id")
    project_id: int = foreign_key("projects.id")
    allocation_id: int = foreign_key("allocations.id")
    recipe: str
    dataset: str
    overrides: str
    time_limit: str
    gpus: int = integer()
    parent_id: int | None = foreign_key("runs.id", default=None)
    fork_step: int | None = integer(default=None)
    discarded: bool = False
    created_at: datetime = timestamp(default=utcnow)


@dataclass(frozen=True)
class Preview:
    """What a member sees before they confirm: what the run would be and cost, and where it would stand in the queue."""

    draft_id: int
    quote: Quote
    queue: Why


def launch(session: Session, actor: Actor, request_id: str, order: Order) -> Preview:
    """Keep an order to be confirmed; a repeat of the same request keeps the same. Refuses what a launch would."""
    project = lifecycle.load(session, order.project_id)
    person = lifecycle.require_member(session, actor, project)
    if order.origin is not None:
        launching.check_kept(session, order.origin)
    quotas.check(session, actor, QuotaKind.LAUNCH)
    quote = launching.quote(session, order)
    quote.run.requested_by = person.id
    draft = session.scalars(select(LaunchDraft).where(LaunchDraft.request_id == request_id)).one_or_none()
    if draft is None:
        draft = LaunchDraft(
            request_id=request_id,
            person_id=person.id,
            project_id=project.id,
            allocation_id=quote.run.allocation_id,
            recipe=order.recipe,
            dataset=order.dataset,
            overrides=order.overrides,
            time_limit=order.time_limit,
            gpus=order.gpus,
            parent_id=quote.run.parent_id,
            fork_step=quote.run.fork_step,
        )
        session.add(draft)
        session.flush()
    return Preview(draft.id, quote, why.forecast(session, quote.run))


def fork(
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
) -> Preview:
    """Keep a fork to be confirmed; see `launching.fork`."""
    order = launching.fork_order(
        session, run_id, step, overrides=overrides, time_limit=time_limit, gpus=gpus, allocation_id=allocation_id
    )
    return launch(session, actor, request_id, order)


def rerun(session: Session, actor: Actor, request_id: str, run_id: int) -> Preview:
    """Keep a run anew to be confirmed; see `launching.rerun`."""
    return launch(session, actor, request_id, launching.rerun_order(session, run_id))


def confirm(session: Session, actor: Actor, draft_id: int) -> Receipt:
    """Launch what was asked for; whoever confirms twice gets the same run. Refuses what a launch would by now."""
    draft = _own(session, actor, draft_id)
    launched = _launched(session, draft)
    if launched is not None:
        return launching.receipt(session, launched)
    if draft.created_at < utcnow() - GOOD_FOR:
        raise ConflictError("This offer is more than an hour old; type the command again to see what it costs now.")
    order = _order(draft)
    if order.origin is not None:
        launching.check_kept(session, order.origin)
    return launching.launch(session, actor, draft.request_id, order)


def discard(session: Session, actor: Actor, draft_id: int) -> None:
    """Forget an order; raises ConflictError where its run is launched already."""
    draft = _own(session, actor, draft_id)
    launched = _launched(session, draft)
    if launched is not None:
        raise ConflictError(f"It is launched already, as run {launched.id}; /run cancel stops it.")
    draft.discarded = True


def _own(session: Session, actor: Actor, draft_id: int) -> LaunchDraft:
    """The actor's draft, locked, so that two presses take turns."""
    draft = session.get(LaunchDraft, draft_id, with_for_update={"key_share": True}, populate_existing=True)
    if draft is None:
        raise NotFoundError("There is no such offer; type the command again.")
    person = people.find(session, actor)
    if person is None or person.id != draft.person_id:
        raise ForbiddenError("Only the one who asked for this run can confirm or cancel it.")
    if draft.discarded:
        raise ConflictError("This offer was cancelled; type the command again.")
    return draft


def _order(draft: LaunchDraft) -> Order:
    """What was asked for, on the allocation that it was priced on."""
    return Order(
        project_id=draft.project_id,
        recipe=draft.recipe,
        time_limit=draft.time_limit,
        gpus=draft.gpus,
        overrides=draft.overrides,
        allocation_id=draft.allocation_id,
        origin=launching.origin_of(draft.parent_id, draft.fork_step),
        dataset=draft.dataset,
    )


def _launched(session: Session, draft: LaunchDraft) -> Run | None:
    return session.scalars(select(Run).where(Run.request_id == draft.request_id)).one_or_none()
