"""`tuned_lens` against a plain training of linear layers, and on a model whose layers differ by known vectors."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.trainer.study.world import config, drawn, measured, opened, study_of, zeros
from trainer.data.corpus import Corpus
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.study import texts
from trainer.study.analysis import Study
from trainer.study.logit_lens import LogitLens
from trainer.study.tuned_lens import TunedLens


def plain(checkpoint: OpenCheckpoint, study: Study, steps: int, batch: int, rate: float) -> list[float]:
    """The divergences of both layers' lenses, each a linear layer, after a training in the plain way."""
    model = checkpoint.model
    corpus = Corpus(checkpoint.config, study.data)
    rows = torch.from_numpy(texts.held_out(checkpoint, study, 4))[:, :-1]

    def layers(ids: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            first = model.embed(ids)
            second = model.blocks[0](first)
            return [first, second, model.blocks[1](second)]

    found = []
    for layer in range(2):
        lens = nn.Linear(32, 32)
        nn.init.zeros_(lens.weight)
        nn.init.zeros_(lens.bias)
        adam = torch.optim.Adam(lens.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, total_iters=steps)

        def divergence(ids: torch.Tensor, layer: int = layer, lens: nn.Linear = lens) -> torch.Tensor:
            streams = layers(ids)
            said = functional.linear(
                model.head.norm(streams[layer] + lens(streams[layer])), model.head.weight, model.head.bias
            )
            meant = model.head(streams[2]).log_softmax(-1)
            total: torch.Tensor = (meant.exp() * (meant - said.log_softmax(-1))).sum(-1).mean()
            return total

        for step in range(steps):
            read = [row for at in range(steps) for row in corpus.rows(at)][step * batch : (step + 1) * batch]
            adam.zero_grad()
            divergence(torch.tensor([corpus.tokens(row)[:-1].tolist() for row in read])).backward()  # type: ignore[no-untyped-call]
            adam.step()
            schedule.step()
        with torch.no_grad():
            found.append(float(divergence(rows)))
    return found


def test_the_lenses_are_those_of_a_plain_training(run_folder: Path, tmp_path: Path) -> None:
    settings = config(run_folder, head_bias=True)
    checkpoint = opened(tmp_path, settings, drawn(settings))
    study = study_of(run_folder, tmp_path)
    before = {name: weight.clone() for name, weight in checkpoint.model.state_dict().items()}
    found = measured(TunedLens(steps=6, batch=3, learning_rate=0.05, rows=4), checkpoint, study)
    for name, weight in checkpoint.model.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None
    assert found["kl"] == pytest.approx([*plain(checkpoint, study, 6, 3, 0.05), 0.0], rel=1e-3, abs=1e-5)
    assert found["kl"][0] < measured(LogitLens(rows=4), checkpoint, study)["kl"][0]


def test_layers_that_differ_by_known_vectors_say_what_the_model_says(run_folder: Path, tmp_path: Path) -> None:
    settings = config(run_folder, norm="rmsnorm")
    generator = torch.Generator().manual_seed(0)
    weights = zeros(settings)
    for name in ("embed.tokens.weight", "head.weight", "blocks.0.mlp.down.bias", "blocks.1.mlp.down.bias"):
        weights[name].normal_(generator=generator)
    checkpoint, study = opened(tmp_path, settings, weights), study_of(run_folder, tmp_path)
    untuned = measured(LogitLens(), checkpoint, study)
    tuned = measured(TunedLens(steps=30, learning_rate=0.1), checkpoint, study)
    assert min(untuned["kl"][:2]) > 3
    assert max(tuned["kl"]) < 0.7
