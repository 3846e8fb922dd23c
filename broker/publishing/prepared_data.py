"""Retention of prepared data: removing from the store what runs have prepared and nobody reads there any more.

Data stay while an accepted recipe or a corpus of a pool names them, and once that is retired, while a run of the
recipe, or on the pool, has not ended: no other begins with them then. Data that nothing names go once their run has
ended.

Any number of workers may do this, as with checkpoints (`retention.py`).
"""

import re
from collections.abc import Set

import structlog
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import store as stores
from broker.allocations.corpora import Corpus
from broker.catalogue import CatalogueEntry, CatalogueState
from broker.publishing import retention
from broker.publishing.retention import Looked
from broker.runs import preparing
from broker.runs.runs import ENDED, Run, RunKind
from broker.store import Store
from projects.db.database import Database
from projects.settings import Settings
from trainer.contract import DATA_FOLDER, OUTCOME_FILE, CorpusKind

LOCK = "prepared_data"
MADE_BY_A_RUN = re.compile(r".*/\d+-\d+")
"""The path of data that a run has prepared ends with the run and the attempt."""

log = structlog.get_logger()


def clear(settings: Settings, db: Database, looked: Looked) -> int:
    """Remove the prepared data that nobody reads in the store; returns how many were removed. Raises StoreError."""
    if not settings.store or settings.store_keep == retention.ALL:
        return 0
    with db.read() as session:
        ended = (Run.kind == RunKind.PREPARE, col(Run.state).in_(ENDED))
        found = session.execute(select(Run.id, Run.request_id, Run.token).where(*ended)).all()
        needed = _needed(session)
    removed = 0
    for run_id, owner, last in found:
        known = hash((last, *sorted(token for run, token in needed if run == run_id)))
        if not looked.is_due(run_id, known):
            continue
        store = Store(settings)
        for token in range(1, last + 1):
            if (run_id, token) not in needed:
                removed += _remove(store, db, run_id, token, stores.attempt_folder(run_id, owner, token))
        looked.looked(run_id, known)
    if removed:
        log.info("prepared data that nobody reads were removed from the store", count=removed)
    return removed


def _remove(store: Store, db: Database, run_id: int, token: int, attempt: str) -> bool:
    """Remove what an attempt has prepared; False where there is nothing, or where somebody still sends or needs it."""
    folder = f"{attempt}/{DATA_FOLDER}"
    if not store.names(folder):
        return False
    with db.alone(LOCK):
        with db.read() as session:
            if (run_id, token) in _needed(session):
                return False
        is_over = store.size(f"{attempt}/{OUTCOME_FILE}") is not None
        return store.discard(folder, partial=is_over)


def _needed(session: Session) -> Set[tuple[int, int]]:
    """The runs and tokens of the attempts whose data are needed."""
    under_way = session.execute(select(Run.recipe, Run.pool_id).where(col(Run.state).not_in(ENDED))).all()
    recipes, pools = {recipe for recipe, _ in under_way}, {pool for _, pool in under_way}
    entries = session.scalars(select(CatalogueEntry).where(CatalogueEntry.prepared != ""))
    found = {each.prepared for each in entries if each.state == CatalogueState.ACCEPTED or each.name in recipes}
    prepared = session.scalars(select(Corpus).where(Corpus.kind == CorpusKind.PREPARED))
    found |= {each.path for each in prepared if each.retired_at is None or each.pool_id in pools}
    return {preparing.attempt_of(place) for place in found if MADE_BY_A_RUN.fullmatch(place)}
