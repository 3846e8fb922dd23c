"""Pools and grants as admins and operators keep them: one validation, changes with a reason, GPUs that none shares."""

from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from broker.allocations import hosts, pools
from broker.allocations.pools import Grant, Pool
from broker.reviews import inventory
from broker.runs.progress import Ending
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError
from projects.record import record
from tests.broker.lab import HOUR, POOL, Lab, in_days


def add(lab: Lab, name: str = "hall", **changes: object) -> int:
    asked: dict[str, object] = {"gpu_type": "H200", "gpus": 8} | changes
    with lab.db.write() as session:
        return pools.add_pool(session, name=name, **asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"name": "Hall `1`"}, "lower-case letters"),
        ({"name": ""}, "lower-case letters"),
        ({"gpu_type": " "}, "type of GPU or CPU is empty"),
        ({"gpus": 1_000_001}, "at most 1,000,000; 1000001 is not such a count"),
        ({"gpus": 10**30}, "at most 1,000,000; such a number is not such a count"),
        ({"price_weight": 1000.1}, "from 0.0001 to 1000"),
        ({"price_weight": 0.00001}, "from 0.0001 to 1000"),
        ({"price_weight": float("nan")}, "from 0.0001 to 1000"),
        ({"most_submitted": 10_001}, "at most 10,000"),
        ({"most_submitted": 10**30}, "at most 10,000"),
    ],
)
def test_a_pool_is_checked_whoever_adds_it(lab: Lab, wrong: dict[str, object], sentence: str) -> None:
    before = lab.everything()
    with pytest.raises(InvalidError, match=sentence):
        add(lab, **wrong)  # type: ignore[arg-type]
    assert lab.everything() == before


def test_the_greatest_numbers_of_a_pool_and_of_a_grant_work(lab: Lab) -> None:
    add(lab, gpus=1_000_000, price_weight=1000.0, most_submitted=10_000)
    most, until = 1_000_000_000 * HOUR, utcnow() + timedelta(days=30)
    with lab.db.write() as session:
        given = pools.add_grant(session, pool="hall", sponsor="The house", seconds=most - HOUR, until=until)
        inventory.change_grant(session, None, given, more_hours="1", reason="All there is.")
        assert pools.available(session)[pools.named(session, "hall").id] == most
    before = lab.everything()
    for seconds in (0, most + 1, 10**30):
        with pytest.raises(InvalidError, match="A grant gives at"), lab.db.write() as session:
            pools.add_grant(session, pool="hall", sponsor="Me", seconds=seconds, until=until)
    with pytest.raises(InvalidError, match="at most 1,000,000,000 hours in all"), lab.db.write() as session:
        inventory.change_grant(session, None, given, more_hours="0.001", reason="Even more.")
    assert lab.everything() == before


def test_a_name_that_is_taken_by_another_pool_is_refused(lab: Lab) -> None:
    first = add(lab)
    before = lab.everything()
    assert add(lab) == first, "a repeat"
    for other in ({"gpus": 16}, {"gpu_type": "V100"}, {"runner": "slurm"}, {"price_weight": 2.0}):
        with pytest.raises(ConflictError, match=r"already a pool .* \(8 × H200, local, weight 1\)"):
            add(lab, **other)
    assert lab.everything() == before


@pytest.mark.parametrize(("sponsor", "sentence"), [("", "sponsor is empty"), ("x" * 300, "at most 80")])
def test_a_sponsor_is_checked_whoever_adds_the_grant(lab: Lab, sponsor: str, sentence: str) -> None:
    with pytest.raises(InvalidError, match=sentence), lab.db.write() as session:
        pools.add_grant(session, pool=POOL, sponsor=sponsor, seconds=HOUR, until=utcnow() + timedelta(days=1))


def test_an_operator_changes_pools_and_grants(lab: Lab) -> None:
    with lab.db.write() as session:
        grant = inventory.add_grant(session, None, pool=POOL, sponsor="A bank", hours="2", until=in_days(9))
    with lab.db.write() as session:
        inventory.change_pool(session, None, POOL, gpus="4", reason="A second host.")
    with lab.db.write() as session:
        inventory.change_grant(session, None, grant, more_hours="1", until=in_days(10), reason="They like it.")
    with lab.db.read() as session:
        found = session.get_one(Grant, grant)
        assert (found.seconds, f"{found.until:%Y-%m-%d %H:%M:%S}") == (3 * HOUR, f"{in_days(10)} 23:59:59")
        assert pools.named(session, POOL).gpus == 4
        told = [entry.kind for entry in record.since(session, record.LAB, 0)][-3:]
    assert told == ["grant.added", "pool.changed", "grant.changed"]


def test_local_pools_share_out_the_gpus_of_their_host(lab: Lab) -> None:
    add(lab, "far", gpus=64, runner="slurm")
    first, second = add(lab, "first", gpus=2), add(lab, "second", gpus=3)
    with lab.db.read() as session:
        numbers = {pool.name: hosts.gpu_numbers(session, pool, "0,1") for pool in session.scalars(select(Pool)).all()}
    assert numbers == {POOL: "", "far": "", "first": "0,1", "second": "2,3"}
    with lab.db.write() as session:
        session.execute(update(Pool).where(col(Pool.name) == POOL).values(gpu_type="V100"))
        assert hosts.gpu_numbers(session, session.get_one(Pool, second), "1") == "5"
        assert hosts.gpu_numbers(session, session.get_one(Pool, first), "0") == "2"


def test_gpus_in_use_are_not_dealt_out_anew(lab: Lab) -> None:
    """The count of a pool decides which numbers the next one's GPUs have."""
    with lab.db.write() as session:
        session.execute(update(Pool).values(gpu_type="V100"))
    lab.pool("second")
    with lab.db.write() as session:
        session.execute(update(Pool).values(gpu_type="V100"))
    project = lab.project()
    lab.approve(lab.request(project, pool="second"))
    run = lab.launch(project)
    token = lab.start(run, 0)
    with pytest.raises(ConflictError, match="“second” has the GPUs after"), lab.db.write() as session:
        inventory.change_pool(session, None, POOL, gpus="1", reason="One has burnt.")
    with lab.db.write() as session:
        inventory.change_pool(session, None, "second", gpus="3", reason="One more.")
        inventory.change_pool(session, None, POOL, price_weight="2", reason="It is dear.")
    lab.cancel(run)
    lab.settle(run, token, 1, Ending(75))
    with lab.db.write() as session:
        inventory.change_pool(session, None, POOL, gpus="1", reason="One has burnt.")


def test_every_sponsor_is_credited_whose_time_was_spent(lab: Lab) -> None:
    project, other = lab.project(), lab.project(title="Adaptive rates")
    for sponsor, pool, spent in (("A bank", "hall", True), ("A school", "barn", True), ("A shop", "shed", False)):
        add(lab, pool, gpu_type="cpu")
        with lab.db.write() as session:
            inventory.add_grant(session, None, pool=pool, sponsor=sponsor, hours="9", until=in_days(9))
        allocation = lab.request(project, pool=pool, until=in_days(5))
        lab.consent(allocation, "1")
        run = lab.launch(project, allocation_id=allocation)
        token = lab.start(run, 0)
        lab.settle(run, token, 60 if spent else 0, Ending(0))
    lab.allocation(other)
    with lab.db.read() as session:
        assert inventory.sponsors(session, project) == ["A bank", "A school"]
        assert inventory.sponsors(session, other) == []
