"""Which checkpoints a study reads: step folders, or those of a run's folder. Imports no torch."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.checkpoint import metadata
from trainer.contract import CHECKPOINT_METADATA_FILE, checkpoints
from trainer.data import tokenizer
from trainer.schema import ConfigError


class Chosen(NamedTuple):
    """A checkpoint of a study; `tokens` are those that its weights have seen, `weights` is the digest of these."""

    folder: Path
    step: int
    tokens: int | None
    weights: str


class Selection(NamedTuple):
    """The checkpoints of a study, in the order of their steps, and the folder of the first one of all that are there,
    which need not be among them."""

    checkpoints: list[Chosen]
    first: Path


class _Written(NamedTuple):
    """What a checkpoint's metadata say of it."""

    folder: Path
    step: int
    tokens: int | None
    model: Any
    files: Mapping[str, str]


def choose(places: Iterable[Path], steps: str | None) -> Selection:
    """The checkpoints in `places`; where `steps` are given, such as `0,100-500`, those.

    A place is a step folder, or the folder of a run with all its checkpoints. All must have one model and one
    tokenizer. Raises ConfigError.
    """
    found: dict[int, _Written] = {}
    for folder in (folder for place in places for folder in _folders(place)):
        one = _read(folder)
        other = found.setdefault(one.step, one)
        if other.folder.absolute() != folder.absolute():
            raise ConfigError(f"{other.folder} and {folder} are both of step {one.step}; a study reads one run.")
    wanted = sorted(found) if steps is None else _wanted(steps, sorted(found))
    first = found[min(found)]
    _check_alike(first, [found[step] for step in wanted])
    chosen = [Chosen(one.folder, one.step, one.tokens, _digest(one.files)) for one in map(found.__getitem__, wanted)]
    return Selection(chosen, first.folder)


def _folders(place: Path) -> Sequence[Path]:
    if (place / CHECKPOINT_METADATA_FILE).is_file():
        return [place]
    found = checkpoints(place)
    if not found:
        raise ConfigError(f"{place} is no checkpoint and no run that has one; give step folders, or a run's folder.")
    return found


def _wanted(steps: str, known: Sequence[int]) -> list[int]:
    """The known steps that a text such as `0,100-500` names. Raises ConfigError for one that is not known."""
    wanted: set[int] = set()
    for part in steps.split(","):
        numbers = re.fullmatch(r"\s*(\d{1,18})(?:\s*-\s*(\d{1,18}))?\s*", part, re.ASCII)
        if numbers is None:
            raise ConfigError(f"--steps has {part.strip()[:40]!r}, which is no step; give steps such as 0,100-500.")
        first, last = int(numbers[1]), int(numbers[2] or numbers[1])
        inside = [step for step in known if first <= step <= last]
        if not inside:
            what = f"of step {first}" if first == last else f"of a step from {first} to {last}"
            raise ConfigError(f"There is no checkpoint {what}; the nearest {_nearest(first, last, known)}.")
        wanted.update(inside)
    return sorted(wanted)


def _nearest(first: int, last: int, known: Sequence[int]) -> str:
    before, after = [step for step in known if step < first], [step for step in known if step > last]
    near = [str(step) for step in (*before[-1:], *after[:1])]
    return f"is {near[0]}" if len(near) == 1 else f"are {' and '.join(near)}"


def _read(folder: Path) -> _Written:
    """What a checkpoint's metadata say. Raises ConfigError where they lack something."""
    content: Any = metadata.read(folder)
    content = content if isinstance(content, dict) else {}
    for key, kind in (("step", int), ("config", dict), ("files", dict)):
        if not isinstance(content.get(key), kind):
            raise ConfigError(
                f"The checkpoint {folder} is damaged: {CHECKPOINT_METADATA_FILE} lacks {key}; use another."
            )
    tokens = content.get("tokens")
    tokens = tokens if isinstance(tokens, int) else None
    return _Written(folder, content["step"], tokens, content["config"].get("model"), content["files"])


def _digest(files: Mapping[str, str]) -> str:
    """The digest of a checkpoint's weights, from the checksums of its files."""
    weights = {name: hashed for name, hashed in files.items() if name.startswith("model") and "/" not in name}
    return hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()


def _check_alike(first: _Written, others: Sequence[_Written]) -> None:
    """Raise ConfigError unless the checkpoints have one model and one tokenizer."""
    for one in others:
        if one.model != first.model:
            raise ConfigError(f"{one.folder} has another model than {first.folder}; a study reads one run.")
        same_file = one.files.get("tokenizer.json") == first.files.get("tokenizer.json")
        if not same_file and _tokenizer(one.folder) != _tokenizer(first.folder):
            raise ConfigError(f"{one.folder} has another tokenizer than {first.folder}; a study reads one run.")


def _tokenizer(folder: Path) -> str:
    return tokenizer.digest(tokenizer.read(folder / "tokenizer.json", "use another checkpoint"))
