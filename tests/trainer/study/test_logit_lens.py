"""`logit_lens` on a model whose blocks add known vectors, and on a model as transformers computes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from tests.trainer.study.world import config, measured, opened, study_of, zeros
from trainer.evaluation.open_checkpoint import open_checkpoint
from trainer.study import texts
from trainer.study.logit_lens import LogitLens


def numbers(lens: NDArray[np.float64], final: NDArray[np.float64], targets: NDArray[np.int64]) -> dict[str, float]:
    """From logits [N, V], by numpy."""
    p, q = (np.exp(logits - logits.max(-1, keepdims=True)) for logits in (final, lens))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return {
        "entropy": float(-(q * np.log(q)).sum(-1).mean()),
        "kl": float((p * np.log(p / q)).sum(-1).mean()),
        "loss": float(-np.log(q[np.arange(len(q)), targets]).mean()),
        "accuracy": float((q.argmax(-1) == targets).mean()),
    }


def test_a_model_whose_blocks_add_known_vectors(run_folder: Path, tmp_path: Path) -> None:
    settings = config(run_folder, norm="rmsnorm")
    generator = torch.Generator().manual_seed(0)
    weights = zeros(settings)
    names = ("embed.tokens.weight", "head.weight", "blocks.0.mlp.down.bias", "blocks.1.mlp.down.bias")
    for name in names:
        weights[name].normal_(generator=generator)
    weights["head.weight"][27:] = 0  # so that some of the likeliest tokens are right
    study = study_of(run_folder, tmp_path)
    checkpoint = opened(tmp_path, settings, weights)
    found = measured(LogitLens(rows=3), checkpoint, study)

    rows = texts.held_out(checkpoint, study, 3)
    embedding, head, *added = (weights[name].double().numpy() for name in names)
    stream = embedding[rows[:, :-1].ravel()]
    logits = []
    for vector in (np.zeros(32), *added):
        stream = stream + vector
        logits.append(stream / np.sqrt((stream**2).mean(-1, keepdims=True) + 1e-5) @ head.T)
    for layer, lens in enumerate(logits):
        for name, expected in numbers(lens, logits[-1], rows[:, 1:].ravel()).items():
            assert found[name][layer] == pytest.approx(expected, abs=1e-5), (layer, name)
    assert max(found["accuracy"]) > 0
    assert found["kl"][-1] == pytest.approx(0, abs=1e-6)
    assert found["kl_mean"] == pytest.approx(sum(found["kl"][:2]) / 2)
    assert (found["final_loss"], found["final_accuracy"]) == (found["loss"][-1], found["accuracy"][-1])


def test_a_model_as_transformers_computes_it(run_folder: Path, tmp_path: Path) -> None:
    folder, study = run_folder / "checkpoints" / "step4", study_of(run_folder, tmp_path)
    checkpoint = open_checkpoint(folder)
    found = measured(LogitLens(rows=4), checkpoint, study)
    rows = texts.held_out(checkpoint, study, 4)
    theirs: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        out = theirs(torch.from_numpy(rows[:, :-1]), output_hidden_states=True)
        # Their last hidden state is after the last norm.
        lens = [theirs.get_output_embeddings()(theirs.gpt_neox.final_layer_norm(x)) for x in out.hidden_states[:-1]]
    logits = [x.flatten(0, 1).double().numpy() for x in (*lens, out.logits)]
    for layer, of_layer in enumerate(logits):
        for name, expected in numbers(of_layer, logits[-1], rows[:, 1:].ravel()).items():
            assert found[name][layer] == pytest.approx(expected, abs=1e-4), (layer, name)
