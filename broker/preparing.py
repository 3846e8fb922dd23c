"""Preparing the data of a catalogue's recipe: a queued, charged run whose folder later runs of that recipe train from.

Each attempt writes a folder of its own below the home's `data/`; the one that its token still holds for when it is
done is entered in the catalogue.
"""

from pathlib import Path

import yaml
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from broker import catalogue, runs
from broker.catalogue import CatalogueEntry, State
from broker.runs import Receipt, Run
from projects.errors import ConflictError, NotFoundError
from projects.people import Actor
from projects.settings import Settings


def prepare(
    session: Session,
    actor: Actor,
    request_id: str,
    *,
    project_id: int,
    recipe: str,
    time_limit: str,
    allocation_id: int | None = None,
) -> Receipt:
    """Queue a run on one device that prepares an accepted recipe's data, on the project's allocation."""
    entry = _entry(session, recipe)
    if entry is None:
        listed = ", ".join(catalogue.recipes(session))
        raise NotFoundError(f"“{recipe[:60]}” is no accepted recipe of the catalogue; the recipes are: {listed}.")
    if entry.prepared:
        raise ConflictError(f"The data of “{recipe}” are prepared already; its runs use them.")
    receipt = runs.launch(
        session,
        actor,
        request_id,
        project_id=project_id,
        recipe=recipe,
        time_limit=time_limit,
        allocation_id=allocation_id,
    )
    run = runs.load(session, receipt.run_id)
    if run.kind != "prepare":  # and no repeat of the same request
        run.kind, run.total_steps = "prepare", 0
        session.flush()
        runs.tell(session, run, "run.preparing", recipe=recipe)
    return receipt


def folder(settings: Settings, run: Run) -> Path:
    """Where the newest attempt of a preparing run writes."""
    return settings.home / "data" / _mark(run)


def made(session: Session, run: Run) -> None:
    """Enter what a preparing run has made in the catalogue, in the transaction that ends it."""
    session.execute(update(CatalogueEntry).where(CatalogueEntry.name == run.recipe).values(prepared=_mark(run)))


def using(settings: Settings, session: Session, run: Run) -> str:
    """The run's configuration, which reads its recipe's prepared data where there are any."""
    entry = _entry(session, run.recipe)
    if entry is None or not entry.prepared:
        return run.config
    values = yaml.safe_load(run.config)
    values["data"]["prepared"] = str(settings.home / "data" / entry.prepared)
    return yaml.safe_dump(values, sort_keys=False)


def _mark(run: Run) -> str:
    return f"{run.recipe}/{run.id}-{run.token}"


def _entry(session: Session, recipe: str) -> CatalogueEntry | None:
    """The recipe's entry; one that is retired counts for the runs that it has left."""
    return session.scalars(
        select(CatalogueEntry).where(
            CatalogueEntry.name == recipe, CatalogueEntry.state.in_((State.ACCEPTED, State.RETIRED))
        )
    ).one_or_none()
