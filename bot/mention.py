"""A mention: the one person or role that a message pings, and the line in which it stands."""

from dataclasses import dataclass
from typing import Self

import discord


@dataclass(frozen=True)
class Mention:
    """The person or the role, by its Discord id, that a message pings."""

    discord_id: int
    is_role: bool = False

    @classmethod
    def role(cls, discord_id: int) -> Self | None:
        """A mention of a role; None where the id is 0, as none is chosen."""
        return cls(discord_id, is_role=True) if discord_id else None

    @property
    def line(self) -> str:
        """The line of the message that holds the mention; it stands before the marker."""
        return f"-# For <@{'&' if self.is_role else ''}{self.discord_id}>"

    @property
    def allowed(self) -> discord.AllowedMentions:
        """What Discord is told that the message may ping: this id, and nothing else that stands in its text."""
        ids = [discord.Object(self.discord_id)]
        return discord.AllowedMentions(
            everyone=False, users=[] if self.is_role else ids, roles=ids if self.is_role else [], replied_user=False
        )


def ended(marker: str, mention: Mention | None) -> str:
    """The end of a message: its marker, after the line of its mention where it has one."""
    return marker if mention is None else f"{mention.line}\n{marker}"
