"""What a benchmark holds its values against, and the line of JSON that it ends with."""

import json
from collections.abc import Sequence
from typing import NamedTuple


class Goal(NamedTuple):
    """`least` or `most` is what a value must be; a value of None was not measured here."""

    name: str
    value: float | None
    least: float | None = None
    most: float | None = None

    @property
    def missed(self) -> bool:
        if self.value is None:
            return False
        too_low = self.least is not None and self.value < self.least
        return too_low or (self.most is not None and self.value > self.most)


def as_json(goals: Sequence[Goal]) -> str:
    """One JSON object: of each goal its value, its bounds, and whether it was missed."""
    return json.dumps({goal.name: {**goal._asdict(), "missed": goal.missed} for goal in goals})
