"""Redaction: what an entry told is gone, a tombstone stays, and the chain still verifies."""

import json

import pytest
from sqlalchemy import select

from projects import pipeline, record, redaction
from projects.db import Database
from projects.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor, Person
from projects.record import Entry, Payload
from tests.broker.lab import ADA, GRACE, Lab

ADMINS = 77
OMAR = Actor(50, "Omar", frozenset({ADMINS}))


def bodies(db: Database) -> list[str | None]:
    """Every payload there is."""
    with db.read() as session:
        return list(session.scalars(select(Payload.body).order_by(Payload.entry_id)))


def everything_verifies(db: Database) -> bool:
    with db.read() as session:
        return all(record.verify(session, stream).ok for stream in record.streams(session))


def redact(db: Database, actor: Actor | None, stream: str, number: int, reason: str = "It was private.") -> None:
    with db.write() as session:
        redaction.redact(session, actor, stream, number, reason, admin_role_id=ADMINS)


def test_a_text_is_blanked_and_its_tombstone_says_why_but_never_what(db: Database) -> None:
    project = Lab(db).proposal(title="My telephone number")
    stream = record.project_stream(project)
    redact(db, OMAR, stream, 1)
    with db.read() as session:
        blanked, tombstone = record.since(session, stream, 0)
        salt = session.scalars(
            select(Payload.salt).join(Entry, Entry.id == Payload.entry_id).where(Entry.id == blanked.id)
        ).one()
    assert (blanked.payload, salt) == (None, None)
    assert tombstone.kind == "record.redacted"
    assert tombstone.payload is not None
    assert (tombstone.payload["numbers"], tombstone.payload["why"]) == ([1], "It was private.")
    assert tombstone.payload["by"]["name"] == "Omar"
    assert not any("telephone" in body for body in bodies(db) if body)
    assert everything_verifies(db)


def test_only_admins_and_the_operator_may(db: Database) -> None:
    stream = record.project_stream(Lab(db).proposal())
    before = bodies(db)
    with pytest.raises(ForbiddenError, match="Only the admins"):
        redact(db, GRACE, stream, 1)
    with pytest.raises(ForbiddenError), db.write() as session:  # nobody is an admin where the setting names no role
        redaction.redact(session, Actor(9, "Nul", frozenset({0})), stream, 1, "why", admin_role_id=0)
    assert bodies(db) == before
    redact(db, None, stream, 1)
    assert bodies(db)[0] is None


def test_what_cannot_be_blanked_is_said(db: Database) -> None:
    stream = record.project_stream(Lab(db).proposal())
    with pytest.raises(NotFoundError, match="no entry 7"):
        redact(db, OMAR, stream, 7)
    with pytest.raises(InvalidError, match="reason is empty"):
        redact(db, OMAR, stream, 1, "")
    redact(db, OMAR, stream, 1)
    with pytest.raises(ConflictError, match="blank already"):
        redact(db, OMAR, stream, 1)
    with pytest.raises(ConflictError, match="tombstone"):
        redact(db, OMAR, stream, 2)
    assert everything_verifies(db)


def test_a_person_is_forgotten_wherever_they_are_named(db: Database) -> None:
    lab = Lab(db)
    lab.pool()
    project = lab.project(ADA)
    other = lab.proposal(GRACE, "Adaptive rates")
    with db.write() as session:
        pipeline.join(session, ADA, other, min_people=9)
    with db.write() as session:
        count = redaction.forget(session, OMAR, str(ADA.discord_id), "She asked for it.", admin_role_id=ADMINS)
    kept = [json.loads(body) for body in bodies(db) if body]
    assert count == 3, "her proposal, her scope, and her joining the other"
    assert not any("Ada" in body.replace("Adaptive", "") for body in bodies(db) if body)
    assert any("Adaptive rates" in str(payload) for payload in kept), "a word that holds her name is none of hers"
    with db.read() as session:
        assert session.scalars(select(Person.name).where(Person.discord_id == "1")).one() == redaction.NAMELESS
        assert pipeline.view(session, project).lead.name == redaction.NAMELESS
    assert everything_verifies(db)
    with pytest.raises(NotFoundError), db.write() as session:
        redaction.forget(session, OMAR, "404", "Who?", admin_role_id=ADMINS)
