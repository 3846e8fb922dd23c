"""The settings of a pool of Slurm's, as its jobs have them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.allocations import pools
from broker.reviews import inventory
from broker.runners.slurm import SlurmRunner
from projects.errors import ConflictError, InvalidError
from tests.broker.lab import Lab
from tests.broker.test_slurm import cluster, ended, fake, said, slurm, start
from tests.slurm import Cluster
from trainer.contract import Status

__all__ = ["cluster", "slurm", "start"]

Start = Callable[..., tuple[SlurmRunner, Path]]
TELL = (
    "import json, os, sys; "
    "names = ('NCCL_DEBUG', 'ODD', 'FROM_PROLOG', 'SLURMD_NODENAME'); "
    "line = json.dumps([[os.environ.get(name) for name in names], sys.argv[1:]]); os.write(1, f'{line}\\n'.encode())"
)


def test_a_job_has_the_account_and_the_nodes_of_its_pool(cluster: Cluster, start: Start) -> None:
    runner, folder = start(TELL, options={"account": "lab-7", "constraint": "second", "partition": "main"})
    assert ended(runner) == 0
    assert json.loads(said(folder))[0][3] == "n2"
    assert " Account=lab-7 " in cluster.ask("scontrol", "show", "job", "-o", str(runner.job))
    runner, _ = start(TELL, options={"constraint": "third"})
    assert (ended(runner), runner.ended.startswith("Slurm refused the job: ")) == (Status.REFUSED, True)


@pytest.mark.parametrize(("options", "expected"), [({"qos": "high-7"}, ["--qos=high-7"]), ({"qos": ""}, []), ({}, [])])
def test_a_job_has_the_qos_of_its_pool(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], expected: list[str]
) -> None:
    """Slurm knows a QOS by its accounting, which the cluster of the tests lacks: its sbatch is called without one."""
    real = shutil.which("sbatch")
    without = 'for each; do shift; case "$each" in --qos*) ;; *) set -- "$@" "$each" ;; esac; done'
    fake(tmp_path, monkeypatch, sbatch=f'printf \'%s\\n\' "$@" > {tmp_path}/asked; {without}; exec {real} "$@"')
    runner, folder = start(TELL, options=options)
    assert ended(runner) == 0, said(folder)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [each for each in asked if each.startswith("--qos")] == expected


@pytest.mark.parametrize("nodes", [1, 2])
def test_what_a_pool_prepares_reaches_every_node(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int
) -> None:
    fake(tmp_path, monkeypatch, module='echo "$@" > loaded')
    given = {
        "modules": "cuda/12.8 gcc/13+x",
        "environment": "NCCL_DEBUG=WARN ODD=a,$HOME;`id`'\"",
        "prolog": "# of the pool\nFROM_PROLOG=$(cat loaded)\nexport FROM_PROLOG",
    }
    for name, value in given.items():
        SlurmRunner.checked_options({name: value})
    runner, folder = start(TELL, "it's", gpus=nodes, nodes=nodes, options=given)
    assert ended(runner) == 0, said(folder)
    told = [json.loads(line) for line in said(folder).splitlines()]
    expected = ["WARN", "a,$HOME;`id`'\"", "load cuda/12.8 gcc/13+x"]
    assert [(line[0][:3], line[1][0]) for line in told] == [(expected, "it's")] * nodes


def test_a_module_that_cannot_be_loaded_ends_the_run_with_a_sentence(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path, monkeypatch, module="exit 1")
    runner, folder = start(TELL, options={"modules": "cuda/99"})
    assert ended(runner) == Status.CONFIG
    assert said(folder).splitlines()[-1] == "The modules of the pool (cuda/99) could not be loaded."


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_trainer_runs_in_the_container_of_its_pool(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int
) -> None:
    """A program stands in for Apptainer, which is not to be had here: it notes its options and runs what follows."""
    fake(
        tmp_path,
        monkeypatch,
        apptainer='echo "$1 $2 $3 $4 $5 $6 $7 $8" >> asked; shift 6; exec "$@"',
        python=f'exec {os.path.realpath("/proc/self/exe")} "$@"',
    )
    options = {"container_image": "/images/stoa.sif", "container_binds": "/data,/scratch/x"}
    runner, folder = start(TELL, gpus=nodes, nodes=nodes, options=options)
    assert ended(runner) == 0, said(folder)
    asked = (folder / "asked").read_text().splitlines()
    head = f"exec --nv --bind={tmp_path} --bind=/data --bind=/scratch/x /images/stoa.sif python -c"
    assert asked == [head] * nodes


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("account", "a b", "account"),
        ("account", "--wrap=id;", "account"),
        ("qos", "high!", "QOS"),
        ("constraint", "a b", "constraint"),
        ("constraint", "a;id", "constraint"),
        ("modules", "cuda;id", "Modules"),
        ("modules", "cuda  gcc", "Modules"),
        ("environment", "NCCL_DEBUG", "NAME=value"),
        ("environment", "1A=2", "NAME=value"),
        ("environment", "A=1\nB=2", "NAME=value"),
        ("environment", "HF_TOKEN=hf_x", "without secrets"),
        ("environment", "A=1 aws_secret_access_key=x", "without secrets"),
        ("environment", "DB_PASSWORD=x", "without secrets"),
        ("environment", "WANDB_API_KEY=x", "without secrets"),
        ("environment", "STOA_DATABASE_URL=x", "that Stoa or Slurm sets"),
        ("environment", "CUDA_VISIBLE_DEVICES=0", "that Stoa or Slurm sets"),
        ("environment", "SLURM_CONF=/x", "that Stoa or Slurm sets"),
        ("prolog", "x" * 4001, "prolog"),
        ("prolog", "echo \0", "prolog"),
        ("container_image", "stoa.sif", "container image"),
        ("container_image", "/a b.sif", "container image"),
        ("container_binds", "data", "folders"),
        ("container_binds", "/a /b", "folders"),
    ],
)
def test_a_setting_that_is_none_is_refused(lab: Lab, name: str, value: str, sentence: str) -> None:
    before = lab.everything()
    with pytest.raises(InvalidError, match=sentence), lab.db.write() as session:
        pools.add_pool(session, name="new", gpu_type="H200", gpus=8, runner="slurm", runner_options={name: value})
    assert lab.everything() == before


def test_variables_that_only_look_like_secrets_are_taken() -> None:
    for value in (
        "TOKENIZERS_PARALLELISM=false",
        "LD_LIBRARY_PATH=/opt/x:/opt/y NCCL_IB_HCA=mlx5_0,mlx5_1",
        "KEYS=",
        "",
    ):
        assert SlurmRunner.checked_options({"environment": value})["environment"] == value


def test_the_settings_of_a_pool_can_be_changed(lab: Lab) -> None:
    def change(**options: str) -> None:
        with lab.db.write() as session:
            inventory.change_pool(session, None, "hall", runner_options=options, reason="The centre has moved us.")

    lab.pool("hall", runner="slurm", options={"account": "old", "gres": ""})
    change(account="new", qos="high")
    before = lab.everything()
    with pytest.raises(InvalidError, match="account"):
        change(account="a b")
    with pytest.raises(InvalidError, match="has no “queue”"):
        change(queue="long")
    with pytest.raises(ConflictError, match="already has"):
        change(account="new")
    assert lab.everything() == before
    with lab.db.read() as session:
        options = pools.named(session, "hall").runner_options
    assert {name: value for name, value in options.items() if value} == {"account": "new", "qos": "high"}
