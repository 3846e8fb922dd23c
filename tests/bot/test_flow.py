"""The way from a proposal to a finished run, as members go it in Discord."""

import json

from broker.runners.processes import Process
from broker.runs import attempts, leases, runs, settlement
from broker.runs.progress import Ending, Progress
from tests.bot.conftest import Lab
from tests.discord_openapi import recorded


async def test_from_a_proposal_to_a_launched_run(lab: Lab) -> None:
    await lab.start_bot()
    ada, rosa = lab.person("Ada"), lab.person("Rosa")

    channel = await lab.activate()

    proposal = await lab.guild.wait_for("proposals", lambda m: channel.id in m.text)
    assert "Do small models dream?" in proposal.text
    assert "**Lead** Ada · **Contributors (1)** Grace" in proposal.text
    assert proposal.button_labels == ["Join", "Follow"]
    assert proposal.thread_id is not None
    thread = await lab.guild.messages(proposal.thread_id)
    assert [m.text.splitlines()[-1].rpartition(" · ")[0] for m in thread] == [
        f"-# P1 · record {n}" for n in (1, 2, 3, 4)
    ]
    assert f"<#{channel.id}>" in thread[-1].text
    assert channel.topic is not None

    pools = await ada.complete("allocation request", "pool", "cpu", channel=channel.id)
    assert pools == [("local · CPU, 2 of 2 cores free, price 1", "local")]
    number = int((await lab.request(channel)).text.split()[1])
    card = await lab.review_card(number)
    assert card.button_labels == ["Approve", "Approve part", "Ask", "Decline"]
    refused = await ada.press(card, "Approve")
    assert refused.ephemeral
    assert refused.text == "Only compute reviewers can decide on requests; the admins assign the reviewers' role."
    form = await rosa.press(card, "Approve")
    assert form.fields[0].value == "2"
    answer = await rosa.submit(form, {"Core-hours": "1", "Reason": "Half of it, to begin with."})
    assert answer.ephemeral
    decision = await lab.guild.wait_for(channel.id, lambda m: "approves 1 core-hour of the 2 asked for" in m.text)
    assert "Half of it, to begin with." in decision.text
    assert "The Library" in decision.text
    decided = await lab.guild.wait_for("compute-review", lambda m: m.button_labels == ["Revoke"])
    assert decided.id == card.id
    assert "Approved by Rosa" in decided.text

    assert await ada.complete("run launch", "recipe", "de", channel=channel.id) == [("demo", "demo")]
    launched = await lab.launch(channel, override="steps=20")
    assert launched.ephemeral
    assert "0.167 core-hours at most" in launched.text
    assert "1 core-hour left" in launched.text
    run_card = await lab.guild.wait_for(channel.id, lambda m: m.text.endswith("-# P1 · run 1") and m.thread_id)
    assert "queued" in run_card.text
    assert run_card.thread_id is not None
    queued = await lab.guild.wait_for(run_card.thread_id, lambda m: "launches run 1" in m.text)
    assert "steps=20" in queued.text

    ledger = await ada.command("allocation show", channel=channel.id)
    assert "Granted: 1 core-hour\n" in ledger.text
    assert "queued" in (await ada.command("run list", channel=run_card.thread_id)).text
    assert "Do small models dream?" in (await ada.command("project list")).text
    assert (await ada.command("run show", run=1)).ephemeral
    assert (await ada.command("project show", channel=channel.id)).ephemeral
    assert "Nothing holds it up." in (await ada.command("run why", run=1)).text
    assert "0 of 2 cores busy" in (await ada.command("cluster status")).text
    assert "Run 1, 1 core ·" in (await ada.command("cluster queue")).text
    stopped = await ada.agree(await ada.command("run cancel", run=1))
    assert stopped.text == "Run 1 has been asked to stop; /run rerun launches it again."
    await lab.guild.wait_for(channel.id, lambda m: "Run 1 is cancelled" in m.text)
    await lab.guild.wait_for(channel.id, lambda m: m.id == run_card.id and "cancelled" in m.text)
    assert lab.call(runs.view, 1).state == "cancelled"

    await lab.launch(channel)
    token = lab.call(attempts.admit, 2, (0,))
    lab.call(leases.claim, 2, token, host="here", lease_seconds=600)
    lab.call(leases.started, 2, token, Process("here", "boot", 1, 1), [], lease_seconds=600)
    lab.call(settlement.settle, 2, token, 36.0, Progress(0, 0), Ending(0), 3)
    await lab.guild.wait_for(channel.id, lambda m: "Run 2 is finished at step 0, after 0.01 core-hours." in m.text)
    await lab.guild.wait_for(channel.id, lambda m: "**Core-hours** 0.01 by this run" in m.text)
    usage = await ada.command("cluster usage")
    assert "0.01 core-hours of 1 core-hour spent" in usage.text
    report = await ada.command("allocation change", channel=channel.id, allocation=1)
    assert report.fields[0].label == "Core-hours more"

    record = await lab.guild.messages("public-record")
    assert [m.text.splitlines()[-1].rpartition(" · ")[0] for m in record] == ["-# Lab · record 1", "-# Lab · record 2"]
    assert await lab.stop_bot() == 0
    assert "Traceback" not in lab.log
    # The pool is of CPUs: nothing that the bot has said speaks of GPUs, but for the descriptions of its commands.
    said = [e for e in recorded(lab.root / "sandbox", "exchanges.jsonl") if not e["path"].endswith("/commands")]
    assert [exchange for exchange in said if "GPU" in json.dumps(exchange)] == []
