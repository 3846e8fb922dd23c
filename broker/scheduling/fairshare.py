"""Fair-share: whose turn it is, by what each project has recently used (Slurm's Fair Tree).

LF = S / U decides among siblings, with S = own shares / siblings' shares and U = own usage / siblings' usage
(https://slurm.schedmd.com/fair_tree.html). A pool on which a sponsor has set GPU time aside has two levels: first its
groups, which are each sponsor's own projects and all others, then the projects of a group.

Usage is in weighted GPU-seconds over all pools: a pool's price weight times what was used of it. It decays, and is
apart from the balances of allocations, which do not.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from broker.allocations.shares import USUAL

HALF_LIFE_SECONDS = 7 * 86_400
OTHERS = 0
"""The group of all projects that are no sponsor's own."""
_FADING = math.log(2) / HALF_LIFE_SECONDS

Sibling = TypeVar("Sibling", bound=Hashable)
Queued = tuple[datetime | float, int]


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
    """Every sibling's standing; those of `shares` are ranked, and one that `usage` does not name has used nothing."""
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


@dataclass(frozen=True)
class Groups(Generic[Sibling]):
    """The upper level of a pool: the share of each group, and the siblings by group; all others are in `OTHERS`.

    `usage` has what each sibling has used of this pool, decayed and weighted.
    """

    shares: Mapping[int, float] = field(default_factory=lambda: {OTHERS: 1.0})
    of: Mapping[Sibling, int] = field(default_factory=dict)
    usage: Mapping[Sibling, float] = field(default_factory=dict)

    def group(self, sibling: Sibling) -> int:
        """The sibling's group."""
        return self.of.get(sibling, OTHERS)

    def used(self) -> dict[int, float]:
        """What all siblings of each group have used."""
        used = dict.fromkeys(self.shares, 0.0)
        for sibling, seconds in self.usage.items():
            used[self.group(sibling)] += seconds
        return used

    def standings(self) -> dict[int, Standing]:
        """Every group's standing."""
        return standings(self.used(), self.shares)

    def standings_within(
        self, usage: Mapping[Sibling, float], shares: Mapping[Sibling, float]
    ) -> dict[Sibling, Standing]:
        """Every sibling's standing among those of its group."""
        members: dict[int, dict[Sibling, float]] = {group: {} for group in self.shares}
        for sibling, share in shares.items():
            members[self.group(sibling)][sibling] = share
        return {one: found for each in members.values() if each for one, found in standings(usage, each).items()}


class Turns(Generic[Sibling]):
    """Takes from the siblings' queues in turn: the highest level first, the older head where two are level.

    The sums over all siblings are the same for each of them, so usage / shares sorts as 1 / LF does. The same holds for
    groups, which are compared first.
    """

    def __init__(
        self,
        queues: Mapping[Sibling, Sequence[Queued]],
        usage: Mapping[Sibling, float],
        shares: Mapping[Sibling, float] | None = None,
        groups: Groups[Sibling] | None = None,
    ) -> None:
        """`queues` hold (queued at, id), the oldest first. Without `groups`, all siblings are in one."""
        self.queues = queues
        self.usage = usage
        self.charged: dict[Sibling, float] = {}
        self.shares = shares or {}
        self.groups = groups or Groups()
        self.group_usage = self.groups.used()
        self.heads: defaultdict[int, list[tuple[float, Queued, Sibling, int]]] = defaultdict(list)
        for sibling, queue in queues.items():
            if queue:
                self.heads[self.groups.of.get(sibling, OTHERS)].append((self._level(sibling), queue[0], sibling, 0))
        for heads in self.heads.values():
            heapq.heapify(heads)
        self.group = self._first_group()

    def __bool__(self) -> bool:
        return bool(self.heads)

    def take(self) -> int:
        """The id whose turn it is; `done` must follow."""
        return self.heads[self.group][0][1][1]

    def done(self, charge: float) -> None:
        """Charge the one just taken to its sibling, as at admission, and go on."""
        heads = self.heads[self.group]
        _, _, sibling, index = heads[0]
        queue = self.queues[sibling]
        self.group_usage[self.group] += charge
        if index + 1 < len(queue):
            self.charged[sibling] = self.charged.get(sibling, self.usage.get(sibling, 0.0)) + charge
            heapq.heapreplace(heads, (self._level(sibling), queue[index + 1], sibling, index + 1))
        else:
            heapq.heappop(heads)
        if not heads:
            del self.heads[self.group]
        if not heads or len(self.heads) > 1:
            self.group = self._first_group()

    def _level(self, sibling: Sibling) -> float:
        return self.charged.get(sibling, self.usage.get(sibling, 0.0)) / self.shares.get(sibling, USUAL)

    def _first_group(self) -> int:
        """The group whose turn it is, as long as there is one."""
        if len(self.heads) < 2:
            return next(iter(self.heads), OTHERS)
        shares = self.groups.shares
        return min(self.heads, key=lambda group: (self.group_usage[group] / shares[group], self.heads[group][0][1]))
