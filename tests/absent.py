"""What this machine lacks for a test: it is left out, or fails where nothing may be left out."""

import os
from typing import NoReturn

import pytest

REQUIRE_ALL = "STOA_REQUIRE_ALL"


def absent(what: str, why: str) -> NoReturn:
    """Leaves a test out and says why; with STOA_REQUIRE_ALL=1 it fails instead."""
    line = f"{what}: {why}"
    if os.environ.get(REQUIRE_ALL) == "1":
        pytest.fail(f"left out although {REQUIRE_ALL}=1 allows nothing to be: {line}")
    pytest.skip(line)
