"""What all cards share. A card is a message that shows the present state of something, and is edited in place."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from discord import ui

from bot import text
from bot.mention import Mention

# Okabe and Ito's colours, as in the plots.
GREY, BLUE, SKY, GREEN, ORANGE, VERMILION = 0x8A8F98, 0x0072B2, 0x56B4E9, 0x009E73, 0xE69F00, 0xD55E00


class Card(ui.LayoutView):
    """A Components V2 message with one container. `marker` is its last line of text, by which it is found again.

    `mention` is who is pinged when it is first sent; its text holds the mention.
    """

    def __init__(self, *parts: ui.Item[Any], colour: int, marker: str, mention: Mention | None = None) -> None:
        super().__init__(timeout=None)
        self.marker, self.mention = marker, mention
        self.add_item(ui.Container(*parts, accent_colour=colour))

    @property
    def digest(self) -> str:
        """A SHA-256 of everything that the card shows, with its picture's file name."""
        components: list[dict[str, Any]] = self.to_components()  # type: ignore[no-untyped-call]
        return hashlib.sha256(json.dumps(components, sort_keys=True).encode()).hexdigest()


def sections(blocks: Sequence[Sequence[str] | ui.Item[Any]], marker: str) -> list[ui.Item[Any]]:
    """The components of a card: blocks of lines with rules between them, and other items where they are given.

    The last line of text is the marker. The blocks share the 4,000 characters of a message; where they have more, the
    later ones are cut.
    """
    parts: list[ui.Item[Any]] = []
    room = text.CARD - text.length(marker) - 1
    for block in blocks:
        if isinstance(block, ui.Item):
            parts.append(block)
            continue
        said = text.bounded("\n".join(line for line in block if line), room) if room > 1 else ""
        if not said:
            continue
        room -= text.length(said)
        if parts and isinstance(parts[-1], ui.TextDisplay):
            parts.append(ui.Separator())
        parts.append(ui.TextDisplay(said))
    if parts and isinstance(parts[-1], ui.TextDisplay):
        parts[-1].content += f"\n{marker}"
    else:
        parts.append(ui.TextDisplay(marker))
    return parts


def texts(lines: Sequence[str], marker: str) -> ui.Item[Any]:
    """One block of lines that ends with the marker, cut to the 4,000 characters of a message."""
    said = text.bounded("\n".join(lines), text.CARD - text.length(marker) - 1)
    return ui.TextDisplay(f"{said}\n{marker}")
