"""Two containers on one kernel are two hosts: neither judges nor ends by its pids what runs in the other."""

import subprocess
import sys
from pathlib import Path

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
db, runs = Database(settings.database), [int(word) for word in sys.argv[1:]]
def claims(run, token):
    with db.write() as session:
        return leases.claim(session, run, token, host=processes.host(), lease_seconds=60,
                            outlives=(processes.boot_id(), 86_400))
"""
TRAINS = """
assert all(claims(run, 1) for run in runs)
trainers = [
    subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(3600)", str(settings.runs_dir / str(run) / "attempt-1")],
        start_new_session=True,
    )
    for run in runs
]
with db.write() as session:  # the other one's supervisor has died before it could tell
    leases.started(session, runs[0], 1, processes.identify(trainers[0].pid), (), lease_seconds=60)
print("trains", flush=True)
sys.stdin.readline()
assert not [trainer for trainer in trainers if trainer.poll() is not None], "nobody else has ended them"
reaper.end_lost(settings, db)
print(*[trainer.wait() for trainer in trainers], flush=True)
"""
CLAIMS = """
for _ in sys.stdin:
    print(*[claims(run, 2) for run in runs], flush=True)
"""
RETURNS = "reaper.end_lost(settings, db); print(processes.host())"


def test_a_container_judges_and_ends_only_its_own_trainers(lab: Lab, project: int, run: int, tmp_path: Path) -> None:
    runs = [run, lab.launch(project)]
    environment = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(tmp_path),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
    }

    def contains(host: str, script: str) -> "subprocess.Popen[str]":
        command = contained(host, [sys.executable, "-c", HEAD + script, *map(str, runs)])
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def says(container: "subprocess.Popen[str]") -> str:
        assert container.stdin is not None
        assert container.stdout is not None
        container.stdin.write("\n")
        container.stdin.flush()
        return container.stdout.readline().strip()

    for number, each in enumerate(runs):
        lab.admit(each, number)
    with contains("one", TRAINS) as one, contains("two", CLAIMS) as two:
        try:
            assert one.stdout is not None
            assert one.stdout.readline() == "trains\n"
            with lab.db.write() as session:
                session.execute(update(Attempt).values(lease_until=utcnow()))
            for each in runs:
                lab.expire(each, 1)
            for number, each in enumerate(runs):
                lab.admit(each, number)
            assert says(two) == "False False"
            assert contains("one", RETURNS).communicate()[0].strip() == "one", "another container of the same name"
            assert says(two) == "False False", "it could not know whether the trainers have ended"
            assert says(one) == "-9 -9", "their own host ends them"
            assert says(two) == "True True"
        finally:
            one.kill()
            two.kill()
