"""Preparing a recipe's data: a queued, charged run writes a folder that later runs of the recipe read.

Each attempt writes a folder of its own below `data/` in the home folder. The catalogue gets the folder of the attempt
that finishes while its token is valid. The data of a built-in recipe are made of the corpora of a pool, and become
prepared data of that pool by name.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import update
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import catalogue, configs
from broker.allocations import corpora, nodes
from broker.allocations.corpora import Corpus
from broker.allocations.pools import Pool
from broker.catalogue import CatalogueEntry, CatalogueKind, CatalogueState
from broker.runners import registry
from broker.runs.kinds.kind import kind_of
from broker.runs.progress import PreparedData
from broker.runs.runs import ENDED, Run, RunKind
from projects.db.database import Database
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.settings import Settings
from trainer.contract import CONFIG_FILE


def check(session: Session, recipe: str, pool: Callable[[], Pool]) -> None:
    """Raise DomainError unless the recipe is accepted, or built in, and its data are neither prepared nor being
    prepared; those of a built-in recipe on the `pool` of the run.

    The entry, or the pool, stays locked, so that of two requests at once one is refused.
    """
    if catalogue.is_ready(recipe):
        raise ConflictError(f"“{recipe}” is built in, and its data are on every host: there is nothing to prepare.")
    if recipe in configs.built_in():
        _check_built_in(session, recipe, pool())
        return
    entry = _entry(session, recipe)
    if entry is None:
        listed = ", ".join(preparable(session)) or "none"
        raise NotFoundError(f"“{recipe[:60]}” is no accepted recipe of the catalogue; those to prepare are: {listed}.")
    if entry.prepared:
        raise ConflictError(f"The data of “{recipe}” are already prepared; its runs use them.")
    session.refresh(entry, with_for_update={"key_share": True})
    under_way = select(Run.id).where(Run.kind == RunKind.PREPARE, Run.recipe == recipe, col(Run.state).not_in(ENDED))
    if run_id := session.scalars(under_way.limit(1)).one_or_none():
        raise ConflictError(f"Run {run_id} is preparing the data of “{recipe}”; let it end, or cancel it first.")


def _check_built_in(session: Session, recipe: str, pool: Pool) -> None:
    wants = corpora.needed(configs.read(configs.built_in()[recipe]))
    if wants.prepared_by_run is None:
        raise ConflictError(f"“{recipe}” names no corpus that its data could be prepared as; its runs prepare them.")
    session.refresh(pool, with_for_update={"key_share": True})
    prepared = wants.prepared_in(corpora.at_hand(session, pool.id, wants))
    if prepared is not None and prepared.pool_id != pool.id:
        raise ConflictError(
            f"The data of “{recipe}” are already in the store, as “{prepared.name}”; its runs on “{pool.name}” copy "
            "them."
        )
    if prepared is not None:
        raise ConflictError(
            f"The data of “{recipe}” are already prepared on the pool “{pool.name}”, as “{prepared.name}”; its runs "
            "there use them."
        )
    under_way = (
        Run.kind == RunKind.PREPARE,
        Run.pool_id == pool.id,
        col(Run.state).not_in(ENDED),
        col(Run.recipe).in_(configs.built_in()),
    )
    for run in session.scalars(select(Run).where(*under_way)):
        if corpora.needed(configs.read(run.config)).prepared_by_run == wants.prepared_by_run:
            raise ConflictError(
                f"Run {run.id} is preparing these data on the pool “{pool.name}”, for “{run.recipe}”; let it end, or "
                "cancel it first."
            )


def check_nodes(pool: Pool, gpus: int) -> None:
    """Raise InvalidError where a preparation on so many GPUs has several nodes that share no disk."""
    if nodes.count(pool, gpus) > 1 and registry.named(pool.runner).fills_store:
        raise InvalidError(
            f"The nodes of “{pool.name}” share no disk, so one of them prepares by itself; ask for 1 to "
            f"{pool.unit.count(pool.node_gpus)}."
        )


def preparable(session: Session) -> list[str]:
    """The names of the recipes whose data can be prepared and are not: accepted ones, and built-in ones on a pool that
    has their corpora, or can copy them."""
    pools = corpora.reachable(session)
    built_in = {
        name
        for name, wants in catalogue.built_in_needs().items()
        if wants.prepared_by_run is not None
        and any(wants.prepared_in(there) is None and not wants.missing(there) for there in pools)
    }
    return sorted({*_unprepared(session), *built_in})


def _unprepared(session: Session) -> Sequence[str]:
    """The names of the accepted recipes whose data are not prepared."""
    recipe = (col(CatalogueEntry.kind) == CatalogueKind.RECIPE) & (col(CatalogueEntry.state) == CatalogueState.ACCEPTED)
    return session.scalars(select(CatalogueEntry.name).where(recipe, CatalogueEntry.prepared == "")).all()


def folder(settings: Settings, run: Run) -> Path:
    """The folder that the newest attempt of a preparing run writes."""
    return settings.data_dir / _mark(run)


def made(session: Session, run: Run, prepared: PreparedData | None) -> None:
    """Store the folder of a finished preparing run in the catalogue, or among what its pool has, in the transaction
    that ends the run. `prepared` is what the folder holds; None where that could not be read."""
    if run.recipe not in configs.built_in():
        stored = update(CatalogueEntry).where(col(CatalogueEntry.name) == run.recipe).values(prepared=_mark(run))
        session.execute(stored)
        return
    name = corpora.needed(configs.read(run.config)).prepared_by_run
    if prepared is not None and name is not None:
        pool = session.get_one(Pool, run.pool_id)
        corpora.add_prepared(session, pool, name, prepared.path, prepared.measured)


def using(settings: Settings, session: Session, run: Run) -> str:
    """The run's configuration as YAML, reading its recipe's prepared data if there are any, and its pool's corpora
    otherwise."""
    entry = _entry(session, run.recipe)
    if entry is None or not entry.prepared or run.kind == RunKind.PREPARE:
        return corpora.placed(session, run.pool_id, run.config, settings.corpora_dir)
    return configs.with_prepared_data(run.config, settings.data_dir / entry.prepared)


def written(settings: Settings, db: Database, run: Run, folder: Path) -> Path:
    """The file with the configuration of an attempt that writes `folder`, written for each attempt."""
    config = folder.parent / CONFIG_FILE
    with db.read() as session:
        config.write_text(using(settings, session, run))
    return config


def copied(session: Session, run: Run) -> Sequence[Corpus]:
    """What the run reads of the store's corpora, as its pool lacks them; raises NotFoundError where one is gone."""
    if not kind_of(run).reads_corpora or used(session, run):
        return []
    return corpora.copied(session, run.pool_id, configs.read(run.config))


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
