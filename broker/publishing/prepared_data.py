"""Retention of prepared data: removing from the store what runs have prepared and nobody reads there any more.

Data stay while an accepted recipe or a corpus of a pool names them, and once that is retired, while a run of the
recipe, or on the pool, has not ended: no other begins with them then. A launch that had read what was not retired yet
has ended an hour later. Data that nothing names go once their run has ended.

Any number of workers may do this, as with checkpoints (`retention.py`).
"""

import re
from collections.abc import Set
from datetime import timedelta
from itertools import groupby
from pathlib import Path

import structlog
from sqlalchemy import update
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import store as stores
from broker.allocations import pools
from broker.allocations.corpora import Corpus
from broker.catalogue import CatalogueEntry, CatalogueState
from broker.publishing import retention
from broker.publishing.retention import Looked
from broker.runners import registry
from broker.runs import preparing, runs
from broker.runs.attempts import Attempt
from broker.runs.runs import ENDED, Run, RunKind
from broker.store import Store, StoreError
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.errors import ConflictError
from projects.settings import Settings
from trainer.contract import DATA_FOLDER, OUTCOME_FILE, CorpusKind

A_LAUNCH = timedelta(hours=1)
"""So long after its retirement, no transaction launches a run with what it saw accepted."""
LOCK = "prepared_data"
MADE_BY_A_RUN = re.compile(r".*/\d+-\d+")
"""The path of data that a run has prepared ends with the run and the attempt."""

log = structlog.get_logger()


def clear(settings: Settings, db: Database, looked: Looked) -> int:
    """Remove the prepared data that nobody reads in the store; returns how many were removed. Raises StoreError."""
    if not settings.store or settings.store_keep == retention.ALL:
        return 0
    with db.read() as session:
        found = session.execute(
            select(Run.id, Run.request_id, Run.ended_at, Attempt.token)
            .join(Attempt, col(Attempt.run_id) == col(Run.id))
            .where(Run.kind == RunKind.PREPARE, col(Run.state).in_(ENDED), ~col(Attempt.data_cleared))
            .order_by(col(Run.id), col(Attempt.token))
        ).all()
        needed = _needed(session)
    lost_before = utcnow() - timedelta(seconds=retention.LOST_SECONDS)
    removed, failed = 0, None
    for run_id, rows in groupby(found, key=lambda row: row[0]):
        left = [row for row in rows if (run_id, row.token) not in needed]
        known = hash(tuple(row.token for row in left))
        if not looked.is_due(run_id, known):
            continue
        try:
            for _, owner, ended_at, token in left:
                attempt = stores.attempt_folder(run_id, owner, token)
                is_lost = ended_at is not None and ended_at < lost_before
                removed += _remove(Store(settings), db, run_id, token, attempt, is_lost=is_lost)
            looked.looked(run_id, known)
        except StoreError as error:
            failed = error
    if removed:
        log.info("prepared data that nobody reads were removed from the store", count=removed)
    if failed is not None:
        raise failed
    return removed


def check_stored(settings: Settings, session: Session, pool: str, path: Path) -> None:
    """Raise ConflictError for data that a run has prepared and the store has no more, where the pool's runs read them
    there; DomainError where pool or run are not known. Raises StoreError."""
    if not path.is_relative_to(settings.data_dir) or not MADE_BY_A_RUN.fullmatch(str(path)):
        return
    if not registry.named(pools.named(session, pool).runner).fills_store:
        return
    run_id, token = preparing.attempt_of(str(path))
    attempt = stores.attempt_folder(run_id, runs.load(session, run_id).request_id, token)
    if not Store(settings).is_whole(f"{attempt}/{DATA_FOLDER}"):
        raise ConflictError(
            f"The store does not have the data that run {run_id} has prepared, and the runs of “{pool}” read them "
            "there: prepare them again."
        )


def _remove(store: Store, db: Database, run_id: int, token: int, attempt: str, *, is_lost: bool) -> bool:
    """Remove what an attempt has prepared; False where there is nothing, or where somebody still sends or needs it.

    The attempt is noted as cleared once nothing comes there any more: it has told its outcome, or `is_lost`.
    """
    folder = f"{attempt}/{DATA_FOLDER}"
    with db.alone(LOCK):
        with db.read() as session:
            if (run_id, token) in _needed(session):
                return False
        is_over = store.size(f"{attempt}/{OUTCOME_FILE}") is not None
        was_there = bool(store.names(folder))
        gone = store.discard(folder, partial=is_over)
    if gone and (is_over or is_lost):
        with db.write() as session:
            its = (col(Attempt.run_id) == run_id, col(Attempt.token) == token)
            session.execute(update(Attempt).where(*its).values(data_cleared=True))
    return was_there and gone


def _needed(session: Session) -> Set[tuple[int, int]]:
    """The runs and tokens of the attempts whose data are needed, or were a moment ago."""
    since = utcnow() - A_LAUNCH
    under_way = session.execute(select(Run.recipe, Run.pool_id).where(col(Run.state).not_in(ENDED))).all()
    recipes, at_work = {recipe for recipe, _ in under_way}, {pool for _, pool in under_way}
    entries = session.scalars(select(CatalogueEntry).where(CatalogueEntry.prepared != ""))
    found = {
        each.prepared
        for each in entries
        if each.state == CatalogueState.ACCEPTED or each.name in recipes or (each.decided_at or since) > since
    }
    prepared = session.scalars(select(Corpus).where(Corpus.kind == CorpusKind.PREPARED))
    found |= {
        each.path for each in prepared if each.retired_at is None or each.retired_at > since or each.pool_id in at_work
    }
    return {preparing.attempt_of(place) for place in found if MADE_BY_A_RUN.fullmatch(place)}
