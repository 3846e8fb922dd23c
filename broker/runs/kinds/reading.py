"""What evaluations and studies have in common: they read checkpoints of their parent and save results of each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.publications import Publication, Repository
from broker.runs import folders, preparing, runs
from broker.runs import results as saved
from broker.runs.kinds.kind import Kind, Start
from broker.runs.progress import Ending, Result
from broker.runs.runs import Run
from trainer.contract import DATA_FOLDER

MOST_TOLD = 60
"""The most results that the entry of its end has; the others are with the run."""


class Reading(Kind):
    """Reads checkpoints of its parent, and saves what it measures of each as soon as that is known."""

    has_card = reads_corpora = False
    reads_parents_data = may_overlap = True
    not_paused = "and its results are saved as they come; let it end, or cancel it"

    def checkpoints(self, start: Start, steps: Sequence[int]) -> list[str]:
        """The folders of the parent's checkpoints at these steps, in order; raises OSError where none is left."""
        with start.db.read() as session:
            found = of_steps(session, start.run, steps)
            repository = session.get(Repository, start.run.parent_id)
        if not found:
            raise FileNotFoundError(f"the checkpoints of run {start.run.parent_id} are no longer there")
        places = [folders.on_disk(start.settings, one.run_id, one.folder) for one in found]
        if repository is not None and not start.in_store:
            copies = [folders.hub_copy(start.settings, repository.name, one.step) for one in found]
            places = [
                place if place.is_dir() or not copy.is_dir() else copy
                for place, copy in zip(places, copies, strict=True)
            ]
        return [str(place) for place in places]

    def data(self, start: Start) -> list[str]:
        """The option for the data that the newest attempt of the parent has prepared, or that the catalogue had
        prepared for its recipe, where they are here; those of the attempts before go."""
        if start.in_store:
            return []
        place = folders.of_run(start.settings, start.run.parent_id or 0)
        found = [path for path in place.glob(f"attempt-*/{DATA_FOLDER}") if path.is_dir()]
        if found:
            return ["--data", str(max(found, key=token))]
        with start.db.read() as session:
            mark = preparing.used(session, runs.load(session, start.run.parent_id or 0))
        kept = start.settings.data_dir / mark
        return ["--data", str(kept)] if mark and kept.is_dir() else []

    def measured(self, session: Session, run: Run, results: Sequence[Result]) -> None:
        saved.save(session, run.id, run.parent_id or 0, results)

    def renews_cards_of(self, run: Run) -> Sequence[int]:
        return [run.parent_id or 0]

    def told(self, session: Session, run: Run, name: str) -> dict[str, Any]:
        """What its entries say of it: it is told as the `nth` of its parent, under its `name`."""
        nth = runs.nth(session, run)
        return {"run": run.parent_id, name: run.id, "nth": nth, **runs.sweep_of_parent(session, run)}

    def told_at_end(self, session: Session, run: Run, ending: Ending) -> Mapping[str, Any]:
        return told_results(session, run)


def told_results(session: Session, run: Run) -> dict[str, Any]:
    """What the entry of a run's end says of what it has measured: the first results, and how many more there are."""
    rows = [
        [scored.task, scored.metric, step, value, stderr]
        for scored in saved.measured_by(session, run.id)
        for step, (value, stderr) in scored.values.items()
    ]
    return {"results": rows[:MOST_TOLD], "more_results": max(0, len(rows) - MOST_TOLD)}


def of_steps(session: Session, run: Run, steps: Sequence[int]) -> Sequence[Publication]:
    """The parent's checkpoints at these steps, in order."""
    wanted = (Publication.run_id == run.parent_id, col(Publication.step).in_(steps))
    return session.scalars(select(Publication).where(*wanted).order_by(col(Publication.step))).all()


def token(inside: Path) -> int:
    """The token of the attempt in whose folder a path lies."""
    return int(inside.parent.name.removeprefix("attempt-"))
