"""What Discord suggests while somebody types an option of `/run`: each choice says what it would cost or why not."""

from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from discord.app_commands import Choice
from sqlalchemy.orm import Session

from bot import text
from bot.app import Interaction
from bot.commands import autocomplete, context
from broker import catalogue, publications
from broker.allocations import allocations, nodes
from broker.allocations.allocations import AllocationView
from broker.allocations.pools import Pool
from broker.allocations.units import Unit, in_hours
from broker.runs import baselines, control, evaluation_plans, evaluations, launching, on_checkpoints, runs
from broker.runs import sweeps as all_sweeps
from broker.runs.launching import Order
from broker.runs.runs import ENDED, RunState
from projects.errors import DomainError, NotFoundError

LONGEST = 100
"""The most characters that Discord takes in a choice."""
TIME_LIMITS = ("15m", "30m", "1h", "2h", "4h", "8h", "12h", "24h")
EVERY = ("2", "4", "8", "16")
NO_RUN = "Name the run in the option “run”, or use this in its thread."
NO_PROJECT = "Name the project in the option “project”, or use this in its channel."
T = TypeVar("T", int, str)


class About(NamedTuple):
    """The project and the run that a command is about, as far as it is typed."""

    project: int | None
    run: int | None


def runs_in(
    states: Collection[RunState], *, kept: bool = False
) -> Callable[[Interaction, str], Coroutine[Any, Any, list[Choice[int]]]]:
    """An autocompletion with the newest runs in these states, of the project that the command is about or of all.

    `kept` leaves out runs without a checkpoint on this disk.
    """

    async def found(interaction: Interaction, typed: str) -> list[Choice[int]]:
        project_id = await context.project_so_far(interaction)
        rows = await interaction.client.read(runs.newest, project_id, states=states, kept=kept)
        named = [
            (" · ".join(filter(None, (str(number), name, f"{recipe}, {state}"))), number)
            for number, name, recipe, state in rows
        ]
        fitting = [(name, number) for name, number in named if typed.casefold() in name.casefold()]
        return [Choice(name=text.bounded(name, LONGEST), value=n) for name, n in fitting[: autocomplete.MOST_CHOICES]]

    return found


any_run = runs_in(tuple(RunState))
kept_run = runs_in(tuple(RunState), kept=True)
unended_run = runs_in(set(RunState) - ENDED)
pausable_run = runs_in((RunState.QUEUED, RunState.STARTING, RunState.RUNNING))
paused_run = runs_in((RunState.PAUSED,))


async def tags(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The tags of the project's runs."""
    project_id = await context.project_so_far(interaction)
    known = [] if project_id is None else await interaction.client.read(runs.tags_of, project_id)
    fitting = [tag for tag in known if typed.strip().lower() in tag]
    return [Choice(name=tag, value=tag) for tag in fitting[: autocomplete.MOST_CHOICES]]


async def numbers(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """Sets of runs to compare: those typed so far, and the same with one more that trains or evaluated a model."""
    words = typed.replace(",", " ").split()
    begun, last = (words, "") if not words or typed.endswith((" ", ",")) else (words[:-1], words[-1])
    project_id = await context.project_so_far(interaction)
    models = [] if project_id is None else await interaction.client.read(baselines.newest, project_id)
    near = [*await any_run(interaction, last)] + [
        Choice(name=text.bounded(f"{number} · {name}", LONGEST), value=number)
        for number, name in models
        if last.casefold() in f"{number} {name}".casefold()
    ]
    found = [
        Choice(name=text.bounded(" ".join([*begun, choice.name]), LONGEST), value=" ".join([*begun, str(choice.value)]))
        for choice in near
        if str(choice.value) not in begun
    ]
    whole = " ".join(words)
    own = [Choice(name=text.bounded(f"Compare {whole}", LONGEST), value=whole)] if len(words) > 1 else []
    return [choice for choice in [*own, *found] if len(choice.value) <= LONGEST][: autocomplete.MOST_CHOICES]


async def recipes(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The recipes whose name fits and, where a dataset is given, that train on it."""
    dataset = context.text_option(interaction, "dataset")

    def look(session: Session) -> Sequence[str]:
        return catalogue.by_dataset(session).get(dataset, []) if dataset else catalogue.recipes(session)

    names = await interaction.client.read(look)
    return [Choice(name=name, value=name) for name in names if typed.casefold() in name][: autocomplete.MOST_CHOICES]


async def datasets(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The datasets of the catalogue, each with the recipes that train on it; of a given recipe, only its own."""
    recipe = context.text_option(interaction, "recipe")
    known = await interaction.client.read(catalogue.by_dataset)
    own = {name: by for name, by in known.items() if recipe in by} or known
    return [
        Choice(name=text.bounded(f"{name} · {', '.join(by) or 'no recipe yet'}", LONGEST), value=name)
        for name, by in own.items()
        if typed.casefold() in name and len(name) <= LONGEST
    ][: autocomplete.MOST_CHOICES]


async def gpus(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """Numbers of GPUs, or cores, up to all of the pool's, each with what the run may cost."""
    number = context.whole_number(typed)

    def look(session: Session, about: About) -> list[tuple[str, int]]:
        order = _order(session, interaction, about)
        pool = launching.pool_of(session, order.project_id, order.allocation_id)
        sizes = nodes.sizes(pool)
        counts = [*sizes[:-1][: autocomplete.MOST_CHOICES - 1], sizes[-1]] if number is None else [number]
        return [(f"{pool.unit.count(n)} · {_cost(session, replace(order, gpus=n))}", n) for n in counts]

    return await _choices(interaction, look, refused=number or 1)


async def gpus_to_resume(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The numbers of GPUs, or cores, on which the paused run can resume."""
    number = context.whole_number(typed)

    def look(session: Session, about: About) -> list[tuple[str, int]]:
        counts = [] if about.run is None else control.resumable_on(session, about.run)
        fitting = [(count, before) for count, before in counts if number in (None, count)]
        if not fitting:
            return []
        unit = _unit(session, interaction, about)
        return [(f"{unit.count(count)}{', as before' if before else ''}", count) for count, before in fitting]

    return await _choices(interaction, look)


async def steps(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The recipe's own number of steps, half and twice as many; or the number that is typed."""
    number = context.whole_number(typed)

    def look(session: Session, about: About) -> list[tuple[str, int]]:
        order = _order(session, interaction, about, without="steps")
        own = int(catalogue.overridable(session, order.recipe)["steps"])
        counts = {own: ", as the recipe has it", own // 2: "", own * 2: ""} if number is None else {number: ""}
        choices: list[tuple[str, int]] = []
        for count, note in counts.items():
            cost = _cost_of_overrides(session, order, with_steps(order.overrides, count), f"steps={count}")
            choices.append((f"{count:,} steps{note} · {cost}", count))
        return choices

    return await _choices(interaction, look, refused=number or 1)


async def durations(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """Round times, or the time that is typed, each with what it costs at most on what the run has."""

    def look(session: Session, about: About) -> list[tuple[str, str]]:
        before = 1 if about.run is None else runs.load(session, about.run).gpus
        gpus, unit = context.number_option(interaction, "gpus") or before, _unit(session, interaction, about)
        times = (typed,) if typed.strip() else TIME_LIMITS
        return [(f"{time} · {_cost_of_time(time, gpus, unit)}", time) for time in times]

    return await _choices(interaction, look, refused=typed or TIME_LIMITS[0])


async def allocations_of_run(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The allocations on which the run's project can draw."""
    run_id = await context.run_so_far(interaction)
    if run_id is None:
        return []

    def look(session: Session) -> Sequence[AllocationView]:
        return allocations.of_project(session, runs.load(session, run_id).project_id)

    try:
        return autocomplete.live(await interaction.client.read(look), typed)
    except DomainError:
        return []


async def time_limits(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The time limit that is typed; or a quarter more than the run is expected to take, and round ones; with costs."""

    def look(session: Session, about: About) -> list[tuple[str, str]]:
        order = _order(session, interaction, about)
        if typed.strip():
            return [(f"{typed} · {_cost_of_limit(session, order, typed)}", typed)]
        offers = [(f"{limit} · {_cost_of_limit(session, order, limit)}", limit) for limit in TIME_LIMITS]
        try:
            expected = launching.quote(session, replace(order, time_limit="1m")).expected
        except DomainError:
            expected = None
        if expected is not None:
            limit = launching.as_typed(max(60, expected * 5 // (4 * order.gpus)))
            said = _cost_of_limit(session, order, limit)
            offers.insert(0, (f"{limit}, a quarter more than expected · {said}", limit))
        return offers

    return await _choices(interaction, look, refused=typed or "✗")


async def overrides(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The fields that may be overridden, with the recipe's values; or the override that is typed, with its cost."""
    begun, comma, part = typed.rpartition(",")
    before = f"{begun}{comma} " if comma else ""
    name, equals, _ = part.strip().partition("=")

    def look(session: Session, about: About) -> list[tuple[str, str]]:
        order = _order(session, interaction, about, without="override")
        if equals:
            whole = with_steps(typed, context.number_option(interaction, "steps"))
            return [(f"{typed} · {_cost_of_overrides(session, order, whole, typed)}", typed)]
        taken = {given.partition("=")[0].strip() for given in begun.split(",")}
        return [
            (f"{before}{field}= · the recipe has {value}", f"{before}{field}=")
            for field, value in catalogue.overridable(session, order.recipe).items()
            if field.startswith(name.casefold()) and field not in taken
        ]

    return await _choices(interaction, look, refused=typed or "✗")


async def points(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The fields that may be swept, with the recipe's values; or the points that are typed, with their cost."""
    begun, _, name = typed.rpartition(" ")

    def look(session: Session, about: About) -> list[tuple[str, str]]:
        order = _order(session, interaction, about)
        if "=" in name or typed.endswith(" "):
            return [(f"{typed} · {_cost_of_points(session, order, typed)}", typed)]
        before = f"{begun} " if begun else ""
        return [
            (f"{before}{field}= · the recipe has {value}", f"{before}{field}=")
            for field, value in catalogue.overridable(session, order.recipe).items()
            if field.startswith(name.casefold()) and f"{field}=" not in begun
        ]

    return await _choices(interaction, look, refused=typed or "✗")


async def sweeps(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The newest sweeps, of the project that the command is about or of all."""
    project_id = await context.project_so_far(interaction)
    rows = await interaction.client.read(all_sweeps.newest, project_id)
    named = [(f"{number} · {recipe}, {points} ({left} not ended)", number) for number, recipe, points, left in rows]
    fitting = [(name, number) for name, number in named if typed.casefold() in name.casefold()]
    return [Choice(name=text.bounded(name, LONGEST), value=n) for name, n in fitting[: autocomplete.MOST_CHOICES]]


async def kept_steps(interaction: Interaction, typed: str) -> list[Choice[int]]:
    """The steps from which the run can be forked, the newest first."""

    def look(session: Session, about: About) -> list[tuple[str, int]]:
        if about.run is None:
            raise NotFoundError(NO_RUN)
        found, kept = publications.readable(session, about.run), set(publications.kept(session, about.run))
        return [
            (f"step {step:,} of run {about.run}{'' if step in kept else ', from the Hub'}", step)
            for step in reversed(found)
            if typed.strip() in str(step)
        ]

    return await _choices(interaction, look, refused=context.whole_number(typed) or 0)


async def evaluable_steps(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The words for a run's newest checkpoint and for all of them, and the steps of those that can be read."""

    def look(session: Session, about: About) -> list[tuple[str, str]]:
        if about.run is None:
            raise NotFoundError(NO_RUN)
        readable = publications.readable(session, about.run)
        words = [("last: the newest checkpoint", on_checkpoints.LAST), (f"all {len(readable)}", on_checkpoints.ALL)]
        steps = [(f"step {step:,} of run {about.run}", str(step)) for step in reversed(readable)]
        return [choice for choice in [*words, *steps] if typed.strip().lower() in choice[0]]

    return await _choices(interaction, look, refused=typed or "✗")


async def tasks(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """The tasks of lm-evaluation-harness that have the last word that is typed, after those before it."""
    return last_word(
        typed, lambda part: evaluations.tasks_with(part, autocomplete.MOST_CHOICES + evaluation_plans.MOST_TASKS)
    )


async def evaluated(interaction: Interaction, typed: str) -> list[Choice[str]]:
    """As `tasks`; after “every”, of how many checkpoints one is evaluated."""
    named, every, number = typed.partition(" every")
    if not every:
        return await tasks(interaction, typed)
    fitting = [f"{named.strip()} every {each}" for each in EVERY if each.startswith(number.strip())]
    return [Choice(name=each, value=each) for each in fitting if len(each) <= LONGEST]


def last_word(typed: str, fitting: Callable[[str], Sequence[str]]) -> list[Choice[str]]:
    """Choices for a list of words: those before the last, and each that fits the last and is not among them."""
    *before, last = typed.replace(",", " ").split(" ")
    chosen = [word for word in before if word]
    lists = [", ".join([*chosen, name]) for name in fitting(last.strip().lower()) if name not in chosen]
    return [Choice(name=each, value=each) for each in lists if len(each) <= LONGEST][: autocomplete.MOST_CHOICES]


def with_steps(overrides: str, steps: int | None) -> str:
    """The overrides as they would be typed with the value of the option `steps` among them."""
    return overrides if steps is None else ", ".join(filter(None, (f"steps={steps}", overrides.strip())))


async def _choices(
    interaction: Interaction, look: Callable[[Session, About], list[tuple[str, T]]], refused: T | None = None
) -> list[Choice[T]]:
    """The choices that `look` finds. Where the domain refuses, one choice with the reason and the value `refused`.

    Without `refused`, a refusal gives no choices.
    """
    about = About(await context.project_so_far(interaction), await context.run_so_far(interaction))
    try:
        found = await interaction.client.read(look, about)
    except DomainError as refusal:
        found = [] if refused is None else [(f"✗ {refusal}", refused)]
    short = [(name, value) for name, value in found if not isinstance(value, str) or 0 < len(value) <= LONGEST]
    return [Choice(name=text.bounded(name, LONGEST), value=value) for name, value in short[: autocomplete.MOST_CHOICES]]


def _order(session: Session, interaction: Interaction, about: About, without: str = "") -> Order:
    """The launch or fork as far as it is typed, with defaults for the rest, leaving out the option `without`.

    Raises NotFoundError where the run, the project or the recipe is missing.
    """
    overrides = context.text_option(interaction, "override") if without != "override" else ""
    gpus, limit = context.number_option(interaction, "gpus"), context.text_option(interaction, "time_limit")
    allocation = context.number_option(interaction, "allocation")
    if about.run is not None:
        return launching.fork_order(
            session,
            about.run,
            context.number_option(interaction, "step") or 0,
            overrides=overrides,
            time_limit=limit or None,
            gpus=gpus,
            allocation_id=allocation,
        )
    if context.is_about_a_run(interaction):
        raise NotFoundError(NO_RUN)
    if about.project is None:
        raise NotFoundError(NO_PROJECT)
    recipe = context.text_option(interaction, "recipe")
    if without != "steps":
        overrides = with_steps(overrides, context.number_option(interaction, "steps"))
    if not recipe:
        raise NotFoundError("Name the recipe first, in the option “recipe”.")
    return Order(
        project_id=about.project,
        recipe=recipe,
        time_limit=limit or "1h",
        gpus=1 if gpus is None else gpus,
        overrides=overrides,
        allocation_id=allocation,
        dataset=context.text_option(interaction, "dataset"),
    )


def _unit(session: Session, interaction: Interaction, about: About) -> Unit:
    """What the pool counts of the run, or of the allocation that a new run would draw on.

    Raises NotFoundError and ConflictError where neither is known.
    """
    if about.run is not None:
        return session.get_one(Pool, runs.load(session, about.run).pool_id).unit
    if context.is_about_a_run(interaction):
        raise NotFoundError(NO_RUN)
    if about.project is None:
        raise NotFoundError(NO_PROJECT)
    return launching.pool_of(session, about.project, context.number_option(interaction, "allocation")).unit


def _cost_of_limit(session: Session, order: Order, limit: str) -> str:
    """The cost of an order with the time limit that is typed; what is wrong with the limit itself is said first."""
    return _cost(session, replace(order, time_limit=limit), lambda: launching.parse_time_limit(limit))


def _cost_of_overrides(session: Session, order: Order, overrides: str, typed: str) -> str:
    """The cost of an order with these overrides; what is wrong with those that are being typed is said first."""

    def check() -> object:
        return catalogue.load(session, order.recipe, launching.parse_overrides(typed))

    return _cost(session, replace(order, overrides=overrides), check)


def _cost(session: Session, order: Order, check: Callable[[], object] | None = None) -> str:
    """The cost of an order, in a few words; or why `check` or the domain refuses it."""
    try:
        if check is not None:
            check()
        quote = launching.quote(session, order)
    except DomainError as refusal:
        return f"✗ {refusal}"
    expected = "" if quote.expected is None else f", about {in_hours(quote.expected)}"
    return f"✓ {quote.pool.unit.hours(quote.cost)} at most{expected}; {in_hours(quote.left)} left"


def _cost_of_points(session: Session, order: Order, typed: str) -> str:
    """The cost of a sweep of an order, in a few words; or why the domain refuses it."""
    try:
        quote = all_sweeps.quote(session, order, typed)
    except DomainError as refusal:
        return f"✗ {refusal}"
    expected = "" if quote.expected is None else f", about {in_hours(quote.expected)}"
    return f"✓ {len(quote.quotes)} runs, {quote.unit.hours(quote.cost)} at most{expected}; {in_hours(quote.left)} left"


def _cost_of_time(time: str, gpus: int, unit: Unit) -> str:
    """The most that a time costs on so many GPUs or cores, in a few words."""
    try:
        return f"{unit.hours(gpus * launching.parse_time_limit(time))} at most"
    except DomainError as refusal:
        return f"✗ {refusal}"
