"""Two containers on one kernel are two hosts: neither judges nor ends by its pids what runs in the other."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import update

from broker.runs.attempts import Attempt
from projects.db.columns import utcnow
from tests.broker.lab import Lab
from tests.containers import contained
from tests.environment import bare

HEAD = """
import subprocess, sys
from broker.runners import processes, reaper
from broker.runs import leases
from projects.db.database import Database
from projects.settings import get_settings
settings = get_settings()
db, run = Database(settings.database), int(sys.argv[1])
def claims(token):
    with db.write() as session:
        return leases.claim(session, run, token, host=processes.host(), lease_seconds=60,
                            outlives=(processes.boot_id(), 86_400))
"""
TRAINS = """
assert claims(1)
trainer = subprocess.Popen(
    [sys.executable, "-c", "import time; time.sleep(3600)", str(settings.runs_dir / str(run) / "attempt-1")],
    start_new_session=True,
)
if sys.argv[2] == "told":
    with db.write() as session:
        leases.started(session, run, 1, processes.identify(trainer.pid), (), lease_seconds=60)
print("trains", flush=True)
sys.stdin.readline()
assert trainer.poll() is None, "nobody else has ended it"
reaper.end_lost(settings, db)
print(trainer.wait(), flush=True)
"""
CLAIMS = "print(claims(2))"
RETURNS = "reaper.end_lost(settings, db); print(processes.host())"


@pytest.mark.parametrize("told", ["told", "untold"])
def test_a_container_judges_and_ends_only_its_own_trainers(lab: Lab, run: int, tmp_path: Path, told: str) -> None:
    environment = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(tmp_path),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
    }

    def command(host: str, script: str) -> list[str]:
        return contained(host, [sys.executable, "-c", HEAD + script, str(run), told])

    def says(host: str, script: str) -> str:
        done = subprocess.run(command(host, script), env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout.strip()

    lab.admit(run)
    pipe = subprocess.PIPE
    with subprocess.Popen(command("one", TRAINS), env=environment, stdin=pipe, stdout=pipe, text=True) as one:
        try:
            assert one.stdin is not None
            assert one.stdout is not None
            assert one.stdout.readline() == "trains\n"
            with lab.db.write() as session:
                session.execute(update(Attempt).values(lease_until=utcnow()))
            lab.expire(run, 1)
            lab.admit(run, 1)
            assert says("two", CLAIMS) == "False"
            assert says("one", RETURNS) == "one", "another container of the same name"
            assert says("two", CLAIMS) == "False", "it could not know whether the trainer has ended"
            one.stdin.write("\n")
            one.stdin.flush()
            assert one.stdout.readline() == "-9\n", "its own host ends it"
            assert says("two", CLAIMS) == "True"
        finally:
            one.kill()
