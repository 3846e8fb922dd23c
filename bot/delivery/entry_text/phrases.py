"""Phrases that the texts of all kinds of entries share. What members typed is escaped and bounded here."""

from collections.abc import Mapping
from typing import Any

from bot import text
from broker.allocations.units import Unit

LONGEST_QUOTE = 900


def by(payload: Mapping[str, Any]) -> str:
    """Who made the entry, in bold; “The lab” where no person did."""
    person = payload.get("by")
    return "The lab" if person is None else f"**{text.line(person['name'], 80)}**"


def unit(payload: Mapping[str, Any]) -> Unit:
    """What the pool counts that the entry concerns, which the outbox has noted."""
    return Unit(payload.get("unit", Unit.GPU.value))


def line(value: object) -> str:
    """A value as one short line."""
    return text.line(str(value), 120)


def quoted(said: str, label: str = "") -> str:
    """A block quote on lines of its own, under its label where it has one; nothing where nothing was said."""
    if not said.strip():
        return ""
    return f"\n{label}\n{text.quote(said, LONGEST_QUOTE)}" if label else f"\n{text.quote(said, LONGEST_QUOTE)}"


def why(payload: Mapping[str, Any]) -> str:
    """The reason that was given, as a block quote; nothing where none was."""
    return text.local_times(quoted(str(payload.get("why", ""))))
