"""A list is read by as many queries as one row takes, however long it is."""

from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, insert, select
from sqlalchemy.orm import Session

from broker import catalogue
from broker.allocations import allocations
from broker.allocations.allocations import Allocation
from broker.allocations.change_requests import AllocationChange
from broker.allocations.ledger import Balance, LedgerRow, Movement
from broker.allocations.pools import Grant, Pool
from broker.catalogue import CatalogueEntry, CatalogueKind
from broker.publications import Publication
from broker.reports import cluster, review_context, why
from broker.reviews import changes
from broker.runs import control, launching, runs
from broker.runs.launching import Order
from broker.runs.runs import Run, RunState
from broker.runs.series import Point
from projects import projects
from projects.projects import Membership, Project
from tests.broker.lab import ADA, Lab, request_id
from tests.broker.test_catalogue import DEMO
from tests.databases import ONCE

LENGTHS = (1, 10, 100)
ALL = 1000
READ: Mapping[str, tuple[Callable[[Session], Sized], int]] = {
    "projects": (lambda s: projects.views(s, limit=ALL), 1),
    "runs": (lambda s: runs.of_project(s, 1, limit=ALL), 2),
    "newest runs": (lambda s: runs.newest(s, 1, limit=ALL), 2),
    "runs to queue again": (control.revivable, 1),
    "the queue": (lambda s: why.queue(s, limit=ALL), 1),
    "allocations": (lambda s: allocations.of_project(s, 1), 1),
    "a lead's allocations": (lambda s: allocations.of_lead(s, ADA.discord_id, limit=ALL), 2),
    "changes": (lambda s: changes.of_project(s, 1), 1),
    "open changes": (lambda s: changes.allocations_with_open(s, range(1, ALL)), 1),
    "requests under review": (lambda s: review_context.of_requests(s, numbers(s, Allocation)), 2),
    "changes under review": (lambda s: review_context.of_changes(s, numbers(s, AllocationChange)), 1),
    "pools": (cluster.status, 1),
    "use by project": (lambda s: cluster.usage(s, limit=ALL), 1),
    "recipes": (catalogue.recipes, 1),
    "entries": (catalogue.entries, 2),
    "datasets": (catalogue.by_dataset, 1),
    "a quote": (lambda s: [launching.quote(s, Order(1, "demo", "1m"))], 0),
}
"""What reads each list, and how many rows of it a step of growth adds."""


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements that are sent to any database meanwhile."""
    sent: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def numbers(session: Session, model: Any) -> list[int]:
    """The numbers of a table's rows."""
    return list(session.scalars(select(model.id)))


def again(session: Session, model: Any, **changes: object) -> int:
    """A copy of a table's first row with the next number, a request id of its own and some changes; its number."""
    columns = model.__table__.columns
    row = dict(session.execute(select(*columns).order_by(columns.id).limit(1)).one()._mapping)
    row["id"] = 1 + session.scalars(select(func.max(columns.id))).one()
    if "request_id" in row:
        row["request_id"] = request_id()
    session.execute(insert(model).values(row | changes))
    return int(row["id"])


def grow(session: Session) -> None:
    """One more of everything that is listed, with all that is told of it."""
    project = again(session, Project)
    session.execute(insert(Membership).values(project_id=project, person_id=1))
    elsewhere, allocation = again(session, Allocation, project_id=project), again(session, Allocation)
    for number in (elsewhere, allocation):
        session.execute(insert(Balance).values(allocation_id=number, grant_id=1, granted=10**6))
    again(session, AllocationChange, allocation_id=allocation)
    again(session, Grant, pool_id=again(session, Pool, name=f"pool-{allocation}"))
    again(session, CatalogueEntry, name=f"data-{allocation}", dataset=f"lab/data-{allocation}")
    again(session, CatalogueEntry, kind=CatalogueKind.RECIPE, name=f"recipe-{allocation}", body=DEMO)
    for state in (RunState.QUEUED, RunState.PAUSED):
        about = {"state": state, "unfunded": state == RunState.PAUSED, "recipe": f"recipe-{allocation}"}
        run = again(session, Run, allocation_id=allocation, **about)
        for series in ("loss", "tokens_per_second", "held_out"):
            session.execute(insert(Point).values(run_id=run, series=series, step=2, tokens=2, value=2.0))
        session.execute(insert(Publication).values(run_id=run, step=2, folder="", url="https://hub/step2"))
        moved = {"allocation_id": allocation, "run_id": run, "token": 1, "period": 1}
        session.execute(insert(LedgerRow).values(movement=Movement.CHARGE, seconds=2, **moved))


@ONCE
def test_no_list_takes_more_queries_as_it_grows(lab: Lab, subtests: pytest.Subtests) -> None:
    project = lab.project()
    allocation = lab.allocation(project, "100")
    lab.launch(project)
    with lab.db.write() as session:
        changes.request(session, ADA, request_id(), allocation, hours="1", justification="More.")
        about = {"dataset": "lab/data", "revision": "0" * 40, "licence": "MIT"}
        catalogue.propose_dataset(session, None, request_id(), name="data", **about)
        catalogue.accept(session, None, "data", reason="To see.")
    lengths: dict[str, list[int]] = {what: [] for what in READ}
    statements: dict[str, list[list[str]]] = {what: [] for what in READ}
    grown = 0
    for length in LENGTHS:
        with lab.db.write() as session:
            for _ in range(length - grown):
                grow(session)
        grown = length
        for what, (read, _) in READ.items():
            with lab.db.read() as session, counted() as sent:
                lengths[what].append(len(read(session)))
            statements[what].append(sent)
    for what, (_, more) in READ.items():
        with subtests.test(what):
            first, *others = lengths[what]
            assert [other - first for other in others] == [more * (length - 1) for length in LENGTHS[1:]]
            shortest, *longer = statements[what]
            for sent in longer:
                assert len(sent) == len(shortest), "\n".join(sent[:20])
