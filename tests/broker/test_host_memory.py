"""The runs on one host fit its memory together: by what each is predicted to take, and over all the host's pools."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlmodel import col, select

from broker.allocations import hosts, pools
from broker.allocations.pools import Pool
from broker.reports import why
from broker.runs import control
from broker.runs.progress import Ending
from broker.runs.runs import RunState
from broker.scheduling import backfill, scheduler, snapshot
from broker.scheduling.backfill import Decision, Limits
from broker.scheduling.scheduler import Scheduler
from projects.db.columns import utcnow
from projects.errors import ConflictError
from tests.broker.lab import ADA, POOL, Lab, settings
from trainer.check import check
from trainer.config import load_recipe
from trainer.memory import host_memory

pytestmark = pytest.mark.usefixtures("memory_queue")

LARGE = {"batch": "128", "micro_batch": "64"}
TYPED = "batch=128, micro_batch=64"
NEED = check(load_recipe("demo", LARGE), 1, device="cpu").memory_per_gpu / 2**30


def set_memory(lab: Lab, gib: float, pool: str = POOL) -> None:
    with lab.db.write() as session:
        pools.named(session, pool).host_memory_gib = gib


def go_round(lab: Lab, tmp_path: Path) -> None:
    Scheduler(settings(tmp_path), lab.db).round()


def reason(lab: Lab, run: int) -> str:
    with lab.db.read() as session:
        return why.why(session, run).reason


def waiting(lab: Lab, *runs: int) -> list[int]:
    return [run for run in runs if lab.run(run).state == RunState.QUEUED]


def test_a_run_waits_until_it_fits_beside_those_that_run(lab: Lab, ours: int, tmp_path: Path) -> None:
    set_memory(lab, 1.5 * NEED)
    first, second = (lab.launch(ours, overrides=TYPED) for _ in range(2))
    go_round(lab, tmp_path)
    assert waiting(lab, first, second) == [second]
    said = reason(lab, second)
    assert said.startswith(f"It waits for memory of its host: about {NEED * 1024:.0f} MiB needed, and of "), said
    assert f" on “{POOL}” the runs there leave " in said
    small = lab.launch(ours, time_limit="5m")
    go_round(lab, tmp_path)
    assert waiting(lab, second, small) == [second], "who needs less goes first where that delays nobody"
    assert lab.claim(first, 1)
    lab.settle(first, 1, 60, Ending(status=70))
    go_round(lab, tmp_path)
    assert waiting(lab, second) == []


def test_two_processes_take_twice_the_memory(lab: Lab, ours: int) -> None:
    each = check(load_recipe("demo", {}), 2, device="cpu")
    assert each.host_memory == 2 * each.memory_per_gpu
    wide = lab.launch(ours, gpus=2)
    with lab.db.read() as session:
        (run,) = snapshot.load(session).waiting
    assert (run.id, run.memory) == (wide, each.host_memory)


def test_the_pools_that_a_host_names_share_its_memory(lab: Lab, ours: int, tmp_path: Path) -> None:
    lab.pool("beside")
    here = lab.launch(ours, overrides=TYPED)
    hours = lab.request(ours, pool="beside", hours="10")
    lab.consent(hours, "10")
    for pool in (POOL, "beside"):
        set_memory(lab, 1.5 * NEED, pool)
    there = lab.launch(ours, overrides=TYPED, allocation_id=hours)
    with lab.db.read() as session:
        assert [one.run_id for one in backfill.plan(snapshot.load(session)).starts] == [here, there]
    with lab.db.write() as session:
        hosts.announce(session, "lab", [POOL, "beside"], {})
    go_round(lab, tmp_path)
    assert waiting(lab, here, there) == [there]
    assert "It waits for memory of its host" in reason(lab, there)


def test_a_plan_that_is_out_of_date_admits_nothing_beyond_the_memory(lab: Lab, ours: int) -> None:
    set_memory(lab, 1.5 * NEED)
    first, second = (lab.launch(ours, overrides=TYPED) for _ in range(2))
    lab.admit(first, 0)
    before = lab.everything()
    with (
        pytest.raises(ConflictError, match="of its host's memory, and the runs there leave"),
        lab.db.write() as session,
    ):
        scheduler.admit(session, Decision(second, (1,)), Limits())
    assert lab.everything() == before


def test_an_engine_decides_about_memory_itself(lab: Lab, ours: int, tmp_path: Path) -> None:
    demo = load_recipe("demo", {})
    with lab.db.write() as session:
        pools.add_pool(session, name="hall", gpu_type="H200", gpus=8, runner="slurm")
        pools.add_pool(session, name="box", gpu_type="H200", gpus=8)
        for pool in ("hall", "box"):
            pools.add_grant(session, pool=pool, sponsor="A", seconds=360_000, until=utcnow() + timedelta(days=90))
    with lab.db.write() as session:
        hosts.announce(session, "lab", ["hall", "box"], {})
    for pool in ("hall", "box"):
        set_memory(lab, 1.5 * host_memory(demo, 1) / 2**30, pool)
    runs = {}
    for pool in ("hall", "box"):
        hours = lab.request(ours, pool=pool, hours="10")
        lab.consent(hours, "10")
        runs[pool] = [lab.launch(ours, allocation_id=hours) for _ in range(2)]
    go_round(lab, tmp_path)
    assert waiting(lab, *runs["hall"]) == []
    assert waiting(lab, *runs["box"]) == runs["box"][1:], "a pool of GPUs beside it is held to its host's memory"


def test_a_run_that_goes_on_elsewhere_takes_what_it_takes_there(lab: Lab, ours: int) -> None:
    run = lab.launch(ours)
    with lab.db.write() as session:
        control.pause(session, ADA, run)
    with lab.db.write() as session:
        control.resume(session, ADA, run, gpus=2)
    with lab.db.read() as session:
        (again,) = snapshot.load(session).waiting
        assert session.scalars(select(Pool.id).where(col(Pool.name) == POOL)).one() == again.pool_id
    assert again.memory == check(load_recipe("demo", {}), 2, device="cpu").host_memory
