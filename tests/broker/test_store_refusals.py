"""A store that takes nothing while a run trains: the run ends well, the admins are told once, and nothing is lost."""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from broker import fence, pieces
from broker import store as stores
from broker.runners import carrier, reaper
from broker.runs.runs import Run, RunState
from broker.store import Store, StoreError
from projects.settings import Settings
from tests.broker.lab import Lab, settings
from tests.broker.supervised import TRAINER, admitted, supervised_by
from tests.databases import ONCE
from tests.patience import PATIENCE, wait_for
from tests.seaweed import READER, READERS_SECRET, Seaweed, server
from tests.standin import python_with_trainer

LEASE = 12.0
WEIGHTS = '(partial / "weights").write_text(str(step))'
MORE = '(partial / "optimizer").write_bytes(os.urandom(100_000))'
"""So much that the server needs a volume for it."""
NEVER = 7200.0
"""A lease that no test waits to be renewed."""
UNTIL_ENOUGH = TRAINER.replace("step < last", "not (out / 'enough').exists()").replace("LAST", "0")
"""A trainer that goes on until there is a file `enough` in its folder."""


def told(lab: Lab) -> list[tuple[str, str]]:
    with lab.db.read() as session:
        return fence.told(session)


def keys(seaweed: Seaweed, tmp_path: Path) -> tuple[Settings, Settings]:
    """Settings with keys that may write to a store of this test's own, and with some that may not."""
    good = seaweed.settings(settings(tmp_path), prefix=tmp_path.name)
    return good, seaweed.settings(good, prefix=tmp_path.name, store_key=READER, store_secret=READERS_SECRET)


def grows(number: Callable[[], int]) -> None:
    before = number()
    wait_for(lambda: number() > before, "a renewal")


@ONCE
def test_a_run_whose_store_refuses_ends_well_and_is_carried_with_good_keys(
    lab: Lab, seaweed: Seaweed, tmp_path: Path
) -> None:
    good, refused = keys(seaweed, tmp_path)
    python = python_with_trainer(tmp_path, UNTIL_ENOUGH)
    project = lab.project()
    lab.allocation(project)
    carried = {}
    for _ in range(2):
        run = lab.launch(project)
        token, folder = admitted(lab, tmp_path, run, LEASE)
        with supervised_by(lab, python, tmp_path, LEASE, stores.environment(refused), run, token) as supervisor:
            wait_for((folder / carrier.TROUBLE_FILE).exists, "the refusal")
            wait_for(lambda: told(lab), "a word to the admins")
            for _ in range(2):  # the second run has its say too
                grows(lambda run=run: lab.row(run).step)  # type: ignore[misc]
            (folder / "enough").touch()
            assert supervisor.wait(PATIENCE) == 0
        assert lab.run(run).state == RunState.FINISHED
        with lab.db.read() as session:
            place = stores.attempt_folder(run, session.get_one(Run, run).request_id, token)
        carried[place] = f"step{lab.row(run).step}"
        assert (folder / "checkpoints" / carried[place] / "weights").exists()
        assert not Store(good).names(place)
        assert READERS_SECRET not in (folder / carrier.CARRIER_LOG_FILE).read_text()
    [(part, why)] = told(lab)
    assert part == "putting checkpoints and logs into the store"
    assert why.startswith("The store refuses this with the keys that are set: could not write ")

    def is_carried() -> bool:
        carrier.carry_left_over(good)
        return all(Store(good).read(f"{place}/outcome.json") is not None for place in carried)

    wait_for(is_carried, "all of it in the store")
    assert all(Store(good).is_whole(f"{place}/checkpoints/{step}") for place, step in carried.items())


@ONCE
def test_a_run_that_ends_before_its_lease_is_renewed_tells_of_a_store_that_refuses(
    lab: Lab, seaweed: Seaweed, tmp_path: Path
) -> None:
    _, refused = keys(seaweed, tmp_path)
    python = python_with_trainer(tmp_path, UNTIL_ENOUGH)
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project)
    token, folder = admitted(lab, tmp_path, run, NEVER)
    with supervised_by(lab, python, tmp_path, NEVER, stores.environment(refused), run, token) as supervisor:
        wait_for((folder / carrier.TROUBLE_FILE).exists, "the refusal")
        assert told(lab) == []
        (folder / "enough").touch()
        assert supervisor.wait(PATIENCE) == 0
    os.kill(int((folder / carrier.LOCK_FILE).read_text()), signal.SIGTERM)  # the carrier would try for ever
    assert lab.run(run).state == RunState.FINISHED
    [(part, why)] = told(lab)
    assert (part, why.partition(":")[0]) == (carrier.PART, "The store refuses this with the keys that are set")


@ONCE
def test_a_run_goes_on_while_its_store_is_full_and_all_of_it_gets_there_once_there_is_room(
    lab: Lab, tmp_path: Path
) -> None:
    python = python_with_trainer(
        tmp_path, UNTIL_ENOUGH.replace(WEIGHTS, f"{WEIGHTS}; {MORE}").replace("step % 10", "step % 50")
    )
    project = lab.project()
    lab.allocation(project)
    run = lab.launch(project)
    token, folder = admitted(lab, tmp_path, run, LEASE)
    with server() as own:
        conf = own.settings(settings(tmp_path), prefix="full")
        with lab.db.read() as session:
            place = stores.attempt_folder(run, session.get_one(Run, run).request_id, token)

        def stored(step: int) -> bool:
            with suppress(StoreError):
                return Store(conf).is_whole(stores.checkpoint_folder(place, step))
            return False

        def written() -> list[int]:
            return sorted(int(path.name[4:]) for path in folder.glob("checkpoints/step*"))

        with supervised_by(lab, python, tmp_path, LEASE, stores.environment(conf), run, token) as supervisor:
            wait_for(lambda: stored(50), "the first checkpoint in the store")
            own.stop()
            own.options = ("-volume.minFreeSpace=1000000GiB",)
            own.start()
            trouble = folder / carrier.TROUBLE_FILE
            wait_for(lambda: trouble.exists() and "is full: could not write" in trouble.read_text(), "a full store")
            wait_for(lambda: told(lab), "a word to the admins")
            late = written()[-1]
            wait_for(lambda: written()[-1] > late, "another checkpoint")
            assert not stored(written()[-1])
            assert stored(50), "what was there stays"
            grows(lambda: lab.row(run).step)
            own.stop()
            own.options = ()
            own.start()
            wait_for(lambda: any(stored(step) for step in written() if step > late), "a later checkpoint in the store")
            assert supervisor.poll() is None
            (folder / "enough").touch()
            assert supervisor.wait(PATIENCE) == 0
        assert lab.run(run).state == RunState.FINISHED
        wait_for((folder / carrier.DONE_FILE).exists, "the carrier's end")
        assert all(stored(step) for step in written())
        assert pieces.read_from(Store(conf), f"{place}/metrics.jsonl", 0) == (folder / "metrics.jsonl").read_bytes()
    assert [part for part, _ in told(lab)] == [carrier.PART], "once"


@ONCE
def test_what_runs_could_not_get_into_the_store_is_told_though_no_supervisor_is_there(lab: Lab, tmp_path: Path) -> None:
    conf = settings(tmp_path)
    folder = conf.runs_dir / "7" / "attempt-1"
    folder.mkdir(parents=True)
    (folder / carrier.TROUBLE_FILE).write_text("The store is full: could not write a.")
    (folder / carrier.DONE_FILE).touch()
    reaper.tell_uncarried(conf, lab.db)
    assert told(lab) == [], "all of it has got there since"
    (folder / carrier.DONE_FILE).unlink()
    for _ in range(2):
        reaper.tell_uncarried(conf, lab.db)
    assert told(lab) == [(carrier.PART, "The store is full: could not write a.")]
