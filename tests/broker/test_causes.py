"""Why a trainer has ended is a sentence: the cause, and what would help."""

import json
from pathlib import Path

import pytest
from sqlalchemy import update

from broker.end_reasons import EndReason
from broker.runners import causes, lost_attempts
from broker.runners.causes import Room
from broker.runs import folders
from broker.runs.attempts import Attempt
from projects.db.columns import utcnow
from projects.settings import Settings
from tests.broker.lab import Lab
from tests.trainer.conftest import write_config

GIB = 2**30
TRACEBACK = """step 3: loss 4.1
Traceback (most recent call last):
  File "/srv/stoa/venv/lib/python3.12/runpy.py", line 198, in _run_module_as_main
    return _run_code(code, main_globals)
  File "/srv/stoa/trainer/engine/__init__.py", line 7, in <module>
    import deepspeed
{}
"""


def attempt_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "runs" / "3" / "attempt-1"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("status", "log", "said"),
    [
        (
            1,
            TRACEBACK.format("ModuleNotFoundError: No module named 'deepspeed'"),
            "the trainer ended with ModuleNotFoundError: No module named 'deepspeed' (engine/__init__.py, line 7); the "
            "host's Python environment is incomplete",
        ),
        (
            1,
            TRACEBACK.format("requests.HTTPError: 403 for https://ada:secret@hub/data?signature=secret"),
            "the trainer ended with requests.HTTPError: 403 for https://hub/data (engine/__init__.py, line 7)",
        ),
        (1, "Killed\n", "the trainer ended with status 1 and gave no reason; its log may say more"),
        (
            -6,
            "",
            "the trainer was ended by SIGABRT, by a library that gave up, as NCCL does where another rank",
        ),
        (
            -7,
            "",
            "the trainer was ended by SIGBUS, as happens when /dev/shm is full or a file was cut short",
        ),
        (-9, "", "the trainer was ended by SIGKILL, which the kernel sends when a host runs out of memory"),
        (-4, "", "the trainer was ended by SIGILL, probably because the host's CPU lacks an instruction"),
        (-99, "", "the trainer was ended by signal 99"),
    ],
)
def test_what_a_trainer_did_not_say_is_read_from_its_log_and_its_signal(
    tmp_path: Path, status: int, log: str, said: str
) -> None:
    folder = attempt_folder(tmp_path)
    (folder / "trainer.log").write_text(log)
    assert causes.sentence(folder, status).startswith(said)


def test_paths_below_the_home_of_a_host_are_short(tmp_path: Path) -> None:
    folder = attempt_folder(tmp_path)
    said = causes.sentence(folder, 70, said=f"{folder}/checkpoints cannot be used (No space left on device).")
    assert said == "…/runs/3/attempt-1/checkpoints cannot be used (No space left on device)."


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (Room(2, 1, True, GIB // 4, None), "; it needs about 1.8 GiB for each process and there are 256 MiB; with tr"),
        (Room(2, 1, False, 24 * GIB, GIB), "; it needs about 4.0 GiB of the host's memory, for one process a GPU and"),
        (Room(4, 2, False, 24 * GIB, None), "; its processes need about 4.0 GiB of a host's memory"),
        (None, ""),
    ],
)
def test_what_a_host_without_memory_ended_says_what_would_fit(tmp_path: Path, room: Room | None, said: str) -> None:
    folder = attempt_folder(tmp_path)
    write_config(folder.parent / "config.yml", batch=2**15, micro_batch=2**13)
    killed = "Rank 1 was killed by SIGKILL."
    full = "the job used more memory than Slurm gave it on n1"
    found = causes.sentence(folder, 70, said=killed, runner=full, known=EndReason.OUT_OF_MEMORY, room=room)
    assert found.startswith(f"{full}{said}")
    own = "Out of memory on GPU 0: it needs about 38.0 GiB."
    assert causes.sentence(folder, 70, said=own, runner=full, known=EndReason.OUT_OF_MEMORY, room=room) == own


def test_an_error_of_a_host_names_no_folder() -> None:
    assert causes.of_error(PermissionError(13, "Permission denied", "/home/ada/stoa/runs/7")) == "Permission denied: 7"
    assert causes.of_error(OSError(28, "No space left on device", "/home/ada")).startswith("its host's disk is full")
    assert (
        causes.of_error(BlockingIOError(11, "Resource temporarily unavailable")) == "Resource temporarily unavailable"
    )


def test_a_lost_attempt_whose_folder_cannot_be_read_is_given_up_like_others(
    lab: Lab, tmp_path: Path, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> str:
        raise ValueError("no text")

    conf = Settings(_env_file=None, home=tmp_path)
    folders.own(conf, run, lab.row(run).request_id)
    lab.start(run, 0)
    with lab.db.write() as session:
        session.execute(update(Attempt).values(lease_until=utcnow()))
    monkeypatch.setattr("broker.runners.output.left", fail)
    lost_attempts.expire(conf, lab.db)
    assert lab.run(run).reason.startswith("its host host was last heard from at ")


def test_a_lost_attempt_tells_what_its_trainer_had_said(lab: Lab, tmp_path: Path, run: int) -> None:
    conf = Settings(_env_file=None, home=tmp_path)
    token = lab.start(run, 0)
    folder = folders.own(conf, run, lab.row(run).request_id) / f"attempt-{token}"
    folder.mkdir()
    (folder / "outcome.json").write_text(json.dumps({"status": 70, "reason": "The loss of step 5 is nan."}))
    with lab.db.write() as session:
        session.execute(update(Attempt).values(lease_until=utcnow()))
    lost_attempts.expire(conf, lab.db)
    assert lab.run(run).reason.startswith("The loss of step 5 is nan; its host host was last heard from at ")
