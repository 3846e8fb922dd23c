"""Sweep plans: a sweep as a member asks for it, kept until the member has seen its runs and cost and confirms it."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session
from sqlmodel import select

from broker.reports import run_plan, why
from broker.reports.why import Why
from broker.runs import sweeps
from broker.runs.launching import Order
from broker.runs.runs import Sweep
from broker.runs.sweeps import SweepQuote, SweepReceipt
from projects import projects, quotas, rights
from projects.people import Actor
from projects.quotas import QuotaKind


@dataclass(frozen=True)
class SweepPreview:
    """What a member sees before confirming: the runs of the sweep, what they cost, and where each would wait."""

    plan_id: int
    quote: SweepQuote
    queue: Sequence[Why]


def plan(session: Session, actor: Actor, request_id: str, order: Order, typed: str) -> SweepPreview:
    """Keep a sweep until it is confirmed; a repeat of the same request returns the same plan.

    `typed` are its points. Raises the errors of its launch.
    """
    person = rights.require_member(session, actor, projects.load(session, order.project_id))
    quote = sweeps.quote(session, order, typed)
    quotas.check(session, actor, QuotaKind.LAUNCH, acts=len(quote.quotes))
    runs = [each.run for each in quote.quotes]
    for run in runs:
        run.requested_by = person.id
    kept = run_plan.keep(session, person, request_id, order, runs[0].allocation_id, sweep=typed)
    return SweepPreview(kept.id, quote, why.forecasts(session, runs))


def confirm(session: Session, actor: Actor, plan_id: int) -> SweepReceipt:
    """Launch the planned sweep; a second confirmation returns the same sweep. Raises the errors of a launch."""
    kept = run_plan.own(session, actor, plan_id)
    launched = session.scalars(select(Sweep).where(Sweep.request_id == kept.request_id)).one_or_none()
    if launched is not None:
        return sweeps.receipt(session, launched.id)
    run_plan.check_fresh(kept)
    return sweeps.launch(session, actor, kept.request_id, run_plan.order_of(kept), kept.sweep)
