"""Fair-share: whose turn it is, by what each project has used of late (Slurm's Fair Tree, one level of siblings).

Usage is in weighted GPU-seconds over all pools: a pool's price weight times what was used of it. It decays, and is
apart from the balances of allocations, which do not.
"""

import heapq
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from broker.allocations.shares import USUAL

HALF_LIFE_SECONDS = 7 * 86_400
_FADING = math.log(2) / HALF_LIFE_SECONDS

Sibling = TypeVar("Sibling", bound=Hashable)


@dataclass(frozen=True)
class Standing:
    """Where a sibling stands: `level` = share / used (∞ with no usage), ranked from 1, the highest level first.

    `share` and `used` are fractions of all siblings' shares and usage, `usage` is in weighted GPU-seconds.
    """

    level: float
    rank: int
    of: int
    share: float
    used: float
    usage: float


def decayed(seconds: float, age: float) -> float:
    """What `seconds` of use weigh when they are `age` seconds old: halved every seven days."""
    return seconds * math.exp(-age * _FADING)


def among(siblings: Iterable[Sibling], shares: Mapping[Sibling, float]) -> dict[Sibling, float]:
    """The share of each sibling; the usual one where none was set."""
    return {sibling: shares.get(sibling, USUAL) for sibling in siblings}


def standings(usage: Mapping[Sibling, float], shares: Mapping[Sibling, float]) -> dict[Sibling, Standing]:
    """Every sibling's standing; those of `shares` are ranked, and one that `usage` does not name has used nothing.

    LF = S / U with S = own shares / siblings' shares and U = own usage / siblings' usage (Slurm's Fair Tree).
    """
    all_shares = sum(shares.values())
    all_usage = sum(usage.get(sibling, 0.0) for sibling in shares)
    levels: dict[Sibling, tuple[float, float, float]] = {}
    for sibling, own in shares.items():
        share = own / all_shares
        used = usage.get(sibling, 0.0) / all_usage if all_usage else 0.0
        levels[sibling] = (share / used if used else math.inf, share, used)
    highest_first = sorted({level for level, _, _ in levels.values()}, reverse=True)
    ranks = {level: rank for rank, level in enumerate(highest_first, 1)}
    return {
        sibling: Standing(level, ranks[level], len(levels), share, used, usage.get(sibling, 0.0))
        for sibling, (level, share, used) in levels.items()
    }


class Turns(Generic[Sibling]):
    """Takes from the siblings' queues in turn: the highest level first, the older head where two are level.

    The sums over all siblings are the same for each of them, so usage / shares sorts as 1 / LF does.
    """

    def __init__(
        self,
        queues: Mapping[Sibling, list[tuple[float, int]]],
        usage: Mapping[Sibling, float],
        shares: Mapping[Sibling, float] | None = None,
    ) -> None:
        """`queues` hold (queued at, id), the oldest first."""
        self.usage = {sibling: usage.get(sibling, 0.0) for sibling in queues}
        self.shares = shares or {}
        self.left = {sibling: iter(queue) for sibling, queue in queues.items()}
        self.heads: list[tuple[float, float, int, Sibling]] = []
        for sibling in queues:
            self._push(sibling)

    def __bool__(self) -> bool:
        return bool(self.heads)

    def take(self) -> int:
        """The id whose turn it is; `done` must follow."""
        self.taken = self.heads[0][3]
        return self.heads[0][2]

    def done(self, charge: float) -> None:
        """Charge the one just taken to its sibling, as at admission, and go on."""
        heapq.heappop(self.heads)
        self.usage[self.taken] += charge
        self._push(self.taken)

    def _push(self, sibling: Sibling) -> None:
        head = next(self.left[sibling], None)
        if head is not None:
            heapq.heappush(self.heads, (self.usage[sibling] / self.shares.get(sibling, USUAL), *head, sibling))
