"""How the reply to each command begins, and whether it ends with what comes next."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from broker import catalogue
from broker.runs import leases, results
from broker.runs.progress import Result
from projects import bans
from sandbox.people import Answer, Channel
from tests.bot.conftest import PROPOSAL, SCOPE, Lab
from tests.bot.test_run_commands import PROGRAM, progress, start
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
    DONE = "without: it only shows something, or nothing follows from it"


@dataclass(frozen=True)
class Reply:
    """How the reply to a command ends and begins, and how to get it: `options`, buttons to `press`, then the `form`.

    Without `who`, the table only says how it ends: it needs what this lab lacks, and a test of its own sends it.
    """

    command: str
    ends: Ends
    begins: str = ""
    who: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    press: tuple[str, ...] = ()
    form: Mapping[str, Any] | None = None
    before: Callable[[Lab], object] = lambda lab: None
    """What must have happened, beside the bot."""


def trained(lab: Lab) -> None:
    """Run 4 trains, and has a checkpoint."""
    lab.call(leases.renew, 4, start(lab, 4), 20.0, progress(1, 20, (16,)), lease_seconds=600)


def measured(lab: Lab) -> None:
    """Run 9, a study, has measured something."""
    lab.call(results.save, 9, 4, [Result(16, "weights", "norm", 1.5)])


def tried(lab: Lab) -> None:
    """A program is proposed, tried and accepted."""
    lab.call(catalogue.propose_program, lab.actor("Ada"), "a program", name="autoencoder", body=PROGRAM)
    lab.call(catalogue.tried, "autoencoder", lab.call(catalogue.proposed_program, "autoencoder"), 3)
    lab.call(catalogue.accept, None, "autoencoder", reason="It is well known.")


def proposed(lab: Lab) -> None:
    """A recipe is proposed."""
    lab.call(catalogue.propose_recipe, lab.actor("Ada"), "a recipe", name="theirs", body=DEMO)


def without_lead(lab: Lab) -> None:
    """The lead of project 1 is banned."""
    lab.call(bans.ban, None, lab.actor("Ada"), "Spam.")


SWEEP = {"recipe": "demo", "points": "seed=1..2", "time_limit": "5m"}
ASKS = {"Core-hours": "2", "Until": "in 3 weeks", "Justification": "To see."}
LEARNT = {"Outcome": "Abandoned", "What was learnt": "That it goes on."}
RECIPE = {"Name": "ours", "Recipe": DEMO}
POOL = {"Name": "hall", "Type of GPU or CPU": "H200", "GPUs or cores": "8", "Price weight": "1"}
GRANT = {"Pool": "hall", "Sponsor": "A bank", "GPU-hours or core-hours": "50", "Until": "in 3 weeks"}
REPORTED = (
    "Your report is posted in the project's channel, and reviewers see it on the allocation's card.\n"
    "**Next** `/allocation change`"
)
"""No word of a second half: the allocation has none."""
REPLIES = [
    Reply("project propose", Ends.NEXT, "Project 2 is proposed", "Ada", {}, (), PROPOSAL),
    Reply("project scope", Ends.NEXT, "The scope is written", "Ada", {"project": 2, "checkpoints": "held"}, (), SCOPE),
    Reply("project open", Ends.NEXT, "The project's channel opens in a moment", "Omar", {"project": 2}),
    Reply("project join", Ends.NEXT, "Welcome! You are in", "Omar", {"project": 2}),
    Reply("project confirm", Ends.NEXT, "Omar is now a contributor", "Ada", {"project": 2, "person": "Omar"}),
    Reply("project follow", Ends.NEXT, "You now follow", "Rosa", {"project": 2}),
    Reply("project leave", Ends.NEXT, "You have left", "Rosa", {"project": 2}),
    Reply("project update", Ends.DONE, "Your update is entry", "Ada", {"project": 2}, (), {"Update": "It goes on."}),
    Reply(
        "project needs",
        Ends.DONE,
        "The project's card says it",
        "Ada",
        {"project": 2},
        (),
        {"Who is needed": "A reader."},
    ),
    Reply("project pause", Ends.NEXT, "The project is paused", "Ada", {"project": 2}, (), WHY),
    Reply("project resume", Ends.NEXT, "The project is resumed", "Ada", {"project": 2}),
    Reply("project remove", Ends.NEXT, "They are removed", "Ada", {"project": 2, "person": "Omar"}, (), WHY),
    Reply(
        "project handover", Ends.NEXT, "The lead is offered to Grace", "Ada", {"project": 1, "person": "Grace"}, (), WHY
    ),
    Reply("project hide", Ends.NEXT, "The project is no longer in any list", "Omar", {"project": 2}, (), WHY),
    Reply("project unhide", Ends.DONE, "The project is in the lists again", "Omar", {"project": 2}, (), WHY),
    Reply("project show", Ends.NEXT, "## Do small models dream?", "Ada", {"project": 1}),
    Reply("project list", Ends.DONE, "**2** Do small models dream?", "Ada"),
    Reply("project release", Ends.DONE, "Released: the", "Rosa", {"project": 2}, ("Release the checkpoints",), WHY),
    Reply("project stop", Ends.DONE, "The project is stopped", "Ada", {"project": 2}, ("Stop the project",), WHY),
    Reply("allocation withdraw", Ends.NEXT, "The request is withdrawn", "Ada", {"allocation": 2}, (), WHY),
    Reply("allocation request", Ends.NEXT, "Allocation 3 is requested", "Ada", {"pool": "local"}, (), ASKS),
    Reply(
        "allocation change",
        Ends.NEXT,
        "The change is asked for: 1 core-hour more.\n**Next** ",
        "Ada",
        {"allocation": 1},
        (),
        {"Core-hours more": "1", "Justification": "More."},
    ),
    Reply(
        "allocation report",
        Ends.NEXT,
        REPORTED,
        "Ada",
        {"allocation": 1},
        (),
        {"Report": "It went well."},
    ),
    Reply("allocation show", Ends.DONE, "**Allocation 1** of", "Ada", {"allocation": 1}),
    Reply("allocation list", Ends.DONE, "**3** 2 core-hours", "Ada"),
    Reply(
        "run launch", Ends.NEXT, "### 🚀 Run 1 is queued", "Ada", {"recipe": "demo", "time_limit": "10m"}, ("Launch",)
    ),
    Reply("run sweep", Ends.NEXT, "### 🚀 Sweep 1 is queued", "Ada", SWEEP, ("Launch 2 runs",)),
    Reply("run rerun", Ends.NEXT, "### 🚀 Run 4 is queued", "Ada", {"run": 1}, ("Launch",)),
    Reply("run name", Ends.DONE, "Run 1 is now called “Long”", "Ada", {"run": 1, "name": "Long"}),
    Reply("run show", Ends.NEXT, "### ⏳ Run 1 “Long” waits", "Ada", {"run": 1}),
    Reply("run list", Ends.DONE, "**4** `demo` · queued", "Ada"),
    Reply("run why", Ends.DONE, "**Run 1** of", "Ada", {"run": 1}),
    Reply("run config", Ends.DONE, "**Run 1** · recipe `demo`", "Ada", {"run": 1}),
    Reply("run log", Ends.NEXT, "Run 1 has not been tried yet", "Ada", {"run": 1}),
    Reply("run data", Ends.DONE, "Run 1 has done no step yet; 1 is none of them.", "Ada", {"run": 1, "step": 1}),
    Reply(
        "run seen",
        Ends.DONE,
        "Run 1 has done no step yet, and so has read nothing.",
        "Ada",
        {"run": 1, "text": "a line of text"},
    ),
    Reply("run compare", Ends.DONE),
    Reply("run extend", Ends.DONE, "Run 1 may take 5 min longer", "Ada", {"run": 1, "time": "5m"}),
    Reply("run pause", Ends.NEXT, "Run 1 is paused", "Ada", {"run": 1}),
    Reply("run resume", Ends.NEXT, "Run 1 is queued", "Ada", {"run": 1}),
    Reply("run cancel", Ends.NEXT, "Run 1 has been asked to stop", "Ada", {"run": 1}, ("Cancel run 1",)),
    Reply("catalogue propose", Ends.NEXT, "`ours` is proposed", "Ada", {"what": "recipe"}, (), RECIPE),
    Reply("catalogue accept", Ends.NEXT, "`ours` is accepted", "Omar", {"name": "ours"}, (), WHY),
    Reply("catalogue prepare", Ends.NEXT, "Run 5 will prepare", "Ada", {"recipe": "ours", "time_limit": "5m"}),
    Reply("catalogue retire", Ends.DONE, "`ours` is retired", "Omar", {"name": "ours"}, (), WHY),
    Reply("catalogue list", Ends.DONE, "🗄️ `ours` recipe, retired", "Ada"),
    Reply("catalogue decline", Ends.DONE, "`theirs` is declined", "Omar", {"name": "theirs"}, (), WHY, proposed),
    Reply("catalogue corpora", Ends.DONE, "There are none yet", "Ada"),
    Reply("cluster status", Ends.DONE, "`local` CPU", "Ada"),
    Reply("cluster usage", Ends.DONE, "**P1** Do small models dream?", "Ada"),
    Reply("cluster queue", Ends.DONE, "`local` 4 runs waiting", "Ada"),
    Reply("stoa help", Ends.DONE, "What you can do here", "Ada"),
    Reply("stoa notify", Ends.NEXT, "“all” is set", "Ada", {"what": "all"}),
    Reply("stoa setup", Ends.NEXT, "Stoa is set up", "Omar", {"admins": "admin"}),
    Reply("stoa pools", Ends.NEXT, "The pool `hall` is added", "Omar", {}, ("Add a pool",), POOL),
    Reply("stoa grants", Ends.NEXT, "Grant 2 is added", "Omar", {}, ("Add a grant",), GRANT),
    Reply("stoa shares", Ends.DONE, "## Shares", "Omar"),
    Reply("stoa limits", Ends.DONE, "## Limits", "Omar"),
    Reply("stoa reserve", Ends.DONE, "Nothing is reserved", "Omar"),
    Reply("stoa ban", Ends.NEXT, "They can read, and do nothing else", "Omar", {"person": "Grace"}, (), WHY),
    Reply("stoa unban", Ends.DONE, "They can take part again", "Omar", {"person": "Grace"}, (), WHY),
    Reply(
        "stoa redact", Ends.DONE, "Entry 2 is blanked", "Omar", {"project": 1, "number": 2}, ("Blank the entry",), WHY
    ),
    Reply("run fork", Ends.NEXT, "### 🚀 Run 6 is queued", "Ada", {"run": 4, "step": 16}, ("Launch",), before=trained),
    Reply("run sample", Ends.DONE, "The last checkpoint of run 4", "Ada", {"run": 4}, (), {"Prompt": "def"}),
    Reply("run evaluate", Ends.DONE, "Run 8, an evaluation of run 4", "Ada", {"run": 4, "tasks": "heldout"}),
    Reply("study start", Ends.DONE, "Run 9, a study of run 4", "Ada", {"run": 4, "analyses": "weights"}),
    Reply("study show", Ends.DONE, "### 📐 Run 9 is a study of run 4", "Ada", {"study": 9}, before=measured),
    Reply("run program", Ends.DONE, "Run 10, a program on", "Ada", {"run": 4, "name": "autoencoder"}, before=tried),
    Reply(
        "project appoint",
        Ends.NEXT,
        "The project has its new lead",
        "Omar",
        {"project": 1, "person": "Grace"},
        (),
        WHY,
        without_lead,
    ),
    Reply(
        "project complete",
        Ends.DONE,
        "The project is completed",
        "Grace",
        {"project": 1},
        ("Complete the project",),
        LEARNT,
    ),
    Reply("stoa forget", Ends.DONE, "## Forget a person", "Omar", {"person": "Grace"}, (), WHY),
]
CHANNEL = ("allocation", "run", "catalogue")
"""The groups whose commands are about the project of the channel."""
FIRST = ("stoa setup",)


async def got(lab: Lab, channel: Channel, reply: Reply) -> Answer:
    """The reply as the person sees it at the end."""
    reply.before(lab)
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
        says_next = bool(COMES.search(lines[-1])) if reply.ends is Ends.NEXT else "**Next**" in answer.text
        if not answer.text.startswith(reply.begins) or says_next is not (reply.ends is Ends.NEXT):
            wrong.append(f"{reply.command}: {answer.text}")
    assert wrong == []
    assert "Traceback" not in lab.log


def subcommands(command: Mapping[str, Any]) -> list[str]:
    """The commands of a group by their whole names; none of a message's menu."""
    below = [option["name"] for option in command.get("options") or () if option["type"] == 1]
    return [f"{command['name']} {name}" for name in below]
