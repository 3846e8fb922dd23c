"""Copies of corpora on this host: removing those that no run has needed for a while.

A run that has not ended needs what it is to read, by what its pool has and lacks now, and what its trainer was told to
read here. Each look counts what is needed as used. A copy that no run needs goes after `keep_copies_days`, on a scarce
disk at once, the one that is unused the longest first. Whoever needs it later fetches it again.
"""

from collections.abc import Iterator, Set
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import yaml
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker import corpus_copies
from broker.publishing import disk
from broker.runs import folders, preparing
from broker.runs.runs import ENDED, Run
from projects.db.database import Database
from projects.errors import DomainError
from projects.settings import Settings
from trainer.contract import CONFIG_FILE

log = structlog.get_logger()


def remove_unneeded(settings: Settings, db: Database, *, at_once: bool = False) -> int:
    """Remove the copies that no run needs, those that were used lately only on a scarce disk or `at_once`; returns the
    number removed."""
    home = settings.corpora_dir
    corpus_copies.clear_removed(home)
    found = corpus_copies.here(home)
    if not found:
        return 0
    names = {copy.name for copy in found}
    with db.read() as session:
        needed = _needed(settings, session, names)
    removed = 0
    since = datetime.now(UTC) - timedelta(days=settings.keep_copies_days)
    for copy in found:
        if copy.name in needed:
            corpus_copies.mark(home, copy.name)
        elif at_once or copy.used_at <= since or disk.is_scarce(settings, home):
            removed += corpus_copies.remove(home, copy.name, partial(_is_needed, settings, db, copy.name))
    if removed:
        log.info("copies of corpora that no run needs were removed here", count=removed)
    return removed


def _is_needed(settings: Settings, db: Database, name: str) -> bool:
    with db.read() as session:
        return bool(_needed(settings, session, {name}))


def _needed(settings: Settings, session: Session, names: Set[str]) -> Set[str]:
    """Which of some copies a run needs that has not ended."""
    needed: set[str] = set()
    known: set[tuple[str, str, int, str]] = set()
    for run in session.scalars(select(Run).where(col(Run.state).not_in(ENDED))):
        needed |= _read_here(settings, run, names - needed)
        alike = (run.kind, run.recipe, run.pool_id, run.config)
        if alike not in known:
            known.add(alike)
            try:
                needed |= {corpus.copy_name for corpus in preparing.copied(session, run)} & names
            except DomainError:
                continue  # it cannot be started
    return needed


def _read_here(settings: Settings, run: Run, names: Set[str]) -> Set[str]:
    """Which of some copies the run's trainer was told to read on this host, whatever its pool has since."""
    with suppress(OSError, yaml.YAMLError):  # it was told nothing, or was not started, as that was only half written
        told = yaml.safe_load((folders.of_run(settings, run.id) / CONFIG_FILE).read_bytes())
        home = settings.corpora_dir
        places = (Path(text) for text in _texts(told))
        return {place.relative_to(home).parts[0] for place in places if home in place.parents} & names
    return set()


def _texts(value: Any) -> Iterator[str]:
    """The texts in the values of a configuration."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
