"""`python -m trainer program`: a program of somebody runs within its bounds, and what it leaves is handed on."""

import json
import os
import shutil
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.patience import PATIENCE, wait_for
from tests.programs import committed, program
from tests.trainer.conftest import ROOT, run_trainer, start_trainer
from trainer.contract import checkpoints
from trainer.exits import FailedError
from trainer.programs import environment
from trainer.programs.entry import parse, read
from trainer.programs.environment import Base, requirements
from trainer.schema import ConfigError


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return program(tmp_path_factory.mktemp("programs") / "repository")


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of environments, which all tests of this file share."""
    return tmp_path_factory.mktemp("environments")


def arguments(described: Mapping[str, Any], environments: Path, home: Path, how: str) -> list[str | Path]:
    """What `python -m trainer` is given to run a program some way, on a checkpoint with one file."""
    (home / "checkpoint").mkdir(parents=True, exist_ok=True)
    (home / "checkpoint" / "weights").touch()
    order = {"name": "tiny", "program": described, "parameters": {"how": how}}
    (home / "order.yml").write_text(yaml.safe_dump(order))
    given = ["--checkpoint", home / "checkpoint", "--out", home / "out", "--environments", environments]
    return ["program", home / "order.yml", *map(str, given)]


def outcome(home: Path) -> tuple[int, str]:
    said = json.loads((home / "out" / "outcome.json").read_text())
    assert not said["transient"], "it would do the same again"
    return said["status"], said["reason"] or ""


def living(home: Path) -> list[int]:
    """The processes that have a file of the program's folder open, or stand before one on their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            held = " ".join([*process.environ().values(), *process.cmdline()])
        except psutil.Error:
            continue
        if str(home / "out" / "work") in held and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


def test_a_program_runs_apart_and_its_numbers_and_pictures_are_handed_on(
    described: dict[str, Any], environments: Path, tmp_path: Path
) -> None:
    secret = {"STOA_DISCORD_TOKEN": "s3cret", "CUDA_VISIBLE_DEVICES": "0,1"}
    (tmp_path / "secrets").mkdir()
    hidden = [tmp_path / "secret", tmp_path / "secrets"]
    for path in (hidden[0], hidden[1] / "token"):
        path.write_text("s3cret")
    hide = [word for path in hidden for word in ("--hide", str(path))]
    ran = run_trainer(*arguments(described, environments, tmp_path, "well"), *hide, variables=secret)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    lines = ran.stdout.splitlines()
    variables = next(line for line in lines if line.startswith("variables:")).split()
    assert "STOA_DISCORD_TOKEN" not in variables
    assert "CUDA_VISIBLE_DEVICES" in variables
    assert "checkpoint: weights" in lines
    assert "secrets: '' []" in lines
    assert hidden[0].read_text() == "s3cret", "others see it"
    assert lines.count("not written: Read-only file system") == 4
    assert "no network: Network is unreachable" in lines

    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    told = [event for event in events if event["event"] == "result"]
    assert [result["metric"] for result in told[0]["results"]] == ["loss"], "what is no finite number is left out"
    assert 500 < len(told) < 1400, "a long series is thinned"
    assert [event["step"] for event in told[:3]] == [1, 2, 3]
    sample = json.loads((tmp_path / "out" / "sample.json").read_text())["text"].splitlines()
    assert sample[:3] == ["explained: 0.25", "note: fine", "n0: 0"]
    assert "22 more fields of results.json are not shown" in sample
    assert "b.png is not shown: it is 30,000 × 30,000, and at most 4,096 × 4,096 are shown" in sample
    assert "e.png is not shown: it is no plain file" in sample
    assert "f.png is not shown: it is no PNG" in sample
    assert sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir()) == ["1.png", "2.png"]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("disk", "The program wrote more than its 0.02 GiB of the disk and was stopped."),
        ("file", "The program wrote more than its 0.02 GiB of the disk and was stopped."),
        ("many", "The program started more than 1,024 processes and was stopped."),
        ("fails", "The program ended with status 1; the last line of its output is: it does not work"),
    ],
)
def test_a_program_that_leaves_its_bounds_or_fails_is_told_of_in_a_sentence(
    described: dict[str, Any], environments: Path, tmp_path: Path, how: str, said: str
) -> None:
    ran = run_trainer(*arguments(described, environments, tmp_path, how))
    assert ran.stderr.strip().splitlines()[-1] == said
    assert outcome(tmp_path) == (70, said)
    assert living(tmp_path) == []
    if how == "file":
        assert (tmp_path / "out" / "work" / "large").stat().st_size < 0.03 * 2**30


def test_a_program_may_read_several_checkpoints() -> None:
    described = {
        "repository": "https://example.org/x",
        "commit": 40 * "0",
        "command": ["python", "{checkpoints}", "-v"],
    }
    several = parse(described)
    assert several.words({}, ["a/step1", "a/step2"]) == ["python", "a/step1", "a/step2", "-v"]
    with pytest.raises(ConfigError, match="The program reads a checkpoint; give --checkpoint its folder"):
        several.words({})
    with pytest.raises(ConfigError, match="The program reads one checkpoint; give --checkpoint once"):
        parse(described | {"command": ["python", "{checkpoint}"]}).words({}, ["a/step1", "a/step2"])
    with pytest.raises(
        ConfigError, match="is a word of its own in the command, not a part of '--at=\\{checkpoints\\}'"
    ):
        parse(described | {"command": ["python", "--at={checkpoints}"]})


@pytest.mark.chaos
def test_a_sparse_autoencoder_is_trained_on_a_checkpoint_with_sparsify(finished: Path, tmp_path: Path) -> None:
    """EleutherAI's package from PyPI, which needs the network; this environment gives what it has of the lock."""
    repository = tmp_path / "repository"
    shutil.copytree(ROOT / "tests" / "sparse_autoencoder", repository)
    pages = sorted((ROOT / "docs").glob("*.md"))
    (repository / "text.txt").write_text("\n".join(page.read_text() for page in pages)[:40_000])
    sizes = {"latents": "64", "k": "4", "batch": "8", "context": "32"}
    numbers = {
        name: {"type": "integer", "default": int(size), "least": 1, "most": 4096} for name, size in sizes.items()
    }
    described = {
        "repository": f"file://{repository}",
        "commit": committed(repository),
        "command": ["python", "train.py", "{checkpoint}", *(f"--{name}={{{name}}}" for name in sizes)],
        "parameters": numbers,
    }
    (tmp_path / "order.yml").write_text(yaml.safe_dump({"name": "sae", "program": described}))
    here = {each.metadata["Name"].lower().replace("_", "-") for each in metadata.distributions()}
    given = ["--checkpoint", checkpoints(finished)[-1], "--out", tmp_path / "out", "--environments", tmp_path / "made"]
    given += ["--provides", " ".join([*sorted(here), "nvidia-*", "cuda-*", "triton"])]
    ran = run_trainer("program", tmp_path / "order.yml", *map(str, given))
    assert ran.returncode == 0, ran.stderr + ran.stdout
    said = json.loads((tmp_path / "out" / "sample.json").read_text())["text"]
    told = dict(line.split(": ") for line in said.splitlines())
    assert told["layer"] == "layers.1"
    assert 0 < float(told["unexplained"]) < float(told["at first"])
    assert list((tmp_path / "out" / "work").rglob("sae.safetensors"))


def test_output_keeps_its_beginning_and_its_end(described: dict[str, Any], environments: Path, tmp_path: Path) -> None:
    ran = run_trainer(*arguments(described, environments, tmp_path, "prints"))
    assert ran.returncode == 0
    assert len(ran.stdout) < 11 * 2**20 < 3000 * 9996
    assert ran.stdout.startswith("it begins\n000000")
    assert "bytes of the output are left out here" in ran.stdout
    assert ran.stdout.rstrip().endswith("002999")


@pytest.mark.parametrize("can_unshare", [True, False])
def test_what_a_program_has_forked_away_ends_with_it(
    described: dict[str, Any], environments: Path, tmp_path: Path, can_unshare: bool
) -> None:
    variables = {}
    if not can_unshare:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "unshare").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / "unshare").chmod(0o755)
        variables = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    assert run_trainer(*arguments(described, environments, tmp_path, "forks"), variables=variables).returncode == 0
    assert (tmp_path / "out" / "work" / "forked").exists()
    assert living(tmp_path) == []
    warned = "cannot cut a program's network" in (tmp_path / "out" / "events.jsonl").read_text()
    assert warned != can_unshare


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_program_that_never_ends_is_stopped_with_whoever_runs_it(
    described: dict[str, Any], environments: Path, tmp_path: Path, number: int
) -> None:
    log = tmp_path / "log"
    trainer = start_trainer(*arguments(described, environments, tmp_path, "forever"), log=log)
    wait_for(lambda: log.exists() and "it begins" in log.read_text())
    assert living(tmp_path)
    trainer.send_signal(number)
    trainer.wait(PATIENCE)
    wait_for(lambda: not living(tmp_path))
    if number == signal.SIGTERM:
        assert outcome(tmp_path) == (75, "")


def test_an_environment_is_made_once_where_two_ask_and_again_where_one_was_interrupted(
    described: dict[str, Any], tmp_path: Path
) -> None:
    wanted, base = read(yaml.safe_dump(described)), Base()
    broken = tmp_path / environment.key(wanted, base) / "source" / "half"
    broken.mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(lambda _: environment.prepare(wanted, base, tmp_path), range(2))
    assert first == second
    assert not broken.exists()
    ready = first.folder / environment.READY_FILE
    made = ready.stat().st_mtime_ns
    environment.prepare(wanted, base, tmp_path)
    assert ready.stat().st_mtime_ns == made
    for changes, said in (
        ({"commit": "0" * 40}, "commit 000000000000 of file://"),
        ({"lock": "requirements.txt"}, "The repository has no requirements.txt at commit "),
    ):
        with pytest.raises(FailedError, match=said):
            environment.prepare(read(yaml.safe_dump(described | changes)), base, tmp_path)


def test_requirements_without_a_hash_are_refused_and_those_that_the_host_gives_left_out() -> None:
    text = "# a lock\nnumpy==2.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nnvidia-nccl==1 --hash=sha256:cc\n"
    assert requirements(text, Base(provides=["torch", "nvidia-*"])) == ["numpy==2.0 --hash=sha256:aa --hash=sha256:bb"]
    for line in ("numpy", "git+https://example.org/a", "--index-url https://example.org"):
        with pytest.raises(FailedError, match="The lock has a requirement without a hash"):
            requirements(line, Base())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"commit": "main"}, "The program is not right: commit: a program is taken at a commit: give its 40"),
        ({"repository": "https://me:token@example.org/x"}, "a repository is an address like https://github.com/"),
        ({"repository": "ext::sh -c evil"}, "a repository is an address like"),
        ({"lock": "../../etc/passwd.txt"}, "lock is uv.lock, or a file of requirements"),
        ({"command": ["python", "{what}"]}, "the command has {what}, and there is no parameter what"),
        ({"command": ["python"]}, "the command has no {how}, which is a parameter"),
        ({"parameters": {"how": {"type": "integer", "default": 1}}}, "a number has bounds: give least and most"),
        ({"disk_gib": -1}, "disk_gib: must be greater than 0"),
        ({"shell": True}, "shell: Extra inputs are not permitted"),
    ],
)
def test_a_description_that_is_wrong_is_refused_in_a_sentence(
    described: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        read(yaml.safe_dump(described | changes))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("parameter", "typed", "said"),
    [
        ({"type": "integer", "default": 1, "least": 1, "most": 9}, "10", "n is a whole number from 1 to 9, not '10'."),
        ({"type": "integer", "default": 1, "least": 1, "most": 9}, "2.5", "n is a whole number"),
        ({"type": "number", "default": 1, "least": 0, "most": 9}, "nan", "n is a number from 0 to 9"),
        ({"type": "choice", "default": "a", "choices": ["a", "b"]}, "c", "n is one of a, b, not 'c'."),
        ({"type": "text", "default": "a"}, "--hf_token=x", "n is a line of at most 400 characters"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_in_a_sentence(
    described: dict[str, Any], parameter: dict[str, Any], typed: str, said: str
) -> None:
    wanted = read(yaml.safe_dump(described | {"command": ["python", "{n}"], "parameters": {"n": parameter}}))
    assert wanted.words(wanted.values({})) == ["python", str(parameter["default"])]
    with pytest.raises(ConfigError) as refused:
        wanted.values({"n": typed})
    assert str(refused.value).startswith(said)
    with pytest.raises(ConfigError, match="There is no parameter 'm'; the parameters are: n"):
        wanted.values({"m": "1"})
