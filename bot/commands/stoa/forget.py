"""`/stoa forget`: the form of its reason, and the list of texts from which the admin chooses first."""

import math
from collections.abc import Awaitable, Callable
from typing import Any

import discord
from discord import ui

from bot import errors, kept_forms, text
from bot.app import Interaction, actor, take
from bot.cards import card
from bot.commands.form import Form, long
from bot.commands.last_question import NO_WAY_BACK
from bot.commands.reason_form import BlankingForm
from broker.publishing import forgetting
from broker.publishing.forgetting import Found
from projects.text import USUAL

A_PAGE = 8
"""The texts that a page shows."""
PATIENCE = 12 * 3600
"""Seconds after the last press for which the list works; each press lets it be edited again."""


class ForgetForm(Form):
    """The reason why a person is forgotten. What is blanked, and a list of texts that may name them, come next."""

    def __init__(self, discord_id: str) -> None:
        self.discord_id, self.said = discord_id, long(USUAL, BlankingForm.hint)
        super().__init__("Forget a person", {BlankingForm.label: self.said})

    async def answer(self, interaction: Interaction) -> None:
        """Show what is blanked and the texts that may name the person; a button of this list forgets them."""
        found = await interaction.client.read(forgetting.find, actor(interaction), self.discord_id)
        decision = Decision(self.discord_id, self.said.value, found)
        await errors.again(lambda: interaction.edit_original_response(view=decision))


class _Act(ui.Button["Decision"]):
    """A button of the list."""

    def __init__(
        self,
        label: str,
        act: Callable[[Interaction], Awaitable[None]],
        style: discord.ButtonStyle = discord.ButtonStyle.secondary,
        *,
        disabled: bool = False,
    ) -> None:
        super().__init__(label=label, style=style, disabled=disabled)
        self.act = act

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        """Call the button's act."""
        await self.act(interaction)


class _Pick(ui.Select["Decision"]):
    """The choice among the texts of a page."""

    async def callback(self, interaction: discord.Interaction[Any]) -> None:
        """Keep what is chosen."""
        if self.view is not None:
            await self.view.pick(interaction, {option.value for option in self.options}, set(self.values))


class Decision(ui.LayoutView):
    """The texts of people that name a person, in pages, and which of them are chosen to be changed: none at first."""

    def __init__(self, discord_id: str, reason: str, found: Found) -> None:
        super().__init__(timeout=PATIENCE)
        self.discord_id, self.reason, self.found = discord_id, reason, found.mentions
        self.repositories = found.repositories
        self.page, self.chosen = 0, set[str]()
        # The buttons stay the same: a press of a new one is lost until Discord has answered the edit that shows it.
        self._said: ui.TextDisplay[Any] = ui.TextDisplay("")
        self._choice: ui.ActionRow[Any] = ui.ActionRow()
        self._pick = self._new_pick()
        self._turn = _Act("Previous", self._previous), _Act("Next", self._next)
        self._draw()
        forget = _Act("Forget the person", self._forget, discord.ButtonStyle.danger)
        end = ui.ActionRow(forget, _Act("Cancel", self._cancel))
        parts: list[ui.Item[Any]] = []
        if self.found.texts:
            turn = ui.ActionRow(*self._turn, _Act("All", self._all), _Act("None", self._none))
            parts = [self._choice, turn]
        self.add_item(ui.Container(self._said, *parts, end, accent_colour=card.ORANGE))

    def _draw(self) -> None:
        texts, pages = self.found.texts, math.ceil(len(self.found.texts) / A_PAGE)
        first = self.page * A_PAGE
        shown = texts[first : first + A_PAGE]
        said = [
            "## Forget a person",
            f"{text.count(self.found.entries, 'entry refers', 'entries refer')} to the person and will be blanked. "
            f"{text.count(len(texts), 'other text')} may name the person, or only contain the same word. "
            f"Chosen to be changed: **{len(self.chosen):,} of {len(texts):,}**. Nothing has been changed yet.\n"
            f"{NO_WAY_BACK}",
        ]
        if self.repositories:
            named = text.count(len(self.repositories), "repository", "repositories")
            said.append(
                f"On the Hub, the model cards of {named} may name the person: {forgetting.listed(self.repositories)}."
            )
        said += [
            f"{'☑' if place.key in self.chosen else '☐'} **{number}** {text.line(place.where, 80)}: "
            f"{text.line(place.said, 300)}"
            for number, place in enumerate(shown, first + 1)
        ]
        if texts:
            said.append(f"-# Page {self.page + 1} of {pages}")
        self._said.content = "\n".join(said)
        self._pick.options = [
            discord.SelectOption(
                label=text.bounded(f"{number} · {place.where}", 100),
                value=place.key,
                default=place.key in self.chosen,
            )
            for number, place in enumerate(shown, first + 1)
        ]
        self._pick.max_values = len(shown)
        previous, following = self._turn
        previous.disabled, following.disabled = self.page == 0, self.page + 1 >= pages

    async def pick(self, interaction: Interaction, of: set[str], chosen: set[str]) -> None:
        """Choose these of the texts of a page, and no others of it."""
        self.chosen = self.chosen - of | chosen
        await self._show(interaction)

    async def interaction_check(self, interaction: discord.Interaction[Any], /) -> bool:
        """Take the press."""
        take(interaction)
        return True

    async def on_error(self, interaction: discord.Interaction[Any], error: Exception, /, *_: Any) -> None:
        """Answer an error as everywhere else."""
        await errors.answer(interaction, error)

    def _new_pick(self) -> _Pick:
        """A page has a select of its own, so that a late choice from the page before is lost and changes no other."""
        pick = _Pick(placeholder="Texts to change", min_values=0)
        pick.required = False  # Discord refuses a select that is required and has no least number
        self._choice.clear_items().add_item(pick)
        return pick

    async def _previous(self, interaction: Interaction) -> None:
        await self._turn_to(interaction, self.page - 1)

    async def _next(self, interaction: Interaction) -> None:
        await self._turn_to(interaction, self.page + 1)

    async def _turn_to(self, interaction: Interaction, page: int) -> None:
        if 0 <= page * A_PAGE < len(self.found.texts):  # a second press may come before the button is disabled
            self.page, self._pick = page, self._new_pick()
        await self._show(interaction)

    async def _all(self, interaction: Interaction) -> None:
        self.chosen = {place.key for place in self.found.texts}
        await self._show(interaction)

    async def _none(self, interaction: Interaction) -> None:
        self.chosen = set()
        await self._show(interaction)

    async def _show(self, interaction: Interaction) -> None:
        self._draw()
        await interaction.response.edit_message(view=self)

    async def _forget(self, interaction: Interaction) -> None:
        await interaction.response.defer()
        app, who = interaction.client, actor(interaction)
        done = await app.write(kept_forms.forget, who, self.discord_id, self.reason, self.chosen)
        chosen = f"{text.count(len(self.chosen), 'text was', 'texts were')} chosen."
        said = f"{text.count(done.entries, 'entry is', 'entries are')} blanked; their posts will follow. {chosen}"
        await self._end(interaction, " ".join(filter(None, (said, forgetting.told(done.repositories)))))

    async def _cancel(self, interaction: Interaction) -> None:
        await interaction.response.defer()
        await self._end(interaction, "Nothing was changed.")

    async def _end(self, interaction: Interaction, said: str) -> None:
        self.stop()
        end = ui.LayoutView(timeout=None)
        end.add_item(ui.TextDisplay(said))
        await errors.again(lambda: interaction.edit_original_response(view=end))
