"""Runs as members launch and cancel them: what is refused, what it costs, and the way from state to state."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml
from sqlalchemy import text

from broker import catalogue
from broker.allocations.ledger import Account
from broker.plots.curve_of_run import Panel, curve_of
from broker.publications import Publication
from broker.runs import runs, series
from broker.runs.launching import parse_overrides, parse_time_limit
from broker.runs.progress import Checkpoint, Progress
from broker.runs.runs import ENDED, TRANSITIONS, RunState
from broker.runs.series import Measured
from projects import lifecycle
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from tests.broker.lab import ADA, GRACE, HOUR, STRANGER, Lab, request_id
from trainer import check as dry_run
from trainer import config as trainer_config
from trainer.config import TrainConfig

REFUSED_LAUNCHES: list[tuple[dict[str, Any], str]] = [
    ({"recipe": "nonesuch"}, "no recipe “nonesuch”; the recipes are: demo."),
    ({"recipe": "demmo"}, "no recipe “demmo”; do you mean demo?"),
    ({"recipe": "../demo"}, "no recipe"),
    ({"recipe": "x" * 6000}, "no recipe"),
    ({"overrides": "layers=3"}, "'layers' may not be overridden; what may be is steps"),
    ({"overrides": "data.sources=all"}, "may not be overridden"),
    ({"overrides": "x" * 6000 + "=1"}, "written like steps=100"),
    ({"overrides": "seed=" + "1" * 6000}, "written like steps=100"),
    ({"overrides": "steps=0"}, "steps must be"),
    ({"overrides": "steps=-1"}, "steps must be"),
    ({"overrides": "steps=1e9"}, "steps must be"),
    ({"overrides": "steps=many"}, "steps must be"),
    ({"overrides": "learning_rate=NaN"}, "learning_rate must be"),
    ({"overrides": "micro_batch=7"}, "micro_batch"),
    ({"overrides": "steps"}, "written like steps=100"),
    ({"overrides": "steps=1,steps=2"}, "overridden twice"),
    ({"overrides": "learning_rate=0,001"}, "^“0,001” is no number: write 0.001.$"),
    ({"overrides": "seed=1, learning_rate=1,5e-4"}, "^“1,5e-4” is no number: write 1.5e-4.$"),
    ({"overrides": "steps=1,000"}, "^“1,000” is no number: write 1.000 or 1000.$"),
    ({"overrides": "steps=1,000,000, seed=3"}, "^“1,000,000” is no number: write 1000000.$"),
    ({"overrides": "learning_rate=1.234,5"}, "write a point, as in 0.001, and no comma"),
    ({"overrides": "batch=8, micro_batch=8", "gpus": 2}, "multiple of"),
    ({"time_limit": "0"}, "has no unit: write 0h for hours, or 0m for minutes"),
    ({"time_limit": "-5m"}, "A time limit is written like"),
    ({"time_limit": "1e9h"}, "A time limit is written like"),
    ({"time_limit": ""}, "A time limit is written like"),
    ({"gpus": 0}, "ask for 1 to 2"),
    ({"gpus": -1}, "ask for 1 to 2"),
    ({"gpus": 3}, "has 2 cores; ask for 1 to 2"),
    ({"time_limit": "61m"}, "It may cost 1.017 core-hours, with 1 left: less time or fewer cores would fit."),
    ({"time_limit": "31m", "gpus": 2}, "may cost 1.034 core-hours, with 1 left"),
    ({"allocation_id": 99}, "no allocation 99"),
]


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        ("45m", 2700),
        ("2h", 7200),
        ("1h30m", 5400),
        (" 1H 30M ", 5400),
        ("1m", 60),
        ("720h", 2_592_000),
        ("90m", 5400),
        ("1.5 hours", 5400),
        ("2 days", 172_800),
    ],
)
def test_time_limits_as_typed(typed: str, seconds: int) -> None:
    assert parse_time_limit(typed) == seconds


@pytest.mark.parametrize("typed", ["", "0m", "0h0m", "-5m", "1e9h", "721h", "59s", "h", "m", "NaN", "soon", "99999h"])
def test_time_limits_that_are_none(typed: str) -> None:
    with pytest.raises(InvalidError, match="written like 45m, 2h or 1h30m"):
        parse_time_limit(typed)


def test_overrides_as_typed() -> None:
    assert parse_overrides("") == parse_overrides(" , ") == {}
    assert parse_overrides("steps=100, seed = 7 ,") == {"steps": "100", "seed": "7"}


@pytest.mark.parametrize("typed", ["steps", "steps=", "=5", "steps=1, seed", "steps 100"])
def test_overrides_that_are_none(typed: str) -> None:
    with pytest.raises(InvalidError, match="written like steps=100"):
        parse_overrides(typed)


def test_a_launch_says_what_it_costs_and_is_told(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project)
    receipt = lab.receipt(project, GRACE, gpus=2, time_limit="15m", overrides="steps=20")
    assert (receipt.cost, receipt.expected, receipt.left) == (1800, None, HOUR)
    view = lab.run(receipt.run_id)
    assert (view.state, view.gpus, view.time_limit, view.total_steps) == (RunState.QUEUED, 2, 900, 20)
    assert (view.requested_by, view.overrides, view.eta) == ("Grace", {"steps": "20"}, None)
    assert lab.kinds(project)[-1] == "run.queued"
    assert lab.account(allocation) == Account(HOUR, 0, 0), "a queued run reserves nothing yet"


def measure(lab: Lab, run: int, *rates: float) -> None:
    with lab.db.write() as session:
        series.add(session, run, [Measured("tokens_per_second", 2 * n, 4096, rate) for n, rate in enumerate(rates)])


def test_a_like_run_that_was_measured_says_what_to_expect(lab: Lab) -> None:
    project = lab.project()
    lab.allocation(project)
    first = lab.launch(project, overrides="steps=100")
    assert lab.receipt(project).basis == "nothing similar has been measured on this pool yet"
    measure(lab, first, 10.0, 2048.0, 2048.0, 2048.0, 1.0)
    receipt = lab.receipt(project, overrides="steps=100")
    assert receipt.expected == 100 * 16 * 128 / 2048
    assert receipt.basis == f"run {first} measured 2,048 tokens per second of this recipe on this pool"


def test_a_recipe_measured_on_another_number_of_gpus_is_scaled(lab: Lab) -> None:
    project = lab.project()
    lab.allocation(project)
    first = lab.launch(project)
    measure(lab, first, 2048.0)
    receipt = lab.receipt(project, gpus=2)
    assert receipt.expected == 200 * 16 * 128 / 2048, "twice as fast, on twice as many"
    assert receipt.basis == f"run {first} measured 2,048 tokens per second, scaled from 1 to 2 cores"
    shorter = lab.receipt(project, overrides="sequence_length=64")
    assert shorter.expected is not None
    assert shorter.expected < 100, "half the tokens, and each a little cheaper"
    assert shorter.basis.endswith("scaled by FLOPs per token")


def test_a_recipe_that_was_never_measured_is_scaled_by_its_flops_from_one_of_like_size(lab: Lab) -> None:
    project = lab.project()
    lab.allocation(project, hours="100")
    configs = {name: accepted(lab, name, width) for name, width in (("wide", 512), ("wider", 768))}
    demo, small = lab.launch(project), lab.launch(project, recipe="wide")
    measure(lab, demo, 9999.0)
    assert lab.receipt(project, recipe="wider").expected is None, "the demo is too small to compare"
    measure(lab, small, 1000.0)
    receipt = lab.receipt(project, recipe="wider", overrides="steps=10")
    flops = {name: dry_run.flops_per_token(config) for name, config in configs.items()}
    tokens = 10 * configs["wider"].tokens_per_step
    assert receipt.expected == round(tokens / (1000 * flops["wide"] / flops["wider"]))
    assert receipt.basis.endswith("scaled from the recipe wide by FLOPs per token")


def accepted(lab: Lab, name: str, width: int) -> TrainConfig:
    """The demo's recipe with wider layers, in the catalogue."""
    values = yaml.safe_load((trainer_config.RECIPES / "demo.yml").read_text())
    values["model"]["hidden_size"] = width
    with lab.db.write() as session:
        catalogue.propose_recipe(session, None, request_id(), name=name, body=yaml.safe_dump(values))
        catalogue.accept(session, None, name, reason="To compare.")
        return catalogue.load(session, name)


def test_a_launch_that_cannot_stand_changes_nothing(lab: Lab, subtests: pytest.Subtests) -> None:
    project = lab.project()
    lab.allocation(project)
    before = lab.everything()
    for changes, sentence in REFUSED_LAUNCHES:
        with subtests.test(**{key: str(value)[:40] for key, value in changes.items()}):
            with pytest.raises(DomainError, match=sentence) as refused:
                lab.launch(project, ADA, **changes)
            assert len(str(refused.value)) < 400
            assert lab.everything() == before


def test_a_launch_needs_an_approved_allocation_of_the_project(lab: Lab) -> None:
    project = lab.project()
    theirs = lab.allocation(lab.project(STRANGER, "Another"), lead=STRANGER)
    before = lab.everything()
    with pytest.raises(ConflictError, match="no allocation yet: /allocation request"):
        lab.launch(project)
    with pytest.raises(NotFoundError, match=f"Allocation {theirs} is not one of “Sinks of attention”"):
        lab.launch(project, allocation_id=theirs)
    assert lab.everything() == before
    asked = lab.request(project)
    declined = lab.request(project)
    lab.decline(declined)
    before = lab.everything()
    with pytest.raises(ConflictError, match=f"Allocation {asked} is requested; a run needs an approved one"):
        lab.launch(project, allocation_id=asked)
    with pytest.raises(ConflictError, match=f"Allocation {declined} is declined"):
        lab.launch(project, allocation_id=declined)
    with pytest.raises(ConflictError, match="a run needs an approved one"):
        lab.launch(project)
    assert lab.everything() == before


def test_a_launch_needs_an_allocation_that_has_not_ended(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project)
    with lab.db.write() as session:
        session.execute(text("UPDATE allocations SET until = '2020-01-01 00:00:00.000000'"))
    with pytest.raises(ConflictError, match=f"Allocation {allocation} ended on 2020-01-01"):
        lab.launch(project)


def test_only_members_of_an_active_project_launch_and_cancel(lab: Lab) -> None:
    project, resting = lab.project(), lab.project(title="Resting")
    lab.allocation(project)
    with lab.db.write() as session:
        lifecycle.pause(session, ADA, resting, reason="No time.")
    run = lab.launch(project)
    before = lab.everything()
    with pytest.raises(ForbiddenError, match="Only members of “Sinks of attention”"):
        lab.launch(project, STRANGER)
    with pytest.raises(ForbiddenError, match="Only members of “Sinks of attention”"):
        lab.cancel(run, STRANGER)
    with pytest.raises(ConflictError, match="is paused; runs are launched while"):
        lab.launch(resting)
    with pytest.raises(NotFoundError, match="no project 99"):
        lab.launch(99)
    with pytest.raises(NotFoundError, match="no run 99"):
        lab.cancel(99)
    assert lab.everything() == before


def test_the_same_request_launches_once(lab: Lab) -> None:
    project = lab.project()
    lab.allocation(project)
    receipts = [lab.receipt(project, request="once") for _ in range(2)]
    assert receipts[0] == receipts[1]
    assert lab.kinds(project).count("run.queued") == 1


def test_a_queued_run_is_cancelled_at_once_and_once(lab: Lab) -> None:
    project = lab.project()
    allocation = lab.allocation(project)
    run = lab.launch(project)

    def cancel(_: int) -> bool:
        try:
            lab.cancel(run, GRACE)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(cancel, range(4))) == 1
    view = lab.run(run)
    assert (view.state, view.reason, view.spent) == (RunState.CANCELLED, "cancelled by Grace", 0)
    assert view.ended_at is not None
    before = lab.everything()
    with pytest.raises(ConflictError, match=f"Run {run} is already cancelled"):
        lab.cancel(run)
    assert lab.everything() == before
    assert lab.account(allocation).left == HOUR
    assert lab.kinds(project)[-1] == "run.cancelled"


@pytest.mark.parametrize("seen", list(RunState))
@pytest.mark.parametrize("to", list(RunState))
def test_a_run_takes_the_tables_transitions_only(seen: RunState, to: RunState) -> None:
    """The table is closed: an end is an end, and only a run that has left the queue is queued again."""
    allowed = to in TRANSITIONS[seen]
    if seen in ENDED:
        assert not allowed
    if to == RunState.QUEUED:
        assert allowed == (seen in {RunState.STARTING, RunState.RUNNING, RunState.STOPPING, RunState.PAUSED})


def test_a_move_that_somebody_else_has_made_is_refused(lab: Lab) -> None:
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project)
    with lab.db.read() as session:
        stale = runs.load(session, run)
    lab.cancel(run)
    with pytest.raises(ConflictError, match="has just changed"), lab.db.write() as session:
        runs.move(session, stale, RunState.STARTING)
    assert lab.row(run).state == RunState.CANCELLED


def test_the_runs_of_a_project_and_those_in_motion(lab: Lab) -> None:
    project = lab.project()
    lab.allocation(project)
    first, second = lab.launch(project), lab.launch(project, ADA)
    lab.cancel(first)
    with lab.db.read() as session:
        assert [view.id for view in runs.of_project(session, project)] == [second, first]
        assert runs.in_motion(session) == {project: {second}}
        assert "demo" in catalogue.recipes(session)


def test_the_curve_shows_the_panel_that_is_asked_for_and_each_checkpoint_at_its_tokens(lab: Lab) -> None:
    lab.allocation(lab.project())
    run = lab.launch(1)
    token = lab.start(run, 0)
    names = {"loss": 5.0, "lr": 0.001, "grad_norm": 0.5, "tokens_per_second": 900.0}
    points = [Measured(name, step, step * 100, value) for name, value in names.items() for step in (10, 20)]
    told = [Checkpoint(15, "/nowhere/attempt-1/checkpoints/step15")]
    lab.renew(run, token, 5, Progress(0, 0, step=20, tokens=2000, points=points, checkpoints=told))
    with lab.db.write() as session:
        session.get_one(Publication, (run, 15)).url = "https://hub.example.org/step15"
    with lab.db.read() as session:
        view = runs.view(session, run)
        curves = [curve_of(session, view, panel) for panel in (None, *Panel)]
    shown = [(curve.below_label, [value for _, value in curve.below]) for curve in curves]
    norm, rate, speed = ("gradient norm", [0.5] * 2), ("learning rate", [0.001] * 2), ("tokens/s", [900.0] * 2)
    assert shown == [norm, norm, rate, speed]
    assert curves[0].checkpoints == [1500], "between the steps that were logged"
