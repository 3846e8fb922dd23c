"""`sources`: how well the model knows each source, and when it has learnt half of it.

Bits per byte on the held-out documents (Gao et al. 2020, "The Pile", section 3.1), as `eval --tasks heldout` has them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

from pydantic import Field

from trainer.data.held_out_texts import documents
from trainer.data.prepare import manifest_of
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.evaluation.score import log_likelihoods
from trainer.schema import ConfigError
from trainer.study import texts
from trainer.study.analysis import Analysis, Study, Values


class Sources(Analysis):
    """`documents` is the number of held-out documents of each source, at most, spaced evenly."""

    version: ClassVar[int] = 1
    documents: int = Field(default=200, ge=1, le=10**9)

    def reads(self, data: Path) -> dict[str, str]:
        return texts.digest(data)

    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        """`bits_per_byte` by source, over all bytes of its documents, and the `mean` over the sources."""
        found: dict[str, float] = {}
        sources = manifest_of(study.data)["sources"]
        for source in sources:
            chosen = documents(study.data, source["name"], "row" in source, self.documents)
            requests = [([opened.begin], opened.encode(text)) for text in chosen]
            totals = log_likelihoods(opened, requests, advance=lambda share: study.advance(share / len(sources)))
            size = sum(len(text.encode()) for text in chosen)
            if size:
                found[source["name"]] = -sum(total for total, _ in totals) / math.log(2) / size
        if not found:
            raise ConfigError(
                f"The data in {study.data} hold no held-out document; prepare them with a higher data.held_out."
            )
        return {"mean": sum(found.values()) / len(found), "bits_per_byte": found}

    def summary(self, steps: Sequence[int], values: Sequence[Values]) -> Values:
        """`half_learnt`: the step at which a source's bits per byte have first fallen half of the way from the first
        step to their lowest, on a straight line between two steps; None where they never fell."""
        curves = [cast(Mapping[str, Any], each["bits_per_byte"]) for each in values]
        return {"half_learnt": {name: half_way(steps, [curve[name] for curve in curves]) for name in curves[0]}}


def half_way(steps: Sequence[int], curve: Sequence[float]) -> float | None:
    """The step at which a curve has first fallen half of the way from its beginning to its lowest point."""
    half = (curve[0] + min(curve)) / 2
    if min(curve) == curve[0]:
        return None
    after = next(at for at, value in enumerate(curve) if value <= half)
    high, low = curve[after - 1], curve[after]
    return steps[after - 1] + (steps[after] - steps[after - 1]) * (high - half) / (high - low)
