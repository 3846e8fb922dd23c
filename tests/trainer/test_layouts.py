"""The layouts that fit whole nodes: ranks that share matrices are on one node, and a check says which do."""

import json
import socket
from pathlib import Path

import pytest

from tests.trainer.conftest import run_trainer, write_config
from trainer import layouts
from trainer.check import check
from trainer.config import load_recipe

DEMO = load_recipe("demo")  # 4 layers, 4 heads, a batch of 16 in micro-batches of 8


def fitting(gpus: int, nodes: int) -> list[tuple[int, int]]:
    return [(layout.pipeline, layout.tensor) for layout in layouts.fitting(DEMO, gpus, nodes)]


def test_ranks_that_share_matrices_are_on_one_node() -> None:
    assert fitting(4, 1) == [(1, 2), (2, 1), (1, 4), (2, 2), (4, 1)]
    assert fitting(4, 2) == [(1, 2), (2, 1), (2, 2), (4, 1)]
    assert fitting(4, 4) == [(2, 1), (4, 1)]
    assert fitting(6, 2) == [(3, 1)]
    assert fitting(4, 3) == []


def test_a_layout_that_fits_no_whole_nodes_is_refused_with_those_that_do() -> None:
    split = DEMO.model_copy(update={"parallel": DEMO.parallel.model_copy(update={"tensor": 4})})
    assert check(split, 4).refusal is None
    assert check(split, 4, nodes=2).refusal == (
        "parallel.tensor (4) must divide the ranks of a node (2), as ranks that share matrices are on one node; change "
        "one of the two. On 2 nodes of 2 ranks fit, as parallel.pipeline × parallel.tensor: 1 × 2, 2 × 1, 2 × 2, 4 × 1."
    )
    refusal = check(DEMO, 16, nodes=2).refusal or ""
    assert refusal.startswith("training.batch (16) must be a multiple of")
    assert refusal.endswith("On 2 nodes of 8 ranks fit, as parallel.pipeline × parallel.tensor: 2 × 4, 4 × 2, 4 × 4.")
    refusal = check(DEMO, 16, gpu_memory=1, nodes=2).refusal or ""
    assert refusal.endswith("No layout fits 2 nodes of 8 ranks with this batch and memory.")


def test_a_check_takes_nodes_and_says_which_layouts_fit(tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yml")
    told = run_trainer("check", config, "--gpus", "2", "--nodes", "2", "--json")
    fit = json.loads(told.stdout)["layouts"]
    assert [(one["pipeline"], one["tensor"], one["data"]) for one in fit] == [(1, 1, 2), (2, 1, 1)]
    assert fit[0]["memory_per_gpu"] == json.loads(told.stdout)["memory_per_gpu"]
    assert "Layouts that fit" in run_trainer("check", config, "--gpus", "2").stdout
    odd = run_trainer("check", config, "--gpus", "3", "--nodes", "2")
    assert odd.returncode == 78
    assert odd.stderr.strip().endswith("The number of ranks (3) must be a multiple of the nodes (2).")


@pytest.mark.parametrize("host", ["0", "1"])
def test_hosts_between_which_matrices_would_be_shared_do_not_start(tmp_path: Path, host: str) -> None:
    config = write_config(tmp_path / "tiny.yml", {"parallel": {"tensor": 2}})
    with socket.create_server(("127.0.0.2", 0)) as free:
        meet = f"127.0.0.2:{free.getsockname()[1]}"
    done = run_trainer("train", config, "--out", tmp_path / "out", "--hosts", "2", "--host", host, "--rendezvous", meet)
    assert done.returncode == 78
    assert "parallel.tensor (2) must divide the ranks of a node (1)" in done.stderr
