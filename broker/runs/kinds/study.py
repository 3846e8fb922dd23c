"""Studying: analyses over checkpoints of a run, such as how its heads come to copy or when a source is half learnt."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from broker.publications import Publication
from broker.runs import studies
from broker.runs.kinds.kind import Start
from broker.runs.kinds.reading import Reading, of_steps, token
from broker.runs.progress import Result
from broker.runs.runs import Run
from trainer.contract import CONFIG_FILE, RESULT_LINES_FILE


class Study(Reading):
    """Runs analyses over checkpoints of its parent; a later attempt on the same host goes on where the one before
    was."""

    takes = "a study takes as long as its analyses"
    of_parent = "a study of"
    again = "/study start launches it again"

    def command(self, start: Start) -> list[str]:
        wanted = studies.what(start.run)
        options = ["--analyses", ",".join(wanted.analyses), "--out", str(start.folder)]
        if wanted.pairs:
            asked = start.folder.parent / CONFIG_FILE
            asked.write_text(wanted.pairs_text, encoding="utf-8")
            options += ["--pairs", str(asked)]
        earlier = [path for path in start.folder.parent.glob(f"attempt-*/{RESULT_LINES_FILE}") if path.is_file()]
        if earlier and not start.in_store:
            options += ["--resume", str(max(earlier, key=token).parent)]
        return ["study", *self.checkpoints(start, wanted.steps), *options, *self.data(start)]

    def reads(self, session: Session, run: Run, *, begins: bool) -> Sequence[Publication]:
        return of_steps(session, run, studies.what(run).steps)

    def needs_data(self, run: Run) -> bool:
        return bool(studies.what(run).needs_data)

    def about(self, session: Session, run: Run) -> Mapping[str, Any]:
        wanted = studies.what(run)
        told = self.told(session, run, "study") | {"analyses": wanted.analyses, "steps": wanted.steps}
        return told | ({"pairs": wanted.pairs} if wanted.pairs else {})

    def measured(self, session: Session, run: Run, results: Sequence[Result]) -> None:
        """Save them; those of pairs of the catalogue under the name of these."""
        wanted = studies.what(run)
        named = f"{studies.PAIRED}/{wanted.pairs}" if wanted.pairs else studies.PAIRED
        super().measured(
            session, run, [each._replace(task=named) if each.task == studies.PAIRED else each for each in results]
        )


KIND = Study()
