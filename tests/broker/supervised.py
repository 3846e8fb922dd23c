"""Supervisors as processes over a lab's database, for the tests of runners whose jobs live beside their supervisor."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import func
from sqlmodel import col, select

from broker.allocations.ledger import LedgerRow, Movement
from broker.runners import processes
from broker.runs import attempts
from broker.runs.attempts import Attempt
from tests import forked
from tests.broker.lab import Lab
from tests.environment import bare
from tests.forked import Forked

GRACE = 60.0
# It keeps the trainer's contract: a step every 0.1 seconds, a checkpoint every ten and when it has been asked to stop.
TRAINER = """
import json, os, pathlib, signal, sys, time
given = dict(zip(sys.argv[3::2], sys.argv[4::2]))
out, last = pathlib.Path(given["--out"]), LAST
before = given.get("--resume")
if "--fork" in given:
    before = "/checkpoints/step".join(given["--fork"].split("@"))
step = int(before.rpartition("step")[2]) if before else 0
if step:
    assert (pathlib.Path(before) / "weights").read_text() == str(step)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))

def add(name, **line):
    with (out / name).open("a") as file:
        file.write(json.dumps(line) + "\\n")

def checkpoint():
    folder = out / "checkpoints" / f"step{step}"
    partial = out / "checkpoints" / f".step{step}"
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "weights").write_text(str(step))
    if not folder.exists():
        partial.rename(folder)
    add("events.jsonl", event="checkpoint", step=step, path=f"checkpoints/step{step}")

def end(status):
    checkpoint()
    (out / "outcome.new").write_text(json.dumps({"status": status, "reason": None, "transient": False}))
    (out / "outcome.new").replace(out / "outcome.json")
    sys.exit(status)

(out / "node").write_text(os.environ.get("SLURMD_NODENAME", ""))
print("from step", step, flush=True)
while step < last:
    time.sleep(0.1)
    step += 1
    add("metrics.jsonl", step=step, tokens=step * 10, loss=1 / step)
    if step % 10 == 0:
        checkpoint()
    if asked:
        end(75)
end(0)
"""


def queued(lab: Lab, pool: str, runner: str, options: Mapping[str, str] | None = None) -> int:
    """A queued run on a new pool of a runner."""
    lab.pool(pool, gpus=16, runner=runner, options=options)
    project = lab.project()
    allocation = lab.request(project, pool=pool)
    lab.approve(allocation)
    return lab.launch(project, overrides="steps=4, batch=2, micro_batch=2, sequence_length=32")


def admitted(lab: Lab, home: Path, run: int, lease: float) -> tuple[int, Path]:
    """The token and the folder of the run's next attempt, claimed by this host."""
    with lab.db.write() as session:
        token = attempts.admit(session, run, ())
    assert lab.claim(run, token, lease=lease, host=processes.host())
    folder = home / "runs" / str(run) / f"attempt-{token}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    return token, folder


@contextmanager
def supervised_by(
    lab: Lab,
    python: Path,
    home: Path,
    lease: float,
    environment: Mapping[str, str],
    *arguments: int,
    forks: bool = False,
) -> Iterator[Forked]:
    """A supervisor of a run and token, after one of a generation, which ends with the block at the latest.

    With `forks`, what it starts is forked, too.
    """
    told = bare() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(home),
        "STOA_DATABASE_URL": lab.db.url.render_as_string(hide_password=False),
        "STOA_LEASE_SECONDS": str(lease),
        "STOA_STOP_GRACE_SECONDS": str(GRACE),
    }
    log = home / "supervisor.log"
    process = forked.module(
        "broker.runners.supervisor",
        log,
        told | dict(environment),
        *map(str, arguments),
        python=python,
        forks=forks,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def attempt(lab: Lab, run: int, token: int) -> Attempt:
    """An attempt's row."""
    with lab.db.read() as session:
        return session.get_one(Attempt, (run, token))


def charged(lab: Lab, run: int, token: int) -> int:
    """The GPU-seconds that an attempt was charged."""
    query = select(func.coalesce(func.sum(col(LedgerRow.seconds)), 0)).where(
        LedgerRow.run_id == run, LedgerRow.token == token, LedgerRow.movement == Movement.CHARGE
    )
    with lab.db.read() as session:
        return session.scalars(query).one()
