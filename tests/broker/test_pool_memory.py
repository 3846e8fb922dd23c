"""A pool knows its memory: what cannot fit is refused at launch, and a CPU pool's trainer is held to a bound."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.allocations import pools
from broker.reviews import inventory
from broker.runners.base import JobSpec
from broker.runners.local import LocalRunner
from projects.db.columns import utcnow
from projects.errors import ConflictError, InvalidError
from tests.broker.lab import POOL, Lab
from tests.patience import wait_for
from trainer.check import check
from trainer.config import load_recipe
from trainer.memory import FILE_BYTES, HOST_LIBRARIES, host_memory
from trainer.metrics import parameters

HUGE = "batch=65536, micro_batch=65536, sequence_length=4096"


def set_memory(lab: Lab, pool: str = POOL, **sizes: Any) -> None:
    with lab.db.write() as session:
        inventory.change_pool(session, None, pool, reason="It was measured.", **sizes)


def test_what_cannot_fit_is_refused_with_what_would(lab: Lab, project: int, allocation: int) -> None:
    before = lab.everything()
    with pytest.raises(InvalidError, match=r"It needs about [\d.]+ GiB for each process and there are [\d.]+ GiB"):
        lab.launch(project, overrides=HUGE)
    assert lab.everything() == before
    large = {"batch": "128", "micro_batch": "64"}
    asked = ", ".join(f"{key}={value}" for key, value in large.items())
    need = check(load_recipe("demo", large), 1, device="cpu").memory_per_gpu / 2**30
    assert need > 0.3
    set_memory(lab, memory_gib=need + 0.01)
    lab.launch(project, overrides=asked)
    set_memory(lab, memory_gib=need - 0.01)
    with pytest.raises(InvalidError, match=r"with training.micro_batch \d+ it would need about \d+ MiB"):
        lab.launch(project, overrides=asked)
    # A host's memory is shared by the processes of a run.
    set_memory(lab, memory_gib=100, host_memory_gib=1.5 * need)
    lab.launch(project, overrides=asked)
    with pytest.raises(InvalidError, match="for each process and there are"):
        lab.launch(project, overrides=asked, gpus=2)


def test_the_processes_of_a_run_must_fit_in_the_memory_of_their_host(lab: Lab, project: int) -> None:
    with lab.db.write() as session:
        pools.add_pool(session, name="hall", gpu_type="H200", gpus=8, runner="slurm", host_memory_gib=2048)
        pools.add_grant(session, pool="hall", sponsor="A", seconds=360_000, until=utcnow() + timedelta(days=90))
    hours = lab.request(project, pool="hall", hours="10")
    lab.consent(hours, "10")
    wide, demo = "batch=64", load_recipe("demo", {})
    lab.launch(project, allocation_id=hours, gpus=8, overrides=wide)
    set_memory(lab, "hall", host_memory_gib=host_memory(demo, 4) / 2**30)
    lab.launch(project, allocation_id=hours, gpus=4, overrides=wide)
    before = lab.everything()
    with pytest.raises(InvalidError, match=r"of the host's memory, .* on 4 GPUs it would need about 8.\d GiB"):
        lab.launch(project, allocation_id=hours, gpus=8, overrides=wide)
    assert lab.everything() == before
    set_memory(lab, "hall", host_memory_gib=0.25)
    with pytest.raises(InvalidError, match=r"the host has 256 MiB; use a pool whose hosts have more\."):
        lab.launch(project, allocation_id=hours, gpus=1)


def test_a_run_in_bf16_is_refused_on_gpus_without_it(lab: Lab, project: int) -> None:
    with lab.db.write() as session:
        pools.add_pool(session, name="old", gpu_type="Tesla V100-SXM2-32GB", gpus=8, runner="slurm")
        pools.add_grant(session, pool="old", sponsor="A", seconds=360_000, until=utcnow() + timedelta(days=90))
    hours = lab.request(project, pool="old", hours="10")
    lab.consent(hours, "10")
    before = lab.everything()
    refusal = r"^Tesla V100-SXM2-32GB GPUs compute no bf16: use fp16 \(.*the override precision=fp16\), or fp32\.$"
    with pytest.raises(InvalidError, match=refusal):
        lab.launch(project, allocation_id=hours, overrides="precision=bf16")
    assert lab.everything() == before
    lab.launch(project, allocation_id=hours, overrides="precision=fp16")
    lab.launch(project, allocation_id=hours)


def test_the_gathering_of_a_checkpoint_takes_one_file_of_the_hosts_memory() -> None:
    demo = load_recipe("demo", {})
    small, large = (
        demo.model_copy(update={"model": demo.model.model_copy(update={"layers": layers, "hidden_size": 4096})})
        for layers in (2, 32)
    )
    assert host_memory(large, 2) - host_memory(small, 2) == FILE_BYTES - 4 * parameters(small)
    assert host_memory(large, 8) - host_memory(large, 2) >= 6 * HOST_LIBRARIES


def test_a_gpu_of_a_known_type_has_its_memory(lab: Lab) -> None:
    with lab.db.write() as session:
        known = {"Tesla V100": 32, "H100 SXM": 94, "AMD Instinct MI250X": 64, "MI300X": 192, "Cray-1": 288}
        for gpu_type in known:
            pools.add_pool(session, name=gpu_type.lower().replace(" ", "-"), gpu_type=gpu_type, gpus=4)
        sizes = {pool.gpu_type: pools.memory_each(pool, 4) >> 30 for pool in pools.every(session) if not pool.is_cpu}
    assert sizes == known


@pytest.mark.parametrize("size", [0.2, -1.0, 0.0, float("nan"), float("inf"), 100_001.0])
def test_a_size_that_no_machine_has_is_refused(lab: Lab, size: float) -> None:
    before = lab.everything()
    with pytest.raises(InvalidError, match=r"Memory is from 0.25 to 100,000 GiB"):
        set_memory(lab, memory_gib=size)
    for each, host in ((size, None), (None, size)):
        with lab.db.write() as session, pytest.raises(InvalidError, match=r"Memory is from 0.25 to 100,000 GiB"):
            pools.add_pool(session, name="new", gpu_type="H100", gpus=1, memory_gib=each, host_memory_gib=host)
    assert lab.everything() == before
    for least in (0.25, 100_000):
        set_memory(lab, host_memory_gib=least)
    with pytest.raises(ConflictError, match="already has"):
        set_memory(lab, host_memory_gib=100_000)


def test_a_trainer_is_held_to_its_memory(tmp_path: Path) -> None:
    runner = LocalRunner(JobSpec(memory=256 << 20))
    command = "a = bytearray(64 << 20); print('some')\ntry: bytearray(512 << 20)\nexcept MemoryError: print('no more')"
    runner.start([sys.executable, "-c", command], tmp_path, "")
    wait_for(lambda: runner.poll() is not None)
    assert (tmp_path / "trainer.log").read_text() == "some\nno more\n"
