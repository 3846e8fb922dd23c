"""Training: the only kind of run that writes checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from broker import configs
from broker.configs import Base
from broker.publications import Publication, Repository
from broker.runs import folders, preparing
from broker.runs.kinds import sample
from broker.runs.kinds.kind import Kind, Start
from broker.runs.runs import Run


class Train(Kind):
    """Trains a model by a recipe, from its first step, from its own last checkpoint, or from that of another run."""

    trains = True
    of_parent = "forked from"
    again = "/run rerun launches it again"

    def what_it_is(self, run: Run) -> str:
        return f"Run {run.id} trains a model"

    def command(self, start: Start) -> list[str]:
        run = start.run
        config = preparing.written(start.settings, start.db, run, start.folder)
        arguments = ["train", str(config), "--out", str(start.folder), "--gpus", str(run.gpus // start.nodes)]
        for base in self.from_hub(run):
            arguments += ["--base", str(folders.hub_base(start.settings, *base))]
        if start.before:
            return [*arguments, "--resume", start.before[-1].folder]
        if run.fork_step is None:
            return arguments
        return [*arguments, "--fork", self._origin(start), "--fork-name", f"run {run.parent_id}"]

    def from_hub(self, run: Run) -> Sequence[Base]:
        base = configs.base(run.config)
        return [] if base is None else [base]

    def reads(self, session: Session, run: Run, *, begins: bool) -> Sequence[Publication]:
        kept = (
            session.get(Publication, (run.parent_id, run.fork_step)) if begins and run.fork_step is not None else None
        )
        return [] if kept is None else [kept]

    def about(self, session: Session, run: Run) -> Mapping[str, Any]:
        return {} if run.sweep_id is None else {"sweep": run.sweep_id}

    def followed(self, session: Session, run: Run) -> None:
        sample.queue_at_end(session, run)

    def _origin(self, start: Start) -> str:
        """The checkpoint that a fork goes on from, as the trainer reads it: FOLDER@STEP."""
        run = start.run
        with start.db.read() as session:
            kept = session.get(Publication, (run.parent_id, run.fork_step))
            repository = session.get(Repository, run.parent_id)
        folder = None if kept is None else folders.on_disk(start.settings, kept.run_id, kept.folder)
        if folder is not None and not folder.is_dir() and repository is not None and not start.in_store:
            folder = folders.hub_copy(start.settings, repository.name, run.fork_step or 0)
        if folder is None or not (start.in_store or folder.is_dir()):
            raise FileNotFoundError(f"step {run.fork_step} of run {run.parent_id} is no longer on this disk")
        return f"{folder.parents[1]}@{run.fork_step}"


KIND = Train()
