"""A pool has nodes: a run gets a part of one, or whole nodes; what fits no whole nodes is refused with what would."""

import pytest

from broker.allocations import nodes, pools
from broker.reviews import inventory
from broker.runs import runs
from projects.errors import ConflictError, InvalidError
from tests.broker.lab import Lab

POOL = "hall"
BATCH = "batch=48, micro_batch=1"


@pytest.fixture
def hours(lab: Lab, project: int) -> int:
    """An allocation of a pool of four nodes of eight GPUs."""
    lab.pool(POOL, gpus=32, gpus_a_node=8, runner="slurm")
    allocation = lab.request(project, pool=POOL, hours="50")
    lab.consent(allocation, "50")
    return allocation


def test_a_run_gets_a_part_of_one_node_or_whole_nodes(lab: Lab, project: int, hours: int) -> None:
    for gpus, count in ((1, 1), (6, 1), (8, 1), (16, 2), (24, 3)):
        run = lab.launch(project, allocation_id=hours, gpus=gpus, overrides=BATCH)
        with lab.db.read() as session:
            assert runs.view(session, run).nodes == count
            assert nodes.count(pools.named(session, POOL), gpus) == count


@pytest.mark.parametrize(
    ("gpus", "sentence"),
    [
        (0, "The pool “hall” has 32 cores on 4 nodes of 8; ask for 1 to 8, or a multiple of 8 up to 32."),
        (33, "The pool “hall” has 32 cores on 4 nodes of 8; ask for 1 to 8, or a multiple of 8 up to 32."),
        (12, "“hall” gets whole nodes of 8 cores, and 12 cores are not whole nodes; ask for 8 or 16."),
        (31, "“hall” gets whole nodes of 8 cores, and 31 cores are not whole nodes; ask for 24 or 32."),
    ],
)
def test_what_the_pools_nodes_cannot_give_is_refused(
    lab: Lab, project: int, hours: int, gpus: int, sentence: str
) -> None:
    run = lab.launch(project, allocation_id=hours, gpus=8, overrides=BATCH)
    lab.pause(run)
    before = lab.everything()
    with pytest.raises(InvalidError) as launched:
        lab.launch(project, allocation_id=hours, gpus=gpus, overrides=BATCH)
    assert str(launched.value).endswith(sentence)
    with pytest.raises(InvalidError) as resumed:
        lab.resume(run, gpus=gpus)
    assert str(resumed.value).endswith(sentence)
    assert lab.everything() == before


def test_what_is_suggested_fits(lab: Lab, hours: int) -> None:
    lab.pool("small", gpus=6)
    lab.pool("twelve", gpus=36, gpus_a_node=12, runner="slurm")
    with lab.db.read() as session:
        found = {pool.name: nodes.sizes(pool) for pool in pools.every(session)}
        for pool in pools.every(session):
            for gpus in found[pool.name]:
                nodes.check(pool, gpus)
    assert found["small"] == [1, 2, 4, 6]
    assert found[POOL] == [1, 2, 4, 8, 16, 32]
    assert found["twelve"] == [1, 2, 4, 8, 12, 24, 36]


@pytest.mark.parametrize(
    ("runner", "each", "sentence"),
    [
        ("local", 8, r"A pool of the runner local is one host.*add a pool for each host.*\(.*slurm.*\)"),
        ("slurm", 7, r"its GPUs \(16\) are a multiple of the GPUs a node, and 7 does not divide them"),
        ("slurm", 32, "and 32 does not divide them"),
        ("slurm", 0, "and 0 does not divide them"),
        ("slurm", -8, "and -8 does not divide them"),
        ("slurm", 10**30, "and such a number does not divide them"),
    ],
)
def test_a_pool_that_has_no_whole_nodes_is_refused(lab: Lab, runner: str, each: int, sentence: str) -> None:
    before = lab.everything()
    with pytest.raises(InvalidError, match=sentence), lab.db.write() as session:
        pools.add_pool(session, name="new", gpu_type="H200", gpus=16, gpus_a_node=each, runner=runner)
    assert lab.everything() == before


def test_nodes_are_not_changed_under_runs_that_would_no_longer_fit(lab: Lab, project: int, hours: int) -> None:
    def change(**changes: object) -> None:
        with lab.db.write() as session:
            inventory.change_pool(session, None, POOL, reason="As it is.", **changes)  # type: ignore[arg-type]

    run = lab.launch(project, allocation_id=hours, gpus=16, overrides=BATCH)
    before = lab.everything()
    for wrong in ({"gpus": "8"}, {"gpus": "36", "gpus_a_node": 12}):
        with pytest.raises(
            ConflictError, match=f"Run {run} has or waits for 16 cores of “hall”, which would no longer"
        ):
            change(**wrong)
    with pytest.raises(InvalidError, match="5 does not divide"):
        change(gpus_a_node=5)
    with pytest.raises(InvalidError, match="8 does not divide"):
        change(gpus="20")
    assert lab.everything() == before
    change(gpus_a_node=16)
    lab.cancel(run)
    change(gpus="36", gpus_a_node=12)
    with lab.db.read() as session:
        pool = pools.named(session, POOL)
        assert (pool.nodes, pool.node_gpus) == (3, 12)
    with pytest.raises(ConflictError, match="already has"):
        change(gpus_a_node=12)


def test_a_layout_that_fits_no_whole_nodes_is_refused_with_what_fits(lab: Lab, project: int, hours: int) -> None:
    before = lab.everything()
    with pytest.raises(InvalidError) as refused:
        lab.launch(project, allocation_id=hours, gpus=16)
    assert str(refused.value) == (
        "training.batch (16) must be a multiple of training.micro_batch × data-parallel ranks (8 × 16); change one of "
        "the three. On 2 nodes of 8 ranks fit, as parallel.pipeline × parallel.tensor: 2 × 4, 4 × 2, 4 × 4. As it is, "
        "it fits 1, 2 cores of “hall”."
    )
    assert lab.everything() == before
