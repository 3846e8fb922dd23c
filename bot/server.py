"""Which channels and roles of the Discord server stand for what."""

from dataclasses import dataclass
from typing import Self

from projects.settings import Settings


@dataclass(frozen=True)
class Server:
    """Ids on Discord; 0 where nothing stands for it."""

    guild: int
    proposals: int
    review: int
    announcements: int
    record: int
    reviewer_role: int
    moderator_role: int
    admin_role: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """As the settings say."""
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
