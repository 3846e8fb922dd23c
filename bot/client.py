"""The bot: stock discord.py with the commands and the delivery. `run` starts it."""

import asyncio
import contextlib
import hashlib
import json
import signal
import sys
from typing import Any

import aiohttp
import discord
import structlog
import yarl
from discord import app_commands
from discord.gateway import DiscordWebSocket
from discord.http import Route
from sqlalchemy.orm import Session

from bot import buttons, errors, text
from bot.app import App, Interaction, begin
from bot.buttons import Button
from bot.commands import form, last_question
from bot.commands.allocation import buttons as allocation_buttons
from bot.commands.allocation.commands import allocation
from bot.commands.catalogue.commands import catalogue_group
from bot.commands.cluster import cluster_group
from bot.commands.form import answer_closed
from bot.commands.last_question import DoIt
from bot.commands.project import buttons as project_buttons
from bot.commands.project.commands import project
from bot.commands.project.put_on_record import put_on_record
from bot.commands.run import buttons as run_buttons
from bot.commands.run.commands import run as run_group
from bot.commands.run.comparison_answers import PostComparison
from bot.commands.stoa import buttons as stoa_buttons
from bot.commands.stoa import setup as setting_up
from bot.commands.stoa.commands import stoa
from bot.commands.study import study_group
from bot.delivery.loop import Delivery
from bot.server import CHANNELS, ROLES, Server
from bot.tables import DiscordCommands
from projects import cleaning
from projects import log as log_format
from projects.db.database import Database
from projects.errors import AwayError
from projects.settings import Settings

LATER = "Stoa cannot reach its database now: type again in a minute or two"

log = structlog.get_logger()


class SetupError(Exception):
    """The bot cannot start; the text says what is missing and what to do."""


class Tree(app_commands.CommandTree[App]):
    """The slash commands, whose errors are all answered by bot/errors.py."""

    async def on_error(self, interaction: Interaction, error: app_commands.AppCommandError) -> None:
        """Answer an error."""
        await errors.answer(interaction, error)

    async def interaction_check(self, interaction: Interaction) -> bool:
        """Clean what was typed, and refuse commands while the server is not set up; `/stoa` always works."""
        _clean(interaction.data)
        begin(interaction)
        app = interaction.client
        if interaction.type is discord.InteractionType.autocomplete and not await app.answers():
            await _suggest_later(interaction)
            return False
        if not app.problem or getattr(interaction.command, "root_parent", None) is stoa:
            return True
        try:
            await app.reload_server()
        except AwayError as away:
            if interaction.type is discord.InteractionType.autocomplete:
                await _suggest_later(interaction)
            else:
                await errors.answer(interaction, away)
            return False
        if app.problem and interaction.type is discord.InteractionType.application_command:
            await errors.reply(interaction, text.escape(not_working(app.problem)))
        return not app.problem


async def _suggest_later(interaction: Interaction) -> None:
    """Say as the only suggestion that the database is away; what it stands for fits the option and nothing there is."""
    number = _focused(interaction.data) != discord.AppCommandOptionType.string.value
    choice: app_commands.Choice[Any] = app_commands.Choice(name=LATER, value=0 if number else "-")
    try:
        await interaction.response.autocomplete([choice])
    except (discord.HTTPException, *errors.BROKEN) as error:
        await errors.answer(interaction, error)


def _focused(data: Any) -> int | None:
    """The type of the option that is being typed, at any depth of an interaction's data."""
    for option in data.get("options", ()) if isinstance(data, dict) else ():
        if option.get("focused"):
            return int(option["type"])
        if (found := _focused(option)) is not None:
            return found
    return None


class Bot(App):
    """The client with its commands, its buttons and its delivery."""

    def __init__(self, settings: Settings, db: Database) -> None:
        super().__init__(settings, db)
        self.tree = Tree(self)
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._delivery: asyncio.Task[None] | None = None

    async def setup_hook(self) -> None:
        """Register the commands and the buttons."""
        await super().reload_server()
        guild = discord.Object(self.settings.guild_id)
        for group in (project, allocation, run_group, study_group, catalogue_group, cluster_group, stoa):
            self.tree.add_command(group, guild=guild)
        self.tree.add_command(put_on_record, guild=guild)
        for module in (form, last_question, project_buttons, allocation_buttons, run_buttons, stoa_buttons):
            buttons.register(module.HANDLERS)
        self.add_dynamic_items(Button, DoIt, PostComparison)
        await self._register_commands()

    async def _register_commands(self) -> None:
        """Register the commands, unless the server has the same ones. Raises SetupError where the bot may not."""
        guild = discord.Object(self.settings.guild_id)
        definition = [command.to_dict(self.tree) for command in self.tree.get_commands(guild=guild)]
        digest = hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()
        key = (str(self.application_id), str(guild.id))
        try:
            there = {command.name for command in await self.tree.fetch_commands(guild=guild)}
            if there == {command["name"] for command in definition} and await self.read(_registered, key) == digest:
                return
            await self.tree.sync(guild=guild)
        except discord.Forbidden as error:
            raise SetupError(_not_invited(self.settings)) from error
        await self.write(_register, key, digest)
        log.info("commands registered", count=len(definition))

    async def on_interaction(self, interaction: Interaction) -> None:
        """Answer a form or a button that discord.py no longer knows."""
        await answer_closed(interaction)

    async def on_ready(self) -> None:
        """Start delivering, if the server is there."""
        self._begin()

    async def on_guild_available(self, guild: discord.Guild) -> None:
        """Start delivering, and register the commands: Discord drops them when the bot is removed from the server."""
        self._begin()
        if guild.id == self.settings.guild_id:
            try:
                await self._register_commands()
            except (SetupError, AwayError, discord.DiscordException, *errors.BROKEN) as error:
                log.warning("the commands cannot be registered; a restart tries again", reason=str(error))

    async def on_guild_join(self, guild: discord.Guild) -> None:
        """Start again where the bot is invited again."""
        await self.on_guild_available(guild)

    async def on_guild_channel_delete(self, channel: discord.abc.GuildChannel) -> None:
        """Check the server, if one of the lab's own channels was deleted, so that commands say so."""
        if channel.id in {getattr(self.server, name) for name in CHANNELS}:
            await self.reload_server()

    async def on_guild_role_delete(self, role: discord.Role) -> None:
        """Check the server, if one of the lab's own roles was deleted."""
        if role.id in {getattr(self.server, name) for name in ROLES}:
            await self.reload_server()

    async def reload_server(self) -> None:
        """Read again what the admins have chosen, and start delivering if nothing else is missing."""
        await super().reload_server()
        self._begin()

    async def on_error(self, event_method: str, /, *args: Any, **kwargs: Any) -> None:
        """Log an error of an event's handler; that the database is away is logged by itself.

        What a handler still does while the bot disconnects fails for that reason alone.
        """
        error = sys.exception()
        if not self.is_closed() and not isinstance(error, AwayError):
            log.error("an event could not be handled", event_name=event_method, exc_info=error)

    def _begin(self) -> None:
        """Start the delivery, once the server is there and set up."""
        guild = self.get_guild(self.settings.guild_id)
        if guild is not None and guild.unavailable:
            return
        try:
            problem = check_server(guild, self.settings, self.server)
        except SetupError as error:
            if self._delivery is None and not self.failure.done():
                self.failure.set_exception(error)
            if self._delivery is None or guild is None:
                return
            problem = setting_up.problem(guild, self.server)
        if problem:
            if problem != self.problem:
                log.warning(not_working(problem))
            self.problem = problem
            return
        self.problem = ""
        if self._delivery is None:
            log.info("ready", name=str(self.user))
            self._delivery = asyncio.create_task(Delivery(self).run(), name="delivery")

    async def close(self) -> None:
        """Stop the delivery, then disconnect."""
        if self._delivery is not None:
            self._delivery.cancel()
            with contextlib.suppress(asyncio.CancelledError, AwayError):
                await self._delivery
            self._delivery = None
        await super().close()


def _clean(data: Any) -> None:
    """Clean every text of a command in place, at any depth: options as typed, and the names of people and files."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        if isinstance(value, str):
            data[key] = cleaning.visible(value)
        else:
            _clean(value)


def check_server(guild: discord.Guild | None, settings: Settings, server: Server) -> str:
    """What `/stoa setup` must fix, or an empty text. Raises SetupError for what only the operator can fix."""
    if guild is None:
        raise SetupError(_not_invited(settings))
    if server.unset or server.by_admins:
        return setting_up.problem(guild, server)
    for name in CHANNELS:
        if not isinstance(guild.get_channel(getattr(server, name)), discord.TextChannel):
            variable = f"STOA_{name.upper()}_CHANNEL_ID"
            raise SetupError(f"{variable} names no text channel that the bot can see: set it to one's id.")
    if guild.get_role(server.reviewer_role) is None:
        raise SetupError("STOA_REVIEWER_ROLE_ID names no role of the server: set it to the id of the reviewers' role.")
    return setting_up.problem(guild, server)


def not_working(problem: str) -> str:
    """The sentence that the log and anybody who uses a command get."""
    return f"Stoa does not work in this server now: {problem} An admin can fix that with /stoa setup."


def run(settings: Settings) -> None:
    """Run the bot until SIGTERM or SIGINT. Exits with one sentence and status 1 where it cannot start."""
    log_format.configure()
    try:
        asyncio.run(_serve(settings))
    except SetupError as error:
        raise SystemExit(str(error)) from error
    except AwayError as error:
        raise SystemExit("The database does not answer: start it, or correct STOA_DATABASE_URL.") from error
    except (aiohttp.ClientError, OSError) as error:
        raise SystemExit(
            f"Discord cannot be reached ({error}): look at the network, then start the bot again."
        ) from error
    except discord.LoginFailure as error:
        raise SystemExit(
            "Discord refuses the token: set STOA_DISCORD_TOKEN to the bot's, from its page Bot."
        ) from error


async def _serve(settings: Settings) -> None:
    token = settings.discord_token.get_secret_value()
    if not token:
        raise SetupError(
            "STOA_DISCORD_TOKEN is not set: create a bot at discord.com/developers and put its token there."
        )
    if settings.discord_api:
        Route.BASE = f"{settings.discord_api.rstrip('/')}/api/v10"
    if settings.discord_gateway:
        DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(settings.discord_gateway)
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    db = Database(settings.database)
    try:
        async with Bot(settings, db) as bot:
            served = asyncio.ensure_future(bot.start(token))
            stop = asyncio.ensure_future(asked_to_stop.wait())
            parts: set[asyncio.Future[Any]] = {served, stop, bot.failure}
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if served not in done:
                await bot.close()
                await asyncio.gather(served, return_exceptions=True)
            for part in done:
                part.result()
    finally:
        db.close()


def _not_invited(settings: Settings) -> str:
    return (
        f"The bot is not in the server {settings.guild_id}: invite it with the scopes bot and applications.commands, "
        "or correct STOA_GUILD_ID."
    )


def _registered(session: Session, key: tuple[str, str]) -> str | None:
    row = session.get(DiscordCommands, key)
    return None if row is None else row.digest


def _register(session: Session, key: tuple[str, str], digest: str) -> None:
    session.merge(DiscordCommands(application_id=key[0], guild_id=key[1], digest=digest))
