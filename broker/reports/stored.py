"""What the checkpoints of each run take in the store."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlmodel import col, select

from broker import store as stores
from broker.publications import Disk, Publication
from broker.runs.runs import Run, RunState
from broker.store import Store
from projects.db.database import Database


@dataclass(frozen=True)
class Stored:
    """A run's whole checkpoints in the store, those of all its attempts, and their bytes."""

    run_id: int
    state: RunState
    checkpoints: int
    size: int


def of_runs(db: Database, store: Store) -> Sequence[Stored]:
    """The runs with something in the store, the largest first. Raises StoreError."""
    with db.read() as session:
        rows = session.execute(
            select(Run, Publication.step)
            .join(Publication, col(Publication.run_id) == Run.id)
            .where(Publication.disk != Disk.CLEARED)
        ).all()
    sizes: dict[int, list[int]] = {}
    for run, step in rows:
        attempts = [stores.attempt_folder(run.id, run.request_id, token) for token in range(1, run.token + 1)]
        found = [store.whole_size(stores.checkpoint_folder(attempt, step)) for attempt in attempts]
        sizes.setdefault(run.id, []).extend(size for size in found if size is not None)
    states = {run.id: RunState(run.state) for run, _ in rows}
    listed = [Stored(run_id, states[run_id], len(found), sum(found)) for run_id, found in sizes.items() if found]
    return sorted(listed, key=lambda one: one.size, reverse=True)
