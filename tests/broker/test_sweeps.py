"""Sweeps: their text and points, launched together or not at all, and cancelled, paused and resumed as a whole."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlmodel import select

from broker.reports import run_plan, sweep_plan
from broker.reports.sweep_plan import SweepPreview
from broker.runs import comparison, generation, sweep_control, sweep_text, sweeps
from broker.runs.launching import Order
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import Run, RunState
from broker.runs.series import Measured
from broker.runs.sweeps import SweepReceipt, SweepView
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor
from projects.record import record
from tests.broker.lab import ADA, GRACE, HOUR, STRANGER, Lab, request_id

GRID = "learning_rate=1e-3,3e-3 seed=1..3"


@pytest.fixture
def project(lab: Lab) -> int:
    """An active project with an hour."""
    number = lab.project()
    lab.allocation(number)
    return number


def launch(lab: Lab, project: int, points: str = GRID, actor: Actor = ADA, **changes: Any) -> SweepReceipt:
    order = Order(project, **{"recipe": "demo", "time_limit": "5m"} | changes)
    with lab.db.write() as session:
        return sweeps.launch(session, actor, request_id(), order, points)


def plan(lab: Lab, project: int, points: str = GRID, actor: Actor = ADA, **changes: Any) -> SweepPreview:
    order = Order(project, **{"recipe": "demo", "time_limit": "5m"} | changes)
    with lab.db.write() as session:
        return sweep_plan.plan(session, actor, request_id(), order, points)


def confirm(lab: Lab, number: int, actor: Actor = ADA) -> SweepReceipt:
    with lab.db.write() as session:
        return sweep_plan.confirm(session, actor, number)


def view(lab: Lab, sweep: int) -> SweepView:
    with lab.db.read() as session:
        return sweeps.view(session, sweep)


def measured(step: int, **values: float) -> Progress:
    points = [Measured(name, step, step * 100, value) for name, value in values.items()]
    return Progress(step, step, step=step, tokens=step * 100, points=points)


def entries(lab: Lab, project: int, *kinds: str) -> Sequence[dict[str, Any]]:
    with lab.db.read() as session:
        told = record.newest(session, record.project_stream(project), 200)
    return [entry.payload or {} for entry in reversed(told) if entry.kind in kinds]


def test_the_runs_of_a_sweep_have_its_tags_and_its_name_with_what_differs(lab: Lab, project: int) -> None:
    offer = plan(lab, project, name=" Warm-up ", tags="Rope tiny", overrides="steps=40")
    assert offer.quote.quotes[0].run.name == "Warm-up: 1e-3 · 1"
    made = view(lab, confirm(lab, offer.plan_id).sweep_id).runs
    values = [f"{rate} · {seed}" for rate in ("1e-3", "3e-3") for seed in (1, 2, 3)]
    assert [(run.name, run.tags) for run in made] == [(f"Warm-up: {value}", ("rope", "tiny")) for value in values]
    plain = view(lab, launch(lab, project, "seed=1..2", time_limit="1m").sweep_id).runs
    assert [(run.name, run.tags) for run in plain] == [("", ())] * 2
    before = lab.everything()
    for name, tags, sentence in (
        ("x" * 55, "", r"^The point learning_rate=1e-3 seed=1: The name has 65 characters; at most 60 fit"),
        ("x" * 61, "", r"^The name has 61 characters; at most 60 fit"),
        ("", "a b c d e f", r"^A run has at most 5 tags; 6 were typed"),
    ):
        with pytest.raises(InvalidError, match=sentence):
            launch(lab, project, time_limit="1m", name=name, tags=tags)
    assert lab.everything() == before


@pytest.mark.parametrize(
    ("typed", "points"),
    [
        ("learning_rate=1e-4,3e-4 seed=1..2", ["1e-4 1", "1e-4 2", "3e-4 1", "3e-4 2"]),
        (" learning_rate = 1e-4 , 3e-4,\nseed = 1 .. 2 ", ["1e-4 1", "1e-4 2", "3e-4 1", "3e-4 2"]),
        ("seed=1..3,7", ["1", "2", "3", "7"]),
        ("seed=-1..1", ["-1", "0", "1"]),
        ("seed=1 steps=10; steps=20 seed=2;", ["1 10", "2 20"]),
        ("seed=1,2 steps=10; steps=20 seed=9", ["1 10", "2 10", "9 20"]),
    ],
)
def test_the_text_of_a_sweep_stands_for_points(typed: str, points: list[str]) -> None:
    made = sweep_text.points(typed, 24)
    assert [" ".join(point.values()) for point in made] == points
    assert len({tuple(point) for point in made}) == 1, "all name the fields in one order"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("", "A sweep is written like"),
        (" ; ;\u200b", "A sweep is written like"),
        ("seed", "A sweep is written like"),
        ("seed= steps=1", "A sweep is written like"),
        ("=3,4", "A sweep is written like"),
        ("seed=1=2", "A sweep is written like"),
        (f"seed={'9' * 90},1", "A sweep is written like"),
        ("seed=7", "at least two points; /run launch launches one run"),
        ("seed=1,2 seed=3", "“seed” is given twice; write its values in one list"),
        ("seed=3..1", "“3..1” counts down"),
        ("learning_rate=1e-4..1e-3", "no range of whole numbers, such as 1..3"),
        ("steps=1,000", "“000” is no number: commas separate values here"),
        ("learning_rate=0,001 seed=1", "“001” is no number"),
        ("seed=1 steps=2; seed=3", "the same fields: one has seed, steps, another seed"),
        ("seed=1..10000", "The sweep has 10,000 points; at most 24 runs"),
        ("seed=1..999999999999999999 steps=1..999999999999999999", "points; at most 24 runs"),
        (f"seed={'1,' * 2000}", "The sweep has 4,005 characters; at most 1,000 fit"),
        ("🧪" * 4000, "The sweep has 4,000 characters"),
    ],
)
def test_a_text_that_is_no_sweep_is_refused_in_one_sentence(typed: str, said: str) -> None:
    with pytest.raises(InvalidError, match=said.replace("(", r"\(").replace(".", r"\.")):
        sweep_text.points(typed, 24)


def test_a_plan_shows_every_run_and_queues_nothing(lab: Lab, project: int) -> None:
    kinds = lab.kinds(project)
    preview = plan(lab, project, overrides="steps=100")
    quote = preview.quote
    assert (quote.cost, quote.left, quote.expected, quote.promised) == (1800, HOUR, None, 0)
    assert [each.run.overrides for each in quote.quotes][:2] == [
        {"steps": "100", "learning_rate": "1e-3", "seed": "1"},
        {"steps": "100", "learning_rate": "1e-3", "seed": "2"},
    ]
    assert [each.cost for each in quote.quotes] == [300] * 6
    assert [waits.position for waits in preview.queue] == [1, 2, 3, 4, 5, 6]
    assert [waits.reason for waits in preview.queue[1:3]] == [
        "Nothing holds it up.",
        "It waits for cores: 1 needed, 0 free on “laptop”.",
    ]
    starts = [waits.expected for waits in preview.queue if waits.expected is not None]
    assert [round((start - starts[0]).total_seconds() / 60) for start in starts] == [0, 0, 5, 5, 10, 10]
    assert lab.kinds(project) == kinds


def test_a_confirmed_sweep_is_launched_once_and_told_as_one(lab: Lab, project: int) -> None:
    preview = plan(lab, project, overrides="steps=100")
    with ThreadPoolExecutor(4) as pool:
        receipts = list(pool.map(lambda _: confirm(lab, preview.plan_id), range(4)))
    assert len({receipt.sweep_id for receipt in receipts}) == 1
    receipt = receipts[0]
    assert (len(receipt.run_ids), receipt.cost, receipt.left, receipt.promised) == (6, 1800, HOUR, 1800)
    with lab.db.read() as session:
        assert session.scalars(select(Run.sweep_id)).all() == [receipt.sweep_id] * 6
    [told] = entries(lab, project, "sweep.launched")
    assert told["runs"] == list(receipt.run_ids)
    assert (told["points"], told["overrides"], told["cost"]) == (GRID, {"steps": "100"}, 1800)
    queued = entries(lab, project, "run.queued")
    assert [(each["run"], each["sweep"]) for each in queued] == [(n, receipt.sweep_id) for n in receipt.run_ids]
    shown = view(lab, receipt.sweep_id)
    assert [shown.point(each) for each in shown.runs][::5] == ["1e-3 · 1", "3e-3 · 3"]
    assert (shown.state, shown.best) == (RunState.QUEUED, None)
    assert all(each.sweep_id == receipt.sweep_id for each in shown.runs)
    sentence = f"already launched, as sweep {receipt.sweep_id}"
    with pytest.raises(ConflictError, match=sentence), lab.db.write() as session:
        run_plan.discard(session, ADA, preview.plan_id)
    with pytest.raises(ForbiddenError, match="Only the one who asked"):
        confirm(lab, preview.plan_id, GRACE)


@pytest.mark.parametrize(
    ("points", "changes", "error", "said"),
    [
        ("magic=1,2", {}, InvalidError, r"The point magic=1: 'magic' may not be overridden; what may be is steps,"),
        ("@everyone=1,2", {}, InvalidError, "The point @everyone=1: '@everyone' may not be overridden"),
        ("seed=1,-2", {}, InvalidError, "The point seed=-2: seed must be"),
        ("learning_rate=1e-3,nan", {}, InvalidError, "The point learning_rate=nan: learning_rate must be"),
        ("learning_rate=1e-3,banana", {}, InvalidError, "The point learning_rate=banana: learning_rate must be"),
        ("learning_rate=1e-3,0.001", {}, InvalidError, "same run: learning_rate=1e-3 and learning_rate=0.001"),
        ("seed=1,2,1", {}, InvalidError, "Two points are the same run: seed=1 and seed=1"),
        ("seed=1,2", {"overrides": "seed=3"}, InvalidError, "“seed” is both swept and overridden"),
        ("batch=16,3 seed=1", {"gpus": 2}, InvalidError, "The point batch=3 seed=1: "),
        ("seed=1..13", {}, ConflictError, r"The sweep may cost 1\.084 core-hours, 13 runs of 0\.083 each, with 1 left"),
        ("seed=1..25", {}, InvalidError, "has 25 points; at most 24 runs"),
        ("seed=1,2", {"gpus": 3}, InvalidError, "^The pool “laptop” has 2 cores"),
        ("seed=1,2", {"gpus": -1}, InvalidError, "^The pool “laptop” has 2 cores"),
        ("seed=1,2", {"time_limit": "soon"}, InvalidError, "^A time limit is written like"),
        ("seed=1,2", {"recipe": "nonsense"}, NotFoundError, "^There is no recipe “nonsense”"),
        ("seed=1,2", {"dataset": "pile"}, NotFoundError, "^There is no dataset “pile”"),
        ("seed=1,2", {"overrides": "steps=0"}, InvalidError, "^steps must be"),
    ],
)
def test_of_a_sweep_with_a_fault_nothing_is_launched(
    lab: Lab, project: int, points: str, changes: dict[str, Any], error: type[DomainError], said: str
) -> None:
    before = lab.everything()
    for refused in (plan, launch):
        with pytest.raises(error, match=said):
            refused(lab, project, points, **changes)
    with pytest.raises(ForbiddenError):
        launch(lab, project, actor=STRANGER)
    assert lab.everything() == before


def test_a_sweep_counts_as_many_launches_as_it_has_runs(lab: Lab, project: int) -> None:
    lab.let("most_launches_a_day", 8)
    launch(lab, project)
    with pytest.raises(ConflictError, match="One person may make 8 launches a day; the next 3 can be at "):
        launch(lab, project, "seed=4..6")
    launch(lab, project, "seed=4..5")
    with pytest.raises(ConflictError, match="8 launches a day; this would be 9 at once"):
        launch(lab, project, "seed=11..19", GRACE, time_limit="1m")
    lab.let("most_launches_a_day", 9)
    lab.let("project_factor", 1)
    with pytest.raises(ConflictError, match="All people together may make 9 launches a day in one project; the next 2"):
        launch(lab, project, "seed=11..12", GRACE, time_limit="1m")


def test_a_sweep_draws_on_the_allocation_that_can_pay_all_of_it(lab: Lab, project: int) -> None:
    lab.allocation(project, hours="0.2")
    receipt = launch(lab, project)
    assert receipt.left == HOUR
    with pytest.raises(ConflictError, match="Allocation 1 on “laptop” can pay for it"):
        launch(lab, project, allocation_id=2)


def test_the_last_run_to_end_ends_the_sweep_and_the_best_is_named(lab: Lab, project: int) -> None:
    receipt = launch(lab, project, "learning_rate=1e-3,3e-3,1e-2")
    first, second, third = receipt.run_ids
    for run, loss in ((first, 3.5), (second, 3.25)):
        token = lab.start(run)
        lab.renew(run, token, 10, measured(5, loss=loss))
        assert view(lab, receipt.sweep_id).state == RunState.RUNNING
        lab.settle(run, token, 20, Ending(0))
    best = view(lab, receipt.sweep_id).best
    assert best is not None
    assert best.id == second
    assert not entries(lab, project, "sweep.ended")
    token = lab.start(third)
    lab.renew(third, token, 10, measured(5, loss=9.0))
    lab.settle(third, token, 20, Ending(70, "the loss is not finite"))
    [told] = entries(lab, project, "sweep.ended")
    assert told["ends"] == {"finished": 2, "failed": 1}
    assert (told["best"], told["point"]) == (second, "learning_rate=3e-3")
    assert (told["measure"], told["value"], told["spent"]) == ("loss", "3.250", 60)
    assert view(lab, receipt.sweep_id).state == RunState.FINISHED


def test_held_out_losses_decide_where_there_are_any(lab: Lab, project: int) -> None:
    receipt = launch(lab, project, "seed=1..3")
    for run, values in zip(
        receipt.run_ids, ({"loss": 2.0}, {"loss": 3.0, "held_out": 3.5}, {"loss": 3.1, "held_out": 3.4}), strict=True
    ):
        token = lab.start(run)
        lab.renew(run, token, 10, measured(5, **values))
        lab.settle(run, token, 20, Ending(0))
    best = view(lab, receipt.sweep_id).best
    assert best is not None
    assert best.id == receipt.run_ids[2]


def test_a_whole_sweep_is_paused_resumed_and_cancelled(lab: Lab, project: int) -> None:
    receipt = launch(lab, project, "seed=1..3")
    sweep, (first, second, _) = receipt.sweep_id, receipt.run_ids
    token = lab.start(first)
    for act in (sweep_control.pause, sweep_control.cancel, sweep_control.resume):
        with pytest.raises(ForbiddenError), lab.db.write() as session:
            act(session, STRANGER, sweep)
        with pytest.raises(NotFoundError, match="no sweep 404"), lab.db.write() as session:
            act(session, ADA, 404)
    with pytest.raises(ConflictError, match="no paused run"), lab.db.write() as session:
        sweep_control.resume(session, ADA, sweep)
    lab.pause(second)
    with lab.db.write() as session:
        assert sweep_control.pause(session, GRACE, sweep) == 2
    assert [run.state for run in view(lab, sweep).runs] == ["stopping", "paused", "paused"]
    with pytest.raises(ConflictError, match="no run that waits or runs"), lab.db.write() as session:
        sweep_control.pause(session, ADA, sweep)
    lab.settle(first, token, 10, Ending(75))
    assert view(lab, sweep).state == RunState.PAUSED
    with lab.db.write() as session:
        assert sweep_control.resume(session, ADA, sweep).cost == 3 * 300 - 10
    assert {run.state for run in view(lab, sweep).runs} == {RunState.QUEUED}
    token = lab.start(first)
    with lab.db.write() as session:
        assert sweep_control.cancel(session, ADA, sweep) == 3
    assert [run.state for run in view(lab, sweep).runs] == ["stopping", "cancelled", "cancelled"]
    with pytest.raises(ConflictError, match="no run left to cancel"), lab.db.write() as session:
        sweep_control.cancel(session, ADA, sweep)
    lab.settle(first, token, 5, Ending(75))
    assert lab.kinds(project)[-1] == "sweep.ended"
    assert lab.account(1).reserved == 0
    acts = entries(lab, project, "sweep.stopping", "sweep.resumed")
    assert [(act["by"]["name"], act["count"], act.get("stops_as")) for act in acts] == [
        ("Grace", 2, "paused"),
        ("Ada", 3, None),
        ("Ada", 3, "cancelled"),
    ]


def test_a_pause_that_is_refused_for_one_run_pauses_none(lab: Lab, project: int) -> None:
    receipt = launch(lab, project, "seed=1..3")
    lab.let("most_run_changes_a_day", 2)
    before = lab.everything()
    with pytest.raises(ConflictError, match="pauses, extensions and names"), lab.db.write() as session:
        sweep_control.pause(session, ADA, receipt.sweep_id)
    assert lab.everything() == before


def test_what_becomes_of_a_run_is_told_with_its_sweep_and_its_own_forks_are_not(lab: Lab, project: int) -> None:
    receipt = launch(lab, project, "seed=1..2")
    first = receipt.run_ids[0]
    token = lab.start(first)
    lab.renew(first, token, 10, Progress(1, 1, step=4, tokens=4, checkpoints=[Checkpoint(4, "attempt-1/step4")]))
    with lab.db.write() as session:
        generation.generate(session, ADA, request_id(), first, "Once")
    sampled = entries(lab, project, "run.queued")[-1]
    assert (sampled["run"], sampled["sweep"]) == (first, receipt.sweep_id)
    with lab.db.write() as session:
        forked = run_plan.plan_fork(session, ADA, request_id(), first, 4, overrides="seed=9")
    with lab.db.write() as session:
        number = run_plan.confirm(session, ADA, forked.plan_id).run_id
    assert (lab.row(number).sweep_id, lab.row(number).parent_id) == (None, first)
    assert "sweep" not in entries(lab, project, "run.forked")[0]
    assert len(view(lab, receipt.sweep_id).runs) == 2
    with lab.db.read() as session:
        assert comparison.names(comparison.named(session, f"{first} {receipt.run_ids[1]}")) == ["seed 1", "seed 2"]
