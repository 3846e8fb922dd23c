"""Launches that are priced first and confirmed after, and samples that members ask for."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from broker import catalogue, publications
from broker.publications import Disk, Publication
from broker.reports import run_plan, why
from broker.reports.run_plan import Preview, RunPlan
from broker.runs import attempts, comparison, generation, runs
from broker.runs.launching import Order
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.series import Measured
from projects.db.columns import utcnow
from projects.errors import ConflictError, DomainError, ForbiddenError, InvalidError, NotFoundError
from projects.people import Actor
from tests.broker.lab import ADA, GRACE, HOUR, STRANGER, Lab, request_id

WROTE = Progress(1, 1, step=4, tokens=4, checkpoints=[Checkpoint(step, f"attempt-1/step{step}") for step in (0, 4)])


@pytest.fixture
def project(lab: Lab) -> int:
    """An active project with an hour."""
    number = lab.project()
    lab.allocation(number)
    return number


def plan(lab: Lab, order: Order, actor: Actor = ADA, request: str | None = None) -> Preview:
    with lab.db.write() as session:
        return run_plan.plan_run(session, actor, request or request_id(), order)


def confirm(lab: Lab, number: int, actor: Actor = ADA) -> int:
    with lab.db.write() as session:
        return run_plan.confirm(session, actor, number).run_id


def test_a_plan_says_what_a_launch_would_be_and_queues_nothing(lab: Lab, project: int) -> None:
    kinds = lab.kinds(project)
    ahead = lab.launch(project, gpus=2, time_limit="20m")
    preview = plan(lab, Order(project, "demo", "10m", 2, "steps=100", dataset="python-docs"), request="again")
    quote = preview.quote
    assert (quote.cost, quote.left, quote.expected) == (1200, HOUR, None)
    assert (quote.tokens, quote.run.total_steps, quote.run.overrides) == (100 * 16 * 128, 100, {"steps": "100"})
    assert quote.parameters > 10**6
    assert quote.memory > 4 * quote.parameters
    assert (preview.queue.position, preview.queue.length) == (2, 2)
    assert preview.queue.reason == "It waits for cores: 2 needed, 0 free on “laptop”."
    assert preview.queue.expected is not None
    assert timedelta(minutes=19) < preview.queue.expected - utcnow() < timedelta(minutes=21)
    assert plan(lab, Order(project, "demo", "10m", 2, "steps=100"), request="again").plan_id == preview.plan_id
    assert lab.kinds(project) == [*kinds, "run.queued"]

    number = confirm(lab, preview.plan_id)
    assert number == ahead + 1
    assert (lab.row(number).gpus, lab.row(number).time_limit, lab.row(number).total_steps) == (2, 600, 100)
    with lab.db.read() as session:
        told = why.why(session, number)
    assert (told.position, told.reason) == (preview.queue.position, preview.queue.reason)


def test_a_plan_warns_of_a_time_limit_that_ends_before_a_checkpoint(lab: Lab, project: int) -> None:
    """First comes the start, which takes as long as that of the run measured, and then the steps at its rate."""

    def offered(time_limit: str, overrides: str = "") -> tuple[int, float | None, bool]:
        quote = plan(lab, Order(project, "demo", time_limit, overrides=overrides)).quote
        return quote.saves_at, quote.saves_after, quote.too_short

    assert offered("1m") == (0, None, False), "nothing like it was measured"
    first = lab.launch(project)
    token = lab.start(first)
    lab.renew(first, token, 30, Progress(1, 1, unigram_entropy=7.0))
    measured = [Measured("tokens_per_second", 2, 2 * 16 * 128, 100.0)]
    lab.renew(first, token, 50, Progress(1, 1, step=2, tokens=2 * 16 * 128, points=measured))
    lab.renew(first, token, 90, Progress(1, 1, step=4, tokens=4 * 16 * 128))
    after = 50 + 16 * 128 / 100
    assert offered("1m") == (1, after, True)
    assert offered("2m") == (1, after, False)
    with lab.db.write() as session:
        publications.add(session, first, 4, "attempt-1/step4")
        forked = run_plan.plan_fork(session, ADA, request_id(), first, 4, overrides="steps=7", time_limit="1m").quote
    assert (forked.saves_at, forked.too_short) == (7, True)


def test_of_confirmations_at_once_all_get_the_same_run(lab: Lab, project: int) -> None:
    preview = plan(lab, Order(project, "demo", "10m"))
    with ThreadPoolExecutor(4) as pool:
        numbers = list(pool.map(lambda _: confirm(lab, preview.plan_id), range(4)))
    assert len(set(numbers)) == 1
    assert lab.kinds(project).count("run.queued") == 1
    with pytest.raises(ConflictError, match=f"already launched, as run {numbers[0]}"), lab.db.write() as session:
        run_plan.discard(session, ADA, preview.plan_id)


def test_what_a_plan_is_refused_with_and_when_it_ends(lab: Lab, project: int) -> None:
    good = Order(project, "demo", "10m")
    refusals: list[tuple[Order, type[DomainError], str]] = [
        (Order(project, "demo", "10m", -1), InvalidError, "ask for 1 to 2"),
        (Order(project, "demo", "3h"), ConflictError, "may cost 3 core-hours, with 1 left"),
        (Order(project, "demo", "10m", 1, "colour=red"), InvalidError, "may not be overridden"),
        (Order(project, "demo", "10m", dataset="pile"), NotFoundError, "there are: python-docs, python-stdlib"),
    ]
    before = lab.everything()
    for order, error, said in refusals:
        with pytest.raises(error, match=said):
            plan(lab, order)
    with pytest.raises(ForbiddenError):
        plan(lab, good, STRANGER)
    assert lab.everything() == before

    preview = plan(lab, good)
    with pytest.raises(ForbiddenError, match="Only the one who asked"):
        confirm(lab, preview.plan_id, GRACE)
    with lab.db.write() as session:
        session.get_one(RunPlan, preview.plan_id).created_at = utcnow() - run_plan.GOOD_FOR * 1.1
    with pytest.raises(ConflictError, match="more than an hour old"):
        confirm(lab, preview.plan_id)
    second = plan(lab, good)
    with lab.db.write() as session:
        run_plan.discard(session, ADA, second.plan_id)
    for _ in range(2):
        with pytest.raises(ConflictError, match="This offer was cancelled"):
            confirm(lab, second.plan_id)
    with pytest.raises(NotFoundError, match="no such offer"):
        confirm(lab, 404)
    assert lab.everything() == before

    third = plan(lab, good)
    lab.admit(lab.launch(project, time_limit="58m"))
    with pytest.raises(ConflictError, match=r"with 0\.033 left"):
        confirm(lab, third.plan_id)


def test_a_fork_is_confirmed_only_while_its_checkpoint_is_there(lab: Lab, project: int) -> None:
    run = lab.launch(project)
    lab.renew(run, lab.start(run), 10, WROTE)
    with lab.db.write() as session:
        first = run_plan.plan_fork(session, ADA, request_id(), run, 4, overrides="seed=1")
    with lab.db.write() as session:
        second = run_plan.plan_fork(session, ADA, request_id(), run, 4, overrides="seed=1")
    forked = lab.row(confirm(lab, first.plan_id))
    assert (forked.parent_id, forked.fork_step, forked.overrides) == (run, 4, {"seed": "1"})
    with lab.db.write() as session:
        session.get_one(Publication, (run, 4)).disk = Disk.GONE
    with pytest.raises(NotFoundError, match="no checkpoint of step 4 here or open on the Hub; it has: 0"):
        confirm(lab, second.plan_id)
    with pytest.raises(NotFoundError), lab.db.write() as session:
        run_plan.plan_rerun(session, ADA, request_id(), forked.id)


def test_a_run_that_was_extended_beyond_what_a_run_begins_with_is_not_run_again_as_it_was(
    lab: Lab, project: int
) -> None:
    run = lab.launch(project)
    lab.renew(run, lab.start(run), 10, WROTE)
    with lab.db.write() as session:
        runs.load(session, run).time_limit = 731 * HOUR
    sentence = f"Run {run} was extended to 731 hours in all, and a run begins with at most 720"
    with pytest.raises(InvalidError, match=sentence), lab.db.write() as session:
        run_plan.plan_rerun(session, ADA, request_id(), run)
    with pytest.raises(InvalidError, match=sentence), lab.db.write() as session:
        run_plan.plan_fork(session, ADA, request_id(), run, 4)
    with lab.db.write() as session:
        assert run_plan.plan_fork(session, ADA, request_id(), run, 4, time_limit="5m").quote.run.time_limit == 300


def test_datasets_are_known_by_the_recipes_that_train_on_them(lab: Lab) -> None:
    with lab.db.read() as session:
        assert catalogue.by_dataset(session) == {"python-docs": ["demo"], "python-stdlib": ["demo"]}


def test_a_member_samples_with_a_prompt(lab: Lab, project: int) -> None:
    run = lab.launch(project)

    def sample(prompt: str, actor: Actor = ADA, request: str | None = None) -> int:
        with lab.db.write() as session:
            return generation.generate(session, actor, request or request_id(), run, prompt).run_id

    with pytest.raises(ConflictError, match="no checkpoint on this disk"):
        sample("Once")
    lab.renew(run, lab.start(run), 10, WROTE)
    with pytest.raises(ForbiddenError), lab.db.read() as session:
        generation.check_may_generate(session, STRANGER, run)
    for wrong, said in ((" ", "is empty"), ("x" * 1001, "at most 1,000 fit")):
        with pytest.raises(InvalidError, match=said):
            sample(wrong)
    number = sample("--out /etc\nOnce", request="one")
    assert sample("Another", request="one") == number
    row = lab.row(number)
    assert (row.kind, row.parent_id, row.prompt, row.time_limit) == ("sample", run, "--out /etc\nOnce", 600)
    lab.settle(number, lab.start(number, 1), 3, Ending(0, sample=" upon a time"))
    assert lab.run(number).spent == 3
    assert lab.kinds(project)[-1] == "run.finished"
    with pytest.raises(ConflictError, match="does not train"), lab.db.write() as session:
        generation.generate(session, ADA, request_id(), number, "Once")


def test_runs_to_compare_are_named_in_a_line(lab: Lab, project: int) -> None:
    first, second = lab.launch(project), lab.launch(project)
    with lab.db.read() as session:
        for line in (f"{first} {second}", f"#{first}, {second};{first}"):
            assert [view.id for view in comparison.named(session, line)] == [first, second]
        for line, said in (
            ("", "by their numbers"),
            ("-1 2", "by their numbers"),
            (f"{first} {first}", "at least two"),
            ("1 2 3 4 5 6 7", "At most 6"),
        ):
            with pytest.raises(InvalidError, match=said):
                comparison.named(session, line)
        with pytest.raises(NotFoundError, match="There is no run 99"):
            comparison.named(session, f"{first} 99")
        with pytest.raises(NotFoundError, match="no other run with a curve"):
            comparison.nearest(session, first)
        assert publications.kept(session, first) == []
        assert attempts.devices_in_use(session, 1) == set()
