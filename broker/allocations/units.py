"""What pools count, GPUs or cores, and amounts of their time in words. All amounts are stored in seconds of either."""

from collections.abc import Collection, Mapping
from enum import Enum
from typing import NamedTuple


def in_hours(seconds: float) -> str:
    """GPU-seconds as GPU-hours, or core-seconds as core-hours, with at most three decimals."""
    return f"{seconds / 3600:,.3f}".rstrip("0").rstrip(".")


class Unit(Enum):
    """What a pool counts: GPUs, or cores, each for one process, where it is a pool of CPUs."""

    GPU = "GPU"
    CORE = "core"

    @classmethod
    def of(cls, gpu_type: str) -> "Unit":
        """What a pool counts whose GPUs, or CPUs, are of this type."""
        return cls.CORE if "cpu" in gpu_type.lower() else cls.GPU

    @property
    def plural(self) -> str:
        """“GPUs”, “cores”."""
        return f"{self.value}s"

    @property
    def in_hours(self) -> str:
        """“GPU-hours”, “core-hours”."""
        return f"{self.value}-hours"

    @classmethod
    def of_type(cls, gpu_type: str, number: int) -> str:
        """What a pool has: “16 × H200”, “2 cores”, “64 cores (EPYC CPU)”."""
        if cls.of(gpu_type) is cls.GPU:
            return f"{number:,} × {gpu_type}"
        cores = cls.CORE.count(number)
        return cores if gpu_type.lower() in ("cpu", "cpu core") else f"{cores} ({gpu_type})"

    def count(self, number: int) -> str:
        """“1 GPU”, “2 cores”."""
        return f"{number:,} {self.value if number == 1 else self.plural}"

    def hours(self, seconds: float) -> str:
        """Seconds of the unit as “1 GPU-hour”, “1.5 core-hours”."""
        said = in_hours(seconds)
        return f"{said} {self.value}-hour" if said == "1" else f"{said} {self.in_hours}"


class Amount(NamedTuple):
    """Seconds of a unit."""

    unit: Unit
    seconds: int


Amounts = Mapping[Unit, int]
"""Seconds of each unit; they make no sum."""


def hours(amounts: Amounts) -> str:
    """“12 GPU-hours and 3 core-hours”; “no hours” where there is nothing of any unit."""
    said = [unit.hours(amounts[unit]) for unit in Unit if amounts.get(unit)]
    return " and ".join(said) or next((unit.hours(0) for unit in amounts), "no hours")


def heading(units: Collection[Unit]) -> str:
    """What a field for hours of these units is called: “GPU-hours”, “Core-hours”, “GPU-hours or core-hours”."""
    said = " or ".join(unit.in_hours for unit in Unit if unit in units)
    return said[:1].upper() + said[1:]


def plus(amounts: Amounts, unit: Unit, seconds: int) -> Amounts:
    """The amounts with `seconds` more of a unit."""
    return {**amounts, unit: amounts.get(unit, 0) + int(seconds)}


def alike(seconds: int, units: Collection[Unit]) -> str:
    """A sum for which a rule counts an hour of each of these units alike: “15 hours of GPUs and cores together”."""
    if len(units) == 1:
        return next(iter(units)).hours(seconds)
    return f"{in_hours(seconds)} hours of GPUs and cores together"
