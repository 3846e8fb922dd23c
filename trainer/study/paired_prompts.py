"""`paired_prompts`: which of two continuations of a prompt the model prefers.

Pairs that differ in one thing ask for one ability or bias: minimal pairs of grammar (Warstadt et al. 2020, BLiMP),
sentences that differ in who they are about (Nangia et al. 2020, CrowS-Pairs). The preferred text is the likelier one.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.evaluation.score import log_likelihoods
from trainer.schema import ConfigError
from trainer.study import pairs
from trainer.study.analysis import Analysis, Study, Values
from trainer.study.pairs import Pair

PROMPTS = Path(__file__).parent / "prompts"


class PairedPrompts(Analysis):
    """`file` is a name of this package's `prompts/`, or a .yml with a list of pairs under `pairs`, or a .jsonl with one
    a line."""

    version: ClassVar[int] = 1
    file: str = "closing_brackets"

    def reads(self, data: Path) -> dict[str, str]:
        listed = json.dumps([pair.model_dump() for pair in self.pairs], sort_keys=True)
        return {"file": Path(self.file).name, "pairs_sha256": hashlib.sha256(listed.encode()).hexdigest()}

    @cached_property
    def pairs(self) -> list[Pair]:
        """The pairs of the file. Raises ConfigError."""
        known = sorted(path.stem for path in PROMPTS.glob("*.yml"))
        path = PROMPTS / f"{self.file}.yml" if self.file in known else Path(self.file)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise ConfigError(
                f"The pairs {self.file} cannot be read ({reason}); give a .yml or .jsonl file, or {', '.join(known)}."
            ) from error
        return pairs.read(text, str(path), is_jsonl=path.suffix == ".jsonl")

    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        """`preferred` is the share of pairs whose preferred continuation is the likelier one, `log_odds` the mean of
        ln(p(preferred) / p(other)) in nats, each with its standard error over the pairs."""
        odds = self._log_odds(opened, study)
        preferred = [float(each > 0) for each in odds]
        groups = sorted({pair.group for pair in self.pairs if pair.group is not None})
        return {
            "preferred": statistics.fmean(preferred),
            "preferred_stderr": _stderr(preferred),
            "log_odds": statistics.fmean(odds),
            "log_odds_stderr": _stderr(odds),
            "pairs": len(odds),
            "preferred_by_group": {
                group: statistics.fmean(
                    share for share, pair in zip(preferred, self.pairs, strict=True) if pair.group == group
                )
                for group in groups
            },
            "log_odds_by_pair": list(odds),
        }

    def summary(self, steps: Sequence[int], values: Sequence[Values]) -> Values:
        """`first_step` is the first one that prefers more than half of the pairs by two standard errors, None where
        none does; `best` the highest share, at `best_step`."""
        shares = [_number(found["preferred"]) for found in values]
        errors = [_number(found["preferred_stderr"]) for found in values]
        beyond = [step for step, share, error in zip(steps, shares, errors, strict=True) if share - 2 * error > 0.5]
        best = max(shares)
        return {"first_step": min(beyond, default=None), "best": best, "best_step": steps[shares.index(best)]}

    def _log_odds(self, opened: OpenCheckpoint, study: Study) -> list[float]:
        """ln(p(preferred) / p(other)) of each pair, of the tokens after those that both texts begin with: so a
        continuation may share a token with the end of the prompt."""
        requests = []
        for pair in self.pairs:
            one, other = (opened.encode(pair.prompt + end) for end in (pair.preferred, pair.other))
            shared = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
            if shared is None:
                raise ConfigError(
                    f"The continuations {pair.preferred!r} and {pair.other!r} of {pair.prompt[-40:]!r} begin with the "
                    "same tokens, and one ends there; let them differ before."
                )
            context = [opened.begin, *one[:shared]]
            requests += [(context, one[shared:]), (context, other[shared:])]
        totals = [total for total, _ in log_likelihoods(opened, requests, advance=study.advance)]
        return [one - other for one, other in zip(totals[::2], totals[1::2], strict=True)]


def _stderr(values: Sequence[float]) -> float:
    """The standard error of the mean; 0 for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _number(value: Any) -> float:
    assert isinstance(value, int | float)
    return float(value)
