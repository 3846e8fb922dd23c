"""What the tests give to the processes that they start: the essentials of their own environment, and no more."""

import os

ESSENTIALS = ("PATH", "HOME", "LANG", "OMP_WAIT_POLICY", "STOA_TEST_SLOW")


def bare() -> dict[str, str]:
    """An environment without settings and secrets; STOA_TEST_SLOW lengthens the nets of the demo, too."""
    return {name: os.environ[name] for name in ESSENTIALS if name in os.environ}
