"""What all tests share."""

import gc
import os
from collections import Counter

import pytest

from tests import forked

# The servers of these are a process's own, whichever of its files come first.
pytest_plugins = ["tests.databases", "tests.seaweed"]

# What takes minutes begins first, so that no process is left with it at the end; the other files follow in their order.
LONGEST = (
    "tests/system",
    "tests/page",
    "tests/trainer",
    "tests/broker/test_kubernetes",
    "tests/broker/test_slurm",
    "tests/broker/test_outages",
    "tests/broker/test_supervisor",
    "tests/broker/test_publisher",
    "tests/bot/test_delivery",
)

CPU_SECONDS = "CPU seconds"
BEGAN = pytest.StashKey[float]()


gc.disable()  # until all is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first, in the same order in each of the suite's processes."""

    def place(item: pytest.Item) -> int:
        return next((place for place, name in enumerate(LONGEST) if item.nodeid.startswith(name)), len(LONGEST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what is imported by now: looking at all of it again costs a tenth of the suite."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[BEGAN] = cpu_seconds()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Notes what a test has cost in its last report, with its set-up and what that has begun for others."""
    if call.when == "teardown" and BEGAN in item.stash:
        item.user_properties.append((CPU_SECONDS, cpu_seconds() - item.stash[BEGAN]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each thing that this machine lacks, so that nothing is left out unseen; the CPU seconds if asked."""
    skipped = terminalreporter.getreports("skipped")
    whys = {report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)}
    for why in sorted(whys):
        terminalreporter.write_line(f"LEFT OUT: {why.removeprefix('Skipped: ')}", yellow=True)
    if os.environ.get("STOA_TEST_CPU") == "1":
        tell_cpu_seconds(terminalreporter)


def cpu_seconds() -> float:
    """Of this process, and of those of its children and forked processes that have ended and were waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system + forked.cpu_seconds()


def tell_cpu_seconds(terminalreporter: pytest.TerminalReporter) -> None:
    """The CPU seconds of each file and of the twenty dearest tests."""
    files, tests = Counter[str](), Counter[str]()
    for report in terminalreporter.getreports(""):
        cost = dict(report.user_properties).get(CPU_SECONDS, 0.0)
        files[report.nodeid.partition("::")[0]] += cost
        tests[report.nodeid] += cost
    terminalreporter.section(f"{CPU_SECONDS}: {sum(files.values()):.0f}")
    for name, seconds in [*files.most_common(), *tests.most_common(20)]:
        terminalreporter.write_line(f"{seconds:8.1f} {name}")
