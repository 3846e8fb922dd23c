"""Who is told of an entry: the launcher of a sweep once a way, and followers of the first run that no sweep has."""

import pytest

from broker.end_reasons import EndReason
from broker.reports import concerned
from broker.runs import control, runs, sweep_control, sweeps
from broker.runs.launching import Order
from broker.runs.progress import Ending
from projects import lifecycle
from projects.record import record
from projects.record.record import EntryView
from tests.broker.lab import ADA, Lab, request_id


@pytest.fixture
def project(lab: Lab) -> int:
    """An active project with an hour."""
    number = lab.project()
    lab.allocation(number)
    return number


def sweep(lab: Lab, project: int) -> list[int]:
    """The runs of a new sweep."""
    order = Order(project, recipe="demo", time_limit="5m")
    with lab.db.write() as session:
        number = sweeps.launch(session, ADA, request_id(), order, "seed=1..3").sweep_id
    with lab.db.read() as session:
        return [run.id for run in sweeps.view(session, number).runs]


def end(lab: Lab, run: int, ending: Ending) -> None:
    lab.settle(run, lab.start(run), 1, ending)


def entries(lab: Lab, project: int, kind: str) -> list[EntryView]:
    with lab.db.read() as session:
        told = record.since(session, record.project_stream(project), 0)
    return [entry for entry in told if entry.kind == kind]


def told(lab: Lab, project: int, kind: str) -> list[int | None]:
    """The Discord ids of the persons that the entries of a kind concern, in order."""
    with lab.db.read() as session:
        return [concerned.person(session, entry) for entry in entries(lab, project, kind)]


def test_of_a_sweep_only_the_first_failure_and_the_end_are_told(lab: Lab, project: int) -> None:
    for run in reversed(sweep(lab, project)):  # the last one fails first
        before = len(told(lab, project, "run.failed"))
        end(lab, run, Ending(70, reason="It broke."))
        assert told(lab, project, "run.failed")[before] == (None if before else ADA.discord_id)
    assert told(lab, project, "run.failed") == [ADA.discord_id, None, None]
    assert told(lab, project, "sweep.ended") == [ADA.discord_id]


def test_of_a_sweep_only_the_first_pause_for_want_of_hours_is_told_and_again_once_it_was_resumed(
    lab: Lab, project: int
) -> None:
    ids = sweep(lab, project)
    with lab.db.read() as session:
        number = runs.view(session, ids[0]).sweep_id
    assert number is not None

    def pause(run: int, why: EndReason = EndReason.UNFUNDED) -> None:
        with lab.db.write() as session:
            control.suspend(session, runs.load(session, run), why, "so")

    pause(ids[2], EndReason.PAUSED)
    pause(ids[1])
    pause(ids[0])
    assert told(lab, project, "run.paused") == [None, ADA.discord_id, None]
    with lab.db.write() as session:
        sweep_control.resume(session, ADA, number)
    for run in ids:
        pause(run)
    assert told(lab, project, "run.paused")[3:] == [ADA.discord_id, None, None]


def test_the_first_finished_run_beside_sweeps_and_each_end_of_a_project_are_news(lab: Lab, project: int) -> None:
    end(lab, sweep(lab, project)[0], Ending(0))
    for _ in range(2):
        end(lab, lab.launch(project), Ending(0))
    with lab.db.write() as session:
        lifecycle.stop(session, ADA, project, reason="It is enough.")
    with lab.db.read() as session:
        finished = [concerned.is_news(session, entry) for entry in entries(lab, project, "run.finished")]
        stopped = [concerned.is_news(session, entry) for entry in entries(lab, project, "project.stopped")]
    assert finished == [False, True, False]
    assert stopped == [True]
