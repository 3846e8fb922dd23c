"""Preparing data: a recipe's sources become tokens once, which every later run of the recipe reads."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from broker.runs import preparing
from broker.runs.kinds.kind import Kind, Start
from broker.runs.progress import Ending
from broker.runs.runs import Run


class Prepare(Kind):
    """Prepares a recipe's data, by a process for each GPU or core."""

    takes = "a preparation takes as long as its recipe has data"
    does = "prepares the data of "
    again = "/catalogue prepare launches it again"
    not_paused = "and would begin again; let it end, or cancel it"

    def what_it_is(self, run: Run) -> str:
        return f"Run {run.id} prepares the data of “{run.recipe}”"

    def command(self, start: Start) -> list[str]:
        config = preparing.written(start.settings, start.db, start.run, start.folder)
        place = preparing.folder(start.settings, start.run)
        place.parent.mkdir(parents=True, exist_ok=True)
        workers = str(start.run.gpus // start.nodes)
        return ["data", "prepare", str(config), "--out", str(place), "--workers", workers]

    def about(self, session: Session, run: Run) -> Mapping[str, Any]:
        return {"prepares": run.recipe}

    def finished(self, session: Session, run: Run, ending: Ending) -> None:
        preparing.made(session, run, ending.prepared)


KIND = Prepare()
