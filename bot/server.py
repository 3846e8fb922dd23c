"""The purpose of each channel and role that Stoa uses on Discord, chosen by the admins, else by the settings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Self

from discord import Permissions
from sqlalchemy.orm import Session
from sqlmodel import select

from bot.tables import DiscordPurpose
from projects import cleaning, people, quotas
from projects.people import Actor, LabRole
from projects.record import record
from projects.settings import Settings

CHANNELS = ("proposals", "review", "announcements", "record")
MAY_LACK = ("general",)
"""The channels that Stoa can do without."""
CATEGORIES = ("lab_category", "projects_category")
ROLES = ("reviewer_role", "moderator_role", "admin_role")

# The permissions that the bot needs, by discord.py's name and by the label in Discord's settings.
IN_PROPOSALS = {
    "view_channel": "View Channel",
    "send_messages": "Send Messages",
    "read_message_history": "Read Message History",
    "create_public_threads": "Create Public Threads",
    "send_messages_in_threads": "Send Messages in Threads",
}
IN_OTHERS = {name: IN_PROPOSALS[name] for name in ("view_channel", "send_messages", "read_message_history")}
IN_GUILD = IN_PROPOSALS | {"manage_channels": "Manage Channels", "attach_files": "Attach Files"}

# Without these, the lab works, and roles are mentioned in vain.
TO_MENTION = {"manage_roles": "Manage Roles", "mention_everyone": "Mention @everyone, @here, and All Roles"}


@dataclass(frozen=True)
class Server:
    """Discord's ids, 0 where none is chosen. `by_admins` says that `/stoa setup` has chosen some of them."""

    guild: int
    proposals: int
    review: int
    announcements: int
    record: int
    reviewer_role: int
    moderator_role: int
    admin_role: int
    lab_category: int = 0
    projects_category: int = 0
    general: int = 0
    by_admins: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The choices in the settings."""
        return cls(
            guild=settings.guild_id,
            proposals=settings.proposals_channel_id,
            review=settings.review_channel_id,
            announcements=settings.announcements_channel_id,
            record=settings.record_channel_id,
            reviewer_role=settings.reviewer_role_id,
            moderator_role=settings.moderator_role_id,
            admin_role=settings.admin_role_id,
        )

    def lab_roles(self, role_ids: Iterable[int]) -> frozenset[LabRole]:
        """The lab roles that the Discord roles with these ids give; nobody holds a lab role whose id is 0."""
        ids = {
            LabRole.REVIEWER: self.reviewer_role,
            LabRole.MODERATOR: self.moderator_role,
            LabRole.ADMIN: self.admin_role,
        }
        held = set(role_ids) - {0}
        return frozenset(role for role, role_id in ids.items() if role_id in held)

    @property
    def unset(self) -> list[str]:
        """The channels and roles that Stoa needs and nobody has chosen."""
        return [name for name in (*CHANNELS, "reviewer_role") if not getattr(self, name)]


def load(session: Session, settings: Settings) -> Server:
    """The choices of the server's admins, and where they have made none, those in the settings."""
    server = Server.of(settings)
    known = {field.name for field in fields(Server)}
    rows = session.scalars(select(DiscordPurpose).where(DiscordPurpose.guild_id == str(server.guild)))
    chosen = {row.name: int(row.discord_id) for row in rows if row.name in known}
    server = replace(server, **chosen, by_admins=bool(chosen))
    others = {getattr(server, name) for name in CHANNELS}
    return replace(server, general=0) if server.general in others else server


def lacking_to_mention(permissions: Permissions) -> str:
    """The labels of the permissions that the bot lacks to give roles and mention them; empty where it has them."""
    return ", ".join(label for bit, label in TO_MENTION.items() if not getattr(permissions, bit))


def choose(session: Session, actor: Actor, guild_id: int, chosen: Mapping[str, tuple[int, str]]) -> None:
    """Choose channels, categories and roles, given as id and name by their purposes, and enter that in the record."""
    quotas.check_admin(session, actor)
    by = people.ensure(session, actor)
    for name, (discord_id, _) in chosen.items():
        session.merge(DiscordPurpose(guild_id=str(guild_id), name=name, discord_id=str(discord_id)))
    places = {
        name: {"id": str(discord_id), "name": cleaning.name(called)} for name, (discord_id, called) in chosen.items()
    }
    record.append(session, record.LAB, "server.set_up", by=by, places=places)
