"""The private answer that compares runs, and its button that posts it in the channel."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Self

import discord
from discord import ui

from bot import errors, text
from bot.app import Interaction, take
from bot.cards.card import BLUE, Card, sections
from bot.commands.run.answers import short, show
from broker.plots.curve import Comparison, Standings
from broker.plots.curve_of_run import to_compare
from broker.runs import comparison as comparing
from broker.runs.comparison import Difference
from broker.runs.runs import RunKind, RunView
from projects.cleaning import visible
from projects.errors import ConflictError, ForbiddenError, NotFoundError

DIFFERENCES_SHOWN = 12
TASKS_SHOWN = 4
VALUE = 14
"""The most characters of a value in the table of what differs."""


def _cell(value: str) -> str:
    """A value of a configuration in the table; a long one without its middle, as values often begin alike."""
    line = " ".join(visible(value).split())
    return line if len(line) <= VALUE else f"{line[: VALUE // 3]}…{line[-(VALUE - VALUE // 3 - 1) :]}"


@dataclass(frozen=True)
class Compared:
    """Runs that are compared, with the name of the file of their picture."""

    views: Sequence[RunView]
    differences: Sequence[Difference]
    standings: Standings
    file: str


async def comparison(
    interaction: Interaction, views: Sequence[RunView], *, post: bool = True
) -> tuple[Card, discord.File]:
    """The card that compares runs, and its picture. Raises NotFoundError where none of them has a curve yet."""
    app = interaction.client
    names = comparing.names(views)
    each = comparing.tokens_a_step(views)
    curves = [
        replace(await app.read(to_compare, view, each), title=f"Run {view.id} · {name}")
        for view, name in zip(views, names, strict=True)
    ]
    if not any(len(curve.loss) > 1 for curve in curves):
        raise NotFoundError("None of these runs has a curve yet; look again once they have trained some steps.")
    differences = await app.read(comparing.differences, views)
    png, standings = await app.renderer.compare(Comparison(curves))
    found = Compared(views, differences, standings, f"runs-{'-'.join(str(view.id) for view in views)}.png")
    return compared(found, post=post), discord.File(io.BytesIO(png), found.file, description=_alt(found))


def compared(compared: Compared, *, post: bool) -> Card:
    """The card that compares runs: one line each, what differs in their configurations, and the picture.

    With `post`, a button posts the same card in the channel.
    """
    views, standings = compared.views, compared.standings
    trained = comparing.trained(views)
    recipes = {view.recipe for view in trained}
    of = f" of {text.code(recipes.pop(), 60)}" if len(recipes) == 1 else ""
    lines = [f"### 📈 Runs {', '.join(str(view.id) for view in views)}{of}"]
    for number, (view, name) in enumerate(zip(views, comparing.names(views), strict=True)):
        if view not in trained:
            lines.append(f"**{view.id}** {text.code(name, 120)} · a model of the Hub")
            continue
        loss, held_out = standings.losses[number], standings.held_out[number]
        said = "no loss yet" if loss is None else f"loss **{loss:.3f}**"
        said += "" if held_out is None else f" · held-out **{held_out:.3f}**"
        lines.append(f"**{view.id}** {text.code(name, 60)} · {said} · {short(view.tokens)} tokens · {view.state}")
    lines.append(f"-# {_equal_tokens(standings)}")
    lines.extend(_evaluated(views))
    marker = "-# Nats per token; lower is better."
    gallery = ui.MediaGallery[Any](
        discord.MediaGalleryItem(f"attachment://{compared.file}", description=_alt(compared))
    )
    table = _differences(trained, compared.differences)
    row = [ui.ActionRow[Any](PostComparison([view.id for view in views]))] if post else []
    return Card(*sections([lines, [table] if table else [], gallery], marker), *row, colour=BLUE, marker=marker)


def _equal_tokens(standings: Standings) -> str:
    """The token count at which the losses are compared."""
    said = (
        f"Losses after {short(standings.tokens)} tokens, which all compared runs have reached, smoothed (median + EMA)"
    )
    if not standings.held_out_tokens:
        return f"{said}."
    same = standings.held_out_tokens == standings.tokens
    return f"{said}; held-out after {'the same' if same else short(standings.held_out_tokens)}, unsmoothed."


def _evaluated(views: Sequence[RunView]) -> Iterator[str]:
    """A line for each task that several of the runs were evaluated on: each run's value at its last such step. A model
    of the Hub may have none."""
    for task, metric in comparing.shared_tasks(views)[:TASKS_SHOWN]:
        found = [
            (view, *max(scored.values.items()))
            for view in views
            for scored in view.evaluations
            if (scored.task, scored.metric) == (task, metric)
        ]
        each = " · ".join(
            f"run {view.id} **{value:.4f}**{f' at step {step:,}' if step or view.kind != RunKind.BASELINE else ''}"
            for view, step, (value, _) in found
        )
        yield f"{text.code(task, 60)} {text.line(metric, 40)}: {each}"


def _differences(views: Sequence[RunView], found: Sequence[Difference]) -> str:
    """A table of what differs in the configurations of runs, as a block of code."""
    if not found:
        return ""
    shown = found[:DIFFERENCES_SHOWN]
    names = [difference.field.rpartition(".")[2] for difference in found]
    rows = [["", *(f"run {view.id}" for view in views)]]
    for difference in shown:
        name = difference.field.rpartition(".")[2]
        field = name if names.count(name) == 1 else difference.field
        rows.append([text.bounded(field, 24), *(_cell(value) for value in difference.values)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip().replace("`", "ˋ")
        for row in rows
    ]
    more = len(found) - len(shown)
    rest = f"\n-# and {text.count(more, 'field')} more; /run config shows all." if more else ""
    return "```\n" + "\n".join(lines) + f"\n```{rest}"


def _alt(compared: Compared) -> str:
    views, standings = compared.views, compared.standings
    told = [
        f"run {view.id} ({name}) {'has no loss yet' if loss is None else f'at {loss:.2f}'}"
        for view, name, loss in zip(views, comparing.names(views), standings.losses, strict=True)
        if view.kind != RunKind.BASELINE
    ]
    models = len(views) - len(told)
    beside = f", beside {text.count(models, 'model')} of the Hub" if models else ""
    after = short(standings.tokens)
    losses = f"The losses of {text.count(len(told), 'run')} over their tokens, nats per token after {after}"
    said = f"{losses}: {'; '.join(told)}{beside}."
    return text.bounded(said, 1000)


class PostComparison(
    ui.DynamicItem[ui.Button[Any]], template=r"post_comparison:(?P<runs>[0-9]{1,9}(-[0-9]{1,9}){1,5})"
):
    """The button that posts a comparison in the channel, whose runs are named in its id."""

    def __init__(self, run_ids: Sequence[int]) -> None:
        named = "-".join(map(str, run_ids))
        super().__init__(ui.Button(label="Post in channel", custom_id=f"post_comparison:{named}"))
        self.run_ids = run_ids

    @classmethod
    async def from_custom_id(
        cls, interaction: discord.Interaction[Any], item: ui.Item[Any], match: re.Match[str]
    ) -> Self:
        """Make the button that was pressed from its id."""
        return cls([int(number) for number in match["runs"].split("-")])

    async def callback(self, interaction: discord.Interaction[Any]) -> Any:
        """Post the comparison as it stands now, and take the button off the private answer."""
        take(interaction)
        try:
            await interaction.response.defer()
            _check_may_write(interaction)
            with _once(0 if interaction.message is None else interaction.message.id):
                await self._post(interaction)
        except Exception as error:
            await errors.answer(interaction, error)

    async def _post(self, interaction: discord.Interaction[Any]) -> None:
        async with interaction.client.dear_turn():
            views = await interaction.client.read(comparing.named, " ".join(map(str, self.run_ids)))
            card, picture = await comparison(interaction, views, post=False)
        await interaction.followup.send(view=card, file=picture)
        with suppress(discord.HTTPException):  # the private answer may have been dismissed
            await show(interaction, card, picture)


_posting: set[int] = set()
"""The private answers whose comparisons are being posted."""


@contextmanager
def _once(message: int) -> Iterator[None]:
    """Post the comparison of a private answer; raises ConflictError while another press does so."""
    if message in _posting:
        raise ConflictError("It is already being posted.")
    _posting.add(message)
    try:
        yield
    finally:
        _posting.discard(message)


def _check_may_write(interaction: discord.Interaction[Any]) -> None:
    """Raise ForbiddenError where the person may not write themselves."""
    may, in_thread = interaction.permissions, isinstance(interaction.channel, discord.Thread)
    if not (may.send_messages_in_threads if in_thread else may.send_messages):
        raise ForbiddenError("You may not write in this channel: compare in the project's channel.")
