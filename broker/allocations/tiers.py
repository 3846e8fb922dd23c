"""Tiers: how many reviewers a decision on GPU time takes, by what a project is granted within a period."""

from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy.orm import Session

from projects import policies


@dataclass(frozen=True)
class Tiers:
    """The bounds of the tiers, in GPU-hours.

    Policy grants a project's first request of up to `starter_hours`, and one person's requests so once in
    `starter_period_days`. One reviewer decides up to `one_reviewer_hours`,
    two decide above. Above `halves_hours` a grant comes in two halves. Both bounds hold for all that a project is
    granted within `days` days, so that several small requests pass no bound that one large request does not.
    """

    starter_hours: float = 1
    one_reviewer_hours: float = 100
    halves_hours: float = 1000
    days: int = 30
    starter_period_days: int = 30

    @property
    def starter(self) -> int:
        """The most GPU-seconds of a starter grant."""
        return round(self.starter_hours * 3600)

    @property
    def one_reviewer(self) -> int:
        """The most GPU-seconds that one reviewer grants alone."""
        return round(self.one_reviewer_hours * 3600)

    @property
    def period(self) -> timedelta:
        """The time within which a project's grants add up."""
        return timedelta(days=self.days)

    @property
    def halves(self) -> int:
        """The most GPU-seconds that are granted in one piece."""
        return round(self.halves_hours * 3600)


def current(session: Session) -> Tiers:
    """The tiers by the present policies."""
    now = policies.current(session)
    return Tiers(now.starter_hours, now.one_reviewer_hours, now.halves_hours, now.tier_days, now.starter_period_days)
