"""Sweeps: runs over a grid or list of overrides, as many as the policy allows, launched together or not at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import mean, stdev
from typing import Any, TypeVar

from sqlalchemy import func
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import ledger, payers
from broker.allocations.ledger import Account
from broker.allocations.units import Unit, in_hours
from broker.runs import evaluation_plans, launching, naming, runs, sweep_text
from broker.runs.launching import Order, Quote
from broker.runs.runs import ACTIVE, ENDED, Run, RunState, RunView, Sweep
from projects import policies, projects, quotas, rights
from projects.errors import ConflictError, DomainError, InvalidError, NotFoundError
from projects.people import Actor, Person
from projects.quotas import QuotaKind
from projects.record import record

T = TypeVar("T")


@dataclass(frozen=True)
class SweepQuote:
    """What a sweep comes to, with nothing queued: a quote for each of its runs, and the sums of their costs.

    `swept` are the fields that differ from point to point. `expected` is None where nothing like one of the runs was
    measured. `left` and `promised` as in a Receipt; all in GPU-seconds.
    """

    swept: Sequence[str]
    quotes: Sequence[Quote]
    cost: int
    expected: int | None
    left: int
    promised: int

    @property
    def unit(self) -> Unit:
        """What its pool counts."""
        return self.quotes[0].pool.unit


@dataclass(frozen=True)
class SweepReceipt:
    """The answer to the launch of a sweep: its runs and what they may cost together, as in a Receipt."""

    sweep_id: int
    run_ids: Sequence[int]
    unit: Unit
    cost: int
    expected: int | None
    left: int
    promised: int


@dataclass(frozen=True)
class OverSeeds:
    """The mean and the sample standard deviation of a loss over the finished runs that differ by their seed only."""

    point: str
    measure: str
    mean: float
    deviation: float
    seeds: int


@dataclass(frozen=True)
class SweepView:
    """A sweep as cards show it, with its runs in the order of its points. `overrides` are those that all runs share."""

    id: int
    project_id: int
    recipe: str
    requested_by: str
    swept: Sequence[str]
    overrides: Mapping[str, str]
    gpus: int
    time_limit: int
    runs: Sequence[RunView]
    account: Account

    @property
    def unit(self) -> Unit:
        """What its pool counts."""
        return self.runs[0].unit

    @property
    def measure(self) -> str:
        """The loss that the runs are compared by: the training loss while no run has a held-out one."""
        return "loss" if all(run.held_out is None for run in self.runs) else "held-out loss"

    def measured(self, run: RunView) -> float | None:
        """The run's value of `measure`; None while there is none, and where it is not finite."""
        value = run.loss if self.measure == "loss" else run.held_out
        return value if value is not None and isfinite(value) else None

    def ranked(self) -> list[RunView]:
        """The runs that can be compared, the lowest loss first."""
        found = [(value, run.id, run) for run in self.runs if (value := self.measured(run)) is not None]
        return [run for _, _, run in sorted(found, key=lambda each: each[:2])]

    @property
    def best(self) -> RunView | None:
        """The run with the lowest loss; None while fewer than two can be compared."""
        ranked = self.ranked()
        return ranked[0] if len(ranked) > 1 else None

    def over_seeds(self) -> list[OverSeeds]:
        """The means over seeds, the lowest first; empty unless seeds are swept beside another field."""
        others = [field for field in self.swept if field != "seed"]
        if not others or len(others) == len(self.swept):
            return []
        groups: dict[str, list[float]] = {}
        for run in self.ranked():
            if run.state == RunState.FINISHED:
                point = " · ".join(run.overrides[field] for field in others)
                groups.setdefault(point, []).append(self.measured(run) or 0.0)
        found = [
            OverSeeds(point, self.measure, mean(values), stdev(values), len(values))
            for point, values in groups.items()
            if len(values) > 1
        ]
        return sorted(found, key=lambda each: each.mean)

    @property
    def state(self) -> RunState:
        """The state of the sweep as a whole: running while one of its runs is, finished once all have ended."""
        states = {run.state for run in self.runs}
        order = (RunState.RUNNING, RunState.STARTING, RunState.STOPPING, RunState.QUEUED, RunState.PAUSED)
        return next((state for state in order if state in states), RunState.FINISHED)

    @property
    def spent(self) -> int:
        """GPU-seconds that its runs were charged for and not refunded."""
        return sum(run.spent for run in self.runs)

    def point(self, run: RunView) -> str:
        """The values that set a run apart, in the order of the fields."""
        return " · ".join(run.overrides.get(field, "") for field in self.swept)

    def named(self, run: RunView) -> str:
        """A run's point as one would type it."""
        return sweep_text.named({field: run.overrides.get(field, "") for field in self.swept})


def quote(session: Session, order: Order, typed: str) -> SweepQuote:
    """What the sweep of an order would come to; raises what its launch does, but for rights. Only reads."""
    swept, orders = _orders(session, order, typed)
    quotes = [_of_point(session, order, swept, point, launching.quote) for point in orders]
    _check_distinct([each.run for each in quotes], swept)
    expected = [each.expected for each in quotes]
    return SweepQuote(
        swept=swept,
        quotes=quotes,
        cost=sum(each.cost for each in quotes),
        expected=None if None in expected else sum(each or 0 for each in expected),
        left=quotes[0].left,
        promised=quotes[0].promised,
    )


def launch(session: Session, actor: Actor, request_id: str, order: Order, typed: str) -> SweepReceipt:
    """Queue a run for each point, all or none, and return what they cost; a repeated request returns the same sweep.

    Raises the errors of a launch; one that concerns a single point names it.
    """
    earlier = session.scalars(select(Sweep).where(Sweep.request_id == request_id)).one_or_none()
    if earlier is not None:
        return receipt(session, earlier.id)
    project = projects.load(session, order.project_id)
    person = rights.hold_member(session, actor, project)
    swept, orders = _orders(session, order, typed)
    quotas.check(session, actor, QuotaKind.LAUNCH, acts=len(orders))
    made = [_of_point(session, order, swept, point, launching.draw_up)[0] for point in orders]
    _check_distinct(made, swept)
    shared = launching.parse_overrides(order.overrides)
    sweep = Sweep(
        request_id=request_id,
        project_id=project.id,
        requested_by=person.id,
        recipe=order.recipe,
        points=" ".join(typed.split()),
        swept=" ".join(swept),
        overrides=shared,
        gpus=made[0].gpus,
        time_limit=made[0].time_limit,
    )
    session.add(sweep)
    session.flush()
    for place, run in enumerate(made):
        run.request_id, run.requested_by, run.sweep_id = f"{request_id}:{place}", person.id, sweep.id
        session.add(run)
        session.flush()
    quotas.check_project(session, QuotaKind.LAUNCH, project.id, acts=len(made))
    cost = sum(run.gpus * run.time_limit for run in made)
    asked: dict[str, Any] = {"recipe": sweep.recipe, "points": sweep.points, "swept": swept, "overrides": shared}
    asked |= {"gpus": sweep.gpus, "time_limit": sweep.time_limit, "cost": cost}
    tell(session, sweep, "sweep.launched", by=person, runs=[run.id for run in made], **asked)
    for run in made:
        evaluated = evaluation_plans.add(session, run.id, order.evaluate)
        launching.tell_queued(session, run, evaluated, by=person)
    return receipt(session, sweep.id)


def receipt(session: Session, sweep_id: int) -> SweepReceipt:
    """What the sweep's runs may still cost, and what they are expected to."""
    each = [launching.receipt(session, run) for run in members(session, sweep_id)]
    expected = [one.expected for one in each]
    return SweepReceipt(
        sweep_id=sweep_id,
        run_ids=[one.run_id for one in each],
        unit=each[0].unit,
        cost=sum(one.cost for one in each),
        expected=None if None in expected else sum(one or 0 for one in expected),
        left=each[0].left,
        promised=each[0].promised,
    )


def load(session: Session, sweep_id: int) -> Sweep:
    """The sweep's row; raises NotFoundError."""
    sweep = session.get(Sweep, sweep_id)
    if sweep is None:
        raise NotFoundError(f"There is no sweep {sweep_id}.")
    return sweep


def members(session: Session, sweep_id: int) -> Sequence[Run]:
    """The rows of a sweep's runs, in the order of its points."""
    query = select(Run).where(Run.sweep_id == sweep_id).order_by(col(Run.id))
    return session.scalars(query.execution_options(populate_existing=True)).all()


def view(session: Session, sweep_id: int) -> SweepView:
    """The sweep as cards show it; raises NotFoundError."""
    sweep = load(session, sweep_id)
    ids = session.scalars(select(Run.id).where(Run.sweep_id == sweep_id).order_by(col(Run.id))).all()
    shown = runs.views(session, ids)
    return SweepView(
        id=sweep.id,
        project_id=sweep.project_id,
        recipe=sweep.recipe,
        requested_by=session.get_one(Person, sweep.requested_by).name,
        swept=sweep.swept.split(),
        overrides=sweep.overrides,
        gpus=sweep.gpus,
        time_limit=sweep.time_limit,
        runs=shown,
        account=shown[0].account,
    )


def in_motion(session: Session, project_id: int) -> set[int]:
    """The sweeps of a project with a run that is queued, starting, running or stopping."""
    moving = select(Run.sweep_id).where(Run.project_id == project_id, col(Run.state).in_(ACTIVE))
    return {sweep_id for sweep_id in session.scalars(moving.distinct()) if sweep_id is not None}


def newest(session: Session, project_id: int | None = None, *, limit: int = 100) -> Sequence[tuple[int, str, str, int]]:
    """Id, recipe, points and number of open runs of the newest sweeps, of one project or of all."""
    left = (
        select(func.count()).where(col(Run.sweep_id) == col(Sweep.id), col(Run.state).not_in(ENDED)).scalar_subquery()
    )
    query = select(Sweep.id, Sweep.recipe, Sweep.points).add_columns(left)
    if project_id is not None:
        query = query.where(col(Sweep.project_id) == project_id)
    rows = session.execute(query.order_by(col(Sweep.id).desc()).limit(limit))
    return [(number, recipe, points, count) for number, recipe, points, count in rows]


def tell(session: Session, sweep: Sweep, kind: str, *, by: Person | None = None, **told: Any) -> None:
    """Append an entry about the sweep to its project's record."""
    record.append(session, record.project_stream(sweep.project_id), kind, by=by, sweep=sweep.id, **told)


def tell_if_over(session: Session, run: Run) -> None:
    """Append the entry that a run's sweep is over, where the run has just ended as the last of it.

    The entry of the run's own end comes before: it holds the project's stream, so that of two runs that end at once
    the second sees the first.
    """
    if run.sweep_id is None:
        return
    open_ = select(func.count()).where(col(Run.sweep_id) == run.sweep_id, col(Run.state).not_in(ENDED))
    if session.scalar(open_):
        return
    shown = view(session, run.sweep_id)
    ends: dict[str, int] = {}
    for each in shown.runs:
        ends[each.state] = ends.get(each.state, 0) + 1
    best = shown.best
    told: dict[str, Any] = {}
    if best is not None:
        told = {"best": best.id, "point": shown.named(best)}
        told |= {"measure": shown.measure, "value": f"{shown.measured(best):.3f}"}
    tell(session, load(session, run.sweep_id), "sweep.ended", ends=ends, spent=shown.spent, **told)


def _orders(session: Session, order: Order, typed: str) -> tuple[list[str], list[Order]]:
    """The fields of a sweep and the order of each of its points, once its whole cost is known to fit.

    Each run has the sweep's tags, and its name with the values of the point. Raises the errors of a launch that concern
    all points.
    """
    points = sweep_text.points(typed, policies.current(session).most_runs_a_sweep)
    swept, shared = list(points[0]), launching.parse_overrides(order.overrides)
    for field in swept:
        if field in shared:
            raise InvalidError(f"“{field}” is both swept and overridden; give it once.")
    on = launching.grounds(session, order)
    each = order.gpus * on.seconds
    cost, allocation = len(points) * each, on.allocation
    if order.allocation_id is None:
        allocation = payers.or_another(session, allocation, cost)
    account = ledger.account(session, allocation.id)
    if cost > account.left:
        needed, left = ledger.too_much(cost, account.left)
        other = payers.naming_another(session, on.project.id, cost)
        raise ConflictError(
            f"The sweep may cost {needed} {on.pool.unit.in_hours}, {len(points)} runs of {in_hours(each)} each, with "
            f"{left} left: fewer points, less time or fewer {on.pool.unit.plural} would fit.{other}"
        )
    name = naming.parse_name(order.name)
    orders = [
        replace(
            order,
            overrides=launching.typed(shared | point),
            allocation_id=allocation.id,
            name=f"{name}: {' · '.join(point.values())}" if name else "",
        )
        for point in points
    ]
    return swept, orders


def _of_point(
    session: Session, shared: Order, swept: Sequence[str], order: Order, call: Callable[[Session, Order], T]
) -> T:
    """What `call` makes of the order of one point; a refusal names the point, unless the `shared` order has it too."""
    try:
        return call(session, order)
    except DomainError as refusal:
        if str(refusal) == _refusal(session, shared):
            raise
        point = _point(launching.parse_overrides(order.overrides), swept)
        raise type(refusal)(f"The point {point}: {refusal}") from refusal


def _refusal(session: Session, order: Order) -> str:
    """The sentence that refuses an order; empty where none does."""
    try:
        launching.draw_up(session, order)
    except DomainError as refusal:
        return str(refusal)
    return ""


def _check_distinct(made: Sequence[Run], swept: Sequence[str]) -> None:
    """Raise InvalidError where two points come to the same configuration, however they are typed."""
    seen: dict[str, Run] = {}
    for run in made:
        other = seen.setdefault(run.config, run)
        if other is not run:
            same = _point(other.overrides, swept)
            raise InvalidError(f"Two points are the same run: {same} and {_point(run.overrides, swept)}.")


def _point(overrides: Mapping[str, str], swept: Sequence[str]) -> str:
    return sweep_text.named({field: overrides[field] for field in swept})
