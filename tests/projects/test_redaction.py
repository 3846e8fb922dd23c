"""Redaction: what an entry told is gone, a tombstone stays, and the chain still verifies."""

import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlmodel import col, select

from broker.allocations import allocations, pools, requests
from broker.runs import entries, runs
from projects import lifecycle, membership, moderation, people, projects, updates
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor, LabRole, Person
from projects.record import mentions, record, redaction, verification
from projects.record.mentions import Mentions
from projects.record.record import Entry, Payload
from tests.broker.lab import ADA, GRACE, POOL, Lab

OMAR = Actor(50, "Omar", frozenset({LabRole.ADMIN}))


def bodies(db: Database) -> list[str | None]:
    """Every payload there is."""
    with db.read() as session:
        return list(session.scalars(select(col(Payload.body)).order_by(col(Payload.entry_id))))


def everything_verifies(db: Database) -> bool:
    with db.read() as session:
        return all(verification.verify(session, stream).ok for stream in record.streams(session))


def redact(db: Database, actor: Actor | None, stream: str, number: int, reason: str = "It was private.") -> None:
    with db.write() as session:
        redaction.redact(session, actor, stream, number, reason)


def test_a_text_is_blanked_and_its_tombstone_says_why_but_never_what(db: Database) -> None:
    project = Lab(db).proposal(title="My telephone number")
    stream = record.project_stream(project)
    redact(db, OMAR, stream, 1)
    with db.read() as session:
        blanked, tombstone = record.since(session, stream, 0)
        salt = session.scalars(
            select(col(Payload.salt)).join(Entry, col(Entry.id) == Payload.entry_id).where(Entry.id == blanked.id)
        ).one()
    assert (blanked.payload, salt) == (None, None)
    assert tombstone.kind == "record.redacted"
    assert tombstone.payload is not None
    assert (tombstone.payload["numbers"], tombstone.payload["why"]) == ([1], "It was private.")
    assert tombstone.payload["by"]["name"] == "Omar"
    assert not any("telephone" in body for body in bodies(db) if body)
    assert everything_verifies(db)


def test_what_cards_show_of_a_blanked_entry_goes_too(db: Database) -> None:
    lab = Lab(db)
    lab.pool()
    project = lab.project()
    stream = record.project_stream(project)
    other = lab.proposal(GRACE, "Adaptive rates")
    allocation = lab.allocation(project)
    run = lab.launch(project)
    with db.write() as session:
        row = runs.load(session, run)
        row.sample, row.prompt = "The number is 555.", "Call me:"
        entries.tell(session, row, "run.finished", text=row.sample, prompt=row.prompt)
    with db.write() as session:
        requests.report(session, ADA, allocation, "The number is 555.")
    redact(db, OMAR, stream, 1)
    for number in range(1, len(lab.kinds(project)) + 1):
        if lab.kinds(project)[number - 1] in ("allocation.requested", "run.finished"):
            redact(db, OMAR, stream, number)
    with db.read() as session:
        view = projects.view(session, project)
        shown = allocations.view(session, allocation)
        assert (view.title, view.question) == (redaction.REMOVED, redaction.REMOVED)
        assert view.goal == "g", "another entry tells it"
        assert (shown.justification, shown.report) == (redaction.REMOVED, "The number is 555.")
        assert projects.view(session, other).question == "q", "another project's"
    assert (lab.row(run).sample, lab.row(run).prompt) == (redaction.REMOVED, redaction.REMOVED)
    assert everything_verifies(db)


def test_only_admins_and_the_operator_may(db: Database) -> None:
    stream = record.project_stream(Lab(db).proposal())
    before = bodies(db)
    with pytest.raises(ForbiddenError, match="Only the admins"):
        redact(db, GRACE, stream, 1)
    with pytest.raises(ForbiddenError), db.write() as session:  # nobody is an admin where the setting names no role
        redaction.redact(session, Actor(9, "Nul"), stream, 1, "why")
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
    with pytest.raises(ConflictError, match="already blank"):
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
        lifecycle.join(session, ADA, other, min_people=9)
    with db.write() as session:
        count = redaction.forget(session, OMAR, str(ADA.discord_id), "She asked for it.")
    kept = [json.loads(body) for body in bodies(db) if body]
    assert count == 4, "her proposal, her scope, her confirming Grace, and her joining the other"
    assert not any("Ada" in body.replace("Adaptive", "") for body in bodies(db) if body)
    assert any("Adaptive rates" in str(payload) for payload in kept), "a word that holds her name is none of hers"
    with db.read() as session:
        assert session.scalars(select(Person.name).where(Person.discord_id == "1")).one() == redaction.NAMELESS
        assert projects.view(session, project).lead.name == redaction.NAMELESS
    assert everything_verifies(db)
    with pytest.raises(NotFoundError), db.write() as session:
        redaction.forget(session, OMAR, "404", "Who?")


def mentions_of(db: Database, actor: Actor) -> Mentions:
    with db.read() as session:
        return mentions.find(session, OMAR, str(actor.discord_id))


def forget(db: Database, actor: Actor, texts: Collection[str] = ()) -> int:
    with db.write() as session:
        return redaction.forget(session, OMAR, str(actor.discord_id), "They asked for it.", texts)


def test_a_forgotten_name_is_on_no_card(db: Database) -> None:
    lab = Lab(db)
    lab.pool()
    project = lab.project(ADA, "Ada's telescope, adapted")
    allocation = lab.allocation(project)
    run = lab.launch(project)
    lab.cancel(run)
    asked = lab.request(project, ADA, hours="300", justification="Ada needs them.")
    lab.decline(asked, reason="Not for Ada; for Adam perhaps.")
    with db.write() as session:
        runs.load(session, run).prompt = "Once Ada"
        runs.load(session, run).tags = "rope ada by-ada. adamw"
        pools.add_grant(session, pool=POOL, sponsor="Ada", seconds=1, until=utcnow() + timedelta(days=99))
    assert lab.run(run).reason == "cancelled by Ada"
    found = mentions_of(db, ADA)
    before = bodies(db)
    assert {(place.where, place.said) for place in found.texts} == {
        ("title of project 1", "Ada's telescope, adapted"),
        ("justification of allocation 2", "Ada needs them."),
        ("reason of allocation 2", "Not for Ada; for Adam perhaps."),
        ("sponsor of grant 2", "Ada"),
        ("prompt of run 1", "Once Ada"),
        ("tags of run 1", "rope ada by-ada. adamw"),
        ("entry 3 of lab", "Ada"),
        (f"entry {lab.kinds(project).index('allocation.declined') + 1} of project 1", "Not for Ada; for Adam perhaps."),
    }
    assert bodies(db) == before, "to look changes nothing"
    assert forget(db, ADA, [place.key for place in found.texts]) == found.entries + 2
    assert lab.run(run).reason == "cancelled by a former member"
    assert lab.run(run).requested_by == redaction.NAMELESS
    assert lab.row(run).prompt == "Once a former member"
    assert lab.row(run).tags == "rope adamw"
    with db.read() as session:
        assert projects.view(session, project).title == "a former member's telescope, adapted"
        assert [grant.sponsor for grant in pools.grants(session)] == ["The house", redaction.NAMELESS]
        view = allocations.view(session, asked)
        assert allocations.view(session, allocation).requested_by == redaction.NAMELESS
    assert (view.justification, view.reason) == (
        "a former member needs them.",
        "Not for a former member; for Adam perhaps.",
    )
    assert not any("Ada" in body.replace("Adam", "") for body in bodies(db) if body)
    assert forget(db, ADA) == 0, "who else is forgotten is named no more"
    assert mentions_of(db, ADA) == Mentions(0, [])
    assert everything_verifies(db)


@pytest.mark.parametrize("name", ["the", "e", "🙂", "Stoa", ".*", "(", "a former member", "proposed", "2", "member"])
def test_whoever_chooses_a_word_as_a_name_blanks_nothing_of_others(db: Database, name: str) -> None:
    lab = Lab(db)
    lab.pool()
    project = lab.project(ADA, "Does the e of Stoa (.*) 🙂 matter to a former member?")
    run = lab.launch(project) if lab.allocation(project) else 0
    lab.cancel(run)
    stranger = Actor(77, name)
    with db.write() as session:
        membership.follow(session, stranger, project)
    others = {number: body for number, body in enumerate(bodies(db)) if body and '"77"' not in body}
    tables = [lab.row(run).reason, lab.run(run).reason]
    assert mentions_of(db, stranger).entries == 1
    assert forget(db, stranger) == 1
    assert {number: bodies(db)[number] for number in others} == others
    assert [lab.row(run).reason, lab.run(run).reason] == tables
    with db.read() as session:
        assert projects.view(session, project).title == "Does the e of Stoa (.*) 🙂 matter to a former member?"
    assert everything_verifies(db)


def test_a_text_that_is_somebodys_name_too_is_removed_alone(db: Database) -> None:
    lab = Lab(db)
    project = lab.proposal(ADA, "Ada")
    with db.write() as session:
        membership.follow(session, Actor(77, "q"), project)  # which is the project's question
    stream = record.project_stream(project)
    redact(db, OMAR, stream, 2)
    with db.read() as session:
        assert projects.view(session, project).question == "q"
    with db.write() as session:
        updates.change_needs(session, ADA, project, "Nets.")
        assert moderation.remove_text(session, OMAR, project, "title", "It was private.") == 1
    with db.read() as session:
        kept = [entry.kind for entry in record.since(session, stream, 0) if entry.payload]
    assert kept == ["record.redacted", "project.needs_changed", "record.redacted"]
    assert everything_verifies(db)


def test_an_id_that_somebody_types_blanks_nothing(db: Database) -> None:
    """Only an object with id and name refers to a person, and the ids of channels and roles are no people's."""
    with db.write() as session:
        said = {"title": "Who is 77?", "question": "77", "why": "w", "needs": '{"id":"77","name":"Seven"}'}
        lifecycle.propose(session, GRACE, "who-is-77", **said)
        places = {"proposals": {"id": "77", "name": "proposals"}}
        record.append(session, record.LAB, "server.set_up", by=None, places=places)
        people.ensure(session, Actor(77, "Seven"))
    before = bodies(db)
    found = mentions_of(db, Actor(77, "Seven"))
    assert (found.entries, len(found.texts)) == (0, 4), "title, question and needs, and their entry"
    assert forget(db, Actor(77, "Seven")) == 0
    assert bodies(db) == before


def test_former_names_are_looked_for_until_they_are_forgotten(db: Database) -> None:
    lab = Lab(db)
    lab.pool()
    project = lab.project(ADA, "Augusta and Ada and Ada Lovelace count")
    for name in ("Augusta", "Ada Lovelace", "Lady"):
        with db.write() as session:
            updates.change_needs(session, Actor(ADA.discord_id, name), project, f"Ask {name}.")
    redact(db, OMAR, record.project_stream(project), len(lab.kinds(project)) - 2)  # who was Augusta then
    found = mentions_of(db, ADA)
    assert found.entries == 5
    title = next(place for place in found.texts if place.where == "title of project 1")
    assert forget(db, ADA, [title.key]) == 5
    with db.read() as session:
        view = projects.view(session, project)
        assert session.scalars(select(people.FormerName)).all() == []
    assert view.title == "a former member and a former member and a former member count"
    assert view.needs == "Ask Lady.", "an admin has not chosen it"


def test_who_comes_back_is_named_by_what_they_do_anew_and_forgotten_again(db: Database) -> None:
    lab = Lab(db)
    lab.pool()
    project = lab.project(ADA)
    lab.allocation(project)
    run = lab.launch(project, GRACE)
    lab.cancel(run, ADA)
    first = forget(db, ADA)
    with db.write() as session:
        updates.post_update(session, ADA, project, "Here I am.")
    assert sum('"Ada"' in body for body in bodies(db) if body) == 1
    with db.read() as session:
        assert session.scalars(select(people.FormerName)).all() == []
    assert lab.run(run).reason == "cancelled by a former member"
    assert (first, forget(db, ADA), forget(db, ADA)) == (5, 1, 0), (
        "proposal, scope, confirmation, request and cancel; the update"
    )
    assert everything_verifies(db)


def test_a_decision_holds_for_the_text_that_was_shown(db: Database) -> None:
    lab = Lab(db)
    project = lab.proposal(GRACE, "Ada counts")
    with db.write() as session:
        membership.follow(session, ADA, project)
    shown = [place.key for place in mentions_of(db, ADA).texts]
    with db.write() as session:
        projects.load(session, project).title = "Ada, a language"
    forget(db, ADA, [*shown, "entry:1:00000000", "projects:1:title:00000000", "rubbish", "entry:x:"])
    with db.read() as session:
        assert projects.view(session, project).title == "Ada, a language"
    assert bodies(db)[0] is None, "the entry of the proposal was chosen, and is as it was shown"
    assert everything_verifies(db)


def test_two_admins_forget_one_person_at_once(db: Database) -> None:
    lab = Lab(db)
    project = lab.proposal(ADA)
    with db.write() as session:
        membership.follow(session, GRACE, project)
    keys = [place.key for place in mentions_of(db, ADA).texts]
    with ThreadPoolExecutor(2) as threads:
        counts = [each.result() for each in [threads.submit(forget, db, ADA, keys) for _ in range(2)]]
    assert sorted(counts) == [0, 1]
    assert lab.kinds(project).count("record.forgotten") == 1
    assert everything_verifies(db)


def test_one_text_of_a_project_is_removed_from_card_and_record(db: Database) -> None:
    project = Lab(db).proposal(title="My telephone number")
    stream = record.project_stream(project)

    def remove(actor: Actor | None, field: str, reason: str = "It was private.") -> int:
        with db.write() as session:
            return moderation.remove_text(session, actor, project, field, reason)

    before = bodies(db)
    with pytest.raises(ForbiddenError, match="Only the admins"):
        remove(GRACE, "title")
    with pytest.raises(NotFoundError, match="it has: title, question, why, needs"):
        remove(OMAR, "lead_id")
    with pytest.raises(ConflictError, match="The stage reason of project 1 is already empty"):
        remove(OMAR, "stage_reason")
    assert bodies(db) == before
    assert remove(OMAR, "title") == 1
    assert not any("telephone" in body for body in bodies(db) if body)
    with db.read() as session:
        view = projects.view(session, project)
        entries = record.since(session, stream, 0)
    assert (view.title, view.question) == (redaction.REMOVED, "q")
    assert entries[-1].kind == "record.redacted"
    assert entries[-1].payload is not None
    assert (entries[-1].payload["numbers"], entries[-1].payload["field"]) == ([1], "title")
    with pytest.raises(ConflictError, match="already empty"):
        remove(None, "title")
    assert remove(None, "question") == 0, "its entry was blanked with the title's"
    assert everything_verifies(db)
