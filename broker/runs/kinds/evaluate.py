"""Evaluating: checkpoints of a run are given the tasks of lm-evaluation-harness, one after the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.publications import Publication
from broker.runs import evaluations, folders, runs
from broker.runs import results as saved
from broker.runs.kinds.kind import Kind, Start
from broker.runs.progress import Ending, Result
from broker.runs.runs import Run
from trainer.contract import DATA_FOLDER

MOST_TOLD = 60
"""The most results that the entry of an evaluation's end has; the others are with the run."""


class Evaluate(Kind):
    """Evaluates checkpoints of its parent; a later attempt goes on with those that are left."""

    has_card = reads_corpora = False
    may_overlap = True
    takes = "an evaluation takes as long as its tasks"
    of_parent = "an evaluation of"
    again = "/run evaluate launches it again"
    not_paused = "and its results are saved as they come; let it end, or cancel it"

    def command(self, start: Start) -> list[str]:
        wanted = evaluations.what(start.run)
        with start.db.read() as session:
            left = self.reads(session, start.run, begins=True)
        kept = [str(folders.on_disk(start.settings, one.run_id, one.folder)) for one in left]
        if not kept:
            raise FileNotFoundError(f"the checkpoints of run {start.run.parent_id} are no longer on this disk")
        data = self._data(start)
        options = [f"--tasks={','.join(wanted.tasks)}", "--out", str(start.folder)]
        options += [] if wanted.shots is None else [f"--num-fewshot={wanted.shots}"]
        options += [] if wanted.limit is None else [f"--limit={wanted.limit}"]
        options += [] if data is None else ["--data", str(data)]
        return ["eval", *kept, *options]

    def _data(self, start: Start) -> Path | None:
        """The data that the newest attempt of the parent has prepared, where they are here; those of the attempts
        before go."""
        place = folders.of_run(start.settings, start.run.parent_id or 0)
        found = [path for path in place.glob(f"attempt-*/{DATA_FOLDER}") if path.is_dir()]
        if start.in_store or not found:
            return None
        return max(found, key=lambda path: int(path.parent.name.removeprefix("attempt-")))

    def reads(self, session: Session, run: Run, *, begins: bool) -> Sequence[Publication]:
        """The checkpoints that are left; all where none is, so that an attempt has something to end with."""
        steps = set(evaluations.what(run).steps)
        left = (steps - saved.steps(session, run.id)) or steps
        wanted = (Publication.run_id == run.parent_id, col(Publication.step).in_(left))
        return session.scalars(select(Publication).where(*wanted).order_by(col(Publication.step))).all()

    def about(self, session: Session, run: Run) -> Mapping[str, Any]:
        """An evaluation is told as the `nth` of its parent."""
        wanted = evaluations.what(run)
        told: dict[str, Any] = {"run": run.parent_id, "evaluation": run.id, "nth": runs.nth(session, run)}
        return told | {"tasks": wanted.tasks, "steps": wanted.steps, **runs.sweep_of_parent(session, run)}

    def measured(self, session: Session, run: Run, results: Sequence[Result]) -> None:
        saved.save(session, run.id, run.parent_id or 0, results)

    def told_at_end(self, session: Session, run: Run, ending: Ending) -> Mapping[str, Any]:
        rows = [
            [scored.task, scored.metric, step, value, stderr]
            for scored in saved.of_evaluation(session, run.id)
            for step, (value, stderr) in scored.values.items()
        ]
        return {"results": rows[:MOST_TOLD], "more_results": max(0, len(rows) - MOST_TOLD)}


KIND = Evaluate()
