"""`stoa policy`: what an operator reads and changes at the command line."""

from pathlib import Path

from projects.db.database import Database
from projects.record import record
from tests.system.test_command_line import stoa


def test_an_operator_lists_and_sets_policies_in_public(tmp_path: Path) -> None:
    assert stoa(tmp_path, "migrate").returncode == 0
    assert stoa(tmp_path, "policy", "set", "starter_hours", "2.5", "--why", "More GPUs.").returncode == 0
    listed = stoa(tmp_path, "policy", "list").stdout.splitlines()
    assert listed[0].startswith("starter_hours 2.5: ")
    assert any(line.startswith("channel_policy automatic: ") for line in listed)
    db = Database(f"sqlite:///{tmp_path / 'stoa.db'}")
    with db.read() as session:
        told = [(entry.kind, (entry.payload or {})["why"]) for entry in record.since(session, record.LAB, 0)]
    db.close()
    assert told == [("policy.changed", "More GPUs.")]


def test_a_policy_that_cannot_be_is_refused_with_a_sentence(tmp_path: Path) -> None:
    stoa(tmp_path, "migrate")
    for name, value, sentence in (
        ("starter_hours", "lots", "“lots” cannot be starter_hours"),
        ("nothing", "1", "There is no policy “nothing”; the policies are: starter_hours"),
    ):
        done = stoa(tmp_path, "policy", "set", name, value, "--why", "Why not.")
        assert (done.returncode, sentence in done.stderr) == (2, True)
    assert stoa(tmp_path, "policy", "set", "starter_hours", "2").returncode == 2
