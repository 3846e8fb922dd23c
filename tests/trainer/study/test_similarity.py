"""`similarity`: checkpoints that are the same, rotated, or have nothing in common; and Gram matrices by numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.trainer.study.conftest import STEPS
from tests.trainer.study.world import config, drawn, run_of, study_of, write_checkpoint
from trainer.evaluation.open_checkpoint import open_checkpoint
from trainer.study import texts
from trainer.study.similarity import Similarity, cka


def by_gram(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """CKA by its other definition: the alignment of the centred Gram matrices (Kornblith et al. 2019, equation 3)."""
    centre = np.eye(len(x)) - 1 / len(x)
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre  # noqa: E741
    return float((k * l).sum() / np.sqrt((k * k).sum() * (l * l).sum()))


def test_cka_is_the_alignment_of_gram_matrices_and_knows_no_rotation_nor_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 6, generator=generator), torch.randn(40, 9, generator=generator)
    x, y = x - x.mean(0), y - y.mean(0)
    assert cka(x, y) == pytest.approx(by_gram(x.numpy(), y.numpy()), abs=1e-6)
    turned = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    assert cka(x, 1e6 * x @ turned) == pytest.approx(1, abs=1e-6)
    basis = torch.linalg.qr(torch.randn(40, 8, generator=generator)).Q
    assert cka(basis[:, :4], basis[:, 4:]) == pytest.approx(0, abs=1e-6)
    assert cka(x, torch.zeros(40, 3)) == 0


def test_checkpoints_that_are_the_same_have_a_similarity_of_1(run_folder: Path, tmp_path: Path) -> None:
    """The second checkpoint is the first one again, the third another."""
    settings = config(run_folder)
    for step, seed in ((1, 0), (2, 0), (3, 5)):
        write_checkpoint(tmp_path / "run", settings, step, drawn(settings, seed))
    first, same, other = run_of(tmp_path / "run", {"similarity": Similarity(tokens=100)}, run_folder / "data")
    assert (first["to_first"], first["to_previous"], first["previous_step"]) == ([1.0] * 3, [], None)
    assert same["to_first"] == pytest.approx([1] * 3, abs=1e-5)
    assert same["to_previous"] == pytest.approx([1] * 3, abs=1e-5)
    assert (other["first_step"], other["previous_step"]) == (1, 2)
    assert max(other["to_previous"]) < 0.9

    # Against the other definition, on the same tokens: 100 spaced evenly over the first 16 of each held-out row.
    rows = texts.held_out(open_checkpoint(run_folder / "checkpoints" / "step0"), study_of(run_folder, tmp_path), 32)
    places = [at * rows[:, :-1].size // 100 for at in range(100)]
    layers = []
    for step in (1, 3):
        checkpoint = open_checkpoint(tmp_path / "run" / "checkpoints" / f"step{step}")
        layers.append([x.flatten(0, 1)[places].numpy() for x in checkpoint.layers(rows[:, :-1].tolist())])
    assert other["to_first"] == pytest.approx([by_gram(*pair) for pair in zip(*layers, strict=True)], abs=1e-4)
    assert other["between_layers"][2][0] == pytest.approx(by_gram(layers[1][0], layers[1][2]), abs=1e-4)
    assert other["between_layers"][0][2] == other["between_layers"][2][0]


def test_what_is_kept_is_the_first_and_what_a_kill_may_need_again(run_folder: Path, tmp_path: Path) -> None:
    study, analysis = study_of(run_folder, tmp_path), Similarity()
    for step in STEPS:
        checkpoint = open_checkpoint(run_folder / "checkpoints" / f"step{step}")
        found = analysis.measure(checkpoint, study)
        # The result was not written: the checkpoint is measured again.
        assert analysis.measure(checkpoint, study) == found
    assert study.shelf.names() == ["step0", "step2", "step4"]
