"""The answer to `/catalogue list`: recipes with what one chooses them by, datasets, and what is proposed."""

from collections.abc import Sequence

from sqlalchemy.orm import Session

from bot import text
from bot.cards.card import BLUE, Card, texts
from bot.commands.run import answers
from broker import catalogue
from broker.catalogue import CatalogueEntryView, CatalogueKind, CatalogueState
from broker.reports import recipes
from broker.reports.recipes import RecipeFacts

MOST_NAMED = 3
"""Data and licences of a recipe that its line names."""
MARKS = {
    CatalogueState.PROPOSED: "🕓",
    CatalogueState.ACCEPTED: "✅",
    CatalogueState.DECLINED: "🚫",
    CatalogueState.RETIRED: "🗄️",
}
BUILT_IN = "📦"


def items(session: Session, state: str | None) -> list[str]:
    """What is said of each entry in the state, the newest first; without a state of all entries, and then of the
    built-in recipes that can be launched, the smallest first."""
    entries = [entry for entry in catalogue.entries(session) if state in (None, entry.state)]
    built_in = recipes.built_in(session) if state is None else []
    proposed = [entry for entry in entries if entry.kind is CatalogueKind.RECIPE]
    facts = recipes.facts(session, [*((entry.name, entry.body) for entry in proposed), *built_in])
    about = {entry.id: fact for entry, fact in zip(proposed, facts, strict=False)}
    sizes = [(fact, name) for (name, _), fact in zip(built_in, facts[len(proposed) :], strict=True) if fact is not None]
    sizes.sort(key=lambda item: item[0].parameters)
    return [
        *(_entry(entry, about.get(entry.id)) for entry in entries),
        *(f"{BUILT_IN} {text.code(name, 40)} recipe, built in\n{_recipe(fact)}" for fact, name in sizes),
    ]


def card(said: Sequence[str], page: int) -> Card:
    """A page of what is said, or the last one where there are fewer."""
    end = (
        "-# Costs cover all steps of a recipe; they are estimated from the most similar measured run, on its pool. "
        f"`/run launch` starts a recipe that is marked {MARKS[CatalogueState.ACCEPTED]} or {BUILT_IN}."
    )
    pages = text.pages(said or ["Nothing is in this state."], text.CARD - 400)
    shown = min(page, len(pages))
    more = f" · `page:{shown + 1}` shows the next" if shown < len(pages) else ""
    marker = f"-# Page {shown} of {len(pages)}{more}"
    return Card(texts([*pages[shown - 1], end], marker), colour=BLUE, marker=marker)


def _entry(entry: CatalogueEntryView, facts: RecipeFacts | None) -> str:
    by = text.line(entry.proposed_by or "an operator", 60)
    lines = [f"{MARKS[entry.state]} {text.code(entry.name, 40)} {entry.kind}, {entry.state} · proposed by {by}"]
    if entry.kind is CatalogueKind.DATASET:
        lines.append(f"-# {text.code(entry.dataset, 80)} at {entry.revision[:8]} · {text.line(entry.licence, 40)}")
    if facts is not None:
        lines.append(_recipe(facts))
    if entry.reason:
        lines.append(f"-# {text.line(entry.reason, 120)}")
    return "\n".join(lines)


def _recipe(facts: RecipeFacts) -> str:
    """A recipe's size, cost and data, with their licences."""
    size = f"{answers.short(facts.parameters)} parameters, {answers.short(facts.tokens)} tokens"
    cost = "cost not measured yet"
    if facts.cost is not None:
        seconds = facts.cost if facts.cost < 36_000 else round(facts.cost / 3600) * 3600
        cost = f"about {facts.unit.hours(seconds)} on {text.code(facts.pool, 40)}"
    sources = f" ({facts.sources} sources)" if facts.sources > len(facts.data) else ""
    return f"-# {size} · {cost} · {_some(facts.data)}{sources}: {_some(facts.licences)}"


def _some(names: Sequence[str]) -> str:
    """The first few of some names, and the number of the others."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{text.line(', '.join(names[:MOST_NAMED]), 160)}{more}"
