"""Checkpoints that are no longer on this disk, fetched from the store to be published."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker import pieces
from broker import store as stores
from broker.runs import folders, runs
from broker.store import Store
from projects.db.database import Database
from projects.settings import Settings
from trainer.contract import METRICS_FILE

FOLDER = "fetched"
"""Below the home folder: what was fetched, arranged as the folders of runs are."""


@contextmanager
def checkpoint(settings: Settings, db: Database, run_id: int, told: Path) -> Iterator[Path]:
    """The folder of a checkpoint whose folder on its own host is `told`: that one, or a copy of the store's, which goes
    at the end, beside the metrics of its attempt and those before.

    Raises StoreError, and FileNotFoundError where it is in neither place.
    """
    if told.is_dir() or not settings.store:
        yield told
        return
    with db.read() as session:
        owner = runs.load(session, run_id).request_id
    place, store = folders.in_store(run_id, owner, str(told)), Store(settings)
    target = folders.of_checkpoint(settings.home / FOLDER, run_id, str(told))
    target.parent.mkdir(parents=True, exist_ok=True)
    if place is None or not store.pull(place, target):
        raise FileNotFoundError(f"{told.name} of run {run_id} is neither on this disk nor in the store")
    for token in range(1, (folders.token_of(str(told)) or 0) + 1):
        path = target.parents[2] / f"attempt-{token}" / METRICS_FILE
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            name = f"{stores.attempt_folder(run_id, owner, token)}/{METRICS_FILE}"
            while more := pieces.read_from(store, name, file.tell()):
                file.write(more)
    try:
        yield target
    finally:
        shutil.rmtree(target, ignore_errors=True)
