"""The databases of these tests, and a lab on each."""

from tests.broker.conftest import lab

__all__ = ["lab"]
