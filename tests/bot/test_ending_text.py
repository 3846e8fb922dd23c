"""What the question before an end is about: where that changes, a press of its button asks again."""

from datetime import timedelta

import pytest

from bot.commands import ending_text
from broker.reports.endings import Ending
from projects.db.columns import utcnow


def about(first: int, count: int) -> str:
    """What the end of `count` waiting runs is about, the first of them run `first`."""
    return ending_text.about(Ending([], range(first, first + count), False, {}, {}))


def test_few_runs_are_told_apart_and_many_by_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = utcnow().replace(hour=12)
    monkeypatch.setattr(ending_text, "utcnow", lambda: asked)
    assert about(1, 6) != about(2, 6)
    many = about(1, 7)
    assert about(100, 30) == many, "their number never stands still"
    monkeypatch.setattr(ending_text, "utcnow", lambda: asked + timedelta(days=1))
    assert about(1, 7) != many
