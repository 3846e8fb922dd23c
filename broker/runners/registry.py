"""The runners there are, by name. A new one is imported and registered here; nothing else has to know it."""

import os

from broker.runners.base import PASSED_ON, PoolOption, Runner
from broker.runners.donated import DonatedRunner
from broker.runners.kubernetes import KubernetesRunner
from broker.runners.local import LocalRunner
from broker.runners.slurm import SlurmRunner
from projects.errors import InvalidError

RUNNERS: dict[str, type[Runner]] = {
    runner.name: runner for runner in (LocalRunner, SlurmRunner, KubernetesRunner, DonatedRunner)
}
DEFAULT = LocalRunner.name


def names() -> list[str]:
    """The names of all runners."""
    return list(RUNNERS)


def named(name: str) -> type[Runner]:
    """The runner of that name; raises InvalidError."""
    if name not in RUNNERS:
        raise InvalidError(f"The runner is one of: {', '.join(RUNNERS)}.")
    return RUNNERS[name]


def pool_options() -> dict[str, PoolOption]:
    """The options of pools of any runner, by name."""
    return {option.name: option for runner in RUNNERS.values() for option in runner.pool_options}


def environment() -> dict[str, str]:
    """What of this process's environment a part of Stoa is given, so that every runner works there."""
    wanted = {*PASSED_ON, *(name for runner in RUNNERS.values() for name in runner.environment)}
    return {name: os.environ[name] for name in sorted(wanted) if name in os.environ}
