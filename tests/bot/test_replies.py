"""How the reply to each command ends: with what comes next, unless it only shows something or nothing follows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from sandbox.people import Answer, Channel
from tests.bot.conftest import PROPOSAL, SCOPE, Lab
from trainer.config import RECIPES

pytestmark = pytest.mark.asyncio(loop_scope="module")

WHY = {"Reason": "To see."}
DEMO = (RECIPES / "demo.yml").read_text()
COMES = re.compile(
    r"^\*\*Next\*\* \S|/(project|allocation|run|catalogue|stoa) [a-z]+|; an admin decides\.$|accepts or declines"
)
"""What says what comes next: a line of its own, a command, or who decides."""


class Ends(Enum):
    """How a reply ends."""

    NEXT = "with what comes next"
    READING = "as it likes: it only shows something"
    DONE = "as it likes: nothing follows from it"


@dataclass(frozen=True)
class Reply:
    """How the reply to a command ends, and how to get it: `options`, then the buttons to `press`, then the `form`.

    Without `who`, this table only says how it ends: it takes what this lab has not, and its own test has it.
    """

    command: str
    ends: Ends
    who: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    press: tuple[str, ...] = ()
    form: Mapping[str, Any] | None = None


SWEEP = {"recipe": "demo", "points": "seed=1..2", "time_limit": "5m"}
ASKS = {"Core-hours": "2", "Until": "in 3 weeks", "Justification": "To see."}
RECIPE = {"Name": "ours", "Recipe": DEMO}
POOL = {"Name": "hall", "Type of GPU or CPU": "H200", "GPUs or cores": "8", "Price weight": "1"}
GRANT = {"Pool": "hall", "Sponsor": "A bank", "GPU-hours or core-hours": "50", "Until": "in 3 weeks"}
REPLIES = [
    Reply("project propose", Ends.NEXT, "Ada", {}, (), PROPOSAL),
    Reply("project scope", Ends.NEXT, "Ada", {"project": 2}, (), SCOPE),
    Reply("project join", Ends.NEXT, "Omar", {"project": 2}),
    Reply("project confirm", Ends.NEXT, "Ada", {"project": 2, "person": "Omar"}),
    Reply("project follow", Ends.NEXT, "Rosa", {"project": 2}),
    Reply("project leave", Ends.NEXT, "Rosa", {"project": 2}),
    Reply("project update", Ends.DONE, "Ada", {"project": 2}, (), {"Update": "It goes on."}),
    Reply("project needs", Ends.DONE, "Ada", {"project": 2}, (), {"Who is needed": "A reader."}),
    Reply("project pause", Ends.NEXT, "Ada", {"project": 2}, (), WHY),
    Reply("project resume", Ends.NEXT, "Ada", {"project": 2}),
    Reply("project remove", Ends.NEXT, "Ada", {"project": 2, "person": "Omar"}, (), WHY),
    Reply("project handover", Ends.NEXT, "Ada", {"project": 1, "person": "Grace"}, (), WHY),
    Reply("project hide", Ends.NEXT, "Omar", {"project": 2}, (), WHY),
    Reply("project unhide", Ends.DONE, "Omar", {"project": 2}, (), WHY),
    Reply("project show", Ends.NEXT, "Ada", {"project": 1}),
    Reply("project list", Ends.READING, "Ada"),
    Reply("project stop", Ends.DONE, "Ada", {"project": 2}, ("Stop the project",), WHY),
    Reply("project complete", Ends.DONE),
    Reply("project release", Ends.DONE),
    Reply("project open", Ends.NEXT),
    Reply("project appoint", Ends.NEXT),
    Reply("allocation withdraw", Ends.NEXT, "Ada", {"allocation": 2}, (), WHY),
    Reply("allocation request", Ends.NEXT, "Ada", {"pool": "local"}, (), ASKS),
    Reply(
        "allocation change", Ends.NEXT, "Ada", {"allocation": 1}, (), {"Core-hours more": "1", "Justification": "More."}
    ),
    Reply("allocation report", Ends.NEXT, "Ada", {"allocation": 1}, (), {"Report": "It went well."}),
    Reply("allocation show", Ends.READING, "Ada", {"allocation": 1}),
    Reply("allocation list", Ends.READING, "Ada"),
    Reply("run launch", Ends.NEXT, "Ada", {"recipe": "demo", "time_limit": "10m"}, ("Launch",)),
    Reply("run sweep", Ends.NEXT, "Ada", SWEEP, ("Launch 2 runs",)),
    Reply("run rerun", Ends.NEXT, "Ada", {"run": 1}, ("Launch",)),
    Reply("run fork", Ends.NEXT),
    Reply("run name", Ends.DONE, "Ada", {"run": 1, "name": "Long"}),
    Reply("run show", Ends.READING, "Ada", {"run": 1}),
    Reply("run list", Ends.READING, "Ada"),
    Reply("run why", Ends.READING, "Ada", {"run": 1}),
    Reply("run config", Ends.READING, "Ada", {"run": 1}),
    Reply("run log", Ends.NEXT, "Ada", {"run": 1}),
    Reply("run compare", Ends.READING),
    Reply("run sample", Ends.DONE),
    Reply("run extend", Ends.DONE, "Ada", {"run": 1, "time": "5m"}),
    Reply("run pause", Ends.NEXT, "Ada", {"run": 1}),
    Reply("run resume", Ends.NEXT, "Ada", {"run": 1}),
    Reply("run cancel", Ends.NEXT, "Ada", {"run": 1}, ("Cancel run 1",)),
    Reply("catalogue propose", Ends.NEXT, "Ada", {"what": "recipe"}, (), RECIPE),
    Reply("catalogue accept", Ends.NEXT, "Omar", {"name": "ours"}, (), WHY),
    Reply("catalogue prepare", Ends.NEXT, "Ada", {"recipe": "ours", "time_limit": "5m"}),
    Reply("catalogue retire", Ends.DONE, "Omar", {"name": "ours"}, (), WHY),
    Reply("catalogue decline", Ends.DONE),
    Reply("catalogue list", Ends.READING, "Ada"),
    Reply("catalogue corpora", Ends.READING, "Ada"),
    Reply("cluster status", Ends.READING, "Ada"),
    Reply("cluster usage", Ends.READING, "Ada"),
    Reply("cluster queue", Ends.READING, "Ada"),
    Reply("stoa help", Ends.READING, "Ada"),
    Reply("stoa notify", Ends.NEXT, "Ada", {"what": "all"}),
    Reply("stoa setup", Ends.NEXT, "Omar", {"admins": "admin"}),
    Reply("stoa pools", Ends.NEXT, "Omar", {}, ("Add a pool",), POOL),
    Reply("stoa grants", Ends.NEXT, "Omar", {}, ("Add a grant",), GRANT),
    Reply("stoa shares", Ends.READING, "Omar"),
    Reply("stoa limits", Ends.READING, "Omar"),
    Reply("stoa reserve", Ends.READING, "Omar"),
    Reply("stoa ban", Ends.NEXT, "Omar", {"person": "Grace"}, (), WHY),
    Reply("stoa unban", Ends.DONE, "Omar", {"person": "Grace"}, (), WHY),
    Reply("stoa redact", Ends.DONE, "Omar", {"project": 1, "number": 2}, ("Blank the entry",), WHY),
    Reply("stoa forget", Ends.DONE),
]
CHANNEL = ("allocation", "run", "catalogue")
"""The groups whose commands are about the project of the channel."""
FIRST = ("stoa setup",)


async def got(lab: Lab, channel: Channel, reply: Reply) -> Answer:
    """The reply as the person sees it at the end."""
    person, group = lab.person(reply.who), reply.command.split()[0]
    place = channel.id if group in CHANNEL else "general"
    answer = await person.command(reply.command, channel=place, **reply.options)
    for label in reply.press:
        assert answer.message is not None, f"{reply.command}: {answer.text}"
        answer = await person.press(answer.message, label)
    if reply.form is None:
        return answer
    assert answer.fields, f"{reply.command}: {answer.text}"
    return await person.submit(answer, dict(reply.form))


async def test_each_reply_ends_as_the_table_says(shared_lab: tuple[Lab, Channel]) -> None:
    lab, channel = shared_lab
    names = {command for group in await lab.guild.commands() for command in subcommands(group)}
    assert sorted(reply.command for reply in REPLIES) == sorted(names), "each command has its row"
    wrong = []
    for reply in sorted(REPLIES, key=lambda one: one.command not in FIRST):
        if not reply.who:
            continue
        answer = await got(lab, channel, reply)
        lines = [line for line in answer.text.splitlines() if line.strip() and not line.startswith("-# ")]
        assert lines, reply.command
        if reply.ends is Ends.NEXT and not COMES.search(lines[-1]):
            wrong.append(f"{reply.command}: {answer.text}")
    assert wrong == []
    assert "Traceback" not in lab.log


def subcommands(command: Mapping[str, Any]) -> list[str]:
    """The commands of a group by their whole names; none of a message's menu."""
    below = [option["name"] for option in command.get("options") or () if option["type"] == 1]
    return [f"{command['name']} {name}" for name in below]
