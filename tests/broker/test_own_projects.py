"""What an admin may not do for a project of their own; the operator and other admins may."""

from collections.abc import Callable

import pytest
from sqlalchemy.orm import Session

from broker.allocations import reservations, shares, sponsor_shares
from projects import membership
from projects.errors import ForbiddenError
from projects.people import Actor, LabRole
from tests.broker.lab import ADA, GRACE, POOL, Lab, in_days

OMAR = Actor(9, "Omar", frozenset({LabRole.ADMIN}))
Deed = Callable[[Session, Actor | None, int], object]


def reserve(session: Session, actor: Actor | None, project: int) -> object:
    period = {"begins": f"{in_days(2)} 09:00", "ends": f"{in_days(3)} 09:00"}
    return reservations.add(session, actor, POOL, project_id=project, gpus="1", reason="A deadline.", **period)


def set_share(session: Session, actor: Actor | None, project: int) -> object:
    return shares.set_share(session, actor, project, "100", "A deadline.")


def set_aside(session: Session, actor: Actor | None, project: int) -> object:
    return sponsor_shares.set_aside(session, actor, "The house", "0.9", [project], "A deadline.")


@pytest.mark.parametrize("deed", [reserve, set_share, set_aside])
def test_nobody_prefers_their_own_project(lab: Lab, deed: Deed) -> None:
    project = lab.project()
    member = Actor(GRACE.discord_id, GRACE.name, OMAR.roles)
    before = lab.everything()
    with pytest.raises(ForbiddenError, match="their own project; another admin can"), lab.db.write() as session:
        deed(session, member, project)
    lab.join(project, OMAR)
    with pytest.raises(ForbiddenError), lab.db.write() as session:
        deed(session, OMAR, project)
    lab.leave(project, OMAR)
    assert lab.everything()[1:7] == before[1:7], "streams and people tell of coming and going"
    with lab.db.write() as session:
        membership.follow(session, OMAR, project)
    with lab.db.write() as session:
        deed(session, OMAR, project)


@pytest.mark.parametrize("deed", [reserve, set_share, set_aside])
def test_the_operator_may(lab: Lab, deed: Deed) -> None:
    project = lab.project(ADA)
    with lab.db.write() as session:
        deed(session, None, project)
