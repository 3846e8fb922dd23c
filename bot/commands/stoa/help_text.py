"""`/stoa help`: the commands that a member may use by the table of rights, each with its description."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from discord import app_commands, ui
from sqlalchemy.orm import Session

from bot import text
from bot.cards import card
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
    "run sample": Act.USE_COMPUTE,
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
# Acts that have buttons but no command, and those of people without a role in Stoa.
ANSWERS = "The button **Answer** of a reviewer's question about GPU time that you asked for."
OFFERS = "-# An offer, of a launch or of a lead, is answered by its buttons, and by nobody but who it was made to."
MANAGES = "As who manages this server"
LONGEST_PAGE = 3800


@dataclass(frozen=True)
class Standing:
    """The roles of a person in the channel where they ask; `project` is the title of that channel's project."""

    roles: frozenset[Role]
    project: str | None


def standing(session: Session, actor: Actor, project_id: int | None) -> Standing:
    """The actor's roles in the lab, and in the project where there is one; raises ForbiddenError for the banned."""
    people.find(session, actor)
    if project_id is None:
        return Standing(actor.roles, None)
    project = projects.load(session, project_id)
    return Standing(rights.roles_in(session, actor, project), project.title)


def pages(commands: Sequence[Any], here: Standing, *, review: int, manages: bool) -> list[ui.LayoutView]:
    """What the person can do, in as many messages as needed; `review` is the reviewers' channel.

    `manages`: they may manage the server, and so set it up before it has admins.
    """
    known = dict(_flat(commands))
    lines = [_greeting(here)]
    told: set[str] = set()
    for role, heading in HEADINGS.items():
        if role not in here.roles:
            continue
        acts = {act for act, roles in rights.MAY.items() if role in roles}
        names = [name for name in known if NEEDS.get(name) in acts and name not in told]
        told.update(names)
        block = [_line(name, known[name]) for name in names]
        if role is LabRole.REVIEWER:
            buttons = "approve, in part or in full, ask, decline; later, revoke"
            block.insert(0, f"The buttons on the cards in <#{review}>: {buttons}.")
        if role is ProjectRole.LEAD:
            block.append(ANSWERS)
        if block:
            lines += [f"### {heading}", *block]
    if manages and "stoa setup" in known.keys() - told:
        lines += [f"### {MANAGES}", _line("stoa setup", known["stoa setup"])]
    lines.append("### As everyone")
    lines += [_line(name, said) for name, said in known.items() if name not in NEEDS]
    lines.append(OFFERS)
    if here.project is None:
        lines.append("-# In a project's channel, this command says what you can do in it.")
    return [_page(part) for part in _parts(lines)]


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


def _parts(lines: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for line in lines:
        if sum(text.length(said) + 1 for said in [*parts[-1], line]) > LONGEST_PAGE:
            parts.append([])
        parts[-1].append(line)
    return parts


def _page(lines: Sequence[str]) -> ui.LayoutView:
    view = ui.LayoutView(timeout=None)
    view.add_item(ui.Container(ui.TextDisplay("\n".join(lines)), accent_colour=card.BLUE))
    return view
