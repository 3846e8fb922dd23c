"""The record: appended in the change's transaction, numbered without gaps, chained, and not to be altered unseen."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from projects.db.database import Database
from projects.record import record, verification


def append(db: Database, word: str) -> None:
    with db.write() as session:
        record.append(session, record.LAB, "said", by=None, word=word)


def append_both(session: Session) -> None:
    record.append(session, record.LAB, "said", by=None, word="this can be told")
    record.append(session, record.LAB, "said", by=None, word={"this", "cannot"})


def test_an_entry_can_be_read_back_as_it_was_told(db: Database) -> None:
    append(db, "Grüße 🎉")
    with db.read() as session:
        (entry,) = record.since(session, record.LAB, 0)
    assert (entry.number, entry.kind, entry.project_id) == (1, "said", None)
    assert entry.payload is not None
    assert entry.payload["word"] == "Grüße 🎉"


def test_many_writers_at_once_leave_no_gap_and_a_whole_chain(db: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: append(db, f"word {n}"), range(40)))
    with db.read() as session:
        entries = record.since(session, record.LAB, 0)
        verdict = verification.verify(session, record.LAB)
    assert [entry.number for entry in entries] == list(range(1, 41))
    assert verdict.ok
    assert verdict.entries == 40


def test_a_change_that_fails_leaves_no_entry(db: Database) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"), db.write() as session:
        append_both(session)
    append(db, "after")
    with db.read() as session:
        assert [entry.number for entry in record.since(session, record.LAB, 0)] == [1]


def test_the_database_itself_refuses_to_change_or_remove_an_entry(db: Database) -> None:
    append(db, "once")
    for statement in ("UPDATE entries SET kind = 'unsaid'", "DELETE FROM entries"):
        with pytest.raises(DBAPIError, match="append-only"), db.write() as session:
            session.execute(text(statement))


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE payloads SET body = replace(body, 'two', '2')", "the payload of entry 2 was changed"),
        ("DELETE FROM payloads WHERE entry_id = 2", "the payload of entry 2 is missing"),
        ("UPDATE streams SET head = 2", "the head does not fit"),
    ],
)
def test_tampering_is_found(db: Database, statement: str, problem: str) -> None:
    for word in ("one", "two", "three"):
        append(db, word)
    with db.write() as session:
        session.execute(text(statement))
    with db.read() as session:
        verdict = verification.verify(session, record.LAB)
    assert problem in (verdict.problem or "")


def test_a_blanked_payload_leaves_the_chain_whole(db: Database) -> None:
    append(db, "a name")
    append(db, "another")
    with db.write() as session:
        session.execute(text("UPDATE payloads SET salt = NULL, body = NULL WHERE entry_id = 1"))
    with db.read() as session:
        assert verification.verify(session, record.LAB).ok
        assert record.since(session, record.LAB, 0)[0].payload is None


def test_a_read_session_cannot_write(db: Database) -> None:
    with pytest.raises(DBAPIError), db.read() as session:
        record.append(session, record.LAB, "said", by=None)


def test_migrations_go_down_and_up_again(db: Database) -> None:
    append(db, "before")
    db.migrate("base")
    db.migrate()
    append(db, "after")
    with db.read() as session:
        assert verification.verify(session, record.LAB).entries == 1
