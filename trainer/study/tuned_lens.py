"""`tuned_lens`: what can be read off each layer with one affine map.

Belrose et al. 2023, "Eliciting latent predictions from transformers with the tuned lens": of each layer but the last, a
map x + A x + b before the norm and the head is trained so that what these say diverges least from what the model says.
N tokens, D hidden size, V vocabulary.
"""

from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.study import texts
from trainer.study.analysis import Analysis, Study, Values
from trainer.study.logit_lens import look


class TunedLens(Analysis):
    """The maps are trained for `steps` steps of `batch` training rows each, the first that the run reads, with Adam and
    a learning rate that falls from `learning_rate` to 0 in a straight line. `rows` is the number of held-out rows on
    which they are measured, at most."""

    version: ClassVar[int] = 1
    steps: int = Field(default=100, ge=1, le=100_000)
    batch: int = Field(default=8, ge=1, le=4096)
    learning_rate: float = Field(default=0.003, gt=0, le=1)
    rows: int = Field(default=32, ge=1, le=65_536)

    def reads(self, data: Path) -> dict[str, str]:
        return texts.digest(data)

    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        """The numbers of `logit_lens`, through the trained maps; the last layer has none."""
        rows = torch.from_numpy(texts.held_out(opened, study, self.rows))[:, : opened.window + 1]
        maps = self._train(opened, study)

        def translate(layer: int, x_ND: Tensor) -> Tensor:
            return maps[layer](x_ND) if layer < len(maps) else x_ND

        with torch.no_grad():
            return look(opened, rows, translate, lambda share: study.advance(0.1 * share))

    def _train(self, opened: OpenCheckpoint, study: Study) -> "list[_Map]":
        """The trained map of each layer but the last. The model's own weights get no gradients."""
        size, corpus = opened.config.model.hidden_size, texts.corpus(opened, study)
        maps = [_Map(size, opened.device) for _ in range(opened.config.model.layers)]
        adam = torch.optim.Adam([part for one in maps for part in one.parameters()], lr=self.learning_rate)
        for step in range(self.steps):
            drawn = corpus.order.rows(step * self.batch, self.batch)
            ids = [corpus.tokens(row)[:-1][: opened.window].tolist() for row in drawn]
            streams = [x_BLD.flatten(0, 1) for x_BLD in opened.layers(ids)]
            final_NV = opened.logits(streams[-1]).log_softmax(-1)
            for group in adam.param_groups:
                group["lr"] = self.learning_rate * (1 - step / self.steps)
            for one, x_ND in zip(maps, streams, strict=False):
                lens_NV = _logits(opened, one(x_ND)).log_softmax(-1)
                loss = functional.kl_div(lens_NV, final_NV, reduction="batchmean", log_target=True)
                one.matrix.grad, one.bias.grad = torch.autograd.grad(loss, one.parameters())
            adam.step()
            study.advance(0.9 / self.steps)
        return maps


class _Map:
    """x + A x + b on states [N, D], at first x."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.matrix = torch.zeros(size, size, device=device, requires_grad=True)
        self.bias = torch.zeros(size, device=device, requires_grad=True)

    def __call__(self, x_ND: Tensor) -> Tensor:
        return x_ND + torch.addmm(self.bias, x_ND, self.matrix.T)

    def parameters(self) -> list[Tensor]:
        return [self.matrix, self.bias]


def _logits(opened: OpenCheckpoint, x_ND: Tensor) -> Tensor:
    """Logits [N, V] with a gradient, which the head's own have not."""
    head = opened.model.head
    return functional.linear(head.norm(x_ND), head.weight, head.bias)
