"""The file of a message that an edit keeps."""

from collections.abc import Iterator
from typing import Any

import discord
import yarl
from discord import ui


class KeptFile(discord.Attachment):
    """A file that an edit keeps, of which Discord asks for the id and the name.

    An edit of a Components V2 message that shows `attachment://name` is refused where it does not list the file.
    """

    def __init__(self, attachment_id: int, filename: str) -> None:
        self.id, self.filename = attachment_id, filename

    def to_dict(self) -> Any:
        return {"id": self.id, "filename": self.filename}


def find(message: discord.Message, name: str) -> KeptFile | None:
    """The file of that name which the message's components show: its own list leaves those out."""
    for media in _shown(message):
        if media.attachment_id is not None and yarl.URL(media.url).name == name:
            return KeptFile(media.attachment_id, name)
    return None


def _shown(message: discord.Message) -> Iterator[discord.UnfurledMediaItem]:
    for item in ui.LayoutView.from_message(message).walk_children():
        if isinstance(item, ui.MediaGallery):
            yield from (shown.media for shown in item.items)
        elif isinstance(item, ui.Thumbnail | ui.File):
            yield item.media
