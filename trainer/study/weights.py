"""`weights`: how far the weights have moved, and what their matrices are like.

The norm of each parameter and its distance from the first checkpoint (Hoffer et al. 2017, "Train longer, generalize
better"), the largest singular values of each matrix, and its effective rank: e to the entropy of the singular values,
divided by their sum (Roy and Vetterli 2007, "The effective rank").
"""

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from trainer.checkpoint import metadata, save_load
from trainer.evaluation.open_checkpoint import OpenCheckpoint
from trainer.study.analysis import Analysis, Study, Values


class Weights(Analysis):
    """`singular_values` is how many of each matrix are written, the largest first."""

    version: ClassVar[int] = 1
    singular_values: int = Field(default=8, ge=1, le=1024)

    def measure(self, opened: OpenCheckpoint, study: Study) -> Values:
        """By the names of the trainer's own parameters, norms and distances in the sense of Frobenius, and for matrices
        the spectra; `norm` and `distance` are of all parameters together.

        Of the first checkpoint one parameter at a time is in memory.
        """
        first = save_load.reader(study.first, opened.config)
        norms: dict[str, float] = {}
        distances: dict[str, float] = {}
        largest: dict[str, list[float]] = {}
        ranks: dict[str, float] = {}
        parameters = dict(opened.model.named_parameters())
        for name, parameter in parameters.items():
            weight = parameter.detach()
            norms[name] = float(weight.double().norm())
            distances[name] = float((weight - first("weight", name).to(weight.device)).double().norm())
            if weight.ndim == 2:
                spectrum = singular_values(weight)
                largest[name] = spectrum[: self.singular_values].tolist()
                ranks[name] = effective_rank(spectrum)
            study.advance(1 / len(parameters))
        return {
            "norm": math.hypot(*norms.values()),
            "distance": math.hypot(*distances.values()),
            "first_step": metadata.read(study.first)["step"],
            "norms": norms,
            "distances": distances,
            "effective_ranks": ranks,
            "singular_values": largest,
        }


def singular_values(matrix: Tensor) -> Tensor:
    """All singular values, the largest first, in fp64 from the eigenvalues of the smaller Gram matrix: values below
    1e-8 of the largest are rounding."""
    matrix = matrix.double()
    gram = matrix @ matrix.T if matrix.shape[0] < matrix.shape[1] else matrix.T @ matrix
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.clamp(min=0).sqrt().flip(0)


def effective_rank(spectrum: Tensor) -> float:
    """The effective rank of a matrix with these singular values; 0 for a matrix of zeros."""
    total = float(spectrum.sum())
    if not total:
        return 0.0
    shares = spectrum[spectrum > 0] / total
    return float(torch.exp(-(shares * shares.log()).sum()))
