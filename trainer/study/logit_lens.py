"""`logit_lens`: what the model would say if it ended after each layer.

The residual stream after a layer goes straight to the last norm and the head (nostalgebraist 2020, "interpreting GPT:
the logit lens"); measured as in Belrose et al. 2023, "Eliciting latent predictions from transformers with the tuned
lens", section 2. N tokens, D hidden size, V vocabulary.
"""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.evaluation.score import LOGITS_AT_ONCE, TOKENS_AT_ONCE
from trainer.study import texts
from trainer.study.analysis import Analysis, Study, Values

NAMES = ("entropy", "kl", "loss", "accuracy")


class LogitLens(Analysis):
    """`rows` is the number of held-out rows, at most."""

    version: ClassVar[int] = 1
    rows: int = Field(default=32, ge=1, le=65_536)

    def reads(self, data: Path) -> dict[str, str]:
        return texts.digest(data)

    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        """By layer, 0 for the embedding and n after block n, the means over tokens: the `entropy` of what the lens
        says, its divergence from what the model says, `kl` = KL(model ‖ lens), its `loss` on the next token, all in
        nats, and how often its likeliest token is the next one, `accuracy`."""
        rows = torch.from_numpy(texts.held_out(opened, study, self.rows))[:, : opened.window + 1]
        return look(opened, rows, lambda layer, x_ND: x_ND, study.advance)


def look(
    opened: OpenCheckpoint,
    rows: Tensor,
    translate: Callable[[int, Tensor], Tensor],
    advance: Callable[[float], None],
) -> Values:
    """What the head says of each layer of rows [R, L + 1] after `translate`, which has the number of the layer and its
    states [N, D]; see `LogitLens.measure`."""
    layers = opened.config.model.layers + 1
    sums = torch.zeros(layers, len(NAMES), dtype=torch.float64)
    for part in torch.split(rows, max(1, TOKENS_AT_ONCE // rows.shape[1])):
        streams = [x_BLD.flatten(0, 1) for x_BLD in opened.layers(part[:, :-1].tolist())]
        targets = part[:, 1:].flatten().to(opened.device)
        for start in range(0, len(targets), LOGITS_AT_ONCE):
            piece = slice(start, start + LOGITS_AT_ONCE)
            final_NV = opened.logits(streams[-1][piece]).log_softmax(-1)
            for layer, x_ND in enumerate(streams):
                lens_NV = opened.logits(translate(layer, x_ND[piece])).log_softmax(-1)
                sums[layer] += _looked_at(lens_NV, final_NV, targets[piece]).cpu()
        advance(len(part) / len(rows))
    means = {name: (sums[:, at] / rows[:, 1:].numel()).tolist() for at, name in enumerate(NAMES)}
    return {
        "kl_mean": statistics.fmean(means["kl"][:-1]),
        "final_loss": means["loss"][-1],
        "final_accuracy": means["accuracy"][-1],
        **means,
    }


def _looked_at(lens_NV: Tensor, final_NV: Tensor, targets_N: Tensor) -> Tensor:
    """The sums over N tokens of the numbers of NAMES, from the log-probabilities of the lens and of the model."""
    right_N = lens_NV.argmax(-1) == targets_N
    return torch.stack(
        [
            -(lens_NV.exp() * lens_NV).sum(dtype=torch.float64),
            (final_NV.exp() * (final_NV - lens_NV)).sum(dtype=torch.float64),
            -lens_NV.gather(1, targets_N[:, None]).sum(dtype=torch.float64),
            right_N.sum().double(),
        ]
    )
