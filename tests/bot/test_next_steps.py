"""What comes next is said at every point, with a button where it is one click: from a proposal to a run that failed."""

from broker.runners.processes import Process
from broker.runs import attempts, leases, settlement
from broker.runs.progress import Ending, Progress
from projects import lifecycle
from tests.bot.conftest import PROPOSAL, SCOPE, Lab, has

LOST = "It broke; it was last heard from at 2030-01-31 12:00:00 UTC."


async def test_each_step_leads_to_the_next(lab: Lab) -> None:
    await lab.start_bot()
    ada, grace = lab.person("Ada"), lab.person("Grace")
    lab.add_pool("spare")

    # A proposal says who is missing, and the scope is one click away.
    form = await ada.command("project propose")
    proposed = await ada.submit(form, PROPOSAL)
    lacks = "**Next** The project gets its own channel once"
    assert f"{lacks} its lead, Ada, writes the scope and 1 more person joins." in proposed.text
    card = await lab.guild.wait_for("proposals", has(f"{lacks} its lead, Ada, writes the scope and 1 more person"))
    post = await lab.guild.wait_for(card.thread_id or card.id, has("**Next** Join with the button", "record 1"))
    assert post.button_labels == ["Write the scope"]
    assert (await grace.press(post, "Write the scope")).text == (
        "Only the lead of “Do small models dream?”, Ada, can do this."
    )
    assert proposed.message is not None
    written = await ada.submit(await ada.press(proposed.message, "Write the scope"), SCOPE)
    assert written.text == f"The scope is written.\n{lacks} 1 more person joins."
    await lab.guild.wait_for("proposals", has(f"{lacks} 1 more person joins.", message_id=card.id))
    await lab.guild.wait_for(card.thread_id or card.id, lambda m: m.id == post.id and not m.buttons)
    await grace.press(card, "Join")
    lab.confirm(1, "Grace")

    # The new channel leads to a request, with the choice of a pool.
    channel = await lab.guild.wait_for_channel(lambda c: c.name.startswith("p1-"))
    opened = await lab.guild.wait_for(channel.id, has("**Next** The lead asks for compute"))
    await lab.guild.wait_for("proposals", has("**Next** The lead asks for compute", message_id=card.id))
    asking = await ada.press(opened, "Ask for compute")
    assert [field.label for field in asking.fields] == ["Pool", "Core-hours", "Until", "Justification"]
    answers = {"Pool": "local", "Core-hours": "1", "Until": "in 3 weeks", "Justification": "To see."}
    asked = await ada.submit(asking, answers)
    assert "1 core-hour of `local`" in asked.text

    # What is granted is used with one click more.
    assert asked.message is not None
    assert "**Next** Launch a run" in asked.text
    granted = await lab.guild.wait_for(channel.id, has("**Next** Launch a run with the button below"))
    await lab.guild.wait_for("proposals", has("**Next** A contributor launches the first run", message_id=card.id))
    for source in (asked.message, granted):
        launching = await ada.press(source, "Launch a run")
        assert [field.label for field in launching.fields] == [
            "Recipe", "Time limit", "Cores", "Changes to the recipe", "Name",
        ]  # fmt: skip
    odd = {"Recipe": "demo", "Time limit": "10m", "Cores": "two"}
    assert (await ada.submit(launching, odd)).text == "The number of cores is a whole number from 1 to 2."
    launching = await ada.press(granted, "Launch a run")
    offer = await ada.submit(launching, odd | {"Cores": "1", "Changes to the recipe": "steps=400", "Name": "Long"})
    assert offer.message is not None
    assert "Launch demo on 1 core of `local`?" in offer.text
    assert "steps=400\n“Long”\n" in offer.text
    await ada.press(offer.message, "Launch")
    await lab.guild.wait_for("proposals", has("**Next** A contributor launches the next run", message_id=card.id))

    # A run that failed has its log and its rerun at hand, on its card, in its thread and in the channel.
    token = lab.call(attempts.admit, 1, [0])
    lab.call(leases.claim, 1, token, host="here", lease_seconds=60)
    lab.call(leases.started, 1, token, Process("here", "boot", 1, 1), [], lease_seconds=60)
    lab.call(settlement.settle, 1, token, 20.0, Progress(0, 0), Ending(70, reason=LOST), 0)
    heard = "> It broke; it was last heard from at <t:1896091200:f>.\n"
    failed = await lab.guild.wait_for(channel.id, has(heard, "**Next** Read its log", "record"))
    assert failed.button_labels == ["Log", "Rerun"]
    run_card = await lab.guild.wait_for(channel.id, has("P1 · run 1", "has failed", heard))
    assert run_card.button_labels == ["Config", "Log", "Rerun"]
    for message in (failed, run_card):
        assert (await ada.press(message, "Log")).text.startswith("**Attempts of run 1**\n**1** ended")
    again = await ada.press(failed, "Rerun")
    assert again.message is not None
    assert again.message.button_labels == ["Launch", "Cancel"]
    assert "steps=400" in again.text

    lab.call(lifecycle.pause, lab.actor("Ada"), 1, reason="Exams.")
    await lab.guild.wait_for("proposals", has("**Next** The lead goes on with `/project resume`.", message_id=card.id))
    assert "Traceback" not in lab.log
