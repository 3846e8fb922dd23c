"""What the tests give to the processes that they start: the essentials of their own environment, and no more."""

import os

ESSENTIALS = ("PATH", "HOME", "LANG", "OMP_WAIT_POLICY")


def bare() -> dict[str, str]:
    """An environment without settings and secrets."""
    return {name: os.environ[name] for name in ESSENTIALS if name in os.environ}
