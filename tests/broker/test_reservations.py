"""Reservations: GPUs that a project finds free over a period, and what others may do with them before."""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as bounded
from hypothesis import strategies as st
from sqlalchemy import update
from sqlmodel import col

from broker.allocations import pools, reservations
from broker.allocations.reservations import Reservation, ReservationView
from broker.reports import cluster, why
from broker.reviews import inventory
from broker.runs.runs import RunState
from broker.scheduling.backfill import SOONEST, Limits, Placement, QueueState, Waiting, WaitReason, plan
from broker.scheduling.capacity import Reserved
from broker.scheduling.scheduler import Scheduler
from projects import lifecycle
from projects.db.columns import utcnow
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor, LabRole
from projects.record import record
from tests.broker.lab import ADA, POOL, STRANGER, Lab, settings
from tests.broker.test_backfill import NOW, held, queue, starts, states, waiting

OMAR = Actor(9, "Omar", frozenset({LabRole.ADMIN}))


@pytest.fixture
def theirs(lab: Lab, ours: int) -> int:
    """Another project with ten hours."""
    project = lab.project(STRANGER, "Another question")
    lab.allocation(project, hours="10", lead=STRANGER)
    return project


def typed(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M}"


def hours(count: float) -> datetime:
    """So many hours from now, at a whole minute."""
    return (utcnow() + timedelta(hours=count)).replace(second=0, microsecond=0)


def reserve(lab: Lab, project: int, actor: Actor | None = OMAR, **changes: str) -> ReservationView:
    asked = {"pool": POOL, "gpus": "2", "begins": typed(hours(2)), "ends": typed(hours(5))} | changes
    with lab.db.write() as session:
        return reservations.add(session, actor, asked.pop("pool"), project_id=project, reason="A course.", **asked)


def begin(lab: Lab, reservation: ReservationView) -> None:
    """Its time has come."""
    with lab.db.write() as session:
        earlier = utcnow() - timedelta(minutes=1)
        session.execute(update(Reservation).where(col(Reservation.id) == reservation.id).values(begins_at=earlier))


def said(lab: Lab, run: int) -> str:
    with lab.db.read() as session:
        return why.why(session, run).reason


@pytest.mark.usefixtures("memory_queue")
def test_others_start_only_what_ends_before_and_the_project_finds_its_gpus_free(
    lab: Lab, ours: int, theirs: int, tmp_path: Path
) -> None:
    begins, ends = hours(2), hours(5)
    made = reserve(lab, theirs, begins=typed(begins), ends=typed(ends))
    short, long = lab.launch(ours, time_limit="1h"), lab.launch(ours, time_limit="3h")
    rounds = Scheduler(settings(tmp_path), lab.db)
    rounds.round()
    assert [lab.run(run).state for run in (short, long)] == [RunState.STARTING, RunState.QUEUED]
    period = f"from {begins.day} {begins:%B %Y %H:%M} UTC until {ends.day} {ends:%B %Y %H:%M} UTC"
    assert made.period == period
    assert said(lab, long) == f"2 cores of pool laptop are reserved for project P{theirs} {period}."
    with lab.db.read() as session:
        waits = why.why(session, long)
        assert waits.expected is not None
        assert abs((waits.expected - ends).total_seconds()) < 1, "as it ends, whenever one asks"
        assert cluster.status(session)[0].reservations == [made]
    own = lab.launch(theirs, STRANGER, time_limit="4h")
    rounds.round()
    assert (lab.run(own).state, lab.run(long).state) == (RunState.STARTING, RunState.QUEUED)


@pytest.mark.usefixtures("memory_queue")
def test_while_it_lasts_only_its_project_uses_it_until_it_is_cancelled(
    lab: Lab, ours: int, theirs: int, tmp_path: Path
) -> None:
    made = reserve(lab, theirs, gpus="1")
    begin(lab, made)
    wide, narrow = lab.launch(ours, gpus=2, time_limit="10m"), lab.launch(ours, time_limit="10m")
    own = lab.launch(theirs, STRANGER, time_limit="10m")
    rounds = Scheduler(settings(tmp_path), lab.db)
    rounds.round()
    assert [lab.run(run).state for run in (wide, narrow, own)] == [
        *(RunState.QUEUED, RunState.STARTING),
        RunState.STARTING,
    ]
    lab.cancel(narrow)
    lab.cancel(own, STRANGER)
    rounds.round()
    rounds.round()
    assert "1 core of pool laptop is reserved for project" in said(lab, wide)
    with lab.db.write() as session:
        reservations.cancel(session, OMAR, made.id, "The course is off.")
    rounds.round()
    assert lab.run(wide).state == RunState.STARTING
    with lab.db.read() as session:
        entries = record.since(session, record.project_stream(theirs), 0)
        told = [entry for entry in entries if entry.kind.startswith("reservation.")]
        assert reservations.every(session) == []
    assert [entry.kind for entry in told] == ["reservation.added", "reservation.cancelled"]
    payloads = [entry.payload or {} for entry in told]
    assert [payload["why"] for payload in payloads] == ["A course.", "The course is off."]
    assert [payload["by"]["name"] for payload in payloads] == ["Omar", "Omar"]
    assert payloads[0]["gpus"] == 1


def test_a_reservation_ends_by_itself_and_with_its_project(lab: Lab, ours: int, theirs: int) -> None:
    made = reserve(lab, theirs)
    with lab.db.read() as session:
        assert [row.id for row in reservations.open_at(session, utcnow())] == [made.id]
        assert reservations.open_at(session, hours(5)) == []
    with lab.db.write() as session:
        lifecycle.stop(session, STRANGER, theirs, reason="It is answered.")
    with lab.db.read() as session:
        assert reservations.open_at(session, utcnow()) == []
    with pytest.raises(ConflictError, match="is stopped; nothing is reserved"):
        reserve(lab, theirs)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"gpus": "0"}, InvalidError, "from 1 to 2, as many as “laptop” has; “0” is not"),
        ({"gpus": "-1"}, InvalidError, "“-1” is not"),
        ({"gpus": "3"}, InvalidError, "“3” is not"),
        ({"gpus": "9" * 40}, InvalidError, "whole number from 1 to 2"),
        ({"gpus": "two"}, InvalidError, "“two” is not"),
        ({"gpus": "2"}, ConflictError, "Of the 2 cores of “laptop”, 1 are reserved in that time; at most 1 are left"),
        ({"begins": "2020-01-01 09:00"}, InvalidError, "begins in the future; 1 January 2020 09:00 UTC has passed"),
        ({"begins": "tomorrow"}, InvalidError, "must be written like"),
        ({"ends": "2020-01-01 09:00"}, InvalidError, "ends after it begins"),
        ({"ends": typed(hours(24 * 100))}, InvalidError, "lasts 90 days at most"),
        ({"begins": "2999-01-01 00:00", "ends": "2999-01-02 00:00"}, InvalidError, "begins within 365 days"),
        ({"pool": "moon"}, NotFoundError, "There is no pool “moon”"),
        ({"project": "77"}, NotFoundError, "There is no project 77"),
    ],
)
def test_what_cannot_be_reserved_is_refused_in_one_sentence(
    lab: Lab, ours: int, theirs: int, changes: dict[str, str], error: type[DomainError], sentence: str
) -> None:
    reserve(lab, ours, gpus="1", begins=typed(hours(4)), ends=typed(hours(6)))
    before = everything(lab)
    asked = dict(changes)
    project = int(asked.pop("project", theirs))
    with pytest.raises(error, match=sentence):
        reserve(lab, project, OMAR, **asked)
    assert everything(lab) == before


def everything(lab: Lab) -> tuple[list[object], Sequence[ReservationView]]:
    with lab.db.read() as session:
        return lab.everything(), reservations.every(session)


def test_what_touches_and_what_lies_apart_can_be_reserved(lab: Lab, ours: int, theirs: int) -> None:
    reserve(lab, ours, begins=typed(hours(2)), ends=typed(hours(3)))
    reserve(lab, theirs, begins=typed(hours(3)), ends=typed(hours(4)), actor=None)
    reserve(lab, ours, gpus="1", begins=typed(hours(5)), ends=typed(hours(6)))
    reserve(lab, theirs, gpus="1", begins=typed(hours(4)), ends=typed(hours(7)))
    with pytest.raises(ConflictError, match="at most 0 are left"):
        reserve(lab, ours, gpus="1", begins=typed(hours(4.5)), ends=typed(hours(8)))


def test_only_admins_reserve_and_cancel_and_only_what_there_is(lab: Lab, ours: int) -> None:
    made = reserve(lab, ours)
    before = everything(lab)
    with pytest.raises(ForbiddenError, match="Only the admins"):
        reserve(lab, ours, ADA)
    for actor, number, error in ((ADA, made.id, ForbiddenError), (OMAR, 99, NotFoundError)):
        with pytest.raises(error), lab.db.write() as session:
            reservations.cancel(session, actor, number, "No.")
    with pytest.raises(ConflictError, match="Of “laptop”, 2 cores are reserved"), lab.db.write() as session:
        inventory.change_pool(session, OMAR, POOL, gpus="1", reason="Fewer.")
    with lab.db.write() as session:
        pools.add_pool(session, name="cluster", gpu_type="V100", gpus=64, runner="slurm")
    with pytest.raises(ConflictError, match="Slurm decides which GPUs of “cluster” are whose; reserve them there"):
        reserve(lab, ours, pool="cluster")
    assert everything(lab)[1] == before[1]
    with lab.db.write() as session:
        reservations.cancel(session, None, made.id, "It is off.")
    with pytest.raises(ConflictError, match="is over"), lab.db.write() as session:
        reservations.cancel(session, None, made.id, "Again.")


def reserved(project: int, gpus: int, begins: float, ends: float) -> Reserved:
    return Reserved(1, project, gpus, NOW + timedelta(seconds=begins), NOW + timedelta(seconds=ends))


def test_what_a_project_uses_is_taken_from_its_reservation_first() -> None:
    state = replace(
        queue(waiting(1, 2, 50), waiting(2, 2, 100, project=2), waiting(3, 1, 300, project=3), waiting(4, 2, 30)),
        reserved=[reserved(2, 3, 60, 200)],
    )
    assert starts(state) == {
        1: (0, None),
        2: (0, None),
        3: (50, WaitReason.GPUS),
        4: (200, WaitReason.GPUS),
    }
    alone = replace(queue(waiting(1, 2, 61), waiting(2, 1, 500)), reserved=[reserved(2, 3, 60, 200)])
    assert starts(alone) == {1: (200, WaitReason.RESERVED), 2: (0, None)}


def test_runs_that_are_under_way_are_left_alone() -> None:
    state = replace(queue(waiting(1, 1, 10), running=[held(90, (0, 1, 2), 500)]), reserved=[reserved(2, 4, 5, 100)])
    assert starts(state) == {1: (100, WaitReason.RESERVED)}


def test_a_run_that_waits_behind_another_of_its_person_does_not_wait_for_what_is_reserved() -> None:
    runs = [waiting(1, 2, 5), waiting(2, 3, 5, person_id=2), waiting(3, 1, 10, person_id=2)]
    state = replace(queue(*runs, limits=Limits(most_running_a_person=1)), reserved=[reserved(1, 1, 5, 30)])
    assert starts(state) == {1: (0, None), 2: (5, WaitReason.GPUS), 3: (10, WaitReason.BEHIND)}


@st.composite
def reserving(draw: st.DrawFn) -> QueueState:
    """A pool with up to three reservations of its projects, never more at once than it has GPUs."""
    state: QueueState = draw(states())
    gpus = state.pools[0].gpus
    found: list[Reserved] = []
    for _ in range(draw(st.integers(1, 3))):
        begins = draw(st.sampled_from([-5, 0, 5, 15, 40]))
        one = reserved(draw(st.integers(1, 3)), draw(st.integers(1, gpus)), begins, begins + draw(st.integers(6, 60)))
        if sum(other.gpus for other in [*found, one]) <= gpus:
            found.append(one)
    return replace(state, reserved=found)


def free(state: QueueState, above: Sequence[Placement], run: Waiting, moment: float) -> int:
    """GPUs that a run may use at a moment, with those above it where they are: neither in use nor another's."""
    uses = [(one.project_id, len(one.devices)) for one in state.held if moment < max(one.seconds, SOONEST)]
    uses += [(one.run.project_id, one.run.gpus) for one in above if one.start <= moment < one.start + one.run.seconds]
    left = state.pools[0].gpus - sum(gpus for _, gpus in uses)
    for project in {one.project_id for one in state.reserved} - {run.project_id}:
        kept = sum(
            one.gpus
            for one in state.reserved
            if one.project_id == project and one.begins_at <= state.now + timedelta(seconds=moment) < one.ends_at
        )
        left -= max(0, kept - sum(gpus for owner, gpus in uses if owner == project))
    return left


@bounded(max_examples=200, deadline=None)
@given(reserving())
def test_no_run_is_given_what_is_reserved_for_another_project(state: QueueState) -> None:
    placements = plan(state).queues[1]
    for rank, one in enumerate(placements):
        if one.start == math.inf:
            assert one.waits_for == WaitReason.HOURS
            continue
        ends = one.start + one.run.seconds
        edges = {(at - NOW).total_seconds() for each in state.reserved for at in (each.begins_at, each.ends_at)}
        edges |= {edge for other in placements[:rank] for edge in (other.start, other.start + other.run.seconds)}
        moments = {one.start, *(edge for edge in edges if one.start < edge < ends)}
        assert all(free(state, placements[:rank], one.run, moment) >= one.run.gpus for moment in moments)


@bounded(max_examples=100, deadline=None)
@given(states(), st.integers(1, 6))
def test_what_is_reserved_for_the_only_project_changes_nothing(state: QueueState, gpus: int) -> None:
    runs = [run._replace(project_id=1) for run in state.waiting]
    alone = replace(state, waiting=runs, held=[one._replace(project_id=1) for one in state.held])
    kept = [reserved(1, min(gpus, state.pools[0].gpus), 5, 30)]
    assert plan(replace(alone, reserved=kept)).queues == plan(alone).queues
