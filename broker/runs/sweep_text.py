"""The text of a sweep, such as “learning_rate=1e-4,3e-4 seed=1..3”, and the points that it stands for."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

from projects import text
from projects.errors import InvalidError

LONGEST = 1_000
LONGEST_VALUE = 80
WRITTEN = "A sweep is written like learning_rate=1e-4,3e-4 seed=1..3; separate single points with semicolons."

_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})")
_Values = list[str] | range


def points(typed: str, most: int) -> list[dict[str, str]]:
    """The points of a sweep, each with the value of every field, in the order in which they are typed.

    Fields with several values make a grid, whose last field varies fastest; “1..3” stands for 1, 2 and 3. Grids, or
    single points, are separated by semicolons. At most `most` points are made, and raise InvalidError beyond.
    """
    value = text.cleaned(typed)
    if len(value) > LONGEST:
        raise InvalidError(f"The sweep has {len(value):,} characters; at most {LONGEST:,} fit.")
    grids = [_grid(part) for part in value.split(";") if part.strip()]
    if not grids:
        raise InvalidError(WRITTEN)
    for grid in grids:
        if grid.keys() != grids[0].keys():
            raise InvalidError(
                f"Every point of a sweep has the same fields: one has {', '.join(grids[0])}, another {', '.join(grid)}."
            )
    # Counted before they are made: a range may have more values than there is memory.
    count = sum(math.prod(sum(map(len, values)) for values in grid.values()) for grid in grids)
    if count > most:
        raise InvalidError(f"The sweep has {count:,} points; at most {most} runs may be launched at once.")
    if count < 2:
        raise InvalidError("A sweep has at least two points; /run launch launches one run.")
    made = [
        dict(zip(grid, values, strict=True))
        for grid in grids
        for values in itertools.product(*map(_listed, grid.values()))
    ]
    return [{field: point[field] for field in grids[0]} for point in made]


def named(point: Mapping[str, str]) -> str:
    """A point as one would type it."""
    return " ".join(f"{field}={value}" for field, value in point.items())


def _grid(part: str) -> dict[str, list[_Values]]:
    """The values of each field of a grid; raises InvalidError."""
    fields: dict[str, list[_Values]] = {}
    values: list[_Values] | None = None
    for word in re.split(r"[\s,]+", re.sub(r"\s*(=|\.\.)\s*", r"\1", part).strip(", \n")):
        name, equals, value = word.rpartition("=")
        if equals:
            if not name or "=" in name:
                raise InvalidError(WRITTEN)
            if name in fields:
                raise InvalidError(f"“{name[:40]}” is given twice; write its values in one list, such as seed=1,2.")
            values = fields.setdefault(name, [])
        if values is None or not value or len(word) > LONGEST_VALUE:
            raise InvalidError(WRITTEN)
        values.append(_value(value))
    return fields


def _value(word: str) -> _Values:
    """The values that a word stands for: itself, or those of a range; raises InvalidError."""
    if found := _RANGE.fullmatch(word):
        first, last = map(int, found.groups())
        if last < first:
            raise InvalidError(f"“{word}” counts down; a range counts up, such as 1..3.")
        return range(first, last + 1)
    if ".." in word:
        raise InvalidError(f"“{word[:40]}” is no range of whole numbers, such as 1..3: write its values out.")
    if re.fullmatch(r"[+-]?0[0-9]+", word):
        raise InvalidError(f"“{word[:40]}” is no number: commas separate values here, so write 0.001 or 1000.")
    return [word]


def _listed(values: Sequence[_Values]) -> list[str]:
    return [str(value) for each in values for value in each]
