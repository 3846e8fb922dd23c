"""The runners there are, by name. A new one is imported and registered here; nothing else has to know it."""

import os

from broker.runners.base import PASSED_ON, PoolOption, Runner
from broker.runners.local import LocalRunner
from broker.runners.slurm import SlurmRunner
from projects.errors import InvalidError

DEFAULT = LocalRunner.name
_runners: dict[str, type[Runner]] = {}


def register(runner: type[Runner]) -> None:
    """Let pools have this runner."""
    _runners[runner.name] = runner


for _runner in (LocalRunner, SlurmRunner):
    register(_runner)


def names() -> list[str]:
    """The names of all runners."""
    return list(_runners)


def named(name: str) -> type[Runner]:
    """The runner of that name; raises InvalidError."""
    if name not in _runners:
        raise InvalidError(f"The runner is one of: {', '.join(_runners)}.")
    return _runners[name]


def pool_options() -> dict[str, PoolOption]:
    """The options of pools of any runner, by name."""
    return {option.name: option for runner in _runners.values() for option in runner.pool_options}


def environment() -> dict[str, str]:
    """What of this process's environment a part of Stoa is given, so that every runner works there."""
    wanted = {*PASSED_ON, *(name for runner in _runners.values() for name in runner.environment)}
    return {name: os.environ[name] for name in sorted(wanted) if name in os.environ}
