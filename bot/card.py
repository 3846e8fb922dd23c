"""What all cards share: messages that show how something stands, and are edited in place."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from discord import ui

from bot import text

# Okabe–Ito, as in the charts.
GREY, BLUE, SKY, GREEN, ORANGE, VERMILION = 0x8A8F98, 0x0072B2, 0x56B4E9, 0x009E73, 0xE69F00, 0xD55E00


class Card(ui.LayoutView):
    """A Components V2 message: one container. `marker` is its last line of text, by which it is found again."""

    def __init__(self, *parts: ui.Item[Any], colour: int, marker: str) -> None:
        super().__init__(timeout=None)
        self.marker = marker
        self.add_item(ui.Container(*parts, accent_colour=colour))

    @property
    def digest(self) -> str:
        """A digest of all that the card shows; its picture counts by name."""
        components: list[dict[str, Any]] = self.to_components()  # type: ignore[no-untyped-call]
        return hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()


def texts(lines: Sequence[str], marker: str) -> ui.Item[Any]:
    said = text.bounded("\n".join(lines), text.CARD - text.length(marker) - 1)
    return ui.TextDisplay(f"{said}\n{marker}")
