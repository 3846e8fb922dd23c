"""Quotas: what one person, and all people of a project together, may have open or do in a day."""

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import count, cycle
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, insert, text, update
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot import server
from broker import catalogue
from broker.allocations import pools, requests, reservations
from broker.reviews import changes, inventory, reviews
from broker.runs import control, naming
from broker.runs.launching import Origin
from projects import bans, findings, lifecycle, membership, people, policies, quotas, updates
from projects.db.columns import utcnow
from projects.errors import ConflictError
from projects.people import Actor, LabRole
from projects.projects import Membership, Project
from projects.quotas import QuotaKind
from projects.record import hash_chain, record, redaction
from projects.record.record import Authorship, Entry, Payload
from tests.at_once import allowed
from tests.broker.lab import ADA, EMMY, GRACE, ROSA, STRANGER, Lab, in_days, request_id


def policy(lab: Lab, name: str, value: int) -> None:
    with lab.db.write() as session:
        policies.change(session, None, name, str(value), "Room for more.")


def test_nobody_has_too_many_open_proposals(lab: Lab) -> None:
    for number in range(5):
        lab.proposal(ADA, f"Question {number}")
    with pytest.raises(ConflictError, match="5 of your proposals are not active yet"):
        lab.proposal(ADA, "One more")
    lab.proposal(GRACE, "Another's")
    with lab.db.write() as session:
        lifecycle.complete(session, ADA, 1, outcome="abandoned", learnt="To end things.")
    lab.proposal(ADA, "One more")


def test_nobody_asks_for_compute_or_launches_without_end(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, "10")
    lab.request(project)
    policy(lab, "most_requests_a_day", 3)
    lab.request(project)
    with pytest.raises(ConflictError, match="3 requests for compute a day; the next one can be at"):
        lab.request(project)
    policy(lab, "most_launches_a_day", 6)
    for _ in range(6):
        lab.launch(project, allocation_id=allocation)
    with pytest.raises(ConflictError, match="6 launches a day"):
        lab.launch(project, allocation_id=allocation)
    lab.launch(project, GRACE, allocation_id=allocation)
    yesterday(lab)
    lab.launch(project, allocation_id=allocation)


def yesterday(lab: Lab) -> None:
    """Let all that is recorded have happened a day ago."""
    with lab.db.write() as session:
        for row in session.scalars(select(Payload)):
            assert row.body is not None
            said = json.loads(row.body)
            then = datetime.fromisoformat(said["at"]) - timedelta(days=1)
            changed = hash_chain.canonical(said | {"at": then.isoformat(timespec="milliseconds")})
            session.execute(update(Payload).where(col(Payload.entry_id) == row.entry_id).values(body=changed))


def test_forks_count_as_launches_and_changes_as_requests(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, "10")
    parent = lab.launch(project)
    policy(lab, "most_launches_a_day", 3)
    for _ in range(2):
        lab.launch(project, origin=Origin(parent, 5))
    for origin in (None, Origin(parent, 5)):
        with pytest.raises(ConflictError, match="3 launches a day"):
            lab.launch(project, origin=origin)
    policy(lab, "most_requests_a_day", 2)
    asked = {"justification": "More.", "hours": "1"}
    with lab.db.write() as session:
        change = changes.request(session, ADA, request_id(), allocation, **asked)
        changes.withdraw(session, ADA, change, reason="Less.")
    with pytest.raises(ConflictError, match="2 requests for compute a day"), lab.db.write() as session:
        changes.request(session, ADA, request_id(), allocation, **asked)
    with pytest.raises(ConflictError, match="2 requests for compute a day"):
        lab.request(project)


Act = Callable[[Session, Actor], object]


def acts(lab: Lab) -> dict[str, tuple[str, Act, Act | None]]:
    """By the policy that bounds it, each act that posts, with what undoes it so that it can be done again."""
    project, other = lab.project(), lab.project(EMMY, "Another question")
    allocation, asked = lab.allocation(project, "10"), lab.request(project, hours="200")
    run = lab.launch(project, allocation_id=allocation)
    number = count()

    def propose(session: Session, actor: Actor) -> int:
        title = f"Question {next(number)}"
        return lifecycle.propose(session, actor, request_id(), title=title, question="q", why="w", needs="n")

    def abandon(session: Session, actor: Actor) -> None:
        newest = session.scalars(select(Project.id).order_by(col(Project.id).desc())).first()
        assert newest is not None
        lifecycle.complete(session, actor, newest, outcome="abandoned", learnt="To end things.")

    def put(session: Session, actor: Actor) -> None:
        said = findings.Message(next(number), EMMY, "It works.", utcnow(), "https://discord.com/channels/1/2/3")
        findings.put_on_record(session, actor, project, said)

    def catalogued(session: Session, actor: Actor) -> None:
        named = {"name": f"data-{next(number)}", "dataset": "a/b", "revision": "0" * 40, "licence": "MIT"}
        catalogue.propose_dataset(session, actor, request_id(), **named)

    def needs(session: Session, actor: Actor) -> None:
        updates.change_needs(session, actor, project, f"{next(number)} people")

    def name_run(session: Session, actor: Actor) -> None:
        naming.rename(session, actor, run, name=f"Name {next(number)}", tags=None)

    def asks(session: Session, _: Actor) -> None:
        reviews.ask(session, ROSA, asked, "Why?")

    return {
        "propose": ("most_proposals_a_day", propose, abandon),
        "join": (
            "most_memberships_a_day",
            lambda s, a: lifecycle.join(s, a, other, min_people=9),
            lambda s, a: membership.leave(s, a, other),
        ),
        "follow": (
            "most_memberships_a_day",
            lambda s, a: membership.follow(s, a, other),
            lambda s, a: membership.leave(s, a, other),
        ),
        "update": ("most_updates_a_day", lambda s, a: updates.post_update(s, a, project, "It goes on."), None),
        "needs": ("most_updates_a_day", needs, None),
        "finding": ("most_updates_a_day", put, None),
        "report": ("most_updates_a_day", lambda s, a: requests.report(s, a, allocation, "Half is done."), None),
        "pause": (
            "most_project_changes_a_day",
            lambda s, a: lifecycle.pause(s, a, project, reason="A rest."),
            lambda s, a: lifecycle.resume(s, a, project),
        ),
        "offer": (
            "most_project_changes_a_day",
            lambda s, a: membership.offer_lead(s, a, project, to="2", reason="A rest."),
            lambda s, _: membership.decline_lead(s, GRACE, project),
        ),
        "ask": ("most_questions_a_day", asks, None),
        "answer": ("most_questions_a_day", lambda s, a: reviews.answer(s, a, asked, "Because."), None),
        "pause a run": (
            "most_run_changes_a_day",
            lambda s, a: control.pause(s, a, run),
            lambda s, a: control.resume(s, a, run),
        ),
        "extend a run": ("most_run_changes_a_day", lambda s, a: control.extend(s, a, run, "1m"), None),
        "name a run": ("most_run_changes_a_day", name_run, None),
        "catalogue": ("most_catalogue_proposals_a_day", catalogued, None),
    }


ACTS = (
    *("propose", "join", "follow", "update", "needs", "finding", "report", "pause", "offer", "ask", "answer"),
    *("pause a run", "extend a run", "name a run", "catalogue"),
)


@pytest.mark.parametrize("name", ACTS)
def test_every_act_that_posts_has_a_budget(lab: Lab, name: str) -> None:
    name_of_policy, act, undo = acts(lab)[name]
    before = 1 if name == "propose" else 0  # Ada has proposed a project
    lab.let(name_of_policy, before + 3)

    def do(what: Act) -> None:
        with lab.db.write() as session:
            what(session, ADA)

    for _ in range(3):
        do(act)
        if undo is not None:
            do(undo)
    state = lab.everything()
    with pytest.raises(ConflictError, match=rf"One person may .*\b{before + 3} .*a day; the next one can be at 20"):
        do(act)
    assert lab.everything() == state
    yesterday(lab)
    do(act)


def test_a_project_has_a_budget_of_all_its_people(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, "10")
    lab.let("project_factor", 2)
    lab.let("most_memberships_a_day", 2)
    lab.let("most_launches_a_day", 1)
    crowd = [Actor(100 + n, f"Person {n}") for n in range(4)]

    def follow(actor: Actor) -> None:
        with lab.db.write() as session:
            membership.follow(session, actor, project)

    for actor in crowd[:3]:  # Grace has joined today too
        follow(actor)
    before = lab.everything()
    with pytest.raises(ConflictError, match="All people together may join or follow 4 times a day in one project"):
        follow(crowd[3])
    assert lab.everything() == before
    with lab.db.write() as session:
        updates.post_update(session, ADA, project, "The lead has a budget of its own.")
    for actor in (ADA, GRACE):
        lab.launch(project, actor, allocation_id=allocation)
    with lab.db.write() as session:
        session.add(Membership(project_id=project, person_id=people.ensure(session, EMMY).id))
    with pytest.raises(ConflictError, match="All people together may make 2 launches a day in one project"):
        lab.launch(project, EMMY, allocation_id=allocation)


def of_many(many: int, act: Callable[[int], object]) -> int:
    """How many of so many acts at the same moment are allowed."""
    return sum(allowed([partial(act, number) for number in range(many)], ConflictError))


def test_a_limit_holds_for_acts_at_the_same_moment(lab: Lab) -> None:
    """Also for somebody who has never acted before, whose row is made by the first of the acts."""
    newcomer, late = Actor(77, "Newcomer"), Actor(78, "Latecomer")
    assert of_many(10, lambda n: lab.proposal(newcomer, f"Question {n}")) == 5
    lab.let("most_proposals_a_day", 3)
    assert of_many(8, lambda n: lab.proposal(late, f"Question {n}")) == 3


def test_a_projects_limit_holds_for_people_at_the_same_moment(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project, "10")
    lab.let("project_factor", 1)
    lab.let("most_memberships_a_day", 4)
    lab.let("most_launches_a_day", 3)
    lab.let("most_updates_a_day", 2)

    def follow(number: int) -> None:
        with lab.db.write() as session:
            membership.follow(session, Actor(100 + number, f"Person {number}"), project)

    def post(number: int) -> None:
        with lab.db.write() as session:
            updates.post_update(session, (ADA, GRACE)[number % 2], project, "It goes on.")

    assert of_many(8, follow) == 3  # Grace has joined today too
    crew = [Actor(200 + n, f"Member {n}") for n in range(8)]
    with lab.db.write() as session:
        for actor in crew:
            session.add(Membership(project_id=project, person_id=people.ensure(session, actor).id))
    assert of_many(8, lambda n: lab.launch(project, crew[n], allocation_id=allocation)) == 3
    assert of_many(8, post) == 2


def plans(lab: Lab, statements: Sequence[tuple[str, Any]]) -> str:
    """How the database says that it runs these statements, in one text."""
    told = []
    with lab.db.read() as session:
        connection = session.connection()
        sqlite = connection.dialect.name == "sqlite"
        for statement, parameters in statements:
            rows = connection.exec_driver_sql(f"EXPLAIN {'QUERY PLAN' if sqlite else ''} {statement}", parameters)
            told += [str(row[-1]) for row in rows]
    return "\n".join(told)


def test_a_quota_is_counted_by_an_index_however_long_the_record_is(lab: Lab) -> None:
    """Its statements are as many as in a short record, and none of them goes through a table."""
    project = lab.project()
    sent: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    def counted() -> list[tuple[str, Any]]:
        sent.clear()
        event.listen(Engine, "before_cursor_execute", note)
        try:
            with lab.db.write() as session:
                quotas.check(session, ADA, QuotaKind.UPDATE, project)
        finally:
            event.remove(Engine, "before_cursor_execute", note)
        return [each for each in sent if "authorships" in each[0]]

    short = counted()
    stream = record.project_stream(project)
    with lab.db.write() as session:
        ada = people.ensure(session, ADA)
        first = 1 + (session.scalar(select(func.max(col(Entry.id)))) or 0)
        ids = range(first, first + 20_000)
        told = {"payload_hash": "", "hash": "", "stream": stream, "kind": "run.cancelled"}
        session.execute(insert(Entry), [told | {"id": n, "number": n + 1000} for n in ids])
        session.execute(insert(Payload), [{"entry_id": n, "salt": "", "body": "{}"} for n in ids])
        by = {"person_id": ada.id, "stream": stream, "kind": "run.cancelled"}
        session.execute(insert(Authorship), [by | {"entry_id": n} for n in ids])
        session.execute(text("ANALYZE"))
    long = counted()
    assert len(long) == len(short) == 2  # the person's and the project's
    found = plans(lab, long)
    assert "ix_authorships_person" in found
    assert "ix_authorships_stream" in found
    assert not re.search(r"Seq Scan on (authorships|payloads|entries)|SCAN (authorships|payloads|entries)", found), (
        found
    )


def test_what_is_blanked_counts_no_more_and_has_no_author(lab: Lab) -> None:
    project = lab.project()
    lab.let("most_updates_a_day", 1)

    def post() -> None:
        with lab.db.write() as session:
            updates.post_update(session, ADA, project, "It goes on.")

    post()
    with pytest.raises(ConflictError, match="One person may post 1 updates"):
        post()
    stream = record.project_stream(project)
    with lab.db.write() as session:
        redaction.redact(session, None, stream, record.newest(session, stream)[0].number, "It was private.")
    with lab.db.read() as session:
        blank = select(Payload.entry_id).where(col(Payload.body).is_(None))
        assert not session.scalars(select(Authorship).where(col(Authorship.entry_id).in_(blank))).all()
    post()


def test_an_admin_has_one_budget_of_what_posts_to_the_whole_server(lab: Lab) -> None:
    omar = Actor(9, "Omar", frozenset({LabRole.ADMIN}))
    later = utcnow() + timedelta(days=9)
    number, cancelled, project = count(), count(), lab.project()
    leads = cycle([str(GRACE.discord_id), str(ADA.discord_id)])

    def reserve(session: Session, actor: Actor, project: int) -> None:
        period = {"begins": f"{in_days(2)} 09:00", "ends": f"{in_days(3)} 09:00"}
        reservations.add(session, actor, "laptop", project_id=project, gpus="1", reason="A deadline.", **period)

    def ban_and_unban(session: Session, actor: Actor) -> None:
        bans.ban(session, actor, STRANGER, "Spam.")
        bans.unban(session, actor, STRANGER.discord_id, "A mistake.")

    def do(what: Act) -> None:
        with lab.db.write() as session:
            what(session, omar)

    def propose(name: str) -> None:
        about = {"dataset": f"lab/{name}", "revision": "0" * 40, "licence": "MIT"}
        with lab.db.write() as session:
            catalogue.propose_dataset(session, None, request_id(), name=name, **about)

    for name in ("taken", "refused"):
        propose(name)
    every: list[Act] = [
        lambda s, a: pools.add_pool(s, name=f"pool-{next(number)}", gpu_type="cpu", gpus=1, actor=a),
        lambda s, a: pools.add_grant(s, pool="laptop", sponsor="Us", seconds=60, until=later, actor=a),
        lambda s, a: inventory.change_pool(s, a, "laptop", gpus=str(3 + next(number)), reason="More."),
        lambda s, a: inventory.change_grant(s, a, 1, more_hours="1", reason="More."),
        lambda s, a: quotas.change_policy(s, a, "most_open_proposals", str(9 + next(number)), "More."),
        lambda s, a: catalogue.accept(s, a, "taken", reason="Fine."),
        lambda s, a: catalogue.retire(s, a, "taken", reason="Old."),
        lambda s, a: catalogue.decline(s, a, "refused", reason="No."),
        lambda s, a: server.choose(s, a, 2, {"record": (400, "record")}),
        *[lambda s, a: reserve(s, a, project)] * 2,
        lambda s, a: reservations.cancel(s, a, 1 + next(cancelled), "Not needed."),
        ban_and_unban,
        lambda s, a: membership.appoint_lead(s, a, project, to=next(leads), reason="They are back."),
    ]
    lab.let("most_admin_acts_a_day", len(every))
    for what in every:
        do(what)
    propose("another")
    every[5:8] = [lambda s, a: catalogue.accept(s, a, "another", reason="Fine.")]
    before = lab.everything()
    for what in every:
        with pytest.raises(ConflictError, match=r"make 14 changes of pools, grants, .* a day; the next one can"):
            do(what)
    assert lab.everything() == before
    do(lambda s, a: bans.ban(s, a, STRANGER, "Spam."))
    yesterday(lab)
    do(every[0])
