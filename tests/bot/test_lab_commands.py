"""`/stoa pools · grants · limits`: admins see them with their use, and change them, in public and with a reason."""

import re
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest

from bot import text
from broker.allocations import pools
from sandbox.people import Channel
from tests.bot.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]


async def test_pools_and_grants(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    ada, omar = lab.person("Ada"), lab.person("Omar")
    await omar.command("stoa setup", admins="admin")
    for name in ("pools", "grants", "limits"):
        refused = await ada.command(f"stoa {name}")
        assert refused.text.startswith("Only the admins can")

    listed = await omar.command("stoa pools")
    assert "`local` 2 cores, CPU\n-# 0 busy, 0 running, 0 waiting · local, weight 1 · 99 core-hours" in listed.text
    assert listed.message is not None
    form = await omar.press(listed.message, "Add a pool")
    fields = {"Name": "hall", "Type of GPU or CPU": "H200", "GPUs or cores": "eight", "Price weight": "2.5"}
    heads = lab.heads()
    wrong = await omar.submit(form, fields)
    assert (wrong.text, lab.heads()) == ("GPUs or cores are a whole number from 1 to 1,000,000.", heads)
    form = await omar.press(listed.message, "Add a pool")
    memory = "GiB of a GPU or core / of a host"
    for typed, said in (
        ("a lot", "Memory is written as GiB a GPU or core / GiB a host"),
        ("141 / 100000.01", "Memory is from 0.25 to 100,000 GiB"),
        ("0.24", "Memory is from 0.25 to 100,000 GiB"),
    ):
        wrong = await omar.submit(form, fields | {"GPUs or cores": "8", memory: typed})
        assert wrong.text.startswith(said)
        assert lab.heads() == heads
        form = await omar.press(listed.message, "Add a pool")
    assert "The pool `hall` is added" in (await omar.submit(form, fields | {"GPUs or cores": "8", memory: "141"})).text
    await lab.guild.wait_for("public-record", lambda m: "`hall` with 8 × H200, 141 GiB a GPU." in m.text)
    form = await omar.press(listed.message, "Change one")
    asked = {"Pool": "hall", "GPUs or cores": "16", memory: "/ 2048", "Reason": "A second host."}
    changed = await omar.submit(form, asked)
    assert "`hall` is changed" in changed.text
    told = await lab.guild.wait_for("public-record", lambda m: "changes the pool `hall`" in m.text)
    assert "**Omar** changes the pool `hall`: it has 16 GPUs and a price weight of 2.5, " in told.text
    assert "2.5, 141 GiB a GPU, 2,048 GiB a host.\n> A second host." in told.text
    assert "`hall` H200, 141 GiB a GPU, 2,048 GiB a host\n" in (await ada.command("cluster status")).text

    lab.call(pools.add_pool, name="many", gpu_type="H200", gpus=32, gpus_a_node=8, runner="slurm")
    form = await omar.press(listed.message, "Change one")
    wrong = await omar.submit(form, asked | {"Pool": "many", "GPUs or cores": "60 / 8"})
    assert "its GPUs (60) are a multiple of the GPUs a node, and 8 does not divide them" in wrong.text
    form = await omar.press(listed.message, "Change one")
    assert "`many` is changed" in (await omar.submit(form, asked | {"Pool": "many", "GPUs or cores": "64 / 8"})).text
    told = await lab.guild.wait_for("public-record", lambda m: "changes the pool `many`" in m.text)
    assert "changes the pool `many`: it has 64 GPUs on 8 nodes of 8 and a price weight" in told.text
    await lab.guild.wait_for("public-record", lambda m: "`many` with 32 × H200 on 4 nodes of 8." in m.text)
    assert "`many` 64 GPUs, H200 on 8 nodes of 8, 2,048 GiB a host\n" in (await omar.command("stoa pools")).text
    assert "`many` H200 on 8 nodes of 8, 2,048 GiB a host\n" in (await ada.command("cluster status")).text

    listed = await omar.command("stoa grants")
    assert "**1** The Library · `local` until" in listed.text
    assert "100 core-hours: 1 core-hour granted, 0 core-hours of them spent" in listed.text
    assert listed.message is not None
    form = await omar.press(listed.message, "Add a grant")
    fields = {"Pool": "hall", "Sponsor": "**A bank**", "GPU-hours or core-hours": "5000", "Until": "2090-01-31"}
    added = await omar.submit(form, fields)
    assert re.match(
        r"Grant 2 is added: 5,?000 GPU-hours of `hall` in all, until <t:37\d+:D>; the record thanks the sponsor\.\n",
        added.text,
    )
    form = await omar.press(listed.message, "Change one")
    assert form.fields[0].options[-1] == "2 · **A bank**, hall, until 2090-01-31"
    more = {"Grant": form.fields[0].options[-1], "GPU-hours or core-hours more": "500", "Reason": "They like it."}
    done = await omar.submit(form, more)
    assert re.fullmatch(
        r"Grant 2 is changed: 5,?500 GPU-hours of `hall` in all, until <t:37\d+:D>; the record says so\.", done.text
    )
    told = await lab.guild.wait_for("public-record", lambda m: "500 GPU-hours more, until <t:37" in m.text)
    assert text.escape("**A bank**") in told.text
    assert "5500 GPU-hours" in (await omar.command("stoa grants")).text.replace(",", "")
    form = await omar.press(listed.message, "Change one")
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    early = {"Grant": form.fields[0].options[0], "Until": tomorrow, "Reason": "It is needed elsewhere."}
    assert "go on until" in (await omar.submit(form, early)).text


async def test_reservations(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, omar = lab.person("Ada"), lab.person("Omar")
    assert (await ada.command("stoa reserve")).text.startswith("Only the admins can")
    assert (await omar.command("stoa reserve")).text == "Nothing is reserved."
    day = (datetime.now(UTC) + timedelta(days=9)).date()
    asked: dict[str, Any] = {"pool": "local", "project": 1, "gpus": 2, "begins": f"{day} 09:00", "ends": f"{day} 17:00"}
    assert (await omar.command("stoa reserve", pool="local")).text.startswith("A reservation takes a pool, a project")
    heads = lab.heads()
    form = await omar.command("stoa reserve", **asked | {"gpus": 3})
    wrong = await omar.submit(form, {"Reason": "A course."})
    assert (wrong.text, lab.heads()) == (
        "The cores are a whole number from 1 to 2, as many as “local” has; “3” is not.",
        heads,
    )
    form = await omar.command("stoa reserve", **asked)
    made = await omar.submit(form, {"Reason": "A course."})
    begins, ends = (datetime.combine(day, time(hour), UTC) for hour in (9, 17))
    period = text.period(begins, ends)
    assert made.text.startswith(f"Reservation 1 is made: 2 cores of `local` for P1 {period}.")
    told = f"**Omar** reserves 2 cores of `local` {period} for the project (reservation 1).\n> A course."
    await lab.guild.wait_for(channel.id, lambda m: told in m.text)
    assert f"-# 2 cores reserved for P1 {period}" in (await ada.command("cluster status")).text
    assert (await omar.command("stoa reserve")).text == f"**1** `local` 2 cores for P1 {period}\n-# by Omar"
    form = await omar.command("stoa reserve", cancel=1)
    assert (await omar.submit(form, {"Reason": "It is off."})).text.startswith("Reservation 1 is cancelled")
    await lab.guild.wait_for(channel.id, lambda m: "**Omar** cancels reservation 1, of 2 cores of `local`" in m.text)


async def test_shares(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, omar = lab.person("Ada"), lab.person("Omar")
    assert (await ada.command("stoa shares")).text.startswith("Only the admins can set shares")
    listed = await omar.command("stoa shares")
    assert listed.text.startswith("## Shares\n-# Every other project has 1.")
    assert listed.message is not None
    form = await omar.press(listed.message, "Set one")
    fields = {"Project": "P1", "Share": "2.5", "Reason": "Its paper is due."}
    assert (await omar.submit(form, fields)).text == "The share of P1 is 2.5 from now on; its record says so."
    told = await lab.guild.wait_for(channel.id, lambda m: "share in fair-share" in m.text)
    assert "**Omar** sets the project's share in fair-share to 2.5, was 1; the usual share is 1.\n> " in told.text
    assert "**P1** Do small models dream? · 2.5\n-# Every other" in (await omar.command("stoa shares")).text
    status = (await ada.command("cluster status")).text
    assert status.endswith("-# Shares of projects in fair-share: P1 2.5; all others 1")
    assert " of all recent use, share 2.5" in (await ada.command("cluster usage")).text
    heads = lab.heads()
    for typed, said in (
        ({"Share": "nan"}, "A share is a number from 0.01 to 1,000, such as 0.5, 1 or 2; “nan” is not."),
        ({"Project": "mine"}, "The project is its number, such as 3."),
        ({"Project": "99"}, "There is no project 99"),
        ({"Share": "2.50"}, "The share of P1 is already 2.5."),
    ):
        form = await omar.command("stoa shares", project=1)
        assert (await omar.submit(form, fields | {"Project": "1"} | typed)).text.startswith(said)
    assert (await omar.command("stoa shares", project=99)).text.startswith("There is no project 99")
    assert lab.heads() == heads
    form = await omar.press(listed.message, "Set a sponsor's")
    fields = {"Sponsor": "The Library", "Share": "0.25", "Own projects": "P1", "Reason": "It gave all."}
    assert (await omar.submit(form, fields)).text == "0.25 of what The Library gives is set aside; the record says so."
    await lab.guild.wait_for("public-record", lambda m: "sets 0.25 of what The Library gives aside for" in m.text)
    status = (await ada.command("cluster status")).text
    assert status.endswith("; all others 1\n-# Set aside by sponsors: 25% of The Library's for P1")
    assert "**The Library** 0.25 of what it gives is first for P1" in (await omar.command("stoa shares")).text
    form = await omar.press(listed.message, "Set a sponsor's")
    wrong = await omar.submit(form, fields | {"Own projects": "all of them"})
    assert wrong.text == "The sponsor's own projects are their numbers, such as 3, 5."


async def test_limits(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    ada, omar = lab.person("Ada"), lab.person("Omar")
    listed = await omar.command("stoa limits")
    assert "**Starter hours** 1\n-# Hours of GPUs or cores a proposal gets at once; 0 for none." in listed.text
    assert listed.message is not None
    form = await omar.press(listed.message, "Change one")
    changed = await omar.submit(form, {"Limit": "Starter hours", "Value": "2", "Reason": "It was too small."})
    assert changed.text == "`starter_hours` is 2 from now on."
    await lab.guild.wait_for("public-record", lambda m: "It was too small." in m.text and "Omar" in m.text)
    assert await omar.complete("stoa limits", "limit", "OPEN prop") == [("Most open proposals", "most_open_proposals")]
    form = await omar.command("stoa limits", limit="most_open_proposals")
    assert form.fields[0].options == ["Most open proposals"]
    changed = await omar.submit(form, {"Limit": "Most open proposals", "Value": "4", "Reason": "There are many."})
    assert changed.text == "`most_open_proposals` is 4 from now on."
    assert "There is no policy “@\u200beveryone”" in (await omar.command("stoa limits", limit="@everyone")).text
    form = await omar.press(listed.message, "Change one")
    await lab.guild.set_roles("Omar", [])
    late = await omar.submit(form, {"Limit": "Starter hours", "Value": "9", "Reason": "More."})
    await lab.guild.set_roles("Omar", ["admin"])
    assert late.text.startswith("Only the admins can change policies")
    assert "Only the admins" in (await ada.command("stoa limits")).text


async def test_what_the_lists_and_forms_leave_out_is_reached_by_name(shared_lab: Shared) -> None:
    lab, _ = shared_lab
    ada, omar = lab.person("Ada"), lab.person("Omar")
    for number in range(3, 30):
        with lab.db.write() as session:
            pools.add_pool(session, name=f"pool{number}", gpu_type="CPU", gpus=1)
            until = datetime.now(UTC) + timedelta(days=60)
            pools.add_grant(session, pool=f"pool{number}", sponsor="A club " * 11, seconds=3600, until=until)
    listed_all = (await omar.command("stoa grants")).text
    shown = re.findall(r"^\*\*(\d+)\*\* ", listed_all, re.MULTILINE)
    *_, whole, more, hint = listed_all.splitlines()
    assert whole.endswith(" left")
    assert (more, hint) == (f"-# and {29 - len(shown)} more", "-# The command's option finds each of them.")
    form = await omar.command("stoa grants", pool="pool29")
    assert form.fields[0].options == ["pool29"]
    given = {"Pool": "pool29", "Sponsor": "A club", "GPU-hours or core-hours": "1", "Until": "2090-01-31"}
    assert (await omar.submit(form, given)).text.startswith("Grant 30 is added")
    assert await omar.complete("stoa grants", "grant", "bank") == [("2 · **A bank**, hall, until 2090-01-31", 2)]
    form = await omar.command("stoa grants", grant=2)
    assert form.fields[0].options == ["2 · **A bank**, hall, until 2090-01-31"]
    assert (await omar.command("stoa grants", grant=99)).text == "There is no grant 99."
    form = await omar.command("stoa pools", pool="pool9")
    assert form.fields[0].options == ["pool9"]
    assert (await omar.command("stoa pools", pool="nope")).text.startswith("There is no pool “nope”")
    assert (await ada.command("stoa grants", grant=2)).text.startswith("Only the admins can")
