"""Answers the errors of all commands, buttons and forms, privately to the person who used them."""

import io
import secrets
from collections.abc import Awaitable, Callable

import aiohttp
import discord
import structlog
from discord import app_commands

from bot import text
from bot.app import Interaction
from projects.errors import AwayError, DomainError

UNANSWERABLE = frozenset({10062, 40060, 10015, 50027})
"""Unknown interaction, already acknowledged, unknown webhook, invalid webhook token: it is too late for an answer."""
BROKEN = (aiohttp.ClientError, OSError)
"""The errors of a broken connection."""

log = structlog.get_logger()


async def answer(
    interaction: Interaction, error: Exception, written: str = "", offer: discord.ui.View | None = None
) -> None:
    """Answer an error: a refusal by the domain or by Discord says what is wrong, any other error apologises.

    The apology has a reference that the log has too. `written` is what the person wrote in a form: they get it back.
    With the refusal, `offer` lets them try again.
    """
    if isinstance(error, app_commands.CommandInvokeError):
        error = error.original
    if isinstance(error.__cause__, AwayError):
        error = error.__cause__
    if isinstance(error, DomainError):
        await reply(interaction, text.escape(str(error)), written, offer)
    elif isinstance(error, app_commands.TransformerError):
        await reply(interaction, f"“{text.line(str(error.value), 100)}” cannot be used there.", written)
    elif isinstance(error, app_commands.AppCommandError):
        await reply(interaction, "This command has changed; please type it again in a moment.", written)
        log.warning("command refused", error=str(error))
    elif isinstance(error, discord.HTTPException) and error.code in UNANSWERABLE:
        log.warning("an answer came too late", code=error.code)
    elif interaction.type is discord.InteractionType.autocomplete:
        log.warning("suggestions did not arrive", error=type(error).__name__)
    else:
        reference = secrets.token_hex(4)
        log.error("a command failed", reference=reference, exc_info=error)
        apology = f"Sorry, something went wrong on our side. The admins find it as `{reference}`."
        await reply(interaction, apology, written)


async def reply(interaction: Interaction, said: str, written: str = "", offer: discord.ui.View | None = None) -> None:
    """Answer an interaction privately, deferred or answered before or not; `written` is attached as a file."""
    try:
        await again(lambda: _say(interaction, text.bounded(said, text.MESSAGE), written, offer))
    except discord.HTTPException as error:
        log.warning("an answer did not arrive", code=error.code, status=error.status)
    except BROKEN as error:  # the error's text may contain the interaction's token
        log.warning("an answer did not arrive", error=type(error).__name__)


async def again(send: Callable[[], Awaitable[object]]) -> None:
    """Send an answer, and send it once more if the connection breaks: what it reports has happened."""
    try:
        await send()
    except BROKEN:
        await send()


async def _say(interaction: Interaction, said: str, written: str, offer: discord.ui.View | None) -> None:
    files = [discord.File(io.BytesIO(written.encode("utf-8", "replace")), "what-you-wrote.txt")] if written else []
    response, view = interaction.response, discord.utils.MISSING if offer is None else offer
    if not response.is_done():
        await response.send_message(said, files=files, view=view, ephemeral=True, suppress_embeds=True)
    elif response.type is discord.InteractionResponseType.deferred_channel_message:
        await interaction.edit_original_response(content=said, attachments=files, view=view)
    else:
        await interaction.followup.send(said, files=files, view=view, ephemeral=True, suppress_embeds=True)
