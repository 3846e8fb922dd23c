"""Attempts, fenced by their token: claimed once, silent when stale, charged never beyond what they reserved."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import text
from sqlmodel import select

from broker import publications
from broker.allocations.ledger import Account
from broker.end_reasons import EndReason
from broker.runs import attempts, leases, series, settlement
from broker.runs.attempts import Attempt, AttemptState
from broker.runs.leases import StaleError
from broker.runs.progress import Checkpoint, Ending, Progress, Spike
from broker.runs.runs import RunState
from broker.runs.series import Measured
from projects.db.columns import utcnow
from projects.errors import ConflictError
from tests.broker.lab import HOUR, NOTHING, PROCESS, Lab

DONE = Ending(0)
STOPPED = Ending(75, "stopped")
KILLED = Ending(-9, "the trainer was ended by signal 9")
BROKEN = Ending(70, "the loss is not finite")


def attempt(lab: Lab, run: int, token: int) -> Attempt:
    with lab.db.read() as session:
        return session.get_one(Attempt, (run, token))


def devices(lab: Lab) -> set[int]:
    with lab.db.read() as session:
        return attempts.devices_in_use(session, 1)


def test_from_admission_to_the_end(lab: Lab, project: int, allocation: int, run: int) -> None:
    token = lab.admit(run, 0, 1)
    assert (lab.run(run).state, lab.account(allocation)) == (RunState.STARTING, Account(HOUR, 1200, 0))
    assert lab.claim(run, token)
    with lab.db.write() as session:
        leases.started(session, run, token, PROCESS, (), lease_seconds=60)
    assert lab.run(run).state == RunState.RUNNING
    seen = Progress(
        100,
        50,
        step=4,
        tokens=64,
        unigram_entropy=6.5,
        points=[Measured("loss", 4, 64, 7.0)],
        checkpoints=[Checkpoint(4, "four")],
    )
    assert not lab.renew(run, token, 10.9, seen)
    view = lab.run(run)
    assert (view.step, view.tokens, view.loss, view.unigram_entropy, view.spent) == (4, 64, 7.0, 6.5, 20)
    assert (attempt(lab, run, token).metrics_read, attempt(lab, run, token).events_read) == (100, 50)
    lab.settle(run, token, 15.5, DONE)
    assert (lab.run(run).state, lab.account(allocation)) == (RunState.FINISHED, Account(HOUR, 0, 30))
    assert devices(lab) == set()
    assert lab.kinds(project)[-5:] == ["run.queued", "run.starting", "run.started", "run.finished", "run.queued"]


def test_a_message_delivered_twice_claims_once(lab: Lab, run: int) -> None:
    token = lab.admit(run, 0, 1)
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(lambda _: lab.claim(run, token), range(6))) == 1
    assert not lab.claim(run, token)
    assert not lab.claim(run, token + 1)
    lab.expire(run, token)
    assert attempt(lab, run, token).state == AttemptState.CLAIMED, "its lease has not run out"


def test_an_admission_that_cannot_be_paid_changes_nothing(lab: Lab, project: int, allocation: int, run: int) -> None:
    other = lab.launch(project, time_limit="50m")
    lab.admit(run, 0)
    before = lab.everything()
    with pytest.raises(ConflictError, match=r"0.834 hours are needed; the allocation has 0.666 left"):
        lab.admit(other, 1)
    with pytest.raises(ConflictError, match="is starting and cannot become starting"):
        lab.admit(run, 1)
    assert lab.everything() == before


def test_a_device_is_given_away_once(lab: Lab, project: int, allocation: int) -> None:
    """Two schedulers that have planned at different moments may mean the same device for different runs."""
    queued = [lab.launch(project, time_limit="1m") for _ in range(6)]

    def admit(run: int) -> bool:
        try:
            lab.admit(run, 0)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(admit, queued)) == 1
    assert [lab.run(run).state for run in queued].count(RunState.QUEUED) == 5
    assert lab.account(allocation).reserved == 60


def test_a_stale_token_changes_nothing(lab: Lab, run: int) -> None:
    old = lab.start(run, 0, lease=0.001)
    time.sleep(0.01)
    lab.expire(run, old)
    new = lab.start(run, 0)
    assert new == old + 1
    seen = Progress(9, 9, step=99, tokens=99, points=[Measured("loss", 99, 99, 0.1)], checkpoints=[Checkpoint(99, "x")])
    before = lab.everything()
    with pytest.raises(StaleError):
        lab.renew(run, old, 50, seen)
    with pytest.raises(StaleError):
        lab.settle(run, old, 50, DONE)
    with pytest.raises(StaleError), lab.db.write() as session:
        leases.started(session, run, old, PROCESS, (), lease_seconds=60)
    lab.expire(run, old)
    assert lab.everything() == before
    assert not lab.renew(run, new, 1, NOTHING)


def test_a_supervisor_that_comes_too_late_finds_the_run_over(lab: Lab, run: int) -> None:
    token = lab.start(run, 0)
    lab.settle(run, token, 1, BROKEN)
    before = lab.everything()
    for late in (lambda: lab.renew(run, token, 9), lambda: lab.settle(run, token, 9, DONE)):
        with pytest.raises(StaleError, match=f"attempt {token} of run {run} is no longer .*running"):
            late()
    assert lab.everything() == before


def test_a_lost_lease_gives_back_and_goes_on_later(lab: Lab, project: int, allocation: int, run: int) -> None:
    token = lab.start(run, 0, 1)
    assert not lab.renew(run, token, 30, lease=60)
    with lab.db.read() as session:
        assert attempts.expired(session) == []
    assert not lab.renew(run, token, 30, lease=0.001)
    ends = attempt(lab, run, token).lease_until
    time.sleep(0.01)
    with lab.db.read() as session:
        assert [(lost.run_id, lost.token) for lost in attempts.expired(session)] == [(run, token)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: lab.expire(run, token, grace=3600), range(3)))
    row = lab.row(run)
    assert ends is not None
    heard_at, then = ends - timedelta(seconds=60), ends + timedelta(hours=1)
    assert (row.state, row.reason) == (
        RunState.QUEUED,
        f"its host host was last heard from at {heard_at:%F %T} UTC; the next attempt begins after {then:%F %T} UTC",
    )
    assert row.not_before == ends + timedelta(hours=1)
    assert lab.account(allocation) == Account(HOUR, 0, 0), "no checkpoint stands for the minute"
    assert devices(lab) == {0, 1}, "its trainer may still be stopping"
    with pytest.raises(ConflictError, match="already in use: 0, 1"):
        lab.admit(run, 0, 1)
    assert lab.kinds(project)[-2:] == ["run.refunded", "run.requeued"]


def test_the_next_attempt_has_what_the_lost_one_has_left(lab: Lab, allocation: int, run: int) -> None:
    first = lab.start(run, 0, 1, lease=0.001)
    assert not lab.renew(run, first, 100, Progress(1, 1, checkpoints=[Checkpoint(1, "one")]), lease=0.001)
    time.sleep(0.01)
    lab.expire(run, first)
    second = lab.start(run, 0, 1)
    assert second == first + 1
    assert lab.account(allocation) == Account(HOUR, 2 * 500, 200)
    lab.settle(run, second, 10_000, Ending(75, timed_out=True))
    view = lab.run(run)
    assert (view.state, view.spent) == (RunState.TIMED_OUT, 1200)


def test_a_renewal_in_time_keeps_the_run(lab: Lab, run: int) -> None:
    token = lab.start(run, 0, lease=0.001)
    with lab.db.read() as session:
        seen = session.get_one(Attempt, (run, token))
    time.sleep(0.01)
    lab.renew(run, token, 1, lease=60)
    with lab.db.write() as session:
        settlement.expire(session, seen, lease_seconds=60, grace_seconds=0, most=3)
    assert attempt(lab, run, token).state == AttemptState.RUNNING
    assert lab.run(run).state == RunState.RUNNING


def test_a_run_fails_for_good_after_its_last_attempt(lab: Lab, project: int, allocation: int, run: int) -> None:
    for token in (1, 2, 3):
        assert lab.start(run, 0, lease=0.001) == token
        assert lab.run(run).state == RunState.RUNNING
        if token == 2:
            lab.settle(run, token, 5, Ending(-9, "It was killed.", known=EndReason.RUNNER_ENDED))
            assert lab.run(run).reason.startswith("It was killed; the next attempt begins after ")
        else:
            time.sleep(0.01)
            lab.expire(run, token)
    view = lab.run(run)
    assert (view.state, view.spent) == (RunState.FAILED, 0)
    assert view.reason.startswith("3 attempts failed; the last one: its host host was last heard from at ")
    assert lab.account(allocation) == Account(HOUR, 0, 0), "what was killed from outside is refunded"
    assert lab.kinds(project).count("run.requeued") == 2


@pytest.mark.parametrize(("grace", "held"), [(3600, {0, 1}), (0, set())])
@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_lost_attempt_holds_its_devices_through_the_grace_though_the_run_has_ended(
    lab: Lab, run: int, end: str, grace: float, held: set[int]
) -> None:
    token = lab.start(run, 0, 1, lease=0.001)
    if end == "cancelled":
        lab.cancel(run)
    time.sleep(0.01)
    lab.expire(run, token, grace=grace, most=1)
    assert lab.run(run).state == end
    assert devices(lab) == held


@pytest.mark.parametrize(
    ("ending", "state", "reason"),
    [
        (DONE, RunState.FINISHED, ""),
        (STOPPED, RunState.QUEUED, "stopped"),
        (KILLED, RunState.QUEUED, "the trainer was ended by signal 9"),
        (Ending(70, "a rank was killed", transient=True), RunState.QUEUED, "a rank was killed"),
        (BROKEN, RunState.FAILED, "the loss is not finite"),
        (Ending(78, "steps is missing"), RunState.FAILED, "steps is missing"),
        (Ending(75, timed_out=True), RunState.TIMED_OUT, "it reached its time limit"),
        (Ending(-9, timed_out=True), RunState.TIMED_OUT, "it reached its time limit"),
    ],
)
def test_how_a_run_goes_on_from_a_trainers_end(
    lab: Lab, allocation: int, run: int, ending: Ending, state: RunState, reason: str
) -> None:
    token = lab.start(run, 0)
    seconds = 600 if ending.timed_out else 3
    lab.settle(run, token, seconds, ending)
    view = lab.run(run)
    spent = 0 if ending.fault else 2 * seconds
    assert (view.state, view.reason, view.spent) == (state, reason, spent)
    assert (view.ended_at is None) == (state == RunState.QUEUED)
    assert lab.account(allocation) == Account(HOUR, 0, spent)
    assert attempt(lab, run, token).lease_until is None


@pytest.mark.parametrize(
    ("ending", "state", "reason"),
    [
        (STOPPED, RunState.CANCELLED, "cancelled by Ada"),
        (KILLED, RunState.CANCELLED, "cancelled by Ada"),
        (BROKEN, RunState.FAILED, "the loss is not finite"),
        (DONE, RunState.FINISHED, ""),
    ],
)
def test_how_a_run_that_was_asked_to_stop_ends(
    lab: Lab, run: int, ending: Ending, state: RunState, reason: str
) -> None:
    token = lab.start(run, 0)
    lab.cancel(run)
    assert lab.run(run).state == RunState.STOPPING
    with pytest.raises(ConflictError, match="is already stopping"):
        lab.cancel(run)
    assert lab.renew(run, token, 2), "the supervisor is told to stop"
    lab.settle(run, token, 3, ending)
    assert (lab.run(run).state, lab.run(run).reason) == (state, reason)


def test_a_spike_of_the_loss_is_told_once(lab: Lab, project: int, run: int) -> None:
    def told() -> list[tuple[int, str, str]]:
        return [(one["step"], one["loss"], one["usual"]) for one in lab.payloads(project, "run.spiked")]

    token = lab.start(run, 0)
    lab.renew(run, token, 1, replace(NOTHING, spikes=[Spike(60, 4.5, 3.0), Spike(61, 5.5, 3.0)]))
    lab.renew(run, token, 2, replace(NOTHING, spikes=[Spike(100, 6.5, 3.0)]))
    assert told() == [(60, "4.500", "3.000")]
    assert (lab.run(run).spike, lab.run(run).spike_step) == (6.5, 100)
    lab.renew(run, token, 3, replace(NOTHING, spikes=[Spike(250, 7.0, 2.5)]))
    lab.settle(run, token, 4, KILLED)
    again = lab.start(run, 0)
    lab.renew(run, again, 1, replace(NOTHING, spikes=[Spike(60, 4.5, 3.0), Spike(170, 5.0, 3.0), Spike(250, 7.0, 2.5)]))
    with lab.db.write() as session:
        last = replace(NOTHING, spikes=[Spike(320, 9.0, 2.5)])
        settlement.settle(session, run, again, 2, last, DONE, 3)
    new = [(170, "5.000", "3.000"), (320, "9.000", "2.500")]
    assert told() == [(60, "4.500", "3.000"), (250, "7.000", "2.500"), *new], "each once, in the order that they came"


def test_a_spike_over_steps_that_are_logged_rarely_is_told_once(lab: Lab, project: int, run: int) -> None:
    with lab.db.write() as session:
        session.execute(text("UPDATE runs SET config = replace(config, 'log_every: 2', 'log_every: 100')"))
    token = lab.start(run, 0)
    for number, step in enumerate((100, 200, 300), 1):
        lab.renew(run, token, number, replace(NOTHING, spikes=[Spike(step, 4.5, 3.0)]))
    assert [told["step"] for told in lab.payloads(project, "run.spiked")] == [100]


def test_a_run_cancelled_before_its_trainer_runs_is_told_at_the_first_renewal(lab: Lab, run: int) -> None:
    token = lab.admit(run, 0)
    assert lab.claim(run, token)
    lab.cancel(run)
    with lab.db.write() as session:
        leases.started(session, run, token, PROCESS, (), lease_seconds=60)
    assert lab.renew(run, token, 1)
    lab.settle(run, token, 1, STOPPED)
    assert lab.run(run).state == RunState.CANCELLED


def test_a_run_cancelled_before_it_was_claimed_is_never_started(lab: Lab, allocation: int, run: int) -> None:
    token = lab.admit(run, 0)
    lab.cancel(run)
    assert not lab.claim(run, token)
    with lab.db.read() as session:
        waiting = attempts.cancelled_unclaimed(session)
    assert [(attempt.run_id, attempt.token) for attempt in waiting] == [(run, token)]
    with lab.db.write() as session:
        settlement.withdraw(session, run, token)
    assert lab.run(run).state == RunState.CANCELLED
    assert lab.account(allocation) == Account(HOUR, 0, 0)
    with pytest.raises(StaleError), lab.db.write() as session:
        settlement.withdraw(session, run, token)


def test_being_drained_is_no_failure(lab: Lab, run: int) -> None:
    for _ in range(5):
        lab.settle(run, lab.start(run, 0), 1, STOPPED, most=2)
        assert lab.run(run).state == RunState.QUEUED


def test_charges_follow_the_seconds_and_never_the_reservation_twice(lab: Lab, allocation: int, run: int) -> None:
    token = lab.start(run, 0, 1)
    for elapsed, spent in ((0.9, 0), (1.0, 2), (1.9, 2), (1.5, 2), (700, 1200), (9999, 1200)):
        lab.renew(run, token, elapsed)
        assert lab.account(allocation) == Account(HOUR, 1200 - spent, spent)
    lab.settle(run, token, 99_999, DONE)
    assert lab.account(allocation) == Account(HOUR, 0, 1200)
    with lab.db.read() as session:
        periods = session.scalars(
            select(text("period")).select_from(text("ledger")).where(text("movement = 'charge'"))
        ).all()
    assert sorted(periods) == [1, 2]


def test_a_renewal_that_fails_half_way_keeps_nothing(lab: Lab, run: int) -> None:
    token = lab.start(run, 0)
    before = lab.everything()
    broken = Progress(7, 7, step=1, tokens=1, points=[Measured("loss", 1, 1, None)])  # type: ignore[arg-type]
    with pytest.raises(Exception, match="points"):
        lab.renew(run, token, 100, broken)
    assert lab.everything() == before


def test_an_attempt_tells_of_checkpoints_that_a_dead_one_has_left(lab: Lab, run: int) -> None:
    first = lab.start(run, 0)
    lab.renew(run, first, 1, Progress(1, 1, checkpoints=[Checkpoint(1, "attempt-1/step1")]))
    lab.settle(run, first, 2, KILLED)
    second = lab.admit(run, 0)
    assert lab.claim(run, second)
    left = [Checkpoint(1, "attempt-1/step1"), Checkpoint(2, "attempt-1/step2")]
    with lab.db.write() as session:
        leases.started(session, run, second, PROCESS, left, lease_seconds=60)
    lab.renew(run, second, 1, Progress(1, 1, checkpoints=[Checkpoint(2, "attempt-2/step2")]))
    with lab.db.read() as session:
        newest = publications.newest(session, run)
    assert newest is not None
    assert (newest.step, newest.folder) == (2, "attempt-1/step2")


def test_what_was_admitted_and_not_claimed_is_notified_again(lab: Lab, run: int) -> None:
    token = lab.admit(run, 0)

    def waiting(seconds: float) -> list[int]:
        with lab.db.read() as session:
            return [found.token for found in attempts.unclaimed(session, since_seconds=seconds)]

    assert waiting(60) == [token], "no worker was told of it"
    with lab.db.write() as session:
        attempts.notified(session, run, token)
    assert waiting(60) == []
    time.sleep(0.02)
    assert waiting(0.01) == [token]
    lab.claim(run, token)
    assert waiting(0) == []


def test_a_finished_run_asks_for_a_sample_where_it_can_be_paid(lab: Lab, project: int) -> None:
    lab.allocation(project, hours="0.18")
    run = lab.launch(project, time_limit="10m")
    lab.settle(run, lab.start(run, 0), 49, DONE)
    assert len(lab.everything()) > 0
    with lab.db.read() as session:
        assert session.scalar(text("SELECT count(*) FROM runs")) == 1, "599 seconds are too few"
    lab.allocation(project)
    run = lab.launch(project)
    lab.settle(run, lab.start(run, 0), 60, DONE)
    sample = lab.run(run + 1)
    assert (sample.kind, sample.parent_id, sample.gpus, sample.time_limit) == ("sample", run, 1, 600)
    token = lab.start(run + 1, 0)
    lab.settle(run + 1, token, 4, Ending(0, sample="The end."))
    assert (lab.run(run + 1).sample, lab.run(run + 1).spent) == ("The end.", 4)


def test_a_series_stays_bounded_and_keeps_its_ends_and_extremes(lab: Lab, run: int) -> None:
    token = lab.start(run, 0)
    values = {step: 5 + (step % 97) / 100 for step in range(1, 5001)}
    values[1234], values[3456] = 99.0, -7.0
    for start in range(1, 5001, 625):
        points = [Measured("loss", step, 2 * step, values[step]) for step in range(start, start + 625)]
        lab.renew(run, token, 1, Progress(0, 0, step=start + 624, tokens=1, points=points))
        with lab.db.read() as session:
            assert len(series.read(session, run, "loss")) <= series.MOST_POINTS
    with lab.db.read() as session:
        kept = series.read(session, run, "loss")
    assert (lab.run(run).loss, lab.run(run).held_out) == (values[5000], None)
    steps = [point.step for point in kept]
    assert (steps[0], steps[-1], steps) == (1, 5000, sorted(set(steps)))
    assert {(point.step, point.tokens, point.value) for point in kept} >= {(1234, 2468, 99.0), (3456, 6912, -7.0)}
    assert all(point.value == values[point.step] for point in kept)


def test_a_hundred_thousand_points_at_once_or_in_batches_stay_bounded(lab: Lab, run: int) -> None:
    values = {step: float(step * 7919 % 1009) for step in range(100_000)}
    values[12_345], values[67_890] = -1.0, 9999.0
    points = [Measured("loss", step, step, value) for step, value in values.items()]
    with lab.db.write() as session:
        series.add(session, run, points)
        series.add(session, run, [replace(point, series="lr") for point in points[:10_000]])
        series.add(session, run, [replace(point, series="lr") for point in points[10_000:]])
    with lab.db.read() as session:
        for name in ("loss", "lr"):
            kept = series.read(session, run, name)
            assert 500 < len(kept) <= series.MOST_POINTS
            assert (kept[0].step, kept[-1].step) == (0, 99_999)
            assert {point.step for point in kept} >= {12_345, 67_890}
            assert all(point.value == values[point.step] for point in kept)


def test_of_two_attempts_values_the_later_one_stands(lab: Lab, run: int) -> None:
    token = lab.start(run, 0)
    for value in (3.0, 2.0):
        points = [Measured("loss", 8, 8, value), Measured("lr", 8, 8, value)]
        lab.renew(run, token, 1, Progress(0, 0, points=points))
    with lab.db.read() as session:
        assert [point.value for point in series.read(session, run, "loss")] == [2.0]


def test_a_lease_is_measured_from_now(lab: Lab, run: int) -> None:
    before = utcnow()
    lab.start(run, 0, lease=30)
    after, lease_until = utcnow(), attempt(lab, run, 1).lease_until
    assert lease_until is not None
    assert before + timedelta(seconds=30) <= lease_until <= after + timedelta(seconds=30)
