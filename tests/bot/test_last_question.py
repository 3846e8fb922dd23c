"""What cannot be undone asks once more, privately: it says what it will do, and a red button does it."""

import pytest

from broker.allocations.units import Unit
from broker.runners.processes import Process
from broker.runs import attempts, leases, runs
from broker.runs.runs import RunState
from projects import projects
from sandbox.people import Answer, Channel
from tests.bot.conftest import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

Shared = tuple[Lab, Channel]
END = "\n**This cannot be undone.**"


def style(answer: Answer) -> int:
    """The style of the first button; 4 is red."""
    [row] = answer.components
    return int(row["components"][0]["style"])


async def test_a_run_is_cancelled_after_a_question_that_outlives_a_restart(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada, grace = lab.person("Ada"), lab.person("Grace")
    await lab.launch(channel, time_limit="6m")
    asked = await ada.command("run cancel", channel=channel.id, run=1)
    assert (asked.kind, asked.ephemeral, asked.text) == ("message", True, f"Run 1 ends at once.{END}")
    assert asked.message is not None
    assert (asked.message.button_labels, style(asked)) == (["Cancel run 1", "Keep it"], 4)
    of_grace = await grace.command("run cancel", channel=channel.id, run=1)
    assert of_grace.message is not None
    heads = lab.heads()
    kept = await grace.press(of_grace.message, "Keep it")
    assert (kept.kind, kept.text) == ("update", "Nothing has changed.")
    assert kept.message is not None
    assert kept.message.buttons == []
    stranger = await lab.person("Omar").command("run cancel", channel=channel.id, run=1)
    assert stranger.text.startswith("Only members of")
    assert lab.heads() == heads
    assert lab.call(runs.view, 1).state == RunState.QUEUED

    token = lab.call(attempts.admit, 1, (0,))
    lab.call(leases.claim, 1, token, host="here", lease_seconds=600)
    lab.call(leases.started, 1, token, Process("here", "boot", 1, 1), [], lease_seconds=600)
    lab.kill_bot()
    await lab.start_bot()
    heads = lab.heads()
    again = await ada.agree(asked)
    assert again.kind == "update"
    assert again.text.startswith("Nothing has been done yet: something changed after you were asked")
    reserved = "What is not used of the 0.1 core-hours reserved for run 1 returns to the allocation."
    assert again.text.endswith(f"\nRun 1 writes a checkpoint and stops. {reserved}{END}")
    assert lab.heads() == heads
    lab.call(lambda session: attempts.extend(session, runs.load(session, 1), 720))
    later = await ada.command("run cancel", channel=channel.id, run=1)
    assert "of the 0.3 core-hours reserved" in later.text, "other sums are no reason to ask again"
    done = await ada.agree(again)
    assert (done.kind, done.text) == ("update", "Run 1 has been asked to stop; /run rerun launches it again.")
    assert done.message is not None
    assert done.message.buttons == []
    assert lab.call(runs.view, 1).state == RunState.STOPPING
    heads = lab.heads()
    twice = await ada.command("run cancel", channel=channel.id, run=1)
    assert twice.text == "Run 1 is already stopping."
    assert lab.heads() == heads


async def test_a_project_is_completed_after_a_question_that_tells_all_that_ends(shared_lab: Shared) -> None:
    lab, channel = shared_lab
    ada = lab.person("Ada")
    launched = await lab.launch(channel, time_limit="12m")
    run = int(launched.text.split("Run ")[1].split()[0])
    left = Unit.CORE.hours(lab.allocation(1).account.left)
    asked = await ada.command("project complete", channel=channel.id)
    title = lab.call(projects.load, 1).title
    assert asked.text == (
        f"**{title}** ends: nobody can join it, ask for compute or launch a run in it any more. Its open requests for "
        "compute are withdrawn (allocation 2). Allocation 1 ends: "
        f"{left} return to where the hours were granted from. Run {run} ends at once.{END}"
    )
    assert asked.message is not None
    assert (asked.message.button_labels, style(asked)) == (["Complete the project", "Keep it"], 4)
    refused = await lab.person("Grace").command("project complete", channel=channel.id)
    assert refused.text.startswith("Only the lead of")
    form = await ada.agree(asked)
    assert form.kind == "modal"
    heads = lab.heads()
    done = await ada.submit(form, {"Outcome": "Negative result", "What was learnt": "They do not dream."})
    assert done.text.startswith("The project is completed; ")
    assert lab.heads() != heads
    late = await ada.agree(asked)
    assert (late.kind, late.ephemeral) == ("message", True)
    assert late.text == f"“{title}” is completed; this can no longer be done."
