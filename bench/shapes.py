"""The shapes that are compared, and the sides that compute them."""

from typing import Literal, NamedTuple

Side = Literal["stoa", "stoa-eager", "transformers", "transformers-compiled"]


class Shape(NamedTuple):
    """A recipe's model on `batch` sequences of `length` tokens a step, in one micro-batch."""

    recipe: str
    batch: int
    length: int

    @property
    def tokens(self) -> int:
        return self.batch * self.length


CPU = {"14m": Shape("pythia-14m", 4, 512), "70m": Shape("pythia-70m", 2, 512)}
GPU = {
    "160m": Shape("pythia-160m", 16, 2048),
    "410m": Shape("pythia-410m", 16, 2048),
    "1.4b": Shape("pythia-1.4b", 8, 2048),
}
SMALL = {"small": Shape("pythia-14m", 1, 16)}
"""To see that the comparison works; no goal is held against it."""

SHAPES = CPU | GPU | SMALL
