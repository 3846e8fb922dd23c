"""The state of the loopback Discord: one guild, its people, channels and messages, in memory, as Discord's own JSON."""

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sandbox.discord import permissions
from sandbox.discord.errors import ApiError, Json

DISCORD_EPOCH_MS = 1_420_070_400_000
CATEGORY, TEXT, PUBLIC_THREAD, PRIVATE_THREAD = 4, 0, 11, 12
THREADS = (PUBLIC_THREAD, PRIVATE_THREAD)


class Snowflakes:
    """Ids as Discord makes them: milliseconds since 2015 in the high bits, a counter in the low; always increasing."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> str:
        self._last = max(self._last + 1, (int(time.time() * 1000) - DISCORD_EPOCH_MS) << 22)
        return str(self._last)


def snowflake_time(snowflake: str) -> str:
    return iso((int(snowflake) >> 22) + DISCORD_EPOCH_MS)


def iso(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "000+00:00")


def now_iso() -> str:
    return iso(int(time.time() * 1000))


@dataclass
class Message:
    """A message as stored. `ephemeral_for` names the one person who can see it, if it is ephemeral.

    `files` are all its files; its payload lists only those that nothing in it shows.
    """

    payload: Json
    files: list[Json] = field(default_factory=list)
    edits: int = 0
    nonce: str | None = None
    ephemeral_for: str | None = None
    created: float = field(default_factory=time.monotonic)

    @property
    def id(self) -> str:
        return str(self.payload["id"])

    @property
    def author_id(self) -> str:
        return str(self.payload["author"]["id"])


@dataclass
class Interaction:
    """One press, command or form of a person, and what the bot answered.

    `asked` is what opened the form that this one sends.
    `shown` is "message", "modal", "deferred", "update", "ack" (a deferred update), "choices" or None before an answer.
    `settled` is set once the person sees a result: anything but the two deferrals, or what ended one of these.
    """

    id: str
    token: str
    kind: int
    event: Json
    user_id: str
    channel_id: str
    source: Message | None = None
    asked: "Interaction | None" = None
    shown: str | None = None
    modal: Json | None = None
    choices: list[Json] = field(default_factory=list)
    original: Message | None = None
    followups: list[Message] = field(default_factory=list)
    created: float = field(default_factory=time.monotonic)
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class World:
    """Everything the loopback Discord knows.

    `listeners` hear each event that `dispatch` sends; `whisper` is set by whoever shows what one person alone sees.
    """

    def __init__(self, root: Path, base_url: str = "") -> None:
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True)
        self.base_url = base_url
        self.ids = Snowflakes()
        self.listeners: list[Callable[[str, Json], None]] = []
        self.whisper: Callable[[str, Message], None] = lambda name, message: None
        self.bot_token = f"sandbox.{secrets.token_urlsafe(24)}"
        self.application_id = self.ids.next()
        self.guild_id = self.ids.next()
        self.owner_id = ""
        self.privileged_intents = 0
        self.users: dict[str, Json] = {}
        self.members: dict[str, Json] = {}
        self.roles: dict[str, Json] = {}
        self.channels: dict[str, Json] = {}
        self.messages: dict[str, dict[str, Message]] = {}
        self.thread_members: dict[str, dict[str, Json]] = {}
        self.stickers: dict[str, Json] = {}
        self.commands: dict[str, Json] = {}
        self.interactions: dict[str, Interaction] = {}
        self.by_token: dict[str, Interaction] = {}
        self.attachments: dict[str, Path] = {}
        self._positions = itertools.count()

    def dispatch(self, name: str, data: Json) -> None:
        for listener in self.listeners:
            listener(name, data)

    def add_user(self, name: str, *, bot: bool = False, user_id: str | None = None) -> Json:
        user: Json = {
            "id": user_id or self.ids.next(),
            "username": name.lower(),
            "avatar": None,
            "discriminator": "0" if not bot else "0001",
            "public_flags": 0,
            "flags": 0,
            "banner": None,
            "accent_color": None,
            "global_name": None if bot else name,
            "avatar_decoration_data": None,
            "collectibles": None,
            "primary_guild": None,
        }
        if bot:
            user |= {"bot": True, "username": name}
        self.users[user["id"]] = user
        return user

    def add_member(self, user: Json, roles: list[str]) -> Json:
        member: Json = {
            "user": user,
            "nick": None,
            "avatar": None,
            "banner": None,
            "avatar_decoration_data": None,
            "roles": roles,
            "joined_at": now_iso(),
            "premium_since": None,
            "deaf": False,
            "mute": False,
            "pending": False,
            "flags": 0,
            "communication_disabled_until": None,
        }
        self.members[user["id"]] = member
        return member

    def add_role(self, name: str, bits: int, *, role_id: str | None = None, bot_id: str | None = None) -> Json:
        role: Json = {
            "id": role_id or self.ids.next(),
            "name": name,
            "permissions": str(bits),
            "position": len(self.roles),
            "color": 0,
            "colors": {"primary_color": 0, "secondary_color": None, "tertiary_color": None},
            "hoist": False,
            "managed": bot_id is not None,
            "mentionable": False,
            "icon": None,
            "unicode_emoji": None,
            "flags": 0,
        }
        if bot_id is not None:
            role["tags"] = {"bot_id": bot_id}
        self.roles[role["id"]] = role
        return role

    def delete_role(self, role_id: str) -> None:
        """Deletes a role, which then nobody holds, and tells the gateway."""
        del self.roles[role_id]
        for member in self.members.values():
            member["roles"] = [held for held in member["roles"] if held != role_id]
        self.dispatch("GUILD_ROLE_DELETE", {"guild_id": self.guild_id, "role_id": role_id})

    def add_channel(
        self,
        name: str,
        kind: int = TEXT,
        *,
        parent_id: str | None = None,
        topic: str | None = None,
        overwrites: list[Json] | None = None,
        position: int | None = None,
        nsfw: bool = False,
        slow_mode: int = 0,
    ) -> Json:
        """A new guild channel; the caller dispatches CHANNEL_CREATE where someone could be listening."""
        channel: Json = {
            "id": self.ids.next(),
            "type": kind,
            "guild_id": self.guild_id,
            "name": name,
            "position": next(self._positions) if position is None else position,
            "flags": 0,
            "parent_id": parent_id,
            "permission_overwrites": overwrites or [],
        }
        if kind != CATEGORY:
            channel |= {"topic": topic, "nsfw": nsfw, "rate_limit_per_user": slow_mode, "last_message_id": None}
        self.channels[channel["id"]] = channel
        self.messages[channel["id"]] = {}
        return channel

    def channel(self, channel_id: str) -> Json:
        if channel := self.channels.get(channel_id):
            return channel
        raise ApiError(10003)

    def member(self, user_id: str) -> Json:
        if member := self.members.get(user_id):
            return member
        raise ApiError(10007)

    def message(self, channel_id: str, message_id: str) -> Message:
        if message := self.messages[self.channel(channel_id)["id"]].get(message_id):
            return message
        raise ApiError(10008)

    def permissions(self, user_id: str, channel: Json | None = None) -> int:
        """A member's permission bits in a channel (a thread has its parent's), or in the guild."""
        if channel is not None and channel["type"] in THREADS:
            channel = self.channels[channel["parent_id"]]
        return permissions.permissions_in(channel, self.member(user_id), self.roles, self.guild_id, self.owner_id)

    def require(self, channel: Json | None, bits: int) -> None:
        """Raises 50001 where the bot cannot see the channel and 50013 where it lacks one of the bits there."""
        own = self.permissions(self.application_id, channel)
        if channel is not None and not own & permissions.VIEW_CHANNEL:
            raise ApiError(50001)
        if own & bits != bits:
            raise ApiError(50013)

    def threads(self) -> list[Json]:
        return [channel for channel in self.channels.values() if channel["type"] in THREADS]

    def guild_channels(self) -> list[Json]:
        return [channel for channel in self.channels.values() if channel["type"] not in THREADS]

    def guild(self) -> Json:
        """The guild as GET /guilds/{id} gives it."""
        return {
            "id": self.guild_id,
            "name": "Stoa",
            "icon": None,
            "description": None,
            "home_header": None,
            "splash": None,
            "discovery_splash": None,
            "features": [],
            "banner": None,
            "owner_id": self.owner_id,
            "application_id": None,
            "region": "rotterdam",
            "afk_channel_id": None,
            "afk_timeout": 300,
            "system_channel_id": None,
            "system_channel_flags": 0,
            "widget_enabled": False,
            "widget_channel_id": None,
            "verification_level": 0,
            "roles": list(self.roles.values()),
            "default_message_notifications": 1,
            "mfa_level": 0,
            "explicit_content_filter": 0,
            "max_presences": None,
            "max_members": 500_000,
            "max_stage_video_channel_users": 50,
            "max_video_channel_users": 25,
            "vanity_url_code": None,
            "premium_tier": 0,
            "premium_subscription_count": 0,
            "preferred_locale": "en-US",
            "rules_channel_id": None,
            "safety_alerts_channel_id": None,
            "public_updates_channel_id": None,
            "premium_progress_bar_enabled": False,
            "premium_progress_bar_enabled_user_updated_at": None,
            "nsfw": False,
            "nsfw_level": 0,
            "emojis": [],
            "stickers": list(self.stickers.values()),
            "incidents_data": None,
        }


def seed(world: World) -> None:
    """The guild "Stoa": two categories, five channels, two roles, four people and the bot."""
    world.add_role("@everyone", permissions.EVERYONE, role_id=world.guild_id)
    reviewer = world.add_role("reviewer", 0)
    admin = world.add_role("admin", permissions.ADMINISTRATOR)
    bot_role = world.add_role("Stoa", permissions.BOT, bot_id=world.application_id)
    world.add_member(world.add_user("Stoa", bot=True, user_id=world.application_id), [bot_role["id"]])
    for name, roles in {"Ada": [], "Grace": [], "Rosa": [reviewer["id"]], "Omar": [admin["id"]]}.items():
        world.add_member(world.add_user(name), roles)
    world.owner_id = next(user["id"] for user in world.users.values() if user["global_name"] == "Omar")
    quiet = [
        {"id": world.guild_id, "type": 0, "allow": "0", "deny": str(permissions.SEND_MESSAGES)},
        {"id": bot_role["id"], "type": 0, "allow": str(permissions.SEND_MESSAGES), "deny": "0"},
    ]
    lab = world.add_channel("Lab", CATEGORY)["id"]
    world.add_channel("Projects", CATEGORY)
    world.add_channel("proposals", parent_id=lab, topic="What members want to find out")
    world.add_channel("compute-review", parent_id=lab, topic="Requests for GPU time and their decisions")
    world.add_channel("announcements", parent_id=lab, overwrites=quiet)
    world.add_channel("public-record", parent_id=lab, overwrites=quiet)
    world.add_channel("general", parent_id=lab)
