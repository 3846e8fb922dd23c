"""Retention in the store: what nobody needs there any more goes, and nothing else."""

import os
import signal
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlmodel import col, select

from broker import publications
from broker import store as stores
from broker.allocations import hosts
from broker.allocations.hosts import Host
from broker.publications import Disk, Publication
from broker.publishing import disk, retention
from broker.publishing.retention import Looked
from broker.reports import stored
from broker.reports.stored import Stored
from broker.runs import runs
from broker.runs.progress import Checkpoint, Ending, Progress
from broker.runs.runs import RunState
from broker.store import Store
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.errors import NotFoundError
from projects.settings import Settings
from tests.broker.lab import Lab, settings
from tests.broker.test_control import fork
from tests.forked import PARTS
from tests.patience import PATIENCE
from tests.seaweed import Seaweed

STEPS = (10, 20, 30, 40, 50)
HOST = "host"
"""On which `Lab` starts runs."""


@pytest.fixture
def conf(request: pytest.FixtureRequest, lab: Lab, tmp_path: Path) -> Settings:
    """Settings with a store of their own, of the two kinds one beside each database: neither knows of the other."""
    own = settings(tmp_path)
    if lab.db.url.get_backend_name() == "postgresql":
        return own.model_copy(update={"store": f"file://{tmp_path}/store"})
    server: Seaweed = request.getfixturevalue("seaweed")
    return server.settings(own, prefix=f"{tmp_path.parent.name}-{tmp_path.name}")


@pytest.fixture
def run(lab: Lab) -> int:
    """A running run, whose host is there."""
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project)
    lab.start(run)
    with lab.db.write() as session:
        hosts.announce(session, HOST, [], {})
    return run


def place(lab: Lab, run: int, step: int, token: int = 1) -> str:
    return stores.checkpoint_folder(stores.attempt_folder(run, lab.row(run).request_id, token), step)


def write(lab: Lab, conf: Settings, run: int, whole: Collection[int] = STEPS) -> None:
    """The trainer writes checkpoints; the carrier has put the `whole` ones into the store, and the others in part."""
    found = []
    for step in STEPS:
        folder = conf.runs_dir / str(run) / "attempt-1" / "checkpoints" / f"step{step}"
        (folder / "trainer").mkdir(parents=True)
        for name in ("model.safetensors", "trainer/optimizer.safetensors", "trainer/state.json"):
            (folder / name).write_bytes(os.urandom(1000))
        if step in whole:
            Store(conf).push(folder, place(lab, run, step))
        else:
            Store(conf).write(f"{place(lab, run, step)}/model.safetensors", b"a part")
        found.append(Checkpoint(step, str(folder)))
    lab.renew(run, 1, 0, Progress(0, 0, checkpoints=found))


def change(lab: Lab, run: int, steps: Collection[int], **values: str) -> None:
    """Change the rows of checkpoints, as a publisher or the disk's service does."""
    here = (col(Publication.run_id) == run, col(Publication.step).in_(list(steps)))
    with lab.db.write() as session:
        session.execute(update(Publication).where(*here).values(**values))


def publish(lab: Lab, run: int, steps: Collection[int]) -> None:
    change(lab, run, steps, url="there")


def left(lab: Lab, conf: Settings, run: int) -> list[int]:
    """The steps that are whole in the store."""
    return [step for step in STEPS if Store(conf).is_whole(place(lab, run, step))]


def clear(lab: Lab, conf: Settings) -> int:
    return retention.clear(conf, lab.db, Looked())


@pytest.mark.parametrize(
    ("published", "gone", "whole", "ended", "stays"),
    [
        pytest.param(STEPS, (10, 20, 30), STEPS, False, [40, 50], id="the newest two stay"),
        pytest.param((10, 20), (10, 20, 30), STEPS, False, [30, 40, 50], id="what is not on the Hub stays"),
        pytest.param((), (10, 20, 30), STEPS, False, [10, 20, 30, 40, 50], id="nothing is on the Hub"),
        pytest.param(STEPS, (), STEPS, False, [10, 20, 30, 40, 50], id="what a disk has stays"),
        pytest.param(STEPS, (10, 20, 30), (10, 20, 30, 50), False, [30, 50], id="newer ones that are not whole"),
        pytest.param(STEPS, STEPS, (10, 20), False, [10, 20], id="too few are whole"),
        pytest.param(STEPS, STEPS, STEPS, True, [50], id="of a run that has ended the last one stays"),
        pytest.param(STEPS, STEPS, (10, 20), True, [20], id="of a run that has ended the last whole one stays"),
        pytest.param((10, 20, 30, 40), STEPS, STEPS, True, [50], id="the last one is not on the Hub"),
    ],
)
def test_what_goes_from_the_store(
    lab: Lab,
    conf: Settings,
    run: int,
    published: Collection[int],
    gone: Collection[int],
    whole: Collection[int],
    ended: bool,
    stays: list[int],
) -> None:
    write(lab, conf, run, whole)
    publish(lab, run, published)
    change(lab, run, gone, disk=Disk.GONE)
    if ended:
        lab.settle(run, 1, 60, Ending(status=0))
    all_kept = conf.model_copy(update={"store_keep": "all"})
    assert clear(lab, all_kept) == 0
    assert left(lab, conf, run) == sorted(whole)
    clear(lab, conf)
    assert left(lab, conf, run) == stays
    partial = [step for step in STEPS if step not in whole]
    assert all(Store(conf).names(place(lab, run, step)) == ["model.safetensors"] for step in partial), (
        "somebody may be sending them"
    )
    assert clear(lab, conf) == 0
    assert left(lab, conf, run) == stays
    removed = [step for step in whole if step not in stays]
    assert [Store(conf).names(place(lab, run, step)) for step in removed] == [[]] * len(removed)


def test_what_left_the_disk_leaves_the_store_and_no_fork_starts_from_it(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run)
    publish(lab, run, STEPS)
    child = fork(lab, run, 10).run_id
    assert disk.tidy(conf, lab.db) == 0
    assert clear(lab, conf) == 0, "a fork may read them"
    lab.cancel(child)
    assert disk.tidy(conf, lab.db) == 3
    assert clear(lab, conf) == 3
    assert left(lab, conf, run) == [40, 50]
    with pytest.raises(NotFoundError, match=r"no checkpoint of step 10 here or open on the Hub; it has: 40, 50\."):
        fork(lab, run, 10)
    assert fork(lab, run, 40).run_id > child
    with lab.db.read() as session:
        assert [step for step, _ in publications.links(session, run)] == list(STEPS), "they stay on the Hub"


def test_of_several_attempts_that_have_a_step_all_go(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run)
    lab.settle(run, 1, 60, Ending(status=75))
    token = lab.start(run)
    for step in (30, 40):
        source = conf.runs_dir / str(run) / "attempt-1" / "checkpoints" / f"step{step}"
        Store(conf).push(source, place(lab, run, step, token))
    publish(lab, run, STEPS)
    change(lab, run, (10, 20, 30), disk=Disk.GONE)
    assert clear(lab, conf) == 3
    there = [Store(conf).is_whole(place(lab, run, step, token)) for step in (30, 40)]
    assert there == [False, True]
    assert left(lab, conf, run) == [40, 50]


@pytest.mark.parametrize("removed", [True, False])
def test_a_host_that_is_gone_keeps_nothing_in_the_store(lab: Lab, conf: Settings, run: int, removed: bool) -> None:
    write(lab, conf, run)
    publish(lab, run, STEPS)
    assert clear(lab, conf) == 0, "its disk has them"
    with lab.db.write() as session:
        session.execute(update(Host).values(seen_at=utcnow() - timedelta(hours=23)))
    assert clear(lab, conf) == 0, "it may come back"
    with lab.db.write() as session:
        if removed:
            hosts.remove(session, HOST, "It burnt.")
        else:
            session.execute(update(Host).values(seen_at=utcnow() - timedelta(hours=25)))
    assert clear(lab, conf) == 3
    assert left(lab, conf, run) == [40, 50]
    with lab.db.read() as session:
        assert publications.kept(session, run) == [40, 50]


@pytest.mark.parametrize("after", range(5))
def test_a_removal_that_is_killed_leaves_nothing_that_is_taken_for_whole(
    lab: Lab, conf: Settings, run: int, after: int, tmp_path: Path
) -> None:
    write(lab, conf, run)
    publish(lab, run, STEPS)
    change(lab, run, (10,), disk=Disk.GONE)
    killed = PARTS.start(clear_and_die, conf, lab.db.url.render_as_string(hide_password=False), after)
    killed.join(PATIENCE)
    assert killed.exitcode == -signal.SIGKILL
    target = tmp_path / "pulled" / "step10"
    target.parent.mkdir()
    assert Store(conf).pull(place(lab, run, 10), target) == (after == 0)
    with lab.db.read() as session:
        state = session.scalars(select(Publication.disk).where(Publication.step == 10)).one()
    assert state == Disk.GONE
    assert clear(lab, conf) == 1
    assert Store(conf).names(place(lab, run, 10)) == []
    assert left(lab, conf, run) == [20, 30, 40, 50]


def clear_and_die(conf: Settings, database: str, after: int) -> None:
    """Clear a store in a process that is killed before one of its removals, of which it has done so many."""
    remove = Store.remove
    removals = 0

    def remove_some(self: Store, name: str) -> None:
        nonlocal removals
        if removals == after:
            os.kill(os.getpid(), signal.SIGKILL)
        removals += 1
        remove(self, name)

    Store.remove = remove_some  # type: ignore[method-assign]  # nothing but luck would kill it there from outside
    retention.clear(conf, Database(database), Looked())


def test_a_part_that_was_sent_goes_once_its_attempt_has_ended(lab: Lab, conf: Settings, run: int) -> None:
    write(lab, conf, run, (20, 30, 40, 50))
    store, there = Store(conf), place(lab, run, 10)
    store.write(f"{there}/sent", b'{"model.safetensors": {"size": 6, "sha256": ""}}')
    publish(lab, run, STEPS)
    change(lab, run, (10,), disk=Disk.GONE)
    assert clear(lab, conf) == 0
    store.write(f"{there.partition('/checkpoints')[0]}/outcome.json", b"{}")
    assert clear(lab, conf) == 1
    assert store.names(there) == []


def test_a_run_that_was_looked_at_in_vain_is_left_alone_until_something_changes(
    lab: Lab, conf: Settings, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lab, conf, run, ())
    publish(lab, run, STEPS)
    change(lab, run, (10,), disk=Disk.GONE)
    looked, asked = Looked(), 0
    is_whole = Store.is_whole

    def counted(self: Store, folder: str) -> bool:
        nonlocal asked
        asked += 1
        return is_whole(self, folder)

    monkeypatch.setattr(Store, "is_whole", counted)
    assert retention.clear(conf, lab.db, looked) == 0
    before = asked
    assert before > 0
    assert retention.clear(conf, lab.db, looked) == 0
    assert asked == before
    change(lab, run, (20,), disk=Disk.GONE)
    assert retention.clear(conf, lab.db, looked) == 0
    assert asked > before
    with lab.db.read() as session:
        assert runs.load(session, run).token == 1


def test_what_runs_take_in_the_store_is_told(lab: Lab, conf: Settings, run: int) -> None:
    assert stored.of_runs(lab.db, Store(conf)) == []
    write(lab, conf, run, (10, 20, 30, 50))
    assert stored.of_runs(lab.db, Store(conf)) == [Stored(run, RunState.RUNNING, 4, 4 * 3000)]
    publish(lab, run, STEPS)
    change(lab, run, (10, 20), disk=Disk.GONE)
    assert clear(lab, conf) == 2
    assert stored.of_runs(lab.db, Store(conf)) == [Stored(run, RunState.RUNNING, 2, 2 * 3000)]
