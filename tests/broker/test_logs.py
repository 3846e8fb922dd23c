"""The tail of a run's log: plain lines, whatever a terminal was told, and wherever the tail begins."""

from pathlib import Path

import pytest

from broker.runs import logs, runs
from broker.runs.logs import BEFORE, LONGEST_LINE, MOST_BYTES
from tests.broker.lab import Lab, settings


@pytest.fixture
def log(lab: Lab, run: int, tmp_path: Path) -> Path:
    """The log file of the run's first attempt."""
    token = lab.start(run)
    folder = tmp_path / "runs" / str(run) / f"attempt-{token}"
    folder.mkdir(parents=True)
    with lab.db.read() as session:
        (folder.parent / "owner").write_text(runs.load(session, run).request_id)
    return folder / "trainer.log"


def tail(lab: Lab, run: int, log: Path, written: bytes) -> list[str]:
    """The lines that are shown once this was written."""
    log.write_bytes(written)
    with lab.db.read() as session:
        return list(logs.read(session, settings(log.parents[3]), run).lines or [])


def test_terminal_codes_leave_nothing_behind(lab: Lab, run: int, log: Path) -> None:
    written = (
        b"\x1b[31mERROR\x1b[0m \x9b1mraw\x9b0m \xc2\x9b1mC1 \x1b]8;;https://a.org\x07a link\x1b]8;;\x07\n"
        b"\x1b(B\x1b[2K 50%\r\x1b[1A\x1b[2K100%\n  f\xc3\xbcr \xff immer\x1b[0m\n\x1b[0m\n"
    )
    assert tail(lab, run, log, written) == ["ERROR raw C1 a link", " 50%", "100%", "  für � immer"]


def test_a_sequence_that_is_cut_where_the_tail_begins_is_none_of_the_text(lab: Lab, run: int, log: Path) -> None:
    sequence = b"\x1b[38;2;10;20;30mERROR\x1b[0m"
    for end in (b"z" * (MOST_BYTES - 4), b"z\n" * ((MOST_BYTES - 4) // 2)):
        for cut in range(2 * len(sequence)):
            shown = tail(lab, run, log, b"y" * 2 * BEFORE + sequence + end[cut:])
            assert set("".join(shown)) <= set("zyERO"), cut


def test_a_log_of_one_long_line_has_a_tail_too(lab: Lab, run: int, log: Path) -> None:
    (shown,) = tail(lab, run, log, b"x" * 2 * MOST_BYTES + b" the end")
    assert shown.endswith("xx the end")
    assert len(shown) == LONGEST_LINE
    assert tail(lab, run, log, b"x" * 2 * MOST_BYTES + b"\nlast\n") == ["last"]
    assert tail(lab, run, log, b"") == []
