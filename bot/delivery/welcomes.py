"""The pinned welcomes for newcomers, where `/stoa setup` has chosen a channel for them; edits keep them up to date."""

import time

import discord
import structlog

from bot.app import App
from bot.cards.card import Card
from bot.cards.welcome_card import general_welcome, proposals_welcome
from bot.delivery import edit_budget, outbox
from bot.delivery.edit_budget import OldMessageError
from bot.delivery.sender import Sender
from bot.server import Server

PURPOSES = ("proposals", "general")

log = structlog.get_logger()


class Welcomes:
    """Keeps the welcomes as the server is set up now. `due` says that one may have to be posted, edited or pinned."""

    def __init__(self, app: App, sender: Sender) -> None:
        self.app, self.sender = app, sender
        self._shown: Server | None = None
        self._rests_until = 0.0

    @property
    def due(self) -> bool:
        """Whether the server was set up otherwise since the welcomes were kept."""
        return self.app.server != self._shown and time.monotonic() >= self._rests_until

    async def refresh(self) -> None:
        """Post, edit and pin the welcomes, where the admins have set the server up."""
        if not self.due:
            return
        server = self.app.server
        cards = {
            "proposals": proposals_welcome(min_people=self.app.settings.min_people),
            "general": general_welcome(proposals=server.proposals),
        }
        for purpose in PURPOSES if server.by_admins else ():
            channel_id = getattr(server, purpose)
            try:
                if channel_id:
                    await self._keep(f"welcome:{purpose}", str(channel_id), cards[purpose])
            except OldMessageError as error:
                self._rests_until = time.monotonic() + error.retry_after
                return
            except (discord.Forbidden, discord.NotFound) as error:  # nothing else waits for a welcome
                log.warning("newcomers cannot be welcomed in a channel", channel=channel_id, reason=error.text)
        self._shown = server

    async def _keep(self, key: str, channel_id: str, card: Card) -> None:
        row = await self.app.read(outbox.message, key)
        if row is not None and row.channel_id != channel_id:  # it has moved: the old one would mislead
            await self.app.write(outbox.forget, key)
            if row.message_id is not None and not row.gone:
                try:
                    await self.sender.rewrite(row, f"➡️ Newcomers are welcomed in <#{channel_id}> now.")
                except discord.DiscordException as error:
                    log.warning("a welcome that has moved cannot be edited", key=key, reason=str(error))
            row = None
        if row is None or row.message_id is None:
            await self.sender.send_card(key, channel_id, card)
        elif not row.gone and row.digest != card.digest:
            self.sender.budget.edited(key, channel_id, age=edit_budget.age(row.message_id))
            await self.sender.edit_card(row, card, "", None)
        await self.sender.pin(key)
