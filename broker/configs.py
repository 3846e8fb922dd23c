"""The trainer's configurations. The broker reads them here only, and always with the trainer's own schema.

A wrong configuration raises InvalidError, whose sentence names the key and says what would be right.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from projects.errors import InvalidError
from trainer import config as trainer_config
from trainer.config import ConfigError, TrainConfig

LONGEST_RECIPE = 8_000
"""Characters of a recipe as a member types it."""

_BASE = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}@[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


class Base(NamedTuple):
    """A model of the Hub at a revision, a branch, a tag or a commit."""

    repo: str
    revision: str


_Overrides = tuple[tuple[str, str], ...]


def read(text: str, overrides: Mapping[str, str] | None = None) -> TrainConfig:
    """The configuration in a YAML text, with some fields overridden; raises InvalidError."""
    return _read(text, tuple((overrides or {}).items()))


def spelt_out(text: str, overrides: Mapping[str, str] | None = None) -> str:
    """The configuration that `read` returns as YAML, with every default spelt out; raises InvalidError."""
    return _spelt_out(text, tuple((overrides or {}).items()))


def overridable(config: TrainConfig) -> dict[str, str]:
    """The short name of each field that a member may override, with its value in the configuration."""
    keys = {short: key.split(".") for short, key in trainer_config.OVERRIDES.items()}
    return {short: str(getattr(getattr(config, section), key)) for short, (section, key) in keys.items()}


def stage_ends(text: str) -> tuple[int, ...]:
    """The last step of each stage of a run's configuration, which has every default spelt out; none without stages."""
    # Most runs have none, and lists of runs ask for many: only then is the text worth reading.
    return tuple(_read(text, ()).stage_ends) if "\nstages:\n" in text else ()


def with_prepared_data(text: str, folder: Path) -> str:
    """A run's configuration as YAML, changed to read the prepared data in `folder`."""
    values = yaml.safe_load(text)
    values["data"]["prepared"] = str(folder)
    return yaml.safe_dump(values, sort_keys=False)


def sections(typed: str) -> dict[str, Any]:
    """The sections of a recipe as typed, before they are checked against the schema; one that is `like` a built-in
    recipe has that one's keys beside its own.

    Raises InvalidError if the recipe is too long, is not YAML, or uses aliases.
    """
    if len(typed) > LONGEST_RECIPE:
        raise InvalidError(f"The recipe has {len(typed):,} characters; at most {LONGEST_RECIPE:,} fit.")
    try:
        values = trainer_config.read_yaml(typed, "The recipe")
    except ConfigError as error:
        raise InvalidError(str(error)) from error
    # What is proposed is read by people and stored in full, which aliases of aliases would make long.
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(typed, Loader=yaml.SafeLoader)):
        raise InvalidError("A recipe repeats itself in full: YAML's aliases (*name) are not taken.")
    if not isinstance(values, dict):
        raise InvalidError("A recipe holds sections such as model and data.")
    try:
        return trainer_config.expand_like(values)
    except ConfigError as error:
        raise InvalidError(str(error)) from error


@lru_cache(maxsize=1)
def built_in() -> Mapping[str, str]:
    """The YAML texts of the recipes that come with the trainer, by name."""
    return {name: trainer_config.recipe_text(name) for name in trainer_config.recipe_names()}


def keeps_state(text: str, step: int) -> bool:
    """Whether a run's configuration has the optimizer's state of a step published. One that an earlier version wrote
    and that is refused today has none."""
    try:
        return read(text).checkpoints.keeps_state(step)
    except InvalidError:
        return False


def base(text: str) -> Base | None:
    """The model of the Hub that a run's configuration starts from, which has every default spelt out."""
    # Most runs have none, and the disk is looked at for all: only then is the text worth reading.
    named = _read(text, ()).base if text.startswith("base: ") or "\nbase: " in text else None
    return None if named is None else parse_base(named)


def parse_base(named: str) -> Base:
    """The model that ORG/NAME@REVISION names; raises InvalidError."""
    if not _BASE.fullmatch(named):
        raise InvalidError(f"base is {named[:80]!r}, and must be a model of the Hub at a revision, ORG/NAME@REVISION.")
    return Base(*named.rsplit("@", 1))


# Cached: suggestions read a configuration at every key that a member presses, and a launch those of all measured runs.
@lru_cache(maxsize=256)
def _read(text: str, overrides: _Overrides) -> TrainConfig:
    try:
        return trainer_config.parse(text, dict(overrides))
    except ConfigError as error:
        raise InvalidError(str(error)) from error


@lru_cache(maxsize=256)
def _spelt_out(text: str, overrides: _Overrides) -> str:
    return trainer_config.dump(_read(text, overrides))
