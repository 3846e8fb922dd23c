"""The plan by itself, on random queues: held against what an independent count of GPUs and places says."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.scheduling.backfill import (
    SOONEST,
    Decision,
    Funds,
    Held,
    Limits,
    Placement,
    PoolRow,
    QueueState,
    Waiting,
    WaitReason,
    blocker,
    plan,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
POOL = PoolRow(1, "pool", 4, "", 1.0)
QUEUED = PoolRow(2, "cluster", 64, "Slurm", 1.0)


def waiting(number: int, gpus: int = 1, seconds: int = 100, *, project: int = 1, **changes: Any) -> Waiting:
    run = Waiting(number, project, project, project, 1, gpus, seconds, NOW - timedelta(seconds=1000 - number), NOW)
    return run._replace(**changes)


def held(run: int, devices: Sequence[int], seconds: float = 50.0, *, project: int = 9) -> Held:
    return Held(run, 1, project, project, tuple(devices), seconds, True)


def queue(*runs: Waiting, running: Sequence[Held] = (), limits: Limits | None = None, left: int = 10**9) -> QueueState:
    funds = {run.allocation_id: Funds(left, 1, None) for run in runs}
    pools = (POOL, QUEUED)
    return QueueState(NOW, pools, runs, running, funds, limits=limits or Limits())


def starts(state: QueueState) -> dict[int, tuple[float, WaitReason | None]]:
    return {one.run.id: (one.start, one.waits_for) for queued in plan(state).queues.values() for one in queued}


def test_a_lower_run_starts_where_it_delays_no_higher_one() -> None:
    running = [held(90, (0, 1, 2), 50)]
    state = queue(waiting(1, 4, 100), waiting(2, 1, 50), waiting(3, 1, 51), running=running)
    assert starts(state) == {1: (50, WaitReason.GPUS), 2: (0, None), 3: (150, WaitReason.GPUS)}
    assert plan(state).starts == [Decision(2, (3,))]
    longer = queue(waiting(1, 4, 100), waiting(3, 1, 51), running=running)
    assert starts(longer) == {1: (50, WaitReason.GPUS), 3: (150, WaitReason.BEHIND)}
    placement = plan(longer).queues[1][1]
    assert blocker(longer, plan(longer), placement) == 1


def test_all_gpus_of_a_run_or_none() -> None:
    assert starts(queue(waiting(1, 3), waiting(2, 2)))[2] == (100, WaitReason.GPUS)
    assert starts(queue(waiting(1, 5)))[1] == (math.inf, WaitReason.GPUS)


def test_nobody_is_over_a_limit_and_who_is_holds_up_nobody() -> None:
    few = Limits(most_running_a_project=1, most_running_a_person=100)
    state = queue(waiting(1), waiting(2), waiting(3, project=2), limits=few)
    assert starts(state) == {1: (0, None), 2: (100, WaitReason.PROJECT_LIMIT), 3: (0, None)}
    few = Limits(most_running_a_person=1)
    assert starts(replace(state, limits=few))[2] == (100, WaitReason.PERSON_LIMIT)


def test_runs_of_all_pools_on_a_host_fit_its_memory_together() -> None:
    here, beside, apart = (POOL._replace(id=number, host_bytes=10, on_host=(1, 2)) for number in (1, 2, 3))
    runs = (waiting(1, memory=6), waiting(2, memory=5), waiting(3, memory=3), waiting(4, memory=0))
    state = queue(*runs, waiting(5, pool_id=2, memory=2), waiting(6, pool_id=3, memory=9))
    state = replace(state, pools=(here, beside, apart._replace(on_host=(3,))))
    first = (100, WaitReason.MEMORY)
    assert starts(state) == {1: (0, None), 2: first, 3: (0, None), 4: (0, None), 5: first, 6: (0, None)}
    assert plan(state).queues[2][0].free == 1
    lost = held(90, (), 30)._replace(open=False, memory=9, pool_id=2)
    assert starts(replace(state, held=[lost]))[1] == (30, WaitReason.MEMORY)
    unknown = replace(state, pools=[pool._replace(host_bytes=None) for pool in state.pools])
    assert len(plan(unknown).starts) == 6


def test_hours_are_promised_in_order() -> None:
    state = queue(waiting(1, 4, 100), waiting(2, 1, 10), running=[held(90, (0, 1))], left=405)
    assert starts(state) == {1: (50, WaitReason.GPUS), 2: (math.inf, WaitReason.HOURS)}
    assert plan(state).queues[1][1].free == 5


def test_a_requeued_run_keeps_its_place_while_its_earlier_attempt_stops() -> None:
    late = waiting(1, 4, not_before=NOW + timedelta(seconds=30))
    state = queue(late, waiting(2, 1, 30), waiting(3, 1, 31))
    assert starts(state) == {1: (30, WaitReason.EARLIER_ATTEMPT), 2: (0, None), 3: (130, WaitReason.BEHIND)}


def test_a_runner_with_a_queue_of_its_own_is_given_a_few_jobs_and_no_devices() -> None:
    runs = [waiting(number, 64, pool_id=2) for number in range(1, 7)]
    state = queue(*runs)
    assert plan(state).starts == [Decision(number, ()) for number in range(1, 5)]
    submitted = Held(90, 2, 9, 9, (), 1000.0, True)
    assert len(plan(replace(state, held=[submitted])).starts) == 3


def test_what_starts_in_one_pool_counts_in_the_next() -> None:
    other = POOL._replace(id=2, price_weight=2.0)
    runs = (waiting(1), waiting(2, 4, pool_id=2), waiting(3, 4, project=2, pool_id=2))
    state = replace(queue(*runs), pools=(POOL, other))
    assert [one.run_id for one in plan(state).starts] == [1, 3]


def test_who_can_never_start_is_refused_and_holds_up_nobody() -> None:
    state = queue(waiting(1, 4, 100), waiting(2, project=2))
    ended = replace(state, funds={1: Funds(10**9, 0, NOW), 2: state.funds[2]})
    assert list(plan(ended).refusals) == [1]
    assert "ended on 2030-01-01" in plan(ended).refusals[1]
    short = replace(state, funds={1: Funds(399, 0, None), 2: state.funds[2]})
    assert "it may cost 0.112 hours and its allocation has 0.11 left" in plan(short).refusals[1]
    assert [one.run_id for one in plan(short).starts] == [2]


@st.composite
def states(draw: st.DrawFn) -> QueueState:
    """A pool of a few GPUs, partly in use, and a queue of a few projects and people. Its host may lack memory."""
    gpus = draw(st.integers(1, 6))
    host_bytes = draw(st.sampled_from([None, 4, 9]))
    memory = st.integers(0, 4)
    free = list(range(gpus))
    running = []
    for number in range(draw(st.integers(0, 3))):
        count = draw(st.integers(0, len(free)))
        devices, free = tuple(free[:count]), free[count:]
        if devices:
            who = draw(st.integers(1, 3))
            seconds = draw(st.sampled_from([-5.0, 10.0, 20.0, 35.5]))
            one = Held(100 + number, 1, who, draw(st.integers(1, 2)), devices, seconds, draw(st.booleans()))
            running.append(one._replace(memory=draw(memory)))
    runs = []
    for number in range(1, draw(st.integers(1, 9)) + 1):
        project = draw(st.integers(1, 3))
        run = waiting(number, draw(st.integers(1, gpus)), draw(st.sampled_from([5, 10, 20, 40])), project=project)
        delay = draw(st.sampled_from([0, 0, 0, 7]))
        run = run._replace(person_id=draw(st.integers(1, 2)), not_before=NOW + timedelta(seconds=delay))
        runs.append(run._replace(memory=draw(memory)))
    return QueueState(
        now=NOW,
        pools=[POOL._replace(gpus=gpus, host_bytes=host_bytes, on_host=(1,))],
        waiting=runs,
        held=running,
        funds={n: Funds(draw(st.integers(0, 400)), 1, None) for n in range(1, 4)},
        usage={n: draw(st.sampled_from([0.0, 10.0, 50.0])) for n in range(1, 4)},
        limits=Limits(draw(st.integers(1, 4)), draw(st.integers(1, 5))),
    )


def fits(state: QueueState, above: Sequence[Placement], run: Waiting, start: float) -> bool:
    """Whether at every moment of the run's time its GPUs and its places are free, with those above where they are."""
    spans = [
        (0.0, max(one.seconds, SOONEST), len(one.devices), one.project_id, one.person_id, one.open, one.memory)
        for one in state.held
    ]
    for one in above:
        if one.start < math.inf:
            who = (one.run.project_id, one.run.person_id, True)
            spans.append((one.start, one.start + one.run.seconds, one.run.gpus, *who, one.run.memory))
    end = start + run.seconds
    for moment in {start, *(begin for begin, *_ in spans if start < begin < end)}:
        there = [span for span in spans if span[0] <= moment < span[1]]
        gpus = sum(span[2] for span in there)
        of_project = sum(span[5] and span[3] == run.project_id for span in there)
        of_person = sum(span[5] and span[4] == run.person_id for span in there)
        limits = state.limits
        most, memory = state.pools[0].host_bytes, sum(span[6] for span in there)
        if gpus + run.gpus > state.pools[0].gpus:
            return False
        if most is not None and run.memory and memory + run.memory > most:
            return False
        if of_project >= limits.most_running_a_project or of_person >= limits.most_running_a_person:
            return False
    return True


@settings(max_examples=150, deadline=None)
@given(states())
def test_each_run_has_the_first_time_that_those_above_it_leave(state: QueueState) -> None:
    """So none of them is delayed by one below, and none is given a GPU or a place that is not there."""
    placements = plan(state).queues[1]
    ends = {max(one.seconds, SOONEST) for one in state.held}
    ends |= {one.start + one.run.seconds for one in placements if one.start < math.inf}
    for rank, one in enumerate(placements):
        if one.waits_for == WaitReason.HOURS:
            continue
        assert one.run.not_before
        after = (one.run.not_before - NOW).total_seconds()
        earlier = {moment for moment in ends | {0.0, after} if after <= moment < one.start}
        assert one.start < math.inf
        assert fits(state, placements[:rank], one.run, one.start)
        assert not any(fits(state, placements[:rank], one.run, moment) for moment in earlier)


@settings(max_examples=150, deadline=None)
@given(states())
def test_what_starts_shares_no_device_and_breaks_no_limit(state: QueueState) -> None:
    by_id = {run.id: run for run in state.waiting}
    decided = plan(state).starts
    devices = [device for one in state.held for device in one.devices]
    devices += [device for one in decided for device in one.devices]
    assert len(devices) == len(set(devices))
    assert set(devices) <= set(range(state.pools[0].gpus))
    assert all(len(one.devices) == by_id[one.run_id].gpus for one in decided)
    began = Counter(by_id[one.run_id].project_id for one in decided)
    running = Counter(one.project_id for one in state.held if one.open)
    for project, count in began.items():
        assert count + running[project] <= state.limits.most_running_a_project
        spent = sum(by_id[one.run_id].cost for one in decided if by_id[one.run_id].project_id == project)
        assert spent <= state.funds[project].left


@settings(max_examples=150, deadline=None)
@given(states(), st.booleans())
def test_a_queue_that_ends_where_nothing_more_starts_decides_alike(state: QueueState, limited: bool) -> None:
    """With a second pool, where what the first one starts counts."""
    first = state.pools[0] if limited else state.pools[0]._replace(host_bytes=None)
    beside = [
        run._replace(id=run.id + 50, pool_id=2, allocation_id=run.allocation_id + 3, gpus=1) for run in state.waiting
    ]
    both = replace(
        state,
        pools=[first, POOL._replace(id=2, gpus=2)],
        waiting=[*state.waiting, *beside],
        funds={**state.funds, **{n + 3: state.funds[n] for n in state.funds}},
        limits=state.limits if limited else Limits(),
    )
    planned, ended = plan(both), plan(both, whole=False)
    assert (ended.starts, ended.refusals) == (planned.starts, planned.refusals)


@settings(max_examples=150, deadline=None)
@given(states())
def test_the_reason_is_true(state: QueueState) -> None:
    planned = plan(state)
    starting = [one.run for one in planned.queues[1] if one.waits_for is None]
    free = state.pools[0].gpus - sum(len(one.devices) for one in state.held) - sum(run.gpus for run in starting)
    for place, one in enumerate(planned.queues[1]):
        run = one.run
        same_project = sum(other.project_id == run.project_id for other in starting)
        same_person = sum(other.person_id == run.person_id for other in starting)
        match one.waits_for:
            case None:
                assert one.start == 0
            case WaitReason.HOURS:
                above = [other for other in planned.queues[1][:place] if other.waits_for != WaitReason.HOURS]
                promised = sum(o.run.cost for o in above if o.run.allocation_id == run.allocation_id)
                assert run.cost > state.funds[run.allocation_id].left - promised == one.free
            case WaitReason.EARLIER_ATTEMPT:
                assert run.not_before
                assert run.not_before > state.now
            case WaitReason.PROJECT_LIMIT:
                running = sum(other.open and other.project_id == run.project_id for other in state.held)
                assert running + same_project >= state.limits.most_running_a_project
            case WaitReason.PERSON_LIMIT:
                running = sum(other.open and other.person_id == run.person_id for other in state.held)
                assert running + same_person >= state.limits.most_running_a_person
            case WaitReason.GPUS:
                assert run.gpus > free
            case WaitReason.MEMORY:
                taken = sum(other.memory for other in state.held) + sum(other.memory for other in starting)
                assert run.memory > (state.pools[0].host_bytes or 0) - taken
            case WaitReason.BEHIND:
                ahead = blocker(state, planned, one)
                assert ahead in {other.run.id for other in planned.queues[1][:place]}


@settings(max_examples=60, deadline=None)
@given(states())
def test_no_start_that_was_expected_comes_later(state: QueueState) -> None:
    """Played to the end with every run taking all its time: with one project, whose order stands, promises are kept."""
    runs = [run._replace(project_id=1, person_id=1, allocation_id=1, not_before=NOW) for run in state.waiting]
    funds = {1: Funds(10**9, 0, None)}
    running = [one._replace(seconds=max(one.seconds, SOONEST), project_id=9, person_id=9) for one in state.held]
    state = replace(state, waiting=runs, funds=funds, held=running)
    expected = {one.run.id: one.start for one in plan(state).queues[1]}
    clock = 0.0
    for _ in range(100):
        planned = plan(state)
        began = {one.run_id: one.devices for one in planned.starts}
        assert all(clock <= expected[run_id] for run_id in began)
        left = [run for run in state.waiting if run.id not in began]
        new = [
            Held(run.id, 1, 1, 1, began[run.id], float(run.seconds), True, memory=run.memory)
            for run in state.waiting
            if run.id in began
        ]
        running = [*state.held, *new]
        if not left:
            break
        step = min(one.seconds for one in running)
        clock += step
        running = [one._replace(seconds=one.seconds - step) for one in running if one.seconds > step]
        state = replace(state, waiting=left, held=running)
    else:
        raise AssertionError("the queue did not empty")
