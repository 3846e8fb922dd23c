"""The table that takes a kind of entry to the function which words it."""

from collections.abc import Callable, Mapping
from typing import Any

from bot.delivery.entry_text.phrases import by, line, quoted

Payload = Mapping[str, Any]
Text = Callable[[Payload], str]

TEXTS: dict[str, Text] = {}


def entry(kind: str) -> Callable[[Text], Text]:
    """Register the decorated function as the text of the entries of this kind."""

    def register(function: Text) -> Text:
        assert kind not in TEXTS, f"two texts for entries of the kind {kind}"
        TEXTS[kind] = function
        return function

    return register


def general(kind: str) -> Text:
    """A text for entries of a kind that has none of its own: who did what, and why."""
    return lambda p: f"{by(p)}: {line(kind.replace('.', ' '))}.{quoted(str(p.get('why', '')))}"
