"""What all tests share."""

import pytest

from tests.absent import LEFT_OUT


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each thing that this machine lacks, so that nothing is left out unseen."""
    for line in LEFT_OUT:
        terminalreporter.write_line(f"LEFT OUT: {line}", yellow=True)
