"""What counts for the tiers beside a request: the grants of the period, of its project and of the people behind it.

A person's sum spans all projects, so that a large request sliced over several of them passes no bound that it would not
pass in one. It counts what they asked for, what was changed at their wish, and all of the projects that they lead.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Subquery, func, union
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import tiers
from broker.allocations.allocations import Allocation, AllocationState
from broker.allocations.change_requests import AllocationChange, ChangeState
from broker.allocations.pools import GrantMovement, GrantRow
from projects.db.columns import utcnow
from projects.people import Person
from projects.projects import Project


class Asker(NamedTuple):
    """Who asks: a project, and the person who made the request, both by their ids."""

    project_id: int
    person_id: int


@dataclass(frozen=True)
class PeriodSum:
    """What counts beside a request, in GPU-seconds; the larger of the sums of its project and its people.

    `project` is what the project was granted within the period. Where the sum of the requester or of the lead is
    larger, `person` is their name, `granted` what they were granted in all projects, and `asked` what they ask for in
    other ones; else `granted` is the project's.
    """

    project: int
    granted: int
    asked: int = 0
    person: str | None = None

    @property
    def seconds(self) -> int:
        """The sum that decides."""
        return self.granted + self.asked


def of_request(session: Session, project_id: int, requested_by: int) -> PeriodSum:
    """What counts beside a request that is decided now. The caller must hold the lock on the project's row.

    This locks the rows of the requester and the lead, so that of two decisions on their requests the second one counts
    what the first one granted.
    """
    lead = session.get_one(Project, project_id).lead_id
    people = select(Person.id).where(col(Person.id).in_({requested_by, lead})).order_by(col(Person.id))
    session.execute(people.with_for_update(key_share=True)).all()
    asker = Asker(project_id, requested_by)
    return of_askers(session, [asker])[asker]


def of_askers(session: Session, askers: Collection[Asker]) -> Mapping[Asker, PeriodSum]:
    """What counts beside requests of these askers, by as many queries as one of them takes. Only reads."""
    project_ids = {asker.project_id for asker in askers}
    of_project = _granted_to_projects(session, project_ids)
    rows = session.execute(select(Project.id, Project.lead_id).where(col(Project.id).in_(project_ids)))
    leads = dict(rows.all())
    people = {asker.person_id for asker in askers} | set(leads.values())
    names = dict(session.execute(select(Person.id, Person.name).where(col(Person.id).in_(people))).all())
    granted, asked = _granted_to_people(session, people), _asked_by_people(session, people)

    def larger(asker: Asker) -> PeriodSum:
        project = of_project[asker.project_id]
        largest = PeriodSum(project, project)
        for person in (leads[asker.project_id], asker.person_id):
            elsewhere = sum(seconds for where, seconds in asked[person].items() if where != asker.project_id)
            theirs = PeriodSum(project, granted[person], elsewhere, names[person])
            largest = theirs if theirs.seconds > largest.seconds else largest
        return largest

    return {asker: larger(asker) for asker in askers}


def _granted_to_projects(session: Session, project_ids: Collection[int]) -> Mapping[int, int]:
    """GPU-seconds that each project was granted within the period.

    Second halves that wait count too. What was returned since still counts.
    """
    rows = session.execute(
        select(Allocation.project_id, func.sum(col(GrantRow.seconds)))
        .join(GrantRow, col(GrantRow.allocation_id) == Allocation.id)
        .where(col(Allocation.project_id).in_(project_ids), *_within_the_period(session))
        .group_by(col(Allocation.project_id))
    )
    return dict.fromkeys(project_ids, 0) | {project_id: int(seconds) for project_id, seconds in rows}


def _granted_to_people(session: Session, people: Collection[int]) -> Mapping[int, int]:
    """GPU-seconds that each person was granted within the period, in all projects."""
    theirs = _of_people(people)
    rows = session.execute(
        select(theirs.c.person, func.sum(col(GrantRow.seconds)))
        .join(GrantRow, col(GrantRow.allocation_id) == theirs.c.allocation)
        .where(*_within_the_period(session))
        .group_by(theirs.c.person)
    )
    return dict.fromkeys(people, 0) | {person: int(seconds) for person, seconds in rows}


def _asked_by_people(session: Session, people: Collection[int]) -> Mapping[int, Mapping[int, int]]:
    """GPU-seconds that each person asks for in each project: open requests that can still be granted."""
    theirs, found = _of_people(people), defaultdict[int, dict[int, int]](lambda: defaultdict(int))
    of_allocation = select(theirs.c.person, col(Allocation.project_id)).join(
        Allocation, col(Allocation.id) == theirs.c.allocation
    )
    allocations = (
        of_allocation.add_columns(func.sum(col(Allocation.seconds)))
        .where(col(Allocation.state) == AllocationState.REQUESTED, col(Allocation.until) > utcnow())
        .group_by(theirs.c.person, col(Allocation.project_id))
    )
    changes = (
        of_allocation.add_columns(func.sum(col(AllocationChange.seconds)))
        .join(AllocationChange, col(AllocationChange.allocation_id) == Allocation.id)
        .where(col(AllocationChange.state) == ChangeState.REQUESTED)
        .group_by(theirs.c.person, col(Allocation.project_id))
    )
    for asked in (allocations, changes):
        for person, project_id, seconds in session.execute(asked):
            found[person][project_id] += int(seconds)
    return found


def _of_people(people: Collection[int]) -> Subquery:
    """The allocations that count for people, each once a person."""
    asked = sa.select(col(Allocation.requested_by), col(Allocation.id))
    changed = sa.select(col(AllocationChange.requested_by), col(AllocationChange.allocation_id))
    return union(
        sa.select(col(Project.lead_id).label("person"), col(Allocation.id).label("allocation"))
        .join(Allocation, col(Allocation.project_id) == Project.id)
        .where(col(Project.lead_id).in_(people)),
        asked.where(col(Allocation.requested_by).in_(people)),
        changed.where(col(AllocationChange.requested_by).in_(people)),
    ).subquery("theirs")


def _within_the_period(session: Session) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """The conditions of a grant's rows that count."""
    since = utcnow() - tiers.current(session).period
    return col(GrantRow.movement).in_((GrantMovement.DRAW, GrantMovement.COMMIT)), col(GrantRow.at) > since
