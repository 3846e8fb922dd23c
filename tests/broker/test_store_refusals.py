"""A store that takes nothing while a run trains: the run ends well, the admins are told once, and nothing is lost."""

from collections.abc import Callable
from pathlib import Path

from broker import fence
from broker import store as stores
from broker.runners import carrier
from broker.runs.runs import Run, RunState
from broker.store import Store
from tests.broker.lab import Lab, settings
from tests.broker.supervised import TRAINER, admitted, supervised_by
from tests.databases import ONCE
from tests.patience import PATIENCE, wait_for
from tests.seaweed import READER, READERS_SECRET, Seaweed, seaweed
from tests.standin import python_with_trainer

__all__ = ["seaweed"]

LEASE = 12.0
UNTIL_ENOUGH = TRAINER.replace("step < last", "not (out / 'enough').exists()").replace("LAST", "0")
"""A trainer that goes on until there is a file `enough` in its folder."""


def told(lab: Lab) -> list[tuple[str, str]]:
    with lab.db.read() as session:
        return fence.told(session)


def grows(number: Callable[[], int]) -> None:
    before = number()
    wait_for(lambda: number() > before, "a renewal")


@ONCE
def test_a_run_whose_store_refuses_ends_well_and_is_carried_with_good_keys(
    lab: Lab, seaweed: Seaweed, tmp_path: Path
) -> None:
    good = seaweed.settings(settings(tmp_path), prefix=tmp_path.name)
    refused = seaweed.settings(good, prefix=tmp_path.name, store_key=READER, store_secret=READERS_SECRET)
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
        assert READERS_SECRET not in (folder / carrier.LOG_FILE).read_text()
    [(part, why)] = told(lab)
    assert part == "putting checkpoints and logs into the store"
    assert why.startswith("The store refuses this with the keys that are set: could not write ")

    def is_carried() -> bool:
        carrier.carry_left_over(good)
        return all(Store(good).read(f"{place}/outcome.json") is not None for place in carried)

    wait_for(is_carried, "all of it in the store")
    assert all(Store(good).is_whole(f"{place}/checkpoints/{step}") for place, step in carried.items())
