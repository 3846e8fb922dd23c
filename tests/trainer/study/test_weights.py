"""`weights` against numpy's own norms and singular values."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainer.study.conftest import STEPS
from tests.trainer.study.world import config, drawn, measured, study_of
from trainer.evaluation.open_checkpoint import open_checkpoint
from trainer.study import run, selection
from trainer.study.weights import Weights, effective_rank, singular_values


def test_norms_distances_and_spectra_are_those_of_numpy(run_folder: Path, tmp_path: Path) -> None:
    settings = config(run_folder)
    checkpoint = open_checkpoint(run_folder / "checkpoints" / f"step{STEPS[-1]}")
    found = measured(Weights(singular_values=3), checkpoint, study_of(run_folder, tmp_path))
    first, now = ({name: weight.numpy() for name, weight in drawn(settings, step).items()} for step in (0, STEPS[-1]))
    norms = {name: float(np.linalg.norm(weight)) for name, weight in now.items()}
    distances = {name: float(np.linalg.norm(weight - first[name])) for name, weight in now.items()}
    assert found["norms"] == pytest.approx(norms, rel=1e-5)
    assert found["distances"] == pytest.approx(distances, rel=1e-5)
    assert found["norm"] == pytest.approx(np.linalg.norm(list(norms.values())), rel=1e-5)
    assert found["distance"] == pytest.approx(np.linalg.norm(list(distances.values())), rel=1e-5)
    assert found["first_step"] == 0
    matrices = {name: weight for name, weight in now.items() if weight.ndim == 2}
    assert len(matrices) == 2 + 4 * 2
    for name, matrix in matrices.items():
        spectrum = np.linalg.svd(matrix, compute_uv=False)
        assert found["singular_values"][name] == pytest.approx(spectrum[:3], rel=1e-5)
        shares = spectrum / spectrum.sum()
        assert found["effective_ranks"][name] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)


def test_the_distance_is_from_the_first_checkpoint_of_the_run(run_folder: Path, tmp_path: Path) -> None:
    """Also where the study reads a later one alone."""
    found = run.run(selection.choose([run_folder], "4"), {"weights": Weights()}, None, tmp_path)["weights"]
    assert (found["steps"], found["values"]["first_step"]) == ([4], [0])
    assert found["values"]["distance"][0] > 1


def test_the_first_checkpoint_has_not_moved(run_folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(run_folder / "checkpoints" / "step0")
    found = Weights().measure(checkpoint, study_of(run_folder, tmp_path))
    assert found["distance"] == 0


def test_the_effective_rank_of_matrices_whose_rank_is_plain() -> None:
    assert effective_rank(singular_values(3 * torch.eye(5)[:, :4])) == pytest.approx(4)
    assert effective_rank(singular_values(torch.ones(3, 7))) == pytest.approx(1, abs=1e-5)
    assert effective_rank(singular_values(torch.zeros(3, 7))) == 0
