"""Preparing a recipe's data: a queued, charged run writes a folder that later runs of the recipe read.

Each attempt writes a folder of its own below `data/` in the home folder. The catalogue gets the folder of the attempt
that finishes while its token is valid.
"""

from pathlib import Path

from sqlalchemy import update
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import catalogue, configs
from broker.allocations import corpora
from broker.catalogue import CatalogueEntry, CatalogueKind, CatalogueState
from broker.runs.runs import ENDED, Run, RunKind
from projects.errors import ConflictError, NotFoundError
from projects.settings import Settings


def check(session: Session, recipe: str) -> None:
    """Raise DomainError unless the recipe is accepted and its data are neither prepared nor being prepared.

    The entry stays locked, so that of two requests at once one is refused.
    """
    if catalogue.is_ready(recipe):
        raise ConflictError(f"“{recipe}” is built in, and its data are on every host: it needs no preparing.")
    if recipe in configs.built_in():
        raise ConflictError(
            f"“{recipe}” is built in: an operator prepares its data with `python -m trainer data prepare` and "
            "registers them with `stoa corpus add --kind prepared`."
        )
    entry = _entry(session, recipe)
    if entry is None:
        listed = ", ".join(preparable(session)) or "none"
        raise NotFoundError(f"“{recipe[:60]}” is no accepted recipe of the catalogue; those to prepare are: {listed}.")
    if entry.prepared:
        raise ConflictError(f"The data of “{recipe}” are prepared already; its runs use them.")
    session.refresh(entry, with_for_update={"key_share": True})
    under_way = select(Run.id).where(Run.kind == RunKind.PREPARE, Run.recipe == recipe, col(Run.state).not_in(ENDED))
    if run_id := session.scalars(under_way.limit(1)).one_or_none():
        raise ConflictError(f"Run {run_id} is preparing the data of “{recipe}”; let it end, or cancel it first.")


def preparable(session: Session) -> list[str]:
    """The names of the accepted recipes whose data are not prepared."""
    recipe = (col(CatalogueEntry.kind) == CatalogueKind.RECIPE) & (col(CatalogueEntry.state) == CatalogueState.ACCEPTED)
    names = select(CatalogueEntry.name).where(recipe, CatalogueEntry.prepared == "")
    return sorted(session.scalars(names))


def folder(settings: Settings, run: Run) -> Path:
    """The folder that the newest attempt of a preparing run writes."""
    return settings.data_dir / _mark(run)


def made(session: Session, run: Run) -> None:
    """Store the folder of a finished preparing run in the catalogue, in the transaction that ends the run."""
    session.execute(update(CatalogueEntry).where(col(CatalogueEntry.name) == run.recipe).values(prepared=_mark(run)))


def using(settings: Settings, session: Session, run: Run) -> str:
    """The run's configuration as YAML, reading its recipe's prepared data if there are any, and its pool's corpora
    otherwise."""
    entry = _entry(session, run.recipe)
    if entry is None or not entry.prepared or run.kind == RunKind.PREPARE:
        return corpora.placed(session, run.pool_id, run.config)
    return configs.with_prepared_data(run.config, settings.data_dir / entry.prepared)


def used(session: Session, run: Run) -> str:
    """The prepared data that the run reads, as the catalogue has them; empty where it reads none."""
    entry = _entry(session, run.recipe)
    return "" if entry is None or run.kind == RunKind.PREPARE else entry.prepared


def attempt_of(prepared: str) -> tuple[int, int]:
    """The run and the token of the attempt that prepared data which the catalogue has."""
    run_id, token = prepared.rpartition("/")[2].split("-")
    return int(run_id), int(token)


def _mark(run: Run) -> str:
    return f"{run.recipe}/{run.id}-{run.token}"


def _entry(session: Session, recipe: str) -> CatalogueEntry | None:
    """The recipe's entry, accepted or retired: runs launched before its retirement still use it."""
    return session.scalars(
        select(CatalogueEntry).where(
            CatalogueEntry.name == recipe,
            col(CatalogueEntry.state).in_((CatalogueState.ACCEPTED, CatalogueState.RETIRED)),
        )
    ).one_or_none()
