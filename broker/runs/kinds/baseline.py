"""Evaluating a baseline: a model of the Hub is given the tasks of lm-evaluation-harness, at each of its revisions."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from broker.configs import Base
from broker.runs import baselines, evaluations, folders
from broker.runs import results as saved
from broker.runs.kinds.kind import Kind, Start
from broker.runs.kinds.reading import told_results
from broker.runs.progress import Ending, Result
from broker.runs.runs import Run
from trainer.contract import revision_step


class Baseline(Kind):
    """Evaluates a model of the Hub; a later attempt goes on with the revisions that are left."""

    reads_corpora = False
    may_overlap = True
    takes = "an evaluation takes as long as its tasks"
    does = "evaluates "
    again = "/run evaluate launches it again"
    not_paused = "and its results are saved as they come; let it end, or cancel it"

    def what_it_is(self, run: Run) -> str:
        return f"Run {run.id} evaluates {run.recipe}"

    def from_hub(self, run: Run) -> Sequence[Base]:
        return baselines.what(run).sources

    def command(self, start: Start) -> list[str]:
        wanted = baselines.what(start.run)
        with start.db.read() as session:
            done = saved.steps(session, start.run.id)
        # The last one where none is left, so that an attempt has something to end with.
        left = [base for base in wanted.sources if revision_step(base.revision) not in done] or wanted.sources[-1:]
        models = [str(folders.hub_base(start.settings, *base)) for base in left]
        return ["eval", *models, *evaluations.options(wanted.tasks, start.folder, wanted.shots, wanted.limit)]

    def about(self, session: Session, run: Run) -> Mapping[str, Any]:
        return {"baseline": run.recipe, "tasks": baselines.what(run).tasks}

    def measured(self, session: Session, run: Run, results: Sequence[Result]) -> None:
        """Save its results as its own: the model is of no run."""
        saved.save(session, run.id, run.id, results)

    def told_at_end(self, session: Session, run: Run, ending: Ending) -> Mapping[str, Any]:
        return told_results(session, run)


KIND = Baseline()
