"""The scheduler: fair share with decay, nobody overtaking, and two of them at once."""

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col, select
from structlog.testing import capture_logs

from broker.allocations import hosts, pools
from broker.allocations.allocations import Allocation
from broker.allocations.pools import Pool
from broker.fence import Fence
from broker.runs import attempts, leases
from broker.runs.attempts import Attempt
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import Run, RunState
from broker.scheduling import backfill, snapshot, tasks
from broker.scheduling.backfill import Decision
from broker.scheduling.scheduler import Scheduler
from broker.scheduling.usage import FairUsage
from projects.db.columns import utcnow
from projects.errors import ConflictError
from projects.record import record
from tests.broker.lab import HOUR, PROCESS, STRANGER, Lab, settings
from tests.patience import wait_for

pytestmark = pytest.mark.usefixtures("memory_queue")


@pytest.fixture
def theirs(lab: Lab) -> int:
    """Another one."""
    project = lab.project(STRANGER, "Another question")
    lab.allocation(project, hours="10", lead=STRANGER)
    return project


def plan(lab: Lab) -> list[Decision]:
    with lab.db.read() as session:
        return list(backfill.plan(snapshot.load(session)).starts)


def started(lab: Lab) -> list[int]:
    return [decision.run_id for decision in plan(lab)]


def used(lab: Lab, project: int) -> float:
    with lab.db.read() as session:
        return snapshot.load(session).usage[project]


def use(lab: Lab, project: int, seconds: int, **launch: Any) -> None:
    """Let a project use so many seconds of one GPU."""
    run = lab.launch(project, **launch)
    lab.settle(run, lab.start(run, 0), seconds, Ending(70, "enough"))


def test_in_turn_on_the_devices_that_are_free(lab: Lab, ours: int) -> None:
    first, second, third = (lab.launch(ours) for _ in range(3))
    assert plan(lab) == [Decision(first, (0,)), Decision(second, (1,))]
    lab.admit(first, 0)
    assert plan(lab) == [Decision(second, (1,))]
    lab.admit(second, 1)
    assert plan(lab) == []
    lab.cancel(third)


def test_who_has_used_less_goes_first(lab: Lab, ours: int, theirs: int) -> None:
    use(lab, ours, 300)
    use(lab, theirs, 200, actor=STRANGER)
    mine = [lab.launch(ours, gpus=2) for _ in range(2)]
    other = lab.launch(theirs, STRANGER, gpus=2)
    assert started(lab) == [other]
    lab.cancel(other, STRANGER)
    assert started(lab) == mine[:1]


def test_many_quick_launches_gain_nothing_within_one_round(lab: Lab, ours: int, theirs: int) -> None:
    mine = [lab.launch(ours) for _ in range(3)]
    other = lab.launch(theirs, STRANGER)
    assert started(lab) == [mine[0], other]


def test_what_is_reserved_counts_as_used_at_once(lab: Lab, ours: int, theirs: int) -> None:
    running = lab.launch(ours)
    lab.start(running, 0)
    assert used(lab, ours) == pytest.approx(600, rel=1e-3)
    lab.launch(ours)
    other = lab.launch(theirs, STRANGER)
    assert started(lab) == [other]
    lab.settle(running, 1, 100, Ending(70, "enough"))
    assert used(lab, ours) == pytest.approx(100, rel=1e-3)


def pass_weeks(lab: Lab, weeks: int) -> None:
    """All that has been used was used so many weeks earlier."""
    earlier = timedelta(weeks=weeks)
    with lab.db.write() as session:
        for run in session.scalars(select(Run).where(col(Run.ended_at).is_not(None))):
            run.ended_at = (run.ended_at or utcnow()) - earlier
        for row in session.scalars(select(FairUsage)):
            row.at -= earlier


@pytest.mark.parametrize("rounds", [0, 1], ids=["as it ends", "in the sum"])
def test_usage_is_halved_every_seven_days(lab: Lab, ours: int, tmp_path: Path, rounds: int) -> None:
    use(lab, ours, 400)
    for expected in (400, 200, 100):
        for _ in range(rounds):
            Scheduler(settings(tmp_path), lab.db).round()
        assert used(lab, ours) == pytest.approx(expected, rel=1e-3)
        pass_weeks(lab, 1)


def test_what_has_ended_is_added_once_by_two_schedulers_at_once(lab: Lab, ours: int, tmp_path: Path) -> None:
    use(lab, ours, 400)
    use(lab, ours, 100)
    both = [Scheduler(settings(tmp_path), lab.db) for _ in range(4)]
    with ThreadPoolExecutor(len(both)) as pool:
        list(pool.map(lambda one: one.round(), both))
    assert used(lab, ours) == pytest.approx(500, rel=1e-3)
    with lab.db.read() as session:
        assert session.get_one(FairUsage, ours).seconds == pytest.approx(500, rel=1e-3)


def test_what_runs_does_not_fade(lab: Lab, ours: int, tmp_path: Path) -> None:
    """A run that has reserved ten minutes a month ago and gives back nine of them today has used one, today."""
    run = lab.launch(ours)
    token = lab.start(run, 0)
    pass_weeks(lab, 4)
    assert used(lab, ours) == pytest.approx(600, rel=1e-3)
    lab.settle(run, token, 60, Ending(70, "enough"))
    Scheduler(settings(tmp_path), lab.db).round()
    assert used(lab, ours) == pytest.approx(60, rel=1e-3)


def test_a_dear_pool_counts_for_more_on_every_pool(lab: Lab, ours: int, theirs: int) -> None:
    with lab.db.write() as session:
        pools.add_pool(session, name="dear", gpu_type="H200", gpus=2, price_weight=3)
        pools.add_grant(session, pool="dear", sponsor="s", seconds=2 * HOUR, until=utcnow() + timedelta(days=1))
    dear = lab.request(ours, pool="dear")
    lab.approve(dear, "1")
    use(lab, ours, 100, allocation_id=dear)
    use(lab, theirs, 200, actor=STRANGER)
    assert (used(lab, ours), used(lab, theirs)) == pytest.approx((300, 200), rel=1e-3)
    mine, other = lab.launch(ours, gpus=2, allocation_id=1), lab.launch(theirs, STRANGER, gpus=2)
    assert mine < other
    assert started(lab) == [other]


def test_nobody_overtakes_a_run_that_waits_for_devices(lab: Lab, ours: int, theirs: int) -> None:
    lab.start(lab.launch(theirs, STRANGER), 0)
    large = lab.launch(ours, gpus=2)
    small = lab.launch(theirs, STRANGER)
    assert started(lab) == [], "one device is free, but the large run is next"
    lab.cancel(large)
    assert started(lab) == [small]


def test_a_run_that_waits_for_its_own_allocation_holds_up_nobody(lab: Lab, ours: int, theirs: int) -> None:
    use(lab, theirs, 7 * HOUR, actor=STRANGER, time_limit="8h")
    running, unpaid = (lab.launch(ours, time_limit="6h") for _ in range(2))
    lab.start(running, 0)
    other = lab.launch(theirs, STRANGER)
    assert started(lab) == [other]
    lab.settle(running, 1, 60, Ending(70, "enough"))
    assert started(lab) == [unpaid, other]


def pass_a_minute(lab: Lab, run: int, token: int) -> None:
    """Until the trainer of a lost attempt must have stopped."""
    minute = timedelta(seconds=60)
    with lab.db.write() as session:
        attempt = session.get_one(Attempt, (run, token))
        assert attempt.lease_until
        attempt.lease_until -= minute
        session.get_one(Run, run).not_before -= minute


def test_a_lost_run_waits_and_its_devices_with_it(lab: Lab, ours: int, theirs: int) -> None:
    run = lab.launch(ours, gpus=2)
    token = lab.start(run, 0, 1, lease=0.001)
    time.sleep(0.01)
    lab.expire(run, token, grace=60)
    lab.launch(theirs, STRANGER)
    assert plan(lab) == []
    pass_a_minute(lab, run, token)
    assert len(plan(lab)) > 0


def test_two_schedulers_at_once_admit_a_run_once(lab: Lab, ours: int, tmp_path: Path) -> None:
    queued = [lab.launch(ours, time_limit="1m") for _ in range(8)]
    both = [Scheduler(settings(tmp_path), lab.db) for _ in range(4)]
    with ThreadPoolExecutor(len(both)) as pool:
        for _ in range(3):
            list(pool.map(lambda one: one.round(), both))
    states = [lab.run(run).state for run in queued]
    assert states == [RunState.STARTING] * 2 + [RunState.QUEUED] * 6
    assert lab.kinds(ours).count("run.starting") == 2
    assert [lab.run(run).attempt for run in queued] == [1, 1] + [0] * 6


def test_schedulers_with_different_plans_do_not_share_a_device(lab: Lab, ours: int, theirs: int) -> None:
    first = lab.launch(ours, gpus=2)
    early = plan(lab)
    lab.cancel(first)
    lab.launch(theirs, STRANGER)
    late = plan(lab)
    lab.launch(ours)
    lab.admit(late[0].run_id, *late[0].devices)
    with pytest.raises(ConflictError):
        lab.admit(early[0].run_id, *early[0].devices)
    second = lab.launch(ours)
    with pytest.raises(ConflictError, match="already in use: 0"):
        lab.admit(second, 0)
    lab.admit(second, 1)


def test_a_round_gives_up_what_is_lost_and_goes_on_with_it(lab: Lab, ours: int, tmp_path: Path) -> None:
    run = lab.launch(ours, gpus=2)
    token = lab.start(run, 0, 1, lease=0.001)
    lab.renew(run, token, 10, lease=0.001)
    time.sleep(0.01)
    rounds = Scheduler(settings(tmp_path, stop_grace_seconds=60), lab.db)
    rounds.round()
    assert (lab.run(run).state, lab.run(run).attempt) == (RunState.QUEUED, token)
    pass_a_minute(lab, run, token)
    rounds.round()
    assert (lab.run(run).state, lab.run(run).attempt) == (RunState.STARTING, token + 1)
    account = lab.account(1)
    assert (account.spent, account.reserved, account.granted) == (0, 1200, 10 * HOUR)


def messages(name: str) -> int:
    with tasks.app.connection_for_write() as connection:
        channel: Any = connection.default_channel  # kombu types only what all transports have
        declared = channel.queue_declare(queue=name, passive=False)
        return int(declared.message_count)


def test_stray_jobs_are_looked_for_by_a_worker_of_each_pool(lab: Lab, tmp_path: Path) -> None:
    for name in ("near", "far", "away"):
        lab.pool(name, runner="local" if name == "near" else "slurm")
    with lab.db.write() as session:
        hosts.announce(session, "here", ["near", "far"], {})
    queues = ("pool.near", "pool.far", "pool.away", "runs")
    before = [messages(queue) for queue in queues]
    rounds = Scheduler(settings(tmp_path), lab.db)
    rounds.strays_ended_at = -math.inf
    for _ in range(3):
        rounds.round()
    assert [messages(queue) - known for queue, known in zip(queues, before, strict=True)] == [0, 1, 0, 1]


def test_workers_are_notified_once_and_not_at_every_round(lab: Lab, ours: int, tmp_path: Path) -> None:
    """A queue that nobody empties, such as overnight, does not fill up with one message a second."""
    before = messages("runs"), messages("publish")
    lab.launch(ours)
    running = lab.launch(ours)
    token = lab.start(running, 1)
    lab.renew(running, token, 0, Progress(0, 0, checkpoints=[Checkpoint(step, "nowhere") for step in (0, 1, 2)]))
    rounds = Scheduler(settings(tmp_path), lab.db)
    for _ in range(4):
        rounds.round()
    assert (messages("runs") - before[0], messages("publish") - before[1]) == (1, 1)


def test_a_run_that_nobody_can_pay_for_is_paused_and_goes_on_after_a_top_up(
    lab: Lab, ours: int, tmp_path: Path
) -> None:
    allocation = lab.allocation(ours, "0.5")
    first = lab.launch(ours, time_limit="20m")
    second = lab.launch(ours, time_limit="20m")
    scheduler = Scheduler(settings(tmp_path, redis_url="redis://127.0.0.1:1/0"), lab.db)
    scheduler.round()
    assert (lab.run(first).state, lab.run(second).state) == (RunState.STARTING, RunState.QUEUED)
    assert lab.claim(first, 1)
    with lab.db.write() as session:
        leases.started(session, first, 1, PROCESS, (), lease_seconds=60)
    lab.settle(first, 1, 1200, Ending(70, "The loss is not finite."))
    scheduler.round()
    assert lab.run(second).state == RunState.PAUSED
    assert "0.334 core-hours and its allocation has 0.166 left" in lab.run(second).reason
    scheduler.round()
    assert lab.run(second).state == RunState.PAUSED
    lab.top_up(allocation, 600)
    scheduler.round()
    assert lab.run(second).state == RunState.STARTING


def test_nothing_starts_on_an_allocation_that_has_ended(lab: Lab, ours: int, tmp_path: Path) -> None:
    allocation = lab.allocation(ours)
    run = lab.launch(ours)
    with lab.db.write() as session:
        session.get_one(Allocation, allocation).until = utcnow() - timedelta(days=1)
    Scheduler(settings(tmp_path, redis_url="redis://127.0.0.1:1/0"), lab.db).round()
    assert lab.run(run).state == RunState.PAUSED
    assert lab.run(run).reason == "its allocation has ended"


def test_a_disk_that_fails_for_a_while_ends_no_scheduler(lab: Lab, ours: int, tmp_path: Path) -> None:
    run = lab.launch(ours)
    in_the_way = tmp_path / "runs"
    in_the_way.touch()
    over = threading.Event()

    class Interrupted(Scheduler):
        """Where a signal would interrupt it depends on the moment; a round is where it shows."""

        def round(self) -> None:
            if over.is_set():
                raise KeyboardInterrupt
            super().round()

    def meanwhile(said: list[Any]) -> None:
        """Two rounds fail, a third one does not, and the operator presses Ctrl-C."""
        try:
            wait_for(lambda: sum("the disk could not be used" in entry["event"] for entry in said) >= 2)
            assert lab.run(run).state == RunState.QUEUED
            in_the_way.unlink()
            wait_for(lambda: lab.run(run).state != RunState.QUEUED)
        finally:
            over.set()

    with ThreadPoolExecutor(1) as pool, capture_logs() as said:
        mended = pool.submit(meanwhile, said)
        with pytest.raises(KeyboardInterrupt):
            Interrupted(settings(tmp_path, tick_seconds=0.02), lab.db).run_forever()
        mended.result()
    assert lab.run(run).state == RunState.STARTING


def failures(lab: Lab) -> list[str]:
    """The parts that the admins were told of."""
    with lab.db.read() as session:
        entries = record.since(session, record.LAB, 0, limit=10_000)
    return [entry.payload["part"] for entry in entries if entry.kind == "part.failed" and entry.payload]


def test_a_part_that_keeps_failing_is_told_once_a_day_by_all_processes_together(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        with Fence(lab.db)("planning"):  # of a process of its own
            raise ValueError("nonsense")

    for _ in range(2):
        fail()
    assert failures(lab) == ["planning"]
    later = utcnow() + timedelta(hours=25)
    monkeypatch.setattr("broker.fence.utcnow", lambda: later)
    fail()
    assert failures(lab) == ["planning", "planning"]


def test_a_pool_whose_runner_nobody_knows_stops_no_other(lab: Lab, ours: int, tmp_path: Path) -> None:
    lab.pool("moon")
    with lab.db.write() as session:
        session.execute(update(Pool).where(col(Pool.name) == "moon").values(runner="rocket"))
    run = lab.launch(ours)
    rounds = Scheduler(settings(tmp_path), lab.db)
    with capture_logs() as said:
        for _ in range(3):
            rounds.strays_ended_at = -1e9
            rounds.round()
    assert lab.run(run).state == RunState.STARTING
    assert failures(lab) == ["reading the pool “moon”", "asking for stray jobs of the pool “moon”"], "once each"
    logged = [entry["part"] for entry in said if entry["event"] == "a part failed; the rest goes on"]
    assert logged == failures(lab), "one line a minute"


@pytest.mark.parametrize(
    "broken",
    [
        "broker.scheduling.scheduler.lost_attempts.expire",
        "broker.scheduling.scheduler.allocation_expiry.update_all",
        "broker.scheduling.scheduler.usage.any_ended",
        "broker.scheduling.scheduler.control.revivable",
        "broker.scheduling.scheduler.attempts.cancelled_unclaimed",
        "broker.scheduling.scheduler.attempts.unclaimed",
    ],
)
def test_a_part_of_the_round_that_fails_stops_no_other(
    lab: Lab, ours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """What may break there is not known beforehand, so a stand-in breaks it."""

    def fails(*_: object, **__: object) -> None:
        raise UnicodeDecodeError("utf-8", b"\xfc", 0, 1, "invalid start byte")

    run = lab.launch(ours)
    monkeypatch.setattr(broken, fails)
    rounds = Scheduler(settings(tmp_path), lab.db)
    rounds.round()
    rounds.round()
    assert lab.run(run).state == RunState.STARTING
    assert len(failures(lab)) == 1


def test_a_run_that_breaks_the_round_holds_up_no_other(
    lab: Lab, ours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = lab.launch(ours), lab.launch(ours)
    real = attempts.admit

    def admit(session: Any, run_id: int, devices: Any) -> int:
        if run_id == bad:
            raise ZeroDivisionError
        return real(session, run_id, devices)

    monkeypatch.setattr(attempts, "admit", admit)
    Scheduler(settings(tmp_path), lab.db).round()
    assert [lab.run(run).state for run in (bad, good)] == [RunState.QUEUED, RunState.STARTING]
    assert failures(lab) == ["admitting a run"]


def test_after_an_outage_supervisors_have_a_lease_to_renew_in(lab: Lab, ours: int, tmp_path: Path) -> None:
    run = lab.launch(ours)
    token = lab.start(run, 0, lease=0.001)
    time.sleep(0.01)
    rounds = Scheduler(settings(tmp_path, lease_seconds=3600), lab.db)
    rounds.was_away = True
    rounds.round()
    assert lab.run(run).state == RunState.RUNNING
    lab.renew(run, token, 10)
    rounds.expires_from = 0
    rounds.round()
    assert lab.run(run).state == RunState.RUNNING
