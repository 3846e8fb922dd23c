"""Evaluating: checkpoints of a run are given the tasks of lm-evaluation-harness, one after the other."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from broker.publications import Publication
from broker.runs import evaluations
from broker.runs import results as saved
from broker.runs.kinds.kind import Start
from broker.runs.kinds.reading import Reading, of_steps
from broker.runs.runs import Run


class Evaluate(Reading):
    """Evaluates checkpoints of its parent; a later attempt goes on with those that are left."""

    takes = "an evaluation takes as long as its tasks"
    of_parent = "an evaluation of"
    again = "/run evaluate launches it again"

    def command(self, start: Start) -> list[str]:
        wanted = evaluations.what(start.run)
        with start.db.read() as session:
            left = self._left(session, start.run)
        options = evaluations.options(wanted.tasks, start.folder, wanted.shots, wanted.limit)
        return ["eval", *self.checkpoints(start, left), *options, *self.data(start)]

    def reads(self, session: Session, run: Run, *, begins: bool) -> Sequence[Publication]:
        return of_steps(session, run, self._left(session, run))

    def needs_data(self, run: Run) -> bool:
        return bool(evaluations.what(run).needs_data)

    def about(self, session: Session, run: Run) -> Mapping[str, Any]:
        wanted = evaluations.what(run)
        return self.told(session, run, "evaluation") | {"tasks": wanted.tasks, "steps": wanted.steps}

    def _left(self, session: Session, run: Run) -> list[int]:
        """The steps that are left; the last one where none is, so that an attempt has something to end with."""
        steps = set(evaluations.what(run).steps)
        return sorted(steps - saved.steps(session, run.id)) or [max(steps)]


KIND = Evaluate()
