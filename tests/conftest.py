"""What all tests share."""

import os

import pytest

# Threads of PyTorch's that wait sleep: spinning, they take the cores from the processes that the tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each thing that this machine lacks, so that nothing is left out unseen."""
    skipped = terminalreporter.getreports("skipped")
    whys = {report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)}
    for why in sorted(whys):
        terminalreporter.write_line(f"LEFT OUT: {why.removeprefix('Skipped: ')}", yellow=True)
