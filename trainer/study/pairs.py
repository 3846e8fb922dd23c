"""Pairs of continuations, of which one should be likelier, as files and the lab's catalogue have them. Imports no
torch."""

import json
from collections.abc import Sequence
from typing import Any

from pydantic import Field, ValidationError

from trainer.schema import ConfigError, Section
from trainer.yaml_text import read_yaml


class Pair(Section):
    """A prompt with two continuations, of which the `preferred` one should be likelier; of a `group` if it has one."""

    prompt: str = ""
    preferred: str = Field(min_length=1)
    other: str = Field(min_length=1)
    group: str | None = None


def read(text: str, name: str, *, is_jsonl: bool = False) -> list[Pair]:
    """The pairs in the text of a file that sentences call `name`: YAML with a list under `pairs`, or JSONL with one a
    line. Raises ConfigError."""
    found = [_pair(entry, name, number) for number, entry in enumerate(_entries(text, name, is_jsonl), 1)]
    if not found:
        raise ConfigError(f"{name} has no pair; give it at least one, with prompt, preferred and other.")
    return found


def _entries(text: str, name: str, is_jsonl: bool) -> Sequence[Any]:
    if is_jsonl:
        entries = []
        for number, line in enumerate(text.splitlines(), 1):
            try:
                entries += [json.loads(line)] if line.strip() else []
            except (ValueError, RecursionError):
                raise ConfigError(f"{name} has no JSON in line {number}; each line is one pair.") from None
        return entries
    content = read_yaml(text, name)
    if not isinstance(content, dict) or not isinstance(content.get("pairs"), list):
        raise ConfigError(f"{name} has no list under pairs; give it one, each with prompt, preferred and other.")
    return list(content["pairs"])


def _pair(entry: Any, name: str, number: int) -> Pair:
    try:
        return Pair.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "it"
        raise ConfigError(
            f"Pair {number} of {name}: {key} {first['msg'].replace('Input should', 'should', 1)}; a pair has prompt, "
            "preferred, other and, if you like, group."
        ) from None
