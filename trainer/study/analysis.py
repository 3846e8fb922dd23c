"""What an analysis is: its settings, and what it measures of one checkpoint after the other."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.schema import Section
from trainer.study.results import Value as Value
from trainer.study.results import Values as Values
from trainer.study.shelf import Shelf


@dataclass(frozen=True)
class Study:
    """What an analysis may use beside the checkpoint: the folder of the run's `first` checkpoint, the prepared
    `data`, and a shelf in the study's folder, of this analysis with these settings, for what it needs again. `advance`
    is told the share of the analysis's work that was just done."""

    first: Path
    data: Path
    shelf: Shelf
    advance: Callable[[float], None] = lambda share: None


class Analysis(Section, ABC):
    """An analysis; its fields are its settings.

    `version` goes up whenever the numbers of a checkpoint come out otherwise than before. Between two checkpoints it
    keeps nothing in memory: what it needs of an earlier one, it puts on its shelf.
    """

    version: ClassVar[int] = 1

    def reads(self, data: Path) -> dict[str, str]:
        """The digests, by names, of what it reads beside the checkpoints, such as prepared `data`. Raises ConfigError
        where something is wrong with it."""
        return {}

    @abstractmethod
    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        """The numbers of a checkpoint. The checkpoints come in the order of their steps. Raises ConfigError."""

    def summary(self, steps: Sequence[int], values: Sequence[Values]) -> Values:
        """What the numbers of all steps say together; `values` are those of each."""
        return {}
