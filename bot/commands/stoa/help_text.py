"""`/stoa help`: what a member can do now, where they ask, and all that they may do by topic, by the table of rights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import discord
from discord import app_commands, ui
from sqlalchemy.orm import Session

from bot import text
from bot.buttons import Button
from bot.cards import card, next_step
from bot.delivery import card_updates
from projects import people, projects, rights
from projects.people import Actor, LabRole
from projects.projects import ProjectRole
from projects.rights import Act, Role

# The act that each command is for, where not everyone may use the command.
NEEDS: Mapping[str, Act] = {
    "project scope": Act.SCOPE,
    "project update": Act.POST_UPDATE,
    "project needs": Act.CHANGE_NEEDS,
    "project handover": Act.HAND_OVER,
    "project confirm": Act.CONFIRM,
    "project remove": Act.REMOVE,
    "project appoint": Act.APPOINT_LEAD,
    "project pause": Act.PAUSE,
    "project resume": Act.RESUME,
    "project complete": Act.COMPLETE,
    "project stop": Act.STOP,
    "project open": Act.OPEN_CHANNEL,
    "project hide": Act.HIDE,
    "project unhide": Act.UNHIDE,
    "project release": Act.RELEASE,
    "allocation request": Act.ASK_FOR_COMPUTE,
    "allocation change": Act.ASK_FOR_COMPUTE,
    "allocation withdraw": Act.ASK_FOR_COMPUTE,
    "allocation report": Act.ASK_FOR_COMPUTE,
    "run launch": Act.USE_COMPUTE,
    "run sweep": Act.USE_COMPUTE,
    "run pause": Act.USE_COMPUTE,
    "run resume": Act.USE_COMPUTE,
    "run cancel": Act.USE_COMPUTE,
    "run extend": Act.USE_COMPUTE,
    "run fork": Act.USE_COMPUTE,
    "run rerun": Act.USE_COMPUTE,
    "run name": Act.USE_COMPUTE,
    "run sample": Act.USE_COMPUTE,
    "run evaluate": Act.USE_COMPUTE,
    "run program": Act.USE_COMPUTE,
    "study start": Act.USE_COMPUTE,
    "catalogue prepare": Act.USE_COMPUTE,
    "catalogue accept": Act.DECIDE_CATALOGUE,
    "catalogue decline": Act.DECIDE_CATALOGUE,
    "catalogue retire": Act.DECIDE_CATALOGUE,
    "stoa setup": Act.SET_UP,
    "stoa pools": Act.MANAGE_COMPUTE,
    "stoa grants": Act.MANAGE_COMPUTE,
    "stoa shares": Act.SET_SHARES,
    "stoa reserve": Act.MANAGE_COMPUTE,
    "stoa limits": Act.CHANGE_POLICIES,
    "stoa ban": Act.BAN,
    "stoa unban": Act.BAN,
    "stoa redact": Act.REDACT,
    "stoa forget": Act.REDACT,
    "Put on record": Act.PUT_ON_RECORD,
}
HEADINGS: Mapping[Role, str] = {
    ProjectRole.LEAD: "As the lead of this project",
    ProjectRole.CONTRIBUTOR: "As a contributor to this project",
    LabRole.REVIEWER: "As a reviewer",
    LabRole.MODERATOR: "As a moderator",
    LabRole.ADMIN: "As an admin",
}
TOPICS: Sequence[tuple[str, Sequence[str]]] = (
    ("Projects", ("project", "Put on record")),
    ("Compute", ("allocation", "cluster")),
    ("Runs", ("run", "study")),
    ("Recipes and data", ("catalogue",)),
    ("The lab", ("stoa",)),
)
"""The topics, each with the groups of commands that belong to it."""

# What is shown first: to whom is in no project's channel, to a visitor of one, and to each role in a project.
OUTSIDE = ("project list", "project propose", "project join", "cluster status")
VISITOR = ("project join", "project follow", "project show", "run list")
FIRST: Mapping[Role, Sequence[str]] = {
    ProjectRole.LEAD: ("project scope", "project confirm", "allocation request", "run launch", "project update"),
    ProjectRole.CONTRIBUTOR: ("run launch", "run list", "run compare", "project update"),
    ProjectRole.NEWCOMER: ("project show", "run list"),
    ProjectRole.FOLLOWER: ("project join", "project show", "run list"),
}
# Acts that have buttons but no command, and those of people without a role in Stoa.
ANSWERS = "The button **Answer** of a reviewer's question about compute that you asked for."
OFFERS = "-# An offer, of a launch or of a lead, is answered by its buttons, and by nobody but who it was made to."
ELSEWHERE = "-# In a project's channel, this command says what you can do in it."
LONGEST_PAGE = 3800


@dataclass(frozen=True)
class Standing:
    """The roles of a person in the channel where they ask.

    `project` is the title of that channel's project, `comes` what comes next for it, and `scoped` says that it
    has a scope.
    """

    roles: frozenset[Role]
    project: str | None
    comes: str = ""
    scoped: bool = False


def standing(session: Session, actor: Actor, project_id: int | None, *, min_people: int) -> Standing:
    """The actor's roles in the lab, and in the project where there is one; raises ForbiddenError for the banned."""
    people.find(session, actor)
    if project_id is None:
        return Standing(actor.roles, None)
    project = projects.load(session, project_id)
    view, requests, runs, _ = card_updates.card_contents(session, project_id)
    comes = next_step.of_project(view, requests, runs, min_people=min_people)
    return Standing(rights.roles_in(session, actor, project), project.title, comes, bool(view.goal))


def start(commands: Sequence[Any], here: Standing, *, review: int, manages: bool) -> ui.LayoutView:
    """What the person can do first, with a button for each topic; `review` is the reviewers' channel.

    `manages`: they may manage the server, and so set it up before it has admins.
    """
    known = dict(_flat(commands))
    if here.project is None:
        wanted: Sequence[str] = OUTSIDE
    else:
        wanted = next((names for role, names in FIRST.items() if role in here.roles), VISITOR)
    lines = [_greeting(here), here.comes]
    done = {"project scope"} if here.scoped else set()
    lines += [_line(name, known[name]) for name in wanted if name in known.keys() - done and _may(here, name)]
    if LabRole.REVIEWER in here.roles:
        lines.append(_reviews(review))
    if manages and "stoa setup" in known:
        lines.append(_line("stoa setup", known["stoa setup"]))
    lines += [OFFERS, ELSEWHERE if here.project is None else ""]
    return _page(lines)


def of_topic(commands: Sequence[Any], here: Standing, number: int, *, review: int) -> ui.LayoutView:
    """All that the person can do of a topic, under the role that lets them do it; `number` is the topic's."""
    title, groups = TOPICS[number % len(TOPICS)]
    known = {name: said for name, said in _flat(commands) if name.startswith(tuple(groups))}
    lines = [f"## {title}"]
    told: set[str] = set()
    for role, heading in HEADINGS.items():
        if role not in here.roles:
            continue
        acts = {act for act, roles in rights.MAY.items() if role in roles}
        names = [name for name in known if NEEDS.get(name) in acts and name not in told]
        told.update(names)
        block = [_line(name, known[name]) for name in names]
        if role is LabRole.REVIEWER and "allocation" in groups:
            block.insert(0, _reviews(review))
        if role is ProjectRole.LEAD and "allocation" in groups:
            block.append(ANSWERS)
        if block:
            lines += [f"### {heading}", *block]
    open_to_all = [_line(name, said) for name, said in known.items() if name not in NEEDS]
    lines += ["### As everyone", *open_to_all] if open_to_all else []
    return _page(lines, number % len(TOPICS))


def _may(here: Standing, name: str) -> bool:
    return name not in NEEDS or bool(rights.MAY[NEEDS[name]] & here.roles)


def _reviews(review: int) -> str:
    return f"The buttons on the cards in <#{review}>: approve, in part or in full, ask, decline; later, revoke."


def _greeting(here: Standing) -> str:
    what = [str(role) for role in HEADINGS if role in here.roles]
    if here.project is None:
        return f"What you can do here, as {' and '.join(what) or 'member'} of the lab:"
    what = [*sorted(here.roles & {ProjectRole.FOLLOWER, ProjectRole.NEWCOMER}), *what]
    named = " and ".join(what) or "a visitor"
    return f"What you can do in **{text.line(here.project, 160)}**, as {named}:"


def _line(name: str, said: str) -> str:
    return f"**{'' if name[0].isupper() else '/'}{name}** · {said}"


def _flat(commands: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """The full name and the description of each command."""
    for command in commands:
        if isinstance(command, app_commands.Group):
            yield from _flat(command.commands)
        elif isinstance(command, app_commands.ContextMenu):
            yield command.name, "in a message's menu, under Apps: make a finding an entry of the project's record"
        else:
            yield command.qualified_name, command.description


def _page(lines: Sequence[str], shown: int | None = None) -> ui.LayoutView:
    """A page with the buttons of all topics; `shown` is the number of the topic that it shows."""
    view = ui.LayoutView(timeout=None)
    said = text.listed([line for line in lines if line], most=LONGEST_PAGE)
    row: ui.ActionRow[Any] = ui.ActionRow()
    for number, (title, _) in enumerate(TOPICS):
        style = discord.ButtonStyle.primary if number == shown else discord.ButtonStyle.secondary
        row.add_item(Button("help_topic", number, label=title, style=style))
    view.add_item(ui.Container(ui.TextDisplay(said), row, accent_colour=card.BLUE))
    return view
