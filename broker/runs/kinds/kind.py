"""What differs between the kinds of run, behind one interface. Each kind is a module of this package.

Whatever is not asked of a kind here is the same for all: the queue, the ledger, leases and fencing, runners, carriers.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from sqlalchemy.orm import Session

from broker.configs import Base
from broker.publications import Publication
from broker.runs.progress import Checkpoint, Ending, Result
from broker.runs.runs import Run
from projects.db.database import Database
from projects.settings import Settings


@dataclass(frozen=True)
class Start:
    """What an attempt's trainer is started with: on `nodes`, to write `folder`, and to go on from the last checkpoint
    of `before`. With `in_store`, other runs' checkpoints are those of the store, and need not be on this disk."""

    settings: Settings
    db: Database
    run: Run
    folder: Path
    before: Sequence[Checkpoint] = ()
    nodes: int = 1
    in_store: bool = False


class Kind(ABC):
    """A kind of run: what it needs, the command that it runs, what it leaves, and how people are told of it."""

    trains = False
    """Whether it trains: it writes checkpoints, which are published, and can be paused, forked and compared."""
    has_card = True
    """Whether it has a card of its own in the channel, and a thread; otherwise its parent's thread tells of it."""
    reads_corpora = True
    """Whether its configuration is a recipe's, which names corpora and prepared data."""
    reads_parents_data = False
    """Whether it reads the data that its parent has prepared."""
    may_overlap = False
    """Whether two of its attempts do no harm at the same time, where a lost host may still be at work."""
    needs_home = False
    """Whether its trainer reads and writes the home folder of a worker beside its own folder."""
    goes_on = True
    """Whether a later attempt goes on from the results that are saved, so that what they cost is never refunded."""
    can_be_extended = True
    takes = ""
    """How long it takes, in words, where nothing was measured."""
    does = ""
    """What it does with its recipe, as words before the recipe's name on a card."""
    of_parent = ""
    """What it is to its parent, as words before the parent's name."""
    again = ""
    """What starts it again once it was cancelled."""
    not_paused = ""
    """Why it cannot be paused, as the end of a sentence."""

    def what_it_is(self, run: Run) -> str:
        """The beginning of a sentence that refuses what only another kind of run can do."""
        return f"Run {run.id} is {self.of_parent} run {run.parent_id}"

    def short_name(self, run: Run) -> str:
        """What lists of runs call it, such as “run 7”, “run 8 (a sample of run 7)”."""
        return f"run {run.id}" if self.has_card else f"run {run.id} ({self.of_parent} run {run.parent_id})"

    @abstractmethod
    def command(self, start: Start) -> list[str]:
        """The arguments of the trainer on each node; writes the configuration that they name.

        Raises OSError where a file that it needs is missing or cannot be written.
        """

    def reads(self, session: Session, run: Run, *, begins: bool) -> Sequence[Publication]:
        """The checkpoints of another run that an attempt reads; `begins` is False where the run goes on from one of
        its own."""
        return []

    def from_hub(self, run: Run) -> Sequence[Base]:
        """The models of the Hub that an attempt reads, which its host fetches as anybody may."""
        return []

    def needs_data(self, run: Run) -> bool:
        """Whether it cannot do without the data that its parent was trained on."""
        return False

    def about(self, session: Session, run: Run) -> Mapping[str, Any]:
        """What its entries in the record say beside the run and the attempt, or in their place."""
        return {}

    def measured(self, session: Session, run: Run, results: Sequence[Result]) -> None:  # noqa: B027
        """Save results that its trainer has told of."""

    def told_at_end(self, session: Session, run: Run, ending: Ending) -> Mapping[str, Any]:
        """What the entry of its end says besides, once it has finished."""
        return {}

    def renews_cards_of(self, run: Run) -> Sequence[int]:
        """The runs whose model cards say something else once it has finished."""
        return []

    def finished(self, session: Session, run: Run, ending: Ending) -> None:  # noqa: B027
        """What its good end brings about, in the same transaction, before the end is told."""

    def followed(self, session: Session, run: Run) -> None:  # noqa: B027
        """What is queued after its good end, in the same transaction."""

    def not_retried(self, run: Run, host: str) -> str:
        """Why it is not queued again after its `host` was lost; empty where it is."""
        return ""


@cache
def named(name: str) -> Kind:
    """The kind of that name in `RunKind`."""
    kind: Kind = resolve_name(f"{__package__}.{name}:KIND")
    return kind


def kind_of(run: Run) -> Kind:
    """The run's kind."""
    return named(run.kind)
