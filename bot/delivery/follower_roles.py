"""The role of each project that its news mention: made with its channel, or for its first follower if one comes before,
given, taken, and deleted at the end.

The bot gives the role to whoever the news of the project are to mention (`notify.hears_news`). Where the server has
`MOST_ROLES`, or the bot may not manage roles, a project has none and its news mention nobody.
"""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import aiohttp
import discord
import structlog
from sqlalchemy import and_, delete
from sqlalchemy.orm import Session
from sqlmodel import col, select
from sqlmodel.sql.expression import Select

from bot import server
from bot.app import App
from bot.delivery import lease
from bot.delivery.lease import LostLeaseError
from bot.mention import Mention
from bot.tables import DiscordRole, DiscordRoleHolder
from projects import notify
from projects.db.columns import utcnow
from projects.people import Person
from projects.projects import ENDED, Membership, Project

MOST_ROLES = 200
"""With so many roles in the server the bot makes no more: Discord allows 250, and people need some too."""
AT_ONCE = 20
KEPT_FOR = timedelta(days=7)
"""For so long the role of an ended project stays, so that its last news can be read as a mention."""
PAUSE_SECONDS, REFUSED_SECONDS = 1.0, 60.0
REASON = "The followers of a project"
UNKNOWN_ROLE = 10011
SERVER_ERROR = 500

Holding = tuple[int, str]
"""A project's number and the Discord id of somebody who holds its role, or is to hold it."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Changes:
    """What the roles of the server lack: `make` are the projects with a channel and no role, `over` those whose role is
    to be deleted."""

    give: Sequence[Holding]
    take: Sequence[Holding]
    over: Sequence[int]
    make: Sequence[int]


class FollowerRoles:
    """Brings the roles of all projects to what they should be, a few changes at a time."""

    def __init__(self, app: App, holder: str) -> None:
        self.app, self.holder = app, holder
        self._not_before = 0.0
        # Until when the role of a project waits that Discord has refused to change, by the project's number.
        self._refused: dict[int, float] = {}

    async def update(self) -> None:
        """Make the next changes; what Discord refuses is tried again in a minute, and the other roles do not wait."""
        guild = self.app.get_guild(self.app.server.guild)
        if guild is None or guild.unavailable or not guild.me.guild_permissions.manage_roles:
            return
        now = time.monotonic()
        if now < self._not_before:
            return
        self._not_before = now + PAUSE_SECONDS
        self._refused = {project_id: until for project_id, until in self._refused.items() if until > now}
        changes = await self.app.read(_changes, list(self._refused))
        work = [(held[0], partial(self._take, guild, *held)) for held in changes.take]
        work += [(project_id, partial(self._delete, guild, project_id)) for project_id in changes.over]
        work += [(held[0], partial(self._give, guild, *held)) for held in changes.give]
        work += [(project_id, partial(self._make, guild, project_id)) for project_id in changes.make]
        for project_id, change in work:
            if project_id in self._refused:
                continue
            try:
                await change()
            except LostLeaseError:
                log.warning("the lease went to another process, which gives the roles to followers")
                return
            except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
                log.warning("a role cannot be changed; it is tried again", project=project_id, reason=str(error))
                if isinstance(error, discord.HTTPException) and error.status < SERVER_ERROR:
                    self._refused[project_id] = time.monotonic() + REFUSED_SECONDS
                else:
                    self._not_before = time.monotonic() + REFUSED_SECONDS
                    return

    async def _give(self, guild: discord.Guild, project_id: int, discord_id: str) -> None:
        role_id = await self._role(guild, project_id)
        member = None if role_id is None else await _member(guild, discord_id)
        if role_id is None:
            return
        if member is not None:
            try:
                await member.add_roles(discord.Object(role_id), reason=REASON)
            except discord.NotFound as error:
                await self._lost(project_id, error)
                return
        # Who has left the server is noted too, or would be looked for again and again.
        await self.app.write(_held, project_id, discord_id)

    async def _make(self, guild: discord.Guild, project_id: int) -> None:
        await self._role(guild, project_id)

    async def _take(self, guild: discord.Guild, project_id: int, discord_id: str) -> None:
        row = await self.app.read(_row, project_id)
        member = await _member(guild, discord_id)
        if row is not None and not row.gone and member is not None:
            try:
                await member.remove_roles(discord.Object(int(row.role_id)), reason=REASON)
            except discord.NotFound as error:
                await self._lost(project_id, error)
        await self.app.write(_not_held, project_id, discord_id)

    async def _role(self, guild: discord.Guild, project_id: int) -> int | None:
        """The id of the project's role, which is made if need be; None where the server has no room for another."""
        row = await self.app.read(_row, project_id)
        if row is not None:
            return None if row.gone else int(row.role_id)
        if len(guild.roles) >= MOST_ROLES:
            return None
        # One that was made just before a crash is found again.
        role = next((role for role in await guild.fetch_roles() if _is_of(role, project_id)), None)
        if role is None:
            await self.app.read(lease.require, str(guild.id), self.holder)
            role = await guild.create_role(
                name=_name(project_id), permissions=discord.Permissions.none(), mentionable=False, reason=REASON
            )
        await self.app.write(self._made, project_id, role)
        return role.id

    def _made(self, session: Session, project_id: int, role: discord.Role) -> None:
        """Note the role of a project, which may have ended meanwhile. Raises LostLeaseError."""
        lease.require(session, str(role.guild.id), self.holder)
        session.add(DiscordRole(project_id=project_id, role_id=str(role.id)))
        if session.get_one(Project, project_id).stage in ENDED:
            let_end(session, project_id)

    async def _delete(self, guild: discord.Guild, project_id: int) -> None:
        row = await self.app.read(_row, project_id)
        for role in await guild.fetch_roles():
            # Discord may have made a second one, whose answer was lost.
            if _is_of(role, project_id) or (row is not None and str(role.id) == row.role_id):
                await role.delete(reason="The project has ended")
        await self.app.write(_gone, project_id)

    async def _lost(self, project_id: int, error: discord.NotFound) -> None:
        """Note that somebody has deleted a project's role: it is not made again. Raises any other `error`."""
        if error.code != UNKNOWN_ROLE:
            raise error
        log.warning("a project's role was deleted; its news mention nobody", project=project_id)
        await self.app.write(_gone, project_id)


async def mention(app: App, project_id: int) -> Mention | None:
    """The mention of a project's followers; None while nobody holds its role, or somebody does who wants no mention."""
    row = await app.read(_row, project_id)
    guild = app.get_guild(app.server.guild)
    if row is None or row.gone or guild is None or guild.get_role(int(row.role_id)) is None:
        return None
    if not await app.read(_is_held, project_id) or await app.read(_holds_in_vain, project_id):
        return None
    return Mention.role(int(row.role_id))


async def remark(app: App, project_id: int) -> str:
    """A sentence for somebody who follows a project whose news will mention nobody; empty where they will."""
    guild = app.get_guild(app.server.guild)
    row = await app.read(_row, project_id)
    if guild is None:
        return ""
    if row is not None and (row.gone or guild.get_role(int(row.role_id)) is None):
        return "Its news mention nobody, as its role was deleted."
    if lacking := server.lacking_to_mention(guild.me.guild_permissions):
        return f"Its news mention nobody until an admin grants the bot's role {lacking}."
    if row is None and len(guild.roles) >= MOST_ROLES:
        return f"Its news mention nobody for now: with {MOST_ROLES} roles in the server, the bot makes no more."
    return ""


def _name(project_id: int) -> str:
    return f"P{project_id} followers"


def _is_of(role: discord.Role, project_id: int) -> bool:
    """Whether a role looks like one that the bot has made for a project."""
    return role.name == _name(project_id) and not role.permissions.value


async def _member(guild: discord.Guild, discord_id: str) -> discord.Member | None:
    """A member of the server; None for somebody who has left it."""
    try:
        return await guild.fetch_member(int(discord_id))
    except discord.NotFound:
        return None


def _hears() -> Select[int, str]:
    """Who is to hold the role of which project."""
    return (
        select(Membership.project_id, Person.discord_id)
        .join(Person, col(Person.id) == Membership.person_id)
        .where(notify.hears_news())
    )


def _holds_too_much() -> Select[int, str]:
    """Who holds the role of which project, and is not to hold it."""
    still = _hears().where(
        col(Membership.project_id) == DiscordRoleHolder.project_id,
        col(Person.discord_id) == DiscordRoleHolder.discord_id,
    )
    return select(DiscordRoleHolder.project_id, DiscordRoleHolder.discord_id).where(
        ~still.correlate(DiscordRoleHolder).exists()
    )


def _changes(session: Session, but: Collection[int]) -> Changes:
    """The next changes, for all projects `but` these."""
    holds = and_(
        col(DiscordRoleHolder.project_id) == Membership.project_id,
        col(DiscordRoleHolder.discord_id) == Person.discord_id,
    )
    give = (
        _hears()
        .join(Project, col(Project.id) == Membership.project_id)
        .outerjoin(DiscordRoleHolder, holds)
        .outerjoin(DiscordRole, col(DiscordRole.project_id) == Membership.project_id)
        .where(
            col(DiscordRoleHolder.discord_id).is_(None),
            col(DiscordRole.gone).is_not(True),
            col(Project.stage).not_in(ENDED),
            col(Project.id).not_in(but),
        )
        # A project without a role comes last, as the server may have no room for it.
        .order_by(col(DiscordRole.project_id).is_(None), col(Membership.project_id), col(Person.discord_id))
        .limit(AT_ONCE)
    )
    take = _holds_too_much().where(col(DiscordRoleHolder.project_id).not_in(but)).limit(AT_ONCE)
    over = (
        select(DiscordRole.project_id)
        .join(Project, col(Project.id) == DiscordRole.project_id)
        .where(col(Project.stage).in_(ENDED), ~col(DiscordRole.gone), col(DiscordRole.ends_at) < utcnow())
        .where(col(Project.id).not_in(but))
        .limit(AT_ONCE)
    )
    make = (
        select(Project.id)
        .outerjoin(DiscordRole, col(DiscordRole.project_id) == Project.id)
        .where(col(DiscordRole.project_id).is_(None), col(Project.has_channel), col(Project.stage).not_in(ENDED))
        .where(col(Project.id).not_in(but))
        .order_by(col(Project.id))
        .limit(AT_ONCE)
    )
    return Changes(
        [(number, who) for number, who in session.execute(give)],
        [(number, who) for number, who in session.execute(take)],
        session.scalars(over).all(),
        session.scalars(make).all(),
    )


def let_end(session: Session, project_id: int) -> None:
    """Note that a project has ended, so that its role is deleted in a week."""
    row = session.get(DiscordRole, project_id)
    if row is not None and row.ends_at is None:
        row.ends_at = utcnow() + KEPT_FOR


def give_again(session: Session, discord_id: int) -> None:
    """Let the roles be given again that somebody is to hold, who may have left the server or lost them by hand."""
    is_to_hold = _hears().where(Person.discord_id == str(discord_id)).subquery()
    session.execute(
        delete(DiscordRoleHolder).where(
            col(DiscordRoleHolder.discord_id) == str(discord_id),
            col(DiscordRoleHolder.project_id).in_(select(is_to_hold.c.project_id)),
        )
    )


def _is_held(session: Session, project_id: int) -> bool:
    query = select(DiscordRoleHolder.discord_id).where(DiscordRoleHolder.project_id == project_id).limit(1)
    return session.execute(query).first() is not None


def _holds_in_vain(session: Session, project_id: int) -> bool:
    query = _holds_too_much().where(col(DiscordRoleHolder.project_id) == project_id).limit(1)
    return session.execute(query).first() is not None


def _row(session: Session, project_id: int) -> DiscordRole | None:
    return session.get(DiscordRole, project_id)


def _gone(session: Session, project_id: int) -> None:
    session.get_one(DiscordRole, project_id).gone = True
    session.execute(delete(DiscordRoleHolder).where(col(DiscordRoleHolder.project_id) == project_id))


def _held(session: Session, project_id: int, discord_id: str) -> None:
    session.merge(DiscordRoleHolder(project_id=project_id, discord_id=discord_id))


def _not_held(session: Session, project_id: int, discord_id: str) -> None:
    held = col(DiscordRoleHolder.project_id) == project_id
    session.execute(delete(DiscordRoleHolder).where(held, col(DiscordRoleHolder.discord_id) == discord_id))
