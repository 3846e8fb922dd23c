"""The database's clock, which a process goes by whatever its host's own says."""

import subprocess
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import OperationalError

from projects.db import clock
from projects.db.database import Database
from tests.standin import python_with, skew

TELL = """
import sys, time
from projects.db.columns import utcnow
from projects.db.database import Database
with Database(sys.argv[1]).write():
    print(time.time(), utcnow().timestamp())
"""


@pytest.mark.parametrize("ahead", [600.0, -600.0])
def test_a_process_goes_by_the_database_s_clock_from_its_first_session_on(
    db: Database, tmp_path: Path, ahead: float
) -> None:
    python = python_with(tmp_path / "python", tmp_path)
    skew(python, ahead)
    url = db.url.render_as_string(hide_password=False)
    before = time.time()
    said = subprocess.run([python, "-c", TELL, url], stdout=subprocess.PIPE, text=True, check=True).stdout
    after = time.time()
    own, shared = map(float, said.split())
    assert before + ahead <= own <= after + ahead
    assert before - 1 <= shared <= after + 1


def test_a_database_that_does_not_tell_its_time_fails_like_any_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_asked_at", float("-inf"))
    engine = create_engine("sqlite://")
    clock.follow(engine, "SELECT the_time()")
    with pytest.raises(OperationalError, match="the_time"):
        engine.connect()
