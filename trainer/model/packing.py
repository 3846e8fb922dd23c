"""Several texts in one row, of which none sees another. B rows, L tokens of a sequence."""

from typing import NamedTuple

import torch
from torch import Tensor


class Packing(NamedTuple):
    """Which keys each query has `seen` [B, 1, L, L], and the `positions` [B, L] of the tokens, each in its own text."""

    seen: Tensor
    positions: Tensor


def packing_of(segments_BL: Tensor) -> Packing:
    """The packing of rows in which neighbours of one number are of one text."""
    length = segments_BL.shape[1]
    places_L = torch.arange(length, device=segments_BL.device)
    begins_BL = torch.ones_like(segments_BL, dtype=torch.bool)
    begins_BL[:, 1:] = segments_BL[:, 1:] != segments_BL[:, :-1]
    starts_BL = torch.where(begins_BL, places_L, 0).cummax(1).values
    same_BLL = starts_BL[:, :, None] == starts_BL[:, None, :]
    return Packing((same_BLL & (places_L[:, None] >= places_L))[:, None], places_L - starts_BL)
