"""A small bot on stock discord.py, pointed at the loopback Discord, for the tests of the sandbox."""

import asyncio
import contextlib
import io
import re
from typing import Any

import discord
import yarl
from discord import app_commands, ui

from tests.patience import PATIENCE

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


class Join(ui.DynamicItem[ui.Button[Any]], template=r"join:(?P<number>\d+)"):
    def __init__(self, number: int) -> None:
        super().__init__(ui.Button(label="Join", custom_id=f"join:{number}"))
        self.number = number

    @classmethod
    async def from_custom_id(cls, interaction: discord.Interaction, item: Any, match: re.Match[str]) -> "Join":
        return cls(int(match["number"]))

    async def callback(self, interaction: discord.Interaction) -> None:
        await interaction.response.send_message(f"{interaction.user.display_name} joined {self.number}", ephemeral=True)


class Card(ui.LayoutView):
    """A Components V2 card with a picture and a button."""

    def __init__(self, text: str, picture: str, alt: str) -> None:
        super().__init__(timeout=None)
        gallery: ui.MediaGallery[Any] = ui.MediaGallery(
            discord.MediaGalleryItem(f"attachment://{picture}", description=alt)
        )
        row: ui.ActionRow[Any] = ui.ActionRow()
        row.add_item(Join(7))
        self.add_item(ui.Container(ui.TextDisplay(text), gallery, row, accent_colour=0x5865F2))


class Board(ui.View):
    """A select that changes its own message, and a button that takes its time."""

    @ui.select(placeholder="Pick", options=[discord.SelectOption(label=n, value=n[0]) for n in ("Alpha", "Beta")])
    async def pick(self, interaction: discord.Interaction, select: ui.Select[Any]) -> None:
        await interaction.response.edit_message(content=f"picked {select.values[0]}")

    @ui.button(label="Work")
    async def work(self, interaction: discord.Interaction, button: ui.Button[Any]) -> None:
        await interaction.response.defer()
        await interaction.followup.send("worked", ephemeral=True)

    @ui.button(label="Rest", disabled=True)
    async def rest(self, interaction: discord.Interaction, button: ui.Button[Any]) -> None: ...


def picture(name: str) -> discord.File:
    return discord.File(io.BytesIO(PNG), name)


class Propose(ui.Modal, title="A proposal"):
    heading: ui.Label[Any] = ui.Label(text="Title", component=ui.TextInput(max_length=20))
    field: ui.Label[Any] = ui.Label(
        text="Field",
        description="Where it belongs",
        component=ui.Select(options=[discord.SelectOption(label=n, value=n[0].lower()) for n in ("Models", "Data")]),
    )
    note: ui.Label[Any] = ui.Label(
        text="Note", component=ui.TextInput(style=discord.TextStyle.paragraph, required=False)
    )

    async def on_submit(self, interaction: discord.Interaction) -> None:
        title, chosen, note = self.heading.component, self.field.component, self.note.component
        assert isinstance(title, ui.TextInput)
        assert isinstance(chosen, ui.Select)
        assert isinstance(note, ui.TextInput)
        await interaction.response.send_message(f"{title.value}|{chosen.values[0]}|{note.value}", ephemeral=True)


class Bot(discord.Client):
    def __init__(self, guild_id: int, **options: Any) -> None:
        options.setdefault("intents", discord.Intents.default())
        super().__init__(guild_ready_timeout=0.05, allowed_mentions=discord.AllowedMentions.none(), **options)
        self.tree = app_commands.CommandTree(self)
        self.home = discord.Object(guild_id)
        self.seen: list[discord.Message] = []
        self.resumed = asyncio.Event()
        self.is_up = asyncio.Event()
        self.hurry = asyncio.Event()
        self.connects = 0

    async def setup_hook(self) -> None:
        self.add_dynamic_items(Join)
        _commands(self.tree)
        self.tree.copy_global_to(guild=self.home)
        await self.tree.sync(guild=self.home)

    async def on_ready(self) -> None:
        self.connects += 1
        self.is_up.set()

    async def on_resumed(self) -> None:
        self.resumed.set()

    async def on_message(self, message: discord.Message) -> None:
        self.seen.append(message)

    def text_channel(self, name: str) -> discord.TextChannel:
        channel = discord.utils.get(self.guilds[0].text_channels, name=name)
        assert channel is not None
        return channel


def _commands(tree: app_commands.CommandTree[Bot]) -> None:
    project = app_commands.Group(name="project", description="Projects")

    @project.command(description="Propose one")
    async def propose(interaction: discord.Interaction) -> None:
        await interaction.response.send_modal(Propose())

    @project.command(description="Say what was understood")
    async def scope(
        interaction: discord.Interaction,
        goal: app_commands.Range[str, 3, 20],
        hours: app_commands.Range[int, 1, 100],
        lead: discord.Member,
        place: discord.TextChannel | None = None,
    ) -> None:
        roles = ",".join(role.name for role in lead.roles[1:])
        where = place.name if place else "-"
        await interaction.response.send_message(f"{goal} {hours} {lead.display_name}({roles}) {where}")

    tree.add_command(project)

    @tree.command(description="Takes its time")
    async def slow(interaction: discord.Interaction[Bot], seconds: float = 0.2, answer: bool = True) -> None:
        if not answer:
            return
        await interaction.response.defer(ephemeral=True, thinking=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(interaction.client.hurry.wait(), seconds)
        await interaction.edit_original_response(content="Done")
        await interaction.followup.send("And a file", file=picture("more.png"), ephemeral=True)

    @tree.command(description="Launches a recipe")
    async def run(interaction: discord.Interaction, recipe: str, gpus: int = 1) -> None:
        await interaction.response.send_message(recipe, ephemeral=True)

    @run.autocomplete("recipe")
    async def recipes(interaction: discord.Interaction, typed: str) -> list[app_commands.Choice[str]]:
        return [app_commands.Choice(name=n.title(), value=n) for n in ("demo", "debug", "large") if n.startswith(typed)]

    @tree.command(description="Answers twice")
    async def twice(interaction: discord.Interaction) -> None:
        await interaction.response.send_message("first", ephemeral=True)
        try:
            await interaction.client.http.request(
                discord.http.Route("POST", f"/interactions/{interaction.id}/{interaction.token}/callback"),
                json={"type": 4, "data": {"content": "second"}},
            )
        except discord.HTTPException as error:
            await interaction.followup.send(f"{error.status} {error.code}", ephemeral=True)


async def start(info: dict[str, Any], **options: Any) -> Bot:
    """A bot that is logged in and ready on the sandbox that `info` describes."""
    discord.http.Route.BASE = f"{info['discord']}/api/v10"
    discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(info["gateway"])
    bot = Bot(int(info["guild_id"]), **options)
    task = asyncio.create_task(bot.start(info["bot_token"]))
    ready = asyncio.create_task(bot.is_up.wait())
    done, _ = await asyncio.wait({task, ready}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    if ready in done:
        return bot
    ready.cancel()
    await bot.close()
    if task in done:
        task.result()
    raise TimeoutError(f"The bot did not get ready within {PATIENCE:g} s.")
