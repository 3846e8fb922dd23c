"""The ban list: who is banned does nothing but read."""

import pytest

from projects import bans, lifecycle, projects
from projects.errors import ConflictError, ForbiddenError, NotFoundError
from projects.people import Actor, LabRole
from projects.record import record
from tests.broker.lab import ADA, GRACE, ROSA, STRANGER, Lab

OMAR = Actor(50, "Omar", frozenset({LabRole.ADMIN}))


def ban(lab: Lab, who: Actor, by: Actor | None = OMAR) -> None:
    with lab.db.write() as session:
        bans.ban(session, by, who, "Spam.")


def unban(lab: Lab, who: Actor, by: Actor | None = OMAR) -> None:
    with lab.db.write() as session:
        bans.unban(session, by, who.discord_id, "It was a mistake.")


def test_who_is_banned_does_nothing_but_read(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project)
    asked = lab.request(project)
    run = lab.launch(project, allocation_id=allocation)
    ban(lab, ADA)
    ban(lab, ROSA, None)
    ban(lab, STRANGER)
    before = lab.everything()
    acts = (
        lambda: lab.proposal(ADA, "Let me in"),
        lambda: lab.request(project),
        lambda: lab.launch(project, allocation_id=allocation),
        lambda: lab.cancel(run),
        lambda: lab.approve(asked, reviewer=ROSA),
        lambda: join(lab, STRANGER, project),
    )
    for act in acts:
        with pytest.raises(ForbiddenError, match="you are banned: Spam"):
            act()
    assert lab.everything() == before
    with lab.db.read() as session:
        assert projects.view(session, project).lead.name == "Ada"
        told = [(entry.kind, entry.payload) for entry in record.since(session, record.LAB, 0)][-3:]
    assert [kind for kind, _ in told] == ["person.banned"] * 3
    assert told[0][1] is not None
    assert (told[0][1]["person"]["name"], told[0][1]["why"], told[0][1]["by"]["name"]) == ("Ada", "Spam.", "Omar")
    unban(lab, ADA)
    lab.cancel(run)


def join(lab: Lab, actor: Actor, project: int) -> None:
    with lab.db.write() as session:
        lifecycle.join(session, actor, project, min_people=2)


def test_only_admins_ban_and_nobody_twice(lab: Lab) -> None:
    lab.project()
    with pytest.raises(ForbiddenError, match="Only the admins"):
        ban(lab, ADA, GRACE)
    with pytest.raises(ConflictError, match="themselves"):
        ban(lab, OMAR, OMAR)
    with pytest.raises(ConflictError, match="not banned"):
        unban(lab, ADA)
    with pytest.raises(NotFoundError):
        unban(lab, Actor(404, "Nobody"))
    ban(lab, ADA)
    with pytest.raises(ConflictError, match="already banned"):
        ban(lab, ADA)
