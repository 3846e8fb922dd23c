"""Two containers on one kernel are two hosts: neither judges nor ends by its pids what runs in the other."""

from pathlib import Path

import pytest
from sqlalchemy import update

from broker.runs.attempts import Attempt
from projects.db.columns import utcnow
from tests.broker.lab import Lab
from tests.containers import entering
from tests.environment import bare
from tests.forked import Forked
from tests.patience import PATIENCE, wait_for

HEAD = """
import pathlib, subprocess, sys, time
from broker.runners import lost_attempts, processes
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
while not pathlib.Path(sys.argv[3]).exists():
    time.sleep(0.05)
assert trainer.poll() is None, "nobody else has ended it"
lost_attempts.end_lost(settings, db)
print(trainer.wait(), flush=True)
"""
CLAIMS = "print(claims(2))"
RETURNS = "lost_attempts.end_lost(settings, db); print(processes.host())"


@pytest.mark.parametrize("told", ["told", "untold"])
def test_a_container_judges_and_ends_only_its_own_trainers(lab: Lab, run: int, tmp_path: Path, told: str) -> None:
    environment = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(tmp_path),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
    }
    goes_on, log = tmp_path / "goes-on", tmp_path / "log-of-one"
    log.touch()

    def contains(host: str, script: str, log: Path) -> Forked:
        return Forked(f"{entering(host)}\n{HEAD}{script}", log, environment, str(run), told, str(goes_on))

    def says(host: str, script: str) -> str:
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        assert contains(host, script, said).wait(PATIENCE) == 0, said.read_text()
        return said.read_text().strip()

    lab.admit(run)
    one = contains("one", TRAINS, log)
    try:
        wait_for(lambda: log.read_text().endswith("\n"), "the trainer")
        assert log.read_text() == "trains\n"
        with lab.db.write() as session:
            session.execute(update(Attempt).values(lease_until=utcnow()))
        lab.expire(run, 1)
        lab.admit(run, 1)
        assert says("two", CLAIMS) == "False"
        assert says("one", RETURNS) == "one", "another container of the same name"
        assert says("two", CLAIMS) == "False", "it could not know whether the trainer has ended"
        goes_on.touch()
        assert one.wait(PATIENCE) == 0
        assert log.read_text() == "trains\n-9\n", "its own host ends it"
        assert says("two", CLAIMS) == "True"
    finally:
        one.kill()
