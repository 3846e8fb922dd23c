"""`/stoa setup`: adopts the channels and roles that exist, creates those that are missing; a repeat changes nothing.

A channel or role that was created just before a crash is found again by its name and topic, and not created twice.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import aiohttp
import discord

from bot import server, text
from bot.app import App
from bot.rate_limit import once
from projects import people, quotas
from projects.errors import ConflictError, ForbiddenError, InvalidError
from projects.people import Actor

Target: TypeAlias = discord.TextChannel | discord.CategoryChannel | discord.Role

NEXT = "**Next** `/stoa pools` and `/stoa grants` say what compute there is; members begin with `/project propose`."
UNPINNED = "The welcomes are pinned once the bot's role has Pin Messages, at its next start."

_one_at_a_time = asyncio.Lock()


@dataclass(frozen=True)
class New:
    """A channel, category or role to create for a purpose. `quiet`: only the bot may post in the channel."""

    label: str
    name: str
    topic: str = ""
    quiet: bool = False


NEW: Mapping[str, New] = {
    "lab_category": New("the lab's channels", "Lab"),
    "projects_category": New("the projects' channels", "Projects"),
    "proposals": New("proposals", "proposals", "What members want to find out, and who they are looking for"),
    "review": New("review", "compute-review", "Requests for compute, and how they were decided"),
    "announcements": New("announcements", "announcements", "What projects have found out", quiet=True),
    "record": New("the lab's record", "public-record", "Pools, grants, policies: what is of no project", quiet=True),
    "general": New("newcomers", "general"),
    "reviewer_role": New("reviewers", "Stoa reviewer"),
    "moderator_role": New("moderators", "Stoa moderator"),
    "admin_role": New("admins", "Stoa admin"),
}


async def set_up(app: App, guild: discord.Guild, actor: Actor, given: Mapping[str, Target]) -> str:
    """Set the server up, and return what was done. Raises ForbiddenError with the permissions that the bot lacks."""
    await app.read(people.find, actor)  # refuses who is banned, before anything is created
    async with _one_at_a_time:
        found = await _standing(app, guild, given)
        _demand_apart(found)
        made = [name for name in NEW if name not in found and name not in server.MAY_LACK]
        if not set(made).intersection(server.CHANNELS):
            made = [name for name in made if name != "lab_category"]
        if lacking := list(_lacking(guild, found, made)):
            raise ForbiddenError(f"{' '.join(lacking)} Then use /stoa setup again; nothing was changed.")
        if made:
            await app.write(quotas.check_admin, actor)
        for name in made:
            with once():  # should Discord fail after creating it, the next setup finds it
                found[name] = await _make(guild, name, found)
        changed = {
            name: (target.id, target.name) for name, target in found.items() if target.id != getattr(app.server, name)
        }
        # Choices from the settings are written too, so that all of them are in the database from now on.
        if changed or not app.server.by_admins:
            await app.write(server.choose, actor, guild.id, {n: (t.id, t.name) for n, t in found.items()})
        await app.reload_server()
        permissions = guild.me.guild_permissions
        said = _said(found, made, changed, server.lacking_to_mention(permissions))
        return "\n".join(filter(None, (said, "" if permissions.pin_messages else UNPINNED, NEXT)))


def _demand_apart(found: Mapping[str, Target]) -> None:
    """Raise InvalidError where one channel is chosen for two purposes, whose cards and posts would mix."""
    stands: dict[int, str] = {}
    for name in (*server.CHANNELS, *server.MAY_LACK):
        channel = found.get(name)
        if channel is None:
            continue
        if channel.id in stands:
            both = f"{NEW[stands[channel.id]].label} and {NEW[name].label}"
            raise InvalidError(
                f"#{channel.name} cannot be the channel for both {both}: choose another channel for one of them."
            )
        stands[channel.id] = name


async def _standing(app: App, guild: discord.Guild, given: Mapping[str, Target]) -> dict[str, Target]:
    """The channels and roles of each purpose: as given now, as chosen before, or as created by an interrupted setup."""
    # Fetched from Discord, as the cache may not have yet what the last setup created.
    channels = {channel.id: channel for channel in await guild.fetch_channels()}
    roles = {role.id: role for role in await guild.fetch_roles()}
    found: dict[str, Target] = {}
    for name, new in NEW.items():
        if name in server.ROLES:
            role = given.get(name) or roles.get(getattr(app.server, name))
            role = role or next((r for r in roles.values() if r.name == new.name and not r.permissions.value), None)
            if isinstance(role, discord.Role):
                if role.is_default():
                    raise InvalidError("@everyone cannot be chosen: choose a role that is given to people.")
                found[name] = role
            continue
        kind = discord.CategoryChannel if name in server.CATEGORIES else discord.TextChannel
        channel = given.get(name) or channels.get(getattr(app.server, name))
        if name in server.MAY_LACK and name not in given:
            # One that has another purpose now is left to it.
            free = {c.id: c for c in channels.values() if c.id not in {target.id for target in found.values()}}
            channel = free.get(getattr(app.server, name))
            channel = channel or next((c for c in free.values() if c.name == new.name), None)
        elif channel is None:
            channel = next((c for c in channels.values() if _is_ours(c, new)), None)
        if isinstance(channel, discord.TextChannel | discord.CategoryChannel) and isinstance(channel, kind):
            found[name] = channels.get(channel.id, channel)  # type: ignore[assignment]
    return found


def _is_ours(channel: discord.abc.GuildChannel, new: New) -> bool:
    return channel.name == new.name and (getattr(channel, "topic", None) or "") == new.topic


def _lacking(guild: discord.Guild, found: Mapping[str, Target], made: list[str]) -> Iterator[str]:
    """A sentence for the server and for each channel where the bot lacks permissions, which names them."""
    needed = dict(server.IN_GUILD)
    if set(made).intersection(server.ROLES):
        needed["manage_roles"] = "Manage Roles"
    own = guild.me.guild_permissions
    if missing := [label for bit, label in needed.items() if not getattr(own, bit)]:
        yield f"Please grant the bot's role {', '.join(missing)}, in the server's settings under Roles."
    # A new channel has the permissions of its category.
    wants = dict.fromkeys(server.CHANNELS, server.IN_OTHERS) | {"proposals": server.IN_PROPOSALS}
    wants["projects_category"] = server.IN_GUILD
    if set(made).intersection(server.CHANNELS):
        wants["lab_category"] = server.IN_PROPOSALS | {"manage_channels": "Manage Channels"}
    for name, wanted in wants.items():
        channel = found.get(name)
        if not isinstance(channel, discord.TextChannel | discord.CategoryChannel):
            continue
        there = channel.permissions_for(guild.me)
        # What the bot lacks in the whole server was said above.
        labels = [label for bit, label in wanted.items() if not getattr(there, bit) and getattr(own, bit)]
        if labels:
            where = f"the category {channel.name}" if name in server.CATEGORIES else f"#{channel.name}"
            yield f"Please grant the bot's role {', '.join(labels)} in {where}, under its Permissions."


async def _make(guild: discord.Guild, name: str, found: Mapping[str, Target]) -> Target:
    new = NEW[name]
    reason = "Asked for with /stoa setup"
    try:
        if name in server.ROLES:
            return await guild.create_role(name=new.name, permissions=discord.Permissions.none(), reason=reason)
        if name in server.CATEGORIES:
            return await guild.create_category(new.name, reason=reason)
        category = found["lab_category"]
        assert isinstance(category, discord.CategoryChannel)
        overwrites: dict[discord.Role | discord.Member | discord.Object, discord.PermissionOverwrite] = {}
        if new.quiet:
            overwrites[guild.default_role] = discord.PermissionOverwrite(send_messages=False)
            overwrites[guild.me] = discord.PermissionOverwrite(send_messages=True)
        return await guild.create_text_channel(
            new.name, topic=new.topic, category=category, overwrites=overwrites, reason=reason
        )
    except discord.Forbidden as error:
        raise ForbiddenError(f"Discord does not let the bot make “{new.name}”: {error.text}.") from error
    except (discord.DiscordServerError, aiohttp.ClientError, OSError) as error:
        raise ConflictError(f"Discord did not say whether it has made “{new.name}”: use /stoa setup again.") from error


def _said(found: Mapping[str, Target], made: list[str], changed: Mapping[str, object], lacking: str) -> str:
    lines = ["Stoa is set up." if changed else "Stoa is already set up: nothing was changed."]
    for name, target in found.items():
        new = NEW[name]
        shown = text.line(target.name, 60) if isinstance(target, discord.CategoryChannel) else target.mention
        how = " (new)" if name in made else " (adopted)" if name in changed else ""
        lines.append(f"- {new.label}: {shown}{how}")
    if set(made).intersection(server.ROLES):
        lines.append("Give people the new roles in the server's settings, under Members.")
    if lacking:
        lines.append(f"To let Stoa mention reviewers and followers, grant the bot's role {lacking}, under Roles.")
    return "\n".join(lines)


def problem(guild: discord.Guild, known: server.Server) -> str:
    """A sentence with the first reason why Stoa cannot work in the server; empty where there is none."""
    if known.unset:
        return f"no channel or role is chosen for {', '.join(NEW[name].label for name in known.unset)} yet."
    for name in server.CHANNELS:
        if not isinstance(guild.get_channel(getattr(known, name)), discord.TextChannel):
            return f"the channel for {NEW[name].label} was deleted."
    if guild.get_role(known.reviewer_role) is None:
        return "the reviewers' role was deleted."
    standing: dict[str, Target] = {}
    for name in server.CHANNELS:
        channel = guild.get_channel(getattr(known, name))
        if isinstance(channel, discord.TextChannel):
            standing[name] = channel
    return next(_lacking(guild, standing, []), "")
