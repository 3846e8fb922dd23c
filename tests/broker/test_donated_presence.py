"""Which donated machines there are, and why none of them has taken a run."""

from datetime import timedelta
from pathlib import Path

import pytest

from broker.allocations import machines
from broker.reports import donated
from broker.runners import donated_presence
from broker.runners.donated_presence import About, Presence
from broker.store import Store
from projects.db.columns import utcnow
from projects.settings import Settings
from tests.broker.donating import POOL, admit
from tests.broker.lab import Lab
from tests.ports import free_ports

SINCE = utcnow() - timedelta(days=30)


def machine(name: str, *, slots: int = 2, run: int = 0, pool: str = POOL, away: bool = False) -> Presence:
    about = About(stoa=donated_presence.versions()["stoa"])
    return Presence(machine=name, pool=pool, at=SINCE if away else utcnow(), about=about, slots=slots, run=run)


def in_store(tmp_path: Path, *known: Presence) -> Store:
    store = Store(Settings(_env_file=None, store=f"file://{tmp_path}/store"))
    for each in known:
        donated_presence.write(store, each)
    return store


@pytest.mark.parametrize(
    ("known", "why"),
    [
        ([], "no machine of the pool garage has been heard from yet"),
        ([machine("far", pool="attic")], "no machine of the pool garage has been heard from yet"),
        (
            [machine("ada", away=True), machine("bob", away=True, run=7)],
            f"no machine of the pool garage has been heard from since {SINCE:%F %T} UTC (ada, bob)",
        ),
        (
            [machine("ada"), machine("bob", slots=3), machine("carla", slots=8, away=True)],
            "no machine of the pool garage that is there is large enough: this run needs 4, and the largest has 3 "
            "(ada, bob)",
        ),
        (
            [machine("ada", slots=4, run=7), machine("bob")],
            "the machine of the pool garage that could take it is busy (ada)",
        ),
        (
            [machine(name, slots=4, run=7) for name in ("ada", "bob", "carla", "dora")],
            "the 4 machines of the pool garage that could take it are busy (ada, bob, carla and 1 more)",
        ),
        ([machine("ada", slots=4), machine("bob", slots=4, run=7)], "no machine of the pool garage has taken it yet"),
    ],
    # A sentence has a moment in it, which differs from one process that collects the tests to another.
    ids=["none", "another pool's", "away", "too small", "busy", "many busy", "free"],
)
def test_why_no_machine_has_taken_an_order(
    tmp_path: Path, known: list[Presence], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(donated_presence, "AWAY_AFTER_SECONDS", 86_400.0)  # the machines were made with the module
    assert donated_presence.why_unclaimed(in_store(tmp_path, *known), POOL, 4) == why


def test_machines_are_listed_as_admitted_and_as_heard_of(lab: Lab, tmp_path: Path) -> None:
    lab.pool(POOL, runner="donated")
    for name in ("ada", "bob", "carla"):
        admit(lab, name)
    in_store(tmp_path, machine("ada"), machine("carla"), machine("stranger"))
    with lab.db.write() as session:
        machines.revoke(session, "carla", "It was stolen.")
    with lab.db.read() as session:
        found = donated.listed(session, Settings(_env_file=None, store=f"file://{tmp_path}/store"))
    seen = [(view.name, presence is not None) for view, presence in found.machines]
    assert seen == [("ada", True), ("bob", False), ("carla", True)]
    assert [view.name for view, _ in found.of_pool(POOL)] == ["ada", "bob"]
    [port] = free_ports(1)
    place = {"store": "s3://lab/x", "store_endpoint": f"http://127.0.0.1:{port}", "store_key": "k", "store_secret": "s"}
    with lab.db.read() as session:
        found = donated.listed(session, Settings.model_validate(place))
    assert "does not answer" in found.trouble
    assert [presence for _, presence in found.machines] == [None] * 3
