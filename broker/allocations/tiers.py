"""Tiers: how much weight a decision on GPU time needs, by its size."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from projects import policies


@dataclass(frozen=True)
class Tiers:
    """The bounds of the tiers, in GPU-hours.

    Up to `starter_hours` a project's first request is granted by policy; up to `one_reviewer_hours` one reviewer
    decides, above two; above `halves_hours` a grant comes in two halves.
    """

    starter_hours: float = 1
    one_reviewer_hours: float = 100
    halves_hours: float = 1000

    @property
    def starter(self) -> int:
        """The most GPU-seconds of a starter grant."""
        return int(self.starter_hours * 3600)

    @property
    def one_reviewer(self) -> int:
        """The most GPU-seconds that one reviewer grants alone."""
        return int(self.one_reviewer_hours * 3600)

    @property
    def halves(self) -> int:
        """The most GPU-seconds that are granted at once and whole."""
        return int(self.halves_hours * 3600)


def current(session: Session) -> Tiers:
    """As the operator's policies have them now."""
    now = policies.current(session)
    return Tiers(now.starter_hours, now.one_reviewer_hours, now.halves_hours)
