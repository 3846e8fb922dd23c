"""Running other people's programs: an accepted entry of the catalogue, on a checkpoint of a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from broker.publications import Publication
from broker.runs import programs
from broker.runs import results as saved
from broker.runs.kinds.kind import Start
from broker.runs.kinds.reading import MOST_TOLD, Reading, of_steps
from broker.runs.progress import Ending, Result
from broker.runs.runs import Run
from trainer.contract import CONFIG_FILE


class Program(Reading):
    """Runs a program on checkpoints of its parent, from its beginning in every attempt."""

    reads_parents_data = goes_on = False
    needs_home = True
    takes = "a program takes as long as it takes"
    of_parent = "a program on"
    again = "/run program launches it again"
    not_paused = "and would begin again; let it end, or cancel it"

    def command(self, start: Start) -> list[str]:
        order = start.folder.parent / CONFIG_FILE
        order.write_text(start.run.config)
        checkpoints = self.checkpoints(start, programs.what(start.run).steps)
        options = [*(word for each in checkpoints for word in ("--checkpoint", each)), "--out", str(start.folder)]
        return ["program", str(order), *options, *programs.options(start.settings)]

    def reads(self, session: Session, run: Run, *, begins: bool) -> Sequence[Publication]:
        return of_steps(session, run, programs.what(run).steps)

    def measured(self, session: Session, run: Run, results: Sequence[Result]) -> None:
        """Save its metrics as its own: their steps are those of the program, and not of its parent."""
        saved.save(session, run.id, run.id, results)

    def renews_cards_of(self, run: Run) -> Sequence[int]:
        return []

    def about(self, session: Session, run: Run) -> Mapping[str, Any]:
        wanted = programs.what(run)
        told = self.told(session, run, "program") | {"tasks": [wanted.name], "steps": wanted.steps}
        return told | {"parameters": wanted.parameters}

    def told_at_end(self, session: Session, run: Run, ending: Ending) -> Mapping[str, Any]:
        """The last value of each metric."""
        found = saved.measured_by(session, run.id)
        last = [[each.task, each.metric, step, *each.values[step]] for each in found for step in [max(each.values)]]
        return {"results": last[:MOST_TOLD], "more_results": max(0, len(last) - MOST_TOLD)}


KIND = Program()
