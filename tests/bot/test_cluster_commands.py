"""`/cluster`: what the GPUs do, who has used how much, and why each run waits, for anyone."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from bot import text
from broker.allocations import hosts, machines, pools
from broker.allocations.hosts import Host
from broker.runners import donated_presence
from broker.runners.donated_presence import About, Gpu, Presence
from broker.runs import attempts, launching, leases
from broker.runs.launching import Order
from broker.store import Store
from projects.db.columns import utcnow
from projects.settings import Settings
from sandbox.people import Channel
from tests.bot.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]


async def test_the_cluster_at_a_glance(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    grace = lab.person("Grace")
    assert (await grace.command("cluster queue")).text.startswith("Nobody waits")
    lab.call(pools.add_pool, name="big", gpu_type="H200", gpus=8, runner="slurm")
    for number in range(3):
        lab.call(launching.launch, lab.actor("Ada"), f"r{number}", Order(1, "demo", "5m", gpus=2))

    status = await grace.command("cluster status")
    assert status.ephemeral
    assert status.text.splitlines() == [
        "`big` H200",
        "░░░░░░░░░░ 0 of 8 GPUs busy · Slurm decides when",
        "-# 0 runs running, 0 waiting · 0 GPU-hours of its grants left to allocate",
        "`local` CPU",
        "░░░░░░░░░░ 0 of 2 cores busy",
        "-# 0 runs running, 3 waiting · 99 core-hours of its grants left to allocate",
    ]

    queue = (await grace.command("cluster queue", pool="local")).text.splitlines()
    assert queue[0] == "`local` 3 runs waiting"
    assert queue[1] == "**1.** Run 1, 2 cores · Do small models dream?"
    assert queue[2] == "-# It starts at once. Nothing holds it up."
    assert queue[4].startswith(
        "-# It starts within 5 min at the latest. It waits for cores: 2 needed, 0 free on “local”."
    )
    assert max(map(len, queue)) < 120
    refused = await grace.command("cluster queue", pool="**nowhere**")
    assert refused.text == text.escape("There is no pool “**nowhere**”; the pools are: big, local.")

    usage = (await grace.command("cluster usage")).text.splitlines()
    assert usage[0] == "**P1** Do small models dream?"
    assert usage[1] == "-# 0 core-hours of 1 core-hour spent · 0% of all recent use"
    assert channel.id


async def test_the_hosts_of_a_pool_are_shown_with_what_they_have(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    grace = lab.person("Grace")
    gpu = {"name": "H200", "memory_mib": 144_000, "precision": "bf16", "tflops": 650.4}
    has = {"gpus": [gpu, gpu], "free_gib": 120.4}
    lab.call(hosts.announce, "donor-1", ["local"], has | {"versions": {"torch": "2.13.0"}})
    lab.call(hosts.announce, "donor-2", ["local"], {"versions": {"torch": "2.12.0"}})
    status = (await grace.command("cluster status")).text
    donor_1 = "donor-1 (2 × H200 (650 TFLOP/s in bf16), 120 GiB of disk free)"
    assert status.endswith(f"-# on {donor_1}, donor-2 · ⚠️ torch differs: 2.12.0, 2.13.0")
    before = utcnow() - timedelta(hours=1)
    lab.call(lambda session: session.execute(update(Host).where(col(Host.name) == "donor-2").values(seen_at=before)))
    status = (await grace.command("cluster status")).text
    assert status.endswith(f"-# on {donor_1}, ⚠️ donor-2 away since {text.when(before)}")

    run = lab.call(launching.launch, lab.actor("Ada"), "shown", Order(1, "demo", "5m")).run_id
    token = lab.call(attempts.admit, run, (0,))
    assert lab.call(leases.claim, run, token, host="donor-1", lease_seconds=60)
    status = (await grace.command("cluster status")).text
    assert f"-# on {donor_1[:-1]}, run {run}), ⚠️ donor-2 away" in status


async def test_hosts_whose_versions_or_drivers_differ_are_told(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    grace = lab.person("Grace")
    lab.call(pools.add_pool, name="hall", gpu_type="H200", gpus=8, runner="slurm")

    async def told(*facts: dict[str, Any]) -> str:
        for number, each in enumerate(facts):
            lab.call(hosts.announce, f"worker-{number}", ["hall"], each)
        [line] = [line for line in (await grace.command("cluster status")).text.splitlines() if "on worker-0" in line]
        return line.partition(" · ⚠️ ")[2]

    def has(stoa: str = "1.0", torch: str = "2.13.0", gpu: str = "H200", driver: str = "575.1") -> dict[str, Any]:
        return {"versions": {"stoa": stoa, "torch": torch}, "gpus": [{"name": gpu}], "driver": driver}

    assert await told(has(), has()) == ""
    assert await told(has(), has(stoa="1.1")) == "stoa differs: 1.0, 1.1"
    assert await told(has(), {"versions": {"torch": "2.13.0"}}) == "stoa differs: 1.0, unknown"
    assert await told(has(), has(driver="550.2")) == "the driver of H200 differs: 550.2, 575.1"
    assert await told(has(), has(gpu="MI300X", driver="6.10.5")) == "", "each kind of GPU has a driver of its own"
    differing = "stoa differs: 0.9, 1.0; torch differs: 2.12.0, 2.13.0; the driver of H200 differs: 550.2, 575.1"
    assert await told(has("0.9", "2.12.0", driver="550.2"), has()) == differing


@pytest.mark.asyncio(loop_scope="function")  # its bot has a store
async def test_donated_machines_are_shown_with_what_they_have(lab: Lab) -> None:
    place = f"file://{lab.root}/store"
    await lab.start_bot(STORE=place)
    grace = lab.person("Grace")
    lab.call(pools.add_pool, name="garage", gpu_type="RTX 4090", gpus=4, runner="donated")
    assert "lent" not in (await grace.command("cluster status")).text
    for name in ("ada", "bob", "carla"):
        lab.call(machines.admit, name, "garage")
    store, before = Store(Settings(_env_file=None, store=place)), utcnow() - timedelta(hours=1)
    gpu = Gpu(name="RTX 4090 @everyone", memory_mib=24_576)
    about = About(gpus=[gpu, gpu], stoa=donated_presence.versions()["stoa"], torch="1.0.0")
    for name, at in (("ada", utcnow() + timedelta(days=1)), ("bob", before)):
        presence = Presence(machine=name, pool="garage", at=at, about=about, slots=2, run=7)
        donated_presence.write(store, presence)
    status = (await grace.command("cluster status")).text
    assert (
        f"-# lent ada (2 × RTX 4090 everyone (24 GiB), run 7), ⚠️ bob away since {text.when(before)}, "
        "⚠️ carla never heard from · ⚠️ not the lab's: torch 1.0.0"
    ) in status
