"""What is suggested while somebody types a command about runs: choices that say what would come of them."""

from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import discord
from discord.app_commands import Choice
from sqlalchemy.orm import Session
from sqlmodel import col, select

from bot import text
from bot.app import Interaction
from bot.commands import lookup
from bot.tables import DiscordChannel
from broker import catalogue, publications
from broker.allocations import allocations
from broker.allocations.allocations import AllocationView
from broker.allocations.ledger import in_hours
from broker.runs import control, launching, runs
from broker.runs.launching import Order
from broker.runs.runs import ENDED, RunState
from projects.errors import DomainError, NotFoundError

LONGEST = 100
TIME_LIMITS = ("15m", "30m", "1h", "2h", "4h", "8h", "12h", "24h")
NO_RUN = "Name the run in the option “run”, or use this in its thread."
T = TypeVar("T", int, str)


class Meant(NamedTuple):
    """What a command is about, as far as it is typed."""

    project: int | None
    run: int | None


async def run_of(interaction: Interaction, named: int | None) -> int:
    """The run that was named, or the one whose thread this is; raises NotFoundError."""
    if named is not None:
        return named
    found = await _run_here(interaction)
    if found is None:
        raise NotFoundError("Use this in a run's thread, or name the run in the option “run”.")
    return found


async def _run_meant(interaction: Interaction) -> int | None:
    """The run that the command is about, as far as it is typed; None for a command that is about none."""
    if not _is_about_a_run(interaction):
        return None
    named = _whole(_given(interaction, "run"))
    return named if named is not None else await _run_here(interaction)


def _is_about_a_run(interaction: Interaction) -> bool:
    command = interaction.command
    return isinstance(command, discord.app_commands.Command) and command.get_parameter("run") is not None


async def _run_here(interaction: Interaction) -> int | None:
    if not isinstance(interaction.channel, discord.Thread):
        return None
    return await interaction.client.read(_run_in, str(interaction.channel.id))


def _run_in(session: Session, thread_id: str) -> int | None:
    key = session.scalars(
        select(DiscordChannel.key).where(
            DiscordChannel.channel_id == thread_id, col(DiscordChannel.key).startswith("run:")
        )
    ).one_or_none()
    return None if key is None else int(key.partition(":")[2])


def runs_in(
    states: Collection[RunState], *, kept: bool = False
) -> Callable[[Interaction, str], Coroutine[Any, Any, list[Choice[int]]]]:
    """What suggests the newest runs in these states, of the project that the command is about or of all.

    `kept`: only those with a checkpoint on this disk.
    """

    async def found(interaction: Interaction, typed: str) -> list[Choice[int]]:
        project_id = await lookup.project_meant(interaction)
        rows = await interaction.client.read(runs.newest, project_id, states=states, kept=kept)
        named = [(f"{number} · {recipe}, {state}", number) for number, recipe, state in rows]
        fitting = [(name, number) for name, number in named if typed.casefold() in name.casefold()]
        return [Choice(name=text.bounded(name, LONGEST), value=n) for name, n in fitting[: lookup.MOST_CHOICES]]

    return found


any_run = runs_in(tuple(RunState))
kept_run = runs_in(tuple(RunState), kept=True)
unended_run = runs_in(set(RunState) - ENDED)
pausable_run = runs_in((RunState.QUEUED, RunState.STARTING, RunState.RUNNING))
paused_run = runs_in((RunState.PAUSED,))


async def numbers(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """Lines of runs to compare: what is typed, and one more."""
    words = typed.replace(",", " ").split()
    begun, last = (words, "") if not words or typed.endswith((" ", ",")) else (words[:-1], words[-1])
    near = await any_run(interaction, last)
    found = [
        Choice(name=text.bounded(" ".join([*begun, choice.name]), LONGEST), value=" ".join([*begun, str(choice.value)]))
        for choice in near
        if str(choice.value) not in begun
    ]
    whole = " ".join(words)
    own = [Choice(name=text.bounded(f"Compare {whole}", LONGEST), value=whole)] if len(words) > 1 else []
    return [choice for choice in [*own, *found] if len(choice.value) <= LONGEST][: lookup.MOST_CHOICES]


async def recipes(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The recipes whose name fits, and that train on the dataset where one is given."""
    dataset = _word(interaction, "dataset")

    def look(session: Session) -> Sequence[str]:
        return catalogue.by_dataset(session).get(dataset, []) if dataset else catalogue.recipes(session)

    names = await interaction.client.read(look)
    return [Choice(name=name, value=name) for name in names if typed.casefold() in name][: lookup.MOST_CHOICES]


async def datasets(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The datasets of the catalogue with the recipes that train on them; of the recipe's own where one is given."""
    recipe = _word(interaction, "recipe")
    known = await interaction.client.read(catalogue.by_dataset)
    own = {name: by for name, by in known.items() if recipe in by} or known
    return [
        Choice(name=text.bounded(f"{name} · {', '.join(by) or 'no recipe yet'}", LONGEST), value=name)
        for name, by in own.items()
        if typed.casefold() in name and len(name) <= LONGEST
    ][: lookup.MOST_CHOICES]


async def gpus(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """Numbers of GPUs up to the pool's, each with what it may cost."""
    number = _whole(typed)

    def look(session: Session, meant: Meant) -> list[tuple[str, int]]:
        order = _order(session, interaction, meant)
        size = launching.pool_of(session, order).gpus
        counts = [*(2**n for n in range(9) if 2**n < size), size] if number is None else [number]
        return [(f"{text.count(n, 'GPU')} · {_said(session, replace(order, gpus=n))}", n) for n in counts]

    return await _looked_up(interaction, look, refused=number or 1)


async def gpus_to_resume(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """Numbers of GPUs on which the paused run can go on."""
    number = _whole(typed)

    def look(session: Session, meant: Meant) -> list[tuple[str, int]]:
        counts = [] if meant.run is None else control.resumable_on(session, meant.run)
        fitting = [(count, before) for count, before in counts if number in (None, count)]
        return [(f"{text.count(count, 'GPU')}{', as before' if before else ''}", count) for count, before in fitting]

    return await _looked_up(interaction, look)


async def steps(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """Numbers of steps: the recipe's own, and what is typed."""
    number = _whole(typed)

    def look(session: Session, meant: Meant) -> list[tuple[str, int]]:
        order = _order(session, interaction, meant, without="steps")
        own = int(catalogue.overridable(session, order.recipe)["steps"])
        counts = {own: ", as the recipe has it", own // 2: "", own * 2: ""} if number is None else {number: ""}
        return [
            (f"{n:,} steps{note} · {_changed(session, order, with_steps(order.overrides, n), f'steps={n}')}", n)
            for n, note in counts.items()
        ]

    return await _looked_up(interaction, look, refused=number or 1)


async def durations(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """Round times, or what is typed, each with what it costs at most on the GPUs that the command is about."""

    def look(session: Session, meant: Meant) -> list[tuple[str, str]]:
        before = 1 if meant.run is None else runs.load(session, meant.run).gpus
        gpus = _whole(_given(interaction, "gpus")) or before
        return [(f"{time} · {_costing(time, gpus)}", time) for time in ((typed,) if typed.strip() else TIME_LIMITS)]

    return await _looked_up(interaction, look)


async def allocations_of_run(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The allocations on which the run's project can draw."""
    run_id = await _run_meant(interaction)
    if run_id is None:
        return []

    def look(session: Session) -> Sequence[AllocationView]:
        return allocations.of_project(session, runs.load(session, run_id).project_id)

    try:
        return lookup.live(await interaction.client.read(look), typed)
    except DomainError:
        return []


async def time_limits(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """Time limits: what is typed, what is expected and a quarter more, and round ones; each with what it may cost."""

    def look(session: Session, meant: Meant) -> list[tuple[str, str]]:
        order = _order(session, interaction, meant)
        if typed.strip():
            return [(f"{typed} · {_lasting(session, order, typed)}", typed)]
        offers = [(f"{limit} · {_lasting(session, order, limit)}", limit) for limit in TIME_LIMITS]
        try:
            expected = launching.quote(session, replace(order, time_limit="1m")).expected
        except DomainError:
            expected = None
        if expected is not None:
            limit = launching.as_typed(max(60, expected * 5 // (4 * order.gpus)))
            said = _lasting(session, order, limit)
            offers.insert(0, (f"{limit}, a quarter more than expected · {said}", limit))
        return offers

    return await _looked_up(interaction, look, refused=typed or "✗")


async def overrides(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The fields that may be overridden, with the recipe's values; of a whole override, what would come of it."""
    begun, comma, part = typed.rpartition(",")
    before = f"{begun}{comma} " if comma else ""
    name, equals, _ = part.strip().partition("=")

    def look(session: Session, meant: Meant) -> list[tuple[str, str]]:
        order = _order(session, interaction, meant, without="override")
        if equals:
            whole = with_steps(typed, _whole(_given(interaction, "steps")))
            return [(f"{typed} · {_changed(session, order, whole, typed)}", typed)]
        taken = {given.partition("=")[0].strip() for given in begun.split(",")}
        return [
            (f"{before}{field}= · the recipe has {value}", f"{before}{field}=")
            for field, value in catalogue.overridable(session, order.recipe).items()
            if field.startswith(name.casefold()) and field not in taken
        ]

    return await _looked_up(interaction, look, refused=typed or "✗")


async def kept_steps(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The steps of the run that it can be forked from, the newest first."""

    def look(session: Session, meant: Meant) -> list[tuple[str, int]]:
        if meant.run is None:
            raise NotFoundError(NO_RUN)
        kept = publications.kept(session, meant.run)
        return [(f"step {step:,} of run {meant.run}", step) for step in reversed(kept) if typed.strip() in str(step)]

    return await _looked_up(interaction, look, refused=_whole(typed) or 0)


def with_steps(overrides: str, steps: int | None) -> str:
    """Overrides as typed, with the option `steps` among them."""
    return overrides if steps is None else ", ".join(filter(None, (f"steps={steps}", overrides.strip())))


async def _looked_up(
    interaction: Interaction, look: Callable[[Session, Meant], list[tuple[str, T]]], refused: T | None = None
) -> list[Choice[T]]:
    """Choices of a function of the domain; where all is refused, why, as a choice of `refused`, or nothing."""
    meant = Meant(await lookup.project_meant(interaction), await _run_meant(interaction))
    try:
        found = await interaction.client.read(look, meant)
    except DomainError as refusal:
        found = [] if refused is None else [(f"✗ {refusal}", refused)]
    short = [(name, value) for name, value in found if not isinstance(value, str) or 0 < len(value) <= LONGEST]
    return [Choice(name=text.bounded(name, LONGEST), value=value) for name, value in short[: lookup.MOST_CHOICES]]


def _order(session: Session, interaction: Interaction, meant: Meant, without: str = "") -> Order:
    """The launch or fork as far as it is typed; what is missing stands as its default. Raises NotFoundError."""
    overrides = _word(interaction, "override") if without != "override" else ""
    gpus, limit = _whole(_given(interaction, "gpus")), _word(interaction, "time_limit")
    allocation, step = _whole(_given(interaction, "allocation")), _whole(_given(interaction, "step"))
    if meant.run is not None:
        return launching.fork_order(
            session,
            meant.run,
            step or 0,
            overrides=overrides,
            time_limit=limit or None,
            gpus=gpus,
            allocation_id=allocation,
        )
    if _is_about_a_run(interaction):
        raise NotFoundError(NO_RUN)
    if meant.project is None:
        raise NotFoundError("Name the project in the option “project”, or use this in its channel.")
    recipe = _word(interaction, "recipe")
    if not recipe:
        raise NotFoundError("Name the recipe first, in the option “recipe”.")
    return Order(
        project_id=meant.project,
        recipe=recipe,
        time_limit=limit or "1h",
        gpus=1 if gpus is None else gpus,
        overrides=overrides if without == "steps" else with_steps(overrides, _whole(_given(interaction, "steps"))),
        allocation_id=allocation,
        dataset=_word(interaction, "dataset"),
    )


def _lasting(session: Session, order: Order, limit: str) -> str:
    """What would come of an order with this time limit, which is what is typed: its own faults are told first."""
    return _said(session, replace(order, time_limit=limit), lambda: launching.parse_time_limit(limit))


def _changed(session: Session, order: Order, overrides: str, typed: str) -> str:
    """What would come of an order with these overrides, of which some are what is typed: its faults are told first."""

    def check() -> object:
        return catalogue.load(session, order.recipe, launching.parse_overrides(typed))

    return _said(session, replace(order, overrides=overrides), check)


def _said(session: Session, order: Order, check: Callable[[], object] | None = None) -> str:
    """What would come of an order that passes a check, in a few words."""
    try:
        if check is not None:
            check()
        quote = launching.quote(session, order)
    except DomainError as refusal:
        return f"✗ {refusal}"
    expected = "" if quote.expected is None else f", about {in_hours(quote.expected)}"
    return f"✓ {text.gpu_hours(quote.cost)} at most{expected}; {in_hours(quote.left)} left"


def _costing(time: str, gpus: int) -> str:
    """What a time costs at most, in a few words."""
    try:
        return f"{text.gpu_hours(gpus * launching.parse_time_limit(time))} at most"
    except DomainError as refusal:
        return f"✗ {refusal}"


def _given(interaction: Interaction, option: str) -> Any:
    return getattr(interaction.namespace, option, None)


def _word(interaction: Interaction, option: str) -> str:
    return str(_given(interaction, option) or "").strip()


def _whole(value: object) -> int | None:
    """The whole number that was typed, if it is one."""
    try:
        return int(str(value).strip().replace(",", ""))
    except ValueError:
        return None
