"""`similarity`: how alike the representations of two checkpoints, and of two layers, are.

Linear centred kernel alignment (Kornblith et al. 2019, "Similarity of neural network representations revisited",
section 3) of the residual stream on the same held-out tokens: 1 for representations that a rotation and a scale turn
into each other, 0 for ones that have nothing in common. N tokens, D hidden size.
"""

import statistics
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.evaluation.score import TOKENS_AT_ONCE
from trainer.study import texts
from trainer.study.analysis import Analysis, Study, Values

ROWS = 32
"""Held-out rows that the tokens come from, more where they are short."""


class Similarity(Analysis):
    """`tokens` is the number of held-out tokens whose representations are compared, at most."""

    version: ClassVar[int] = 1
    tokens: int = Field(default=1024, ge=2, le=16_384)

    def reads(self, data: Path) -> dict[str, str]:
        return texts.digest(data)

    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        """By layer, 0 for the embedding and n after block n: the similarity `to_first` and `to_previous`, the
        checkpoints that the study had read before, and all pairs of layers in `between_layers`."""
        layers = self._representations(opened, study)
        known = sorted(int(name.removeprefix("step")) for name in study.shelf.names())
        before = [step for step in known if step < opened.step]
        between = [[1.0] * len(layers) for _ in layers]
        for one in range(len(layers)):
            for other in range(one):
                between[one][other] = between[other][one] = cka(layers[one], layers[other])
        first = before[0] if before else opened.step
        previous = before[-1] if before else None
        to_first = _to(layers, study, first) if before else [1.0] * len(layers)
        to_previous = [] if previous is None else _to(layers, study, previous)
        study.shelf.put(f"step{opened.step}", {str(layer): x_ND for layer, x_ND in enumerate(layers)})
        # The first and the previous one are needed again should this result not be written.
        for step in before[1:-1]:
            study.shelf.drop(f"step{step}")
        return {
            "first_step": first,
            "previous_step": previous,
            "to_first_mean": statistics.fmean(to_first),
            "to_previous_mean": statistics.fmean(to_previous) if to_previous else None,
            "to_first": to_first,
            "to_previous": to_previous,
            "between_layers": between,
        }

    def _representations(self, opened: OpenCheckpoint, study: Study) -> list[Tensor]:
        """The centred representations [N, D] of each layer, N tokens spaced evenly over the held-out rows."""
        length = min(opened.config.data.sequence_length, opened.window)
        rows = texts.held_out(opened, study, max(ROWS, -(-self.tokens // length)))[:, :length]
        found: list[list[Tensor]] = [[] for _ in range(opened.config.model.layers + 1)]
        places = torch.arange(self.tokens) * rows.size // self.tokens if rows.size > self.tokens else None
        at_once = max(1, TOKENS_AT_ONCE // rows.shape[1])
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            taken = torch.arange(part.size)
            if places is not None:
                offset = start * rows.shape[1]
                taken = places[(places >= offset) & (places < offset + part.size)] - offset
            for layer, x_BLD in enumerate(opened.layers(part.tolist())):
                found[layer].append(x_BLD.flatten(0, 1)[taken.to(x_BLD.device)])
            study.advance(len(part) / len(rows))
        return [(whole := torch.cat(parts)) - whole.mean(0) for parts in found]


def cka(x_ND: Tensor, y_ND: Tensor) -> float:
    """The linear CKA of centred representations, ‖xᵀy‖² / (‖xᵀx‖ ‖yᵀy‖); 0 where one of them is constant."""
    # Scales cancel; taken out first, they keep the products within fp32.
    if not (x_ND.any() and y_ND.any()):
        return 0.0
    x_ND, y_ND = x_ND / x_ND.norm(), y_ND / y_ND.norm()
    return float((x_ND.T @ y_ND).norm() ** 2 / ((x_ND.T @ x_ND).norm() * (y_ND.T @ y_ND).norm()))


def _to(layers: list[Tensor], study: Study, step: int) -> list[float]:
    kept = study.shelf.take(f"step{step}") or {}
    return [cka(x_ND, kept[str(layer)].to(x_ND.device)) for layer, x_ND in enumerate(layers)]
