"""Which runs make way, by themselves and over whole histories: fairly, as few as needed, and without a ping-pong."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.scheduling import backfill, preemption
from broker.scheduling.backfill import Funds, Held, PoolRow, Preemptible, QueueState, Waiting
from broker.scheduling.preemption import Preemption

NOW = datetime(2030, 1, 1, tzinfo=UTC)
AFTER = 60
POOL = PoolRow(1, "pool", 4, "", 1.0, preempt_after=AFTER)
CLUSTER = PoolRow(1, "cluster", 8, "Slurm", 1.0, most_submitted=2, preempt_after=AFTER)
LATELY, LONG_AGO = NOW - timedelta(seconds=AFTER - 1), NOW - timedelta(seconds=AFTER)


def waiting(number: int, gpus: int = 1, seconds: int = 1000, *, project: int = 1, **changes: Any) -> Waiting:
    queued_at = NOW - timedelta(seconds=1000 - number)
    return Waiting(number, project, project, project, 1, gpus, seconds, queued_at, None)._replace(**changes)


def running(
    run: Waiting, *devices: int, had: float = 100.0, ends_in: float = 1000.0, stopping: bool = False, **changes: Any
) -> Held:
    about = None if stopping else Preemptible(run, had, ends_in)
    seconds = 0.0 if stopping else float(run.seconds)
    held = Held(run.id, 1, run.project_id, run.person_id, devices, seconds, True, run.gpus, stopping, None, about)
    return held._replace(**changes)


def decide(
    runs: Sequence[Waiting], held: Sequence[Held], usage: dict[int, float], *, pool: PoolRow = POOL
) -> list[Preemption]:
    state = QueueState(NOW, [pool], runs, held, {n: Funds(10**9, 10**9, None) for n in range(1, 9)}, usage)
    return preemption.preemptions(state, backfill.plan(state))


def use(**changes: float) -> dict[int, float]:
    """Projects 1 and 2 wait, 3 and 4 have used much, 4 most of all."""
    return {1: 100.0, 2: 200.0, 3: 50_000.0, 4: 90_000.0} | {int(name[1:]): value for name, value in changes.items()}


SMALL = running(waiting(50, 1, project=3), 0)
LARGE = running(waiting(51, 2, project=4), 1, 2)
LAST = running(waiting(52, 1, project=3), 3, had=99)


@pytest.mark.parametrize(
    ("run", "chosen"),
    [
        (waiting(1, 1), (51,)),
        (waiting(1, 2), (51,)),
        (waiting(1, 3), (51, 52)),
        (waiting(1, 4), (50, 51, 52)),
        (waiting(1, 5), None),
    ],
)
def test_as_few_as_needed_make_way_the_lowest_share_first_and_then_the_newest(
    run: Waiting, chosen: tuple[int, ...] | None
) -> None:
    assert decide([run], [SMALL, LARGE, LAST], use()) == ([Preemption(chosen, 1)] if chosen else [])


def test_who_would_make_way_in_vain_does_not() -> None:
    """The run of one GPU is of the lowest share, and the one of three alone would do."""
    one, three = running(waiting(50, 1, project=4), 0), running(waiting(51, 3, project=3), 1, 2, 3)
    assert decide([waiting(1, 3)], [one, three], use()) == [Preemption((51,), 1)]


FULL = (SMALL, LARGE, LAST)


@pytest.mark.parametrize(
    ("runs", "held", "usage", "pool"),
    [
        pytest.param([waiting(1)], FULL, use(), POOL._replace(preempt_after=0), id="the pool does not preempt"),
        pytest.param([waiting(1)], FULL[:2], use(), POOL, id="a GPU is free"),
        pytest.param([waiting(1, project=3)], FULL, use(), POOL, id="no project has used less"),
        pytest.param([waiting(1)], FULL, use(p1=26_000, p4=51_000), POOL, id="little less was used"),
        pytest.param(
            [waiting(1)],
            [running(waiting(50, 4, 20_000, project=3), 0, 1, 2, 3)],
            use(p3=80_100),
            POOL,
            id="what the other has used, without what it has reserved, is as much",
        ),
        pytest.param(
            [waiting(1)],
            [
                running(
                    waiting(50, 4, 0, project=3), 0, 1, 2, 3, preemptible=Preemptible(waiting(50, 4), 100, 1000, 50_000)
                )
            ],
            use(),
            POOL,
            id="what the other has used may be refunded",
        ),
        pytest.param([waiting(1, preempted_at=LATELY)], FULL, use(), POOL, id="it was recently preempted"),
        pytest.param([waiting(1, paused=True)], FULL, use(), POOL, id="its project is paused"),
        pytest.param([waiting(1, not_before=NOW + timedelta(seconds=9))], FULL, use(), POOL, id="not yet"),
        pytest.param(
            [waiting(1, 4)], [*FULL[:2], LAST._replace(project_id=1)], use(), POOL, id="never its own project's"
        ),
    ],
)
def test_nobody_makes_way(runs: list[Waiting], held: Sequence[Held], usage: dict[int, float], pool: PoolRow) -> None:
    assert decide(runs, held, usage, pool=pool) == []


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(running(waiting(50, 4, project=3), 0, 1, 2, 3, had=AFTER - 1), id="it has just begun"),
        pytest.param(running(waiting(50, 4, project=3), 0, 1, 2, 3, ends_in=AFTER), id="it is about to end"),
        pytest.param(running(waiting(50, 4, 60, project=3), 0, 1, 2, 3), id="its time limit is about to end"),
        pytest.param(running(waiting(50, 4, project=3, preempted_at=LATELY), 0, 1, 2, 3), id="recently preempted"),
        pytest.param(running(waiting(50, 4, project=3), 0, 1, 2, 3, preemptible=None), id="without a checkpoint"),
        pytest.param(running(waiting(50, 4, project=3), 0, 1, 2, 3, open=False, preemptible=None), id="lost"),
        pytest.param(running(waiting(50, 4, project=1), 0, 1, 2, 3), id="of the same project"),
    ],
)
def test_this_run_never_makes_way(other: Held) -> None:
    assert decide([waiting(1, 4)], [other], use(p1=0)) == []


def test_what_counts_is_the_use_per_share() -> None:
    other = running(waiting(50, 4, project=3), 0, 1, 2, 3)
    state = QueueState(
        NOW, [POOL], [waiting(1, 4)], [other], dict.fromkeys(range(9), Funds(10**9, 0, None)), use(p1=20_000)
    )
    for shares, chosen in (({}, [Preemption((50,), 1)]), ({3: 2.0}, []), ({1: 3.0, 3: 2.0}, [Preemption((50,), 1)])):
        shared = replace(state, shares=shares)
        assert preemption.preemptions(shared, backfill.plan(shared)) == chosen


def test_long_ago_is_not_lately() -> None:
    other = running(waiting(50, 4, project=3, preempted_at=LONG_AGO), 0, 1, 2, 3)
    assert decide([waiting(1, 4, preempted_at=LONG_AGO)], [other], use()) == [Preemption((50,), 1)]


def test_what_stops_already_is_counted_before_anybody_else_is_asked() -> None:
    stops = running(waiting(51, 2, project=4), 1, 2, stopping=True)
    assert decide([waiting(1, 2)], [SMALL, stops, LAST], use()) == []
    assert decide([waiting(1, 2), waiting(2, 1, project=2)], [SMALL, stops, LAST], use()) == [Preemption((52,), 2)]
    assert decide([waiting(1, 3)], [SMALL, stops, LAST], use()) == [Preemption((52,), 1)]


def test_a_run_behind_a_higher_one_that_nobody_can_make_way_for_preempts_only_what_delays_nobody() -> None:
    kept = running(waiting(50, 2, 500, project=3), 0, 1, had=1)
    other = running(waiting(51, 2, 5000, project=4), 2, 3)
    first = waiting(1, 3, project=1)
    assert decide([first], [kept, other], use()) == []
    short, long = waiting(2, 2, 400, project=2), waiting(2, 2, 600, project=2)
    assert decide([first, short], [kept, other], use()) == [Preemption((51,), 2)]
    assert decide([first, long], [kept, other], use()) == []


def test_a_runner_with_a_queue_of_its_own_loses_a_job_and_as_many_gpus_as_are_needed() -> None:
    held = [running(waiting(50, 6, project=3)), running(waiting(51, 2, project=4))]
    assert decide([waiting(1, 2)], held, use(), pool=CLUSTER) == [Preemption((51,), 1)]
    assert decide([waiting(1, 4)], held, use(), pool=CLUSTER) == [Preemption((50,), 1)]
    assert decide([waiting(1, 8)], held, use(), pool=CLUSTER) == [Preemption((50, 51), 1)]
    assert decide([waiting(1, 8)], held, use(), pool=CLUSTER._replace(most_submitted=3)) == [], "Slurm is given it"


def test_who_was_asked_gives_the_gpus_up_soon_and_nobody_takes_them_meanwhile() -> None:
    other, small = running(waiting(50, 3, 5000, project=3), 0, 1, 2), waiting(2, 1, 4000, project=2)
    state = QueueState(
        NOW, [POOL], [waiting(1, 4), small], [other], {n: Funds(10**9, 10**9, None) for n in range(9)}, use()
    )
    planned = backfill.plan(state)
    assert [one.run_id for one in planned.starts] == [2]
    assert preemption.preemptions(state, planned) == []
    state = replace(state, waiting=[waiting(1, 3), small], held=[replace_gpus(other, 4)])
    chosen = preemption.preemptions(state, backfill.plan(state))
    assert chosen == [Preemption((50,), 1)]
    asked = preemption.asked(state, chosen)
    assert backfill.plan(asked).starts == []
    assert preemption.preemptions(asked, backfill.plan(asked)) == []


def replace_gpus(held: Held, gpus: int) -> Held:
    run = waiting(held.run_id, gpus, 5000, project=held.project_id)
    return running(run, *range(gpus))


@dataclass
class Job:
    """A run of a history: `left` seconds of work, and since when it runs."""

    number: int
    project: int
    gpus: int
    left: int
    arrives: int
    devices: tuple[int, ...] = ()
    had: int = 0
    stops_at: int | None = None
    preempted: list[int] = field(default_factory=list)

    def waiting(self) -> Waiting:
        at = NOW + timedelta(seconds=self.preempted[-1]) if self.preempted else None
        return waiting(self.number, self.gpus, self.left, project=self.project, preempted_at=at)


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, list[Job]]:
    """GPUs, the time of preemption, and jobs that arrive one after the other."""
    gpus = draw(st.integers(1, 4))
    jobs = [
        Job(
            number,
            draw(st.integers(1, 3)),
            draw(st.integers(1, gpus)),
            10 * draw(st.integers(1, 40)),
            10 * draw(st.integers(0, 30)),
        )
        for number in range(1, draw(st.integers(2, 9)) + 1)
    ]
    return gpus, draw(st.sampled_from([20, 60, 100])), jobs


STEP = 10
asked_for = {"preemptions": 0}


@settings(max_examples=150, deadline=None)
@given(histories(), st.integers(0, 30))
def test_every_run_ends_no_gpu_is_used_twice_and_nobody_is_preempted_twice_within_the_time(
    history: tuple[int, int, list[Job]], grace: int
) -> None:
    gpus, after, jobs = history
    pool = POOL._replace(gpus=gpus, preempt_after=after)
    used = dict.fromkeys(range(1, 4), 0.0)
    clock = 0
    while any(job.left for job in jobs):
        assert clock < 10 * sum(job.left for job in jobs) + 100_000, "somebody waits for good"
        for job in jobs:
            if job.devices and (job.left == 0 or (job.stops_at is not None and clock >= job.stops_at)):
                job.devices, job.had, job.stops_at = (), 0, None
        there = [job for job in jobs if job.left and job.arrives <= clock]
        held = [
            running(job.waiting(), *job.devices, had=job.had, ends_in=job.left, stopping=job.stops_at is not None)
            for job in there
            if job.devices
        ]
        reserved = {n: sum(job.gpus * job.left for job in there if job.project == n and job.devices) for n in used}
        state = QueueState(
            NOW + timedelta(seconds=clock),
            [pool],
            [job.waiting() for job in there if not job.devices],
            held,
            {n: Funds(10**9, 10**9, None) for n in used},
            {n: used[n] + reserved[n] for n in used},
        )
        planned = backfill.plan(state)
        chosen = preemption.preemptions(state, planned)
        planned = backfill.plan(preemption.asked(state, chosen))
        by_number = {job.number: job for job in jobs}
        for run_ids, for_run in chosen:
            asked_for["preemptions"] += 1
            assert not by_number[for_run].devices
            for job in (by_number[run_id] for run_id in run_ids):
                assert job.project != by_number[for_run].project
                assert job.stops_at is None
                assert job.had >= after
                assert not job.preempted or clock - job.preempted[-1] >= after
                job.stops_at = clock + grace
                job.preempted.append(clock)
            back = by_number[for_run].preempted
            assert not back or clock - back[-1] >= after
        for start in planned.starts:
            by_number[start.run_id].devices = start.devices
        devices = [device for job in jobs for device in job.devices]
        assert len(devices) == len(set(devices))
        assert set(devices) <= set(range(gpus))
        for job in jobs:
            if job.devices:
                job.left -= STEP
                job.had += STEP
                used[job.project] += STEP * job.gpus
        clock += STEP


def test_the_histories_have_preemptions_in_them() -> None:
    assert asked_for["preemptions"] > 20
