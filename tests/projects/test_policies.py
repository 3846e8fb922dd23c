"""The operator's policies: read as one value, changed one at a time, in public."""

from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest
from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from projects import policies
from projects.db.database import Database
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor, LabRole
from projects.policies import Policies, Policy
from projects.record import record, verification

ADMIN = Actor(1, "Ada", frozenset({LabRole.ADMIN}))


def change(db: Database, name: str, value: str, reason: str = "We have more.", actor: Actor | None = None) -> Policies:
    with db.write() as session:
        return policies.change(session, actor, name, value, reason)


def current(db: Database) -> Policies:
    with db.read() as session:
        return policies.current(session)


def test_without_a_change_the_defaults_are_in_force(db: Database) -> None:
    now = current(db)
    assert (now.starter_hours, now.one_reviewer_hours, now.halves_hours) == (1, 100, 1000)
    assert (now.most_open_proposals, now.most_requests_a_day, now.most_launches_a_day) == (5, 20, 50)
    assert (now.most_running_a_project, now.most_running_a_person) == (100, 100)
    assert now.channel_policy == "automatic"


def test_a_change_is_in_force_at_once_and_told_with_who_and_why(db: Database) -> None:
    assert change(db, "starter_hours", "2.5").starter_hours == 2.5
    change(db, "most_open_proposals", "3", "Too many.", ADMIN)
    assert change(db, "channel_policy", "moderator") == current(db)
    assert current(db) == Policies(starter_hours=2.5, most_open_proposals=3, channel_policy="moderator")
    with db.read() as session:
        entries = record.since(session, record.LAB, 0)
        assert verification.verify(session, record.LAB).ok
    told = [(entry.payload or {}) for entry in entries]
    assert [entry.kind for entry in entries] == ["policy.changed"] * 3
    assert [(p["policy"], p["was"], p["now"]) for p in told] == [
        ("starter_hours", 1, 2.5),
        ("most_open_proposals", 5, 3),
        ("channel_policy", "automatic", "moderator"),
    ]
    assert [p["by"] and p["by"]["name"] for p in told] == [None, "Ada", None]
    assert told[1]["why"] == "Too many."


@pytest.mark.parametrize(
    ("name", "value", "reason", "actor", "error", "sentence"),
    [
        ("starter_days", "1", "Why not.", None, NotFoundError, "no policy “starter_days”; do you mean starter_p"),
        ("💰", "1", "Why not.", None, NotFoundError, "no policy “💰”; the policies are: starter_hours"),
        ("starter_hours", "-1", "Why not.", None, InvalidError, "“-1” cannot be starter_hours: input should be great"),
        ("starter_hours", "inf", "Why not.", None, InvalidError, "cannot be starter_hours"),
        ("most_open_proposals", "2.5", "Why not.", None, InvalidError, "cannot be most_open_proposals"),
        ("channel_policy", "never", "Why not.", None, InvalidError, "should be 'automatic' or 'moderator'"),
        ("starter_hours", "1.0", "Why not.", None, ConflictError, "starter_hours is already 1"),
        ("starter_hours", "2", " ", None, InvalidError, "The reason is empty"),
        ("starter_hours", "2", "Why not.", Actor(2, "Grace"), ForbiddenError, "Only the admins"),
    ],
)
def test_what_cannot_be_changes_nothing(
    db: Database, name: str, value: str, reason: str, actor: Actor | None, error: type[DomainError], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        change(db, name, value, reason, actor)
    assert current(db) == Policies()
    with db.read() as session:
        assert record.streams(session) == {record.LAB: 0}


def bounds(field: FieldInfo) -> tuple[float, float]:
    """The least and the greatest value of a number's field, whichever way it is bounded."""
    low = [bound.ge for bound in field.metadata if isinstance(bound, Ge)]
    high = [bound.le for bound in field.metadata if isinstance(bound, Le)]
    low += [1e-6 for bound in field.metadata if isinstance(bound, Gt)]
    return cast(float, low[0]), cast(float, high[0])


NUMBERS = [name for name, field in Policies.model_fields.items() if field.annotation in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_bounds_at_which_it_still_works(db: Database, name: str) -> None:
    least, most = bounds(Policies.model_fields[name])
    for value in (least, most):
        assert getattr(change(db, name, policies.said_as(value)), name) == value
    for wrong in (str(policies.said_as(most + 1)), "9" * 23, "9" * 5000, str(least - 1), "1e400"):
        with pytest.raises(InvalidError, match=f"cannot be {name}: "):
            change(db, name, wrong)
    assert getattr(current(db), name) == most


def test_a_number_that_was_stored_before_there_were_bounds_counts_as_the_bound(db: Database) -> None:
    with db.write() as session:
        session.add(Policy(name="most_launches_a_day", value="9" * 23))
        session.add(Policy(name="starter_hours", value="2"))
    now = current(db)
    assert (now.most_launches_a_day, now.starter_hours) == (policies.MOST, 2)
    assert change(db, "most_launches_a_day", "60").most_launches_a_day == 60


def test_of_many_first_changes_at_once_each_follows_from_the_one_before(db: Database) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda hours: change(db, "starter_hours", str(hours)), range(2, 8)))
    with db.read() as session:
        told = [entry.payload or {} for entry in record.since(session, record.LAB, 0)]
    assert [p["was"] for p in told] == [1, *(p["now"] for p in told[:-1])]
    assert current(db).starter_hours == told[-1]["now"]
