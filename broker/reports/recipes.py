"""What people choose a recipe by: its size, its data with their licences, and what all its steps would cost."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.orm import Session

from broker import catalogue, configs
from broker.allocations.units import Unit
from broker.runs import estimates
from projects.errors import InvalidError
from trainer import check
from trainer.config import TrainConfig


@dataclass(frozen=True)
class RecipeFacts:
    """A recipe's trained parameters, the tokens of all its steps, what it trains on, how many sources that has, and
    their licences, in the recipe's order.

    `cost` is of all its steps on `pool`, in seconds of its `unit`; None where no pool has measured anything like it.
    """

    parameters: int
    tokens: int
    data: Sequence[str]
    sources: int
    licences: Sequence[str]
    cost: int | None = None
    pool: str = ""
    unit: Unit = Unit.GPU


def facts(session: Session, recipes: Sequence[tuple[str, str]]) -> list[RecipeFacts | None]:
    """The facts of each recipe, a pair of its name and its YAML text; None for one that the present schema refuses."""
    read: dict[int, tuple[str, TrainConfig]] = {}
    for number, (name, body) in enumerate(recipes):
        with suppress(InvalidError):
            read[number] = name, configs.read(body)
    costs = estimates.of_recipes(session, list(read.values()))
    data = catalogue.data_names(session, [config for _, config in read.values()])
    found: list[RecipeFacts | None] = [None] * len(recipes)
    for (number, (_, config)), cost, names in zip(read.items(), costs, data, strict=True):
        sources = config.data.sources
        found[number] = RecipeFacts(
            check.parameters(config),
            config.tokens_per_step * config.training.steps,
            names,
            len(sources),
            list(dict.fromkeys(source.licence for source in sources)),
            *(cost or ()),
        )
    return found


def built_in(session: Session) -> list[tuple[str, str]]:
    """The name and the YAML text of each built-in recipe that can be launched."""
    texts = configs.built_in()
    return [(name, texts[name]) for name in catalogue.recipes(session) if name in texts]
