"""What an operator meets: the command line, `.env.example`, and the files for docker compose."""

import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml
from pydantic import ValidationError
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from broker.runners.base import PASSED_ON
from cli.main import app
from cli.services import environment as part_environment
from demo.play import settings_for
from projects.db.database import advice
from projects.health import problem
from projects.settings import Settings
from tests import forked
from tests.environment import bare
from tests.patience import PATIENCE, wait_for
from tests.ports import free_ports
from tests.system.forked_services import ForkedServices
from trainer import contract

ROOT = Path(__file__).parents[2]


def stoa(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `stoa` with only these settings."""
    kept = bare()
    environment = kept | {"STOA_ENV_FILE": "", "STOA_HOME": str(home)} | settings
    return forked.run_module("cli.main", environment, *arguments)


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return content


def schedulers(parent: int) -> list[int]:
    """The schedulers below a process."""
    found = []
    for child in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.Error):
            if child.cmdline()[-1:] == ["scheduler"]:
                found.append(child.pid)
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether a process has not ended."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def known(name: str) -> bool:
    return name.removeprefix("STOA_").lower() in Settings.model_fields


def test_up_says_what_is_missing_and_starts_nothing(tmp_path: Path) -> None:
    done = stoa(tmp_path, "up")
    assert done.returncode == 2
    assert "STOA_DISCORD_TOKEN, STOA_GUILD_ID" in done.stderr
    assert ".env.example" in done.stderr
    assert not (tmp_path / "logs").exists()


def test_up_runs_the_parts_on_a_server_until_it_is_stopped(tmp_path: Path) -> None:
    """The sandbox stands in for Discord; what is started and stopped is what a real server gets."""
    parts = ForkedServices(tmp_path / "sandbox-logs")
    where = tmp_path / "sandbox"
    environment = bare()
    parts.start(
        "sandbox", [sys.executable, "-m", "sandbox", "--dir", str(where)], environment, (where / "sandbox.json").exists
    )
    settings = settings_for(tmp_path / "home", json.loads((where / "sandbox.json").read_text()))
    [port] = free_ports(1)
    address, store = f"127.0.0.1:{port}", f"file://{tmp_path}/store"
    settings = Settings.model_validate(settings.model_dump() | {"machines_address": address, "store": store})
    all_parts = ("bot", "worker", "publisher", "scheduler", "machine")
    for part in all_parts:
        environment |= part_environment(settings, part)
    up = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "up"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert up.stdout is not None
        assert any("Stoa is up" in line for line in up.stdout)
        children = psutil.Process(up.pid).children(recursive=True)
        assert len(children) >= 6
        wait_for(lambda: not any(problem(settings, part) for part in all_parts))
        assert httpx2.post(f"http://{address}/claims", json={"gpus": 1}).status_code == 401, "the API for machines"
        (fallen,) = [child for child in children if child.cmdline()[-1:] == ["scheduler"]]
        fallen.kill()
        assert "the scheduler ended unexpectedly and is started again" in up.stdout.readline()
        children = psutil.Process(up.pid).children(recursive=True)
        wait_for(lambda: not problem(settings, "scheduler") and schedulers(up.pid))
        children = psutil.Process(up.pid).children(recursive=True)
        up.terminate()
        assert up.wait(PATIENCE) == 0
        # What draws for the bot ends once it finds the bot gone.
        wait_for(lambda: not any(map(is_alive, children)), "the end of all that was started")
    finally:
        up.kill()
        parts.stop()


def test_pools_and_grants_are_added_and_the_record_verifies(tmp_path: Path) -> None:
    assert stoa(tmp_path, "migrate").returncode == 0
    assert stoa(tmp_path, "pool", "add", "lab", "H200", "8").returncode == 0
    assert stoa(tmp_path, "grant", "add", "lab", "1000", "A sponsor", "2999-01-01").returncode == 0
    refused = stoa(tmp_path, "grant", "add", "moon", "1000", "A sponsor", "2999-01-01")
    assert refused.returncode == 2
    assert "the pools are: lab" in refused.stderr
    other = stoa(tmp_path, "pool", "add", "lab", "H200", "16")
    assert (other.returncode, other.stdout) == (2, "")
    assert "There is already a pool “lab” (8 × H200" in other.stderr
    assert stoa(tmp_path, "pool", "change", "lab", "--gpus", "16", "--why", "A second host.").returncode == 0
    changed = stoa(tmp_path, "grant", "change", "1", "--more-hours", "5", "--until", "2998-12-31", "--why", "They ask.")
    assert changed.returncode == 0
    assert "lab: 16 × H200, local, weight 1, 1,005 GPU-hours left" in stoa(tmp_path, "pool", "list").stdout
    assert stoa(tmp_path, "pool", "add", "slots", "CPU", "2").stdout == "pool slots: 2 cores\n"
    assert "slots: 2 cores, local, weight 1, 0 core-hours left" in stoa(tmp_path, "pool", "list").stdout
    assert "until 2998-12-31" in stoa(tmp_path, "grant", "list").stdout
    verified = stoa(tmp_path, "record", "verify")
    assert verified.returncode == 0
    assert "lab: 5 entries, whole" in verified.stdout


def test_a_number_that_no_row_can_have_is_refused_with_a_sentence(tmp_path: Path) -> None:
    assert stoa(tmp_path, "migrate").returncode == 0
    huge, why = "9" * 30, ("--why", "To see.")
    for command in (
        ("why", huge),
        ("grant", "change", huge, "--more-hours", "1", *why),
        ("allocation", "adjust", huge, "--seconds", "1", *why),
        ("record", "redact", "lab", huge, *why),
        ("record", "remove", huge, "title", *why),
        ("record", "forget", huge, *why),
        ("ban", huge, *why),
        ("unban", huge, *why),
        ("appoint", huge, "4242", *why),
        ("appoint", "1", huge, *why),
        ("queue", "--limit", huge),
    ):
        done = stoa(tmp_path, *command)
        assert (done.returncode, "Invalid value" in done.stderr) == (2, True), command
    largest = stoa(tmp_path, "why", str(2**53))
    assert (largest.returncode, f"no run {2**53}" in largest.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "most"),
    [("lease_seconds", 86_400), ("max_attempts", 1_000), ("guild_id", 2**63 - 1), ("min_people", 1_000)],
)
def test_a_setting_has_a_greatest_value(name: str, most: int) -> None:
    def settings(value: str) -> Settings:
        return Settings(_env_file=None, **{name: value})  # type: ignore[arg-type]

    assert getattr(settings(str(most)), name) == most
    for value in (str(most + 1), "9" * 40, "inf", "nan", "-1"):
        with pytest.raises(ValidationError):
            settings(value)


def test_a_part_that_never_went_round_is_not_healthy(tmp_path: Path) -> None:
    done = stoa(tmp_path, "health", "bot")
    assert done.returncode == 1
    assert "has not completed a round" in done.stdout


def test_the_example_names_only_settings_that_there_are() -> None:
    names = re.findall(r"^#? ?(STOA_\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert len(names) > 8
    assert [name for name in names if not known(name)] == []


def test_every_service_of_the_compose_file_fits_the_command_line_and_the_settings() -> None:
    services = compose()["services"]
    for name in ("bot", "worker", "publisher", "scheduler", "migrate"):
        service = services[name]
        assert CliRunner().invoke(app, [*service["command"], "--help"]).exit_code == 0
        assert [key for key in service["environment"] if not known(key)] == []
        assert "stoa:/var/lib/stoa" in service["volumes"]
    for name in ("bot", "worker", "publisher", "scheduler", "postgres", "redis"):
        assert "healthcheck" in services[name]


def test_an_image_is_told_the_commit_that_it_is_built_from_and_its_trainers_are_too() -> None:
    name = contract.COMMIT_VARIABLE
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert f"ARG {name}=" in lines
    assert any(line.startswith("ENV ") and f" {name}=${name}" in line for line in lines)
    assert compose()["services"]["worker"]["build"]["args"] == {name: f"${{{name}:-}}"}
    assert name in PASSED_ON


def test_the_api_for_donated_machines_is_a_service_that_one_asks_for() -> None:
    service = compose()["services"]["machine"]
    assert CliRunner().invoke(app, [*service["command"], "--help"]).exit_code == 0
    assert service["profiles"] == ["machines"]
    assert service["healthcheck"]["test"] == ["CMD", "stoa", "health", "machine"]
    told = service["environment"]
    assert [key for key in told if not known(key)] == []
    address = {name.removeprefix("STOA_").lower(): told[name] for name in told if "MACHINES" in name}
    assert Settings(_env_file=None, **address).machines_certificate  # beyond loopback it must have one
    [mounted] = service["volumes"]
    source, folder, access = mounted.rsplit(":", 2)
    assert (source.startswith("${MACHINES_TLS"), access) == (True, "ro")
    assert {str(Path(told[f"STOA_MACHINES_{file}"]).parent) for file in ("CERTIFICATE", "KEY")} == {folder}
    assert service["ports"] == [f"${{MACHINES_PORT:-8443}}:{told['STOA_MACHINES_ADDRESS'].rpartition(':')[2]}"]


@pytest.mark.parametrize(
    ("service", "strangers"),
    [
        ("bot", ("STOA_HUB_TOKEN", "STOA_REDIS_URL")),
        ("worker", ("STOA_DISCORD_TOKEN", "STOA_HUB_TOKEN")),
        ("publisher", ("STOA_DISCORD_TOKEN",)),
        ("scheduler", ("STOA_DISCORD_TOKEN", "STOA_HUB_TOKEN")),
        ("machine", ("STOA_DISCORD_TOKEN", "STOA_HUB_TOKEN", "STOA_REDIS_URL")),
    ],
)
def test_no_service_is_given_a_secret_that_it_does_not_need(service: str, strangers: tuple[str, ...]) -> None:
    given = compose()["services"][service]["environment"]
    assert not set(strangers) & set(given)


def test_the_operator_bans_and_blanks_by_the_command_line(tmp_path: Path) -> None:
    assert stoa(tmp_path, "migrate").returncode == 0
    assert stoa(tmp_path, "pool", "add", "lab", "H200", "8").returncode == 0
    assert stoa(tmp_path, "ban", "4242", "--why", "Spam.", "--name", "Mallory").returncode == 0
    again = stoa(tmp_path, "ban", "4242", "--why", "Spam.")
    assert (again.returncode, "Mallory is already banned" in again.stderr) == (2, True)
    assert stoa(tmp_path, "unban", "4242", "--why", "A mistake.").returncode == 0
    nowhere = stoa(tmp_path, "appoint", "7", "4242", "--why", "Ada is gone.")
    assert (nowhere.returncode, "There is no project 7" in nowhere.stderr) == (2, True)
    assert stoa(tmp_path, "record", "redact", "lab", "1", "--why", "A slip.").returncode == 0
    forgotten = stoa(tmp_path, "record", "forget", "4242", "--why", "They asked.")
    assert "2 entries are blanked" in forgotten.stdout
    refused = stoa(tmp_path, "record", "redact", "lab", "77", "--why", "A slip.")
    assert (refused.returncode, "no entry 77" in refused.stderr) == (2, True)
    assert "lab: 5 entries, whole" in stoa(tmp_path, "record", "verify").stdout


def test_texts_that_name_a_person_are_listed_and_decided_about(tmp_path: Path) -> None:
    assert stoa(tmp_path, "migrate").returncode == 0
    assert stoa(tmp_path, "pool", "add", "lab", "H200", "8").returncode == 0
    assert stoa(tmp_path, "grant", "add", "lab", "5", "the Library", "2099-12-31").returncode == 0
    assert stoa(tmp_path, "ban", "4242", "--why", "Spam.", "--name", "the").returncode == 0
    at = "2099-12-31 00:00:00.000000"
    with closing(sqlite3.connect(tmp_path / "stoa.db")) as file, file:
        file.execute("INSERT INTO discord_forms (discord_id, form, at) VALUES ('4242', '{}', ?)", [at])
        file.execute(
            "INSERT INTO launch_drafts (request_id, person_id, project_id, allocation_id, recipe, dataset, overrides, "
            "time_limit, gpus, name, discarded, created_at) VALUES ('', 1, 1, 1, '', '', '', '', 1, 'the Wide', 0, ?)",
            [at],
        )
    listed = stoa(tmp_path, "record", "forget", "4242", "--why", "They asked.")
    assert listed.returncode == 2
    assert "1 entry refers to the person, and 3 texts may name them" in listed.stderr
    keys, texts = zip(*(line.split("  ", 1) for line in listed.stdout.splitlines()), strict=True)
    assert sorted(texts) == [
        "entry 2 of lab: the Library",
        "name of launch draft 1: the Wide",
        "sponsor of grant 1: the Library",
    ]
    wrong = stoa(tmp_path, "record", "forget", "4242", "--why", "They asked.", "--texts", f"{keys[0]},grants:9:x:y")
    assert (wrong.returncode, "No text has the key “grants:9:x:y” now" in wrong.stderr) == (2, True)
    done = stoa(tmp_path, "record", "forget", "4242", "--why", "They asked.", "--texts", "none")
    assert (done.returncode, done.stdout) == (0, "1 entry is blanked\n")
    with closing(sqlite3.connect(tmp_path / "stoa.db")) as file:
        assert file.execute("SELECT * FROM discord_forms").fetchall() == [], "what the person wrote in forms goes too"
    assert "the Library gives" in stoa(tmp_path, "grant", "list").stdout
    assert "lab: 4 entries, whole" in stoa(tmp_path, "record", "verify").stdout


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("DATABASE_URL", "postgres://u:5ec4e7@h/x", "STOA_DATABASE_URL must begin with postgresql+psycopg://"),
        (
            "DATABASE_URL",
            "postgresql+psycopg://u:5ec4e7@h:p/x",
            "STOA_DATABASE_URL must be like postgresql+psycopg:",
        ),
        ("DATABASE_URL", "nonsense 5ec4e7", "STOA_DATABASE_URL must begin with postgresql+psycopg://"),
        ("REDIS_URL", "localhost:6379", "STOA_REDIS_URL must begin with redis://"),
        *(
            ("REDIS_URL", f"redis://{place}", "STOA_REDIS_URL must be like redis://user:password@host:6379/0")
            for place in ("h:port/0", "h:65536/0", "[::1/0", "h:6379/name", "h:1/0;redis://h:two/0")
        ),
        ("HUB_ENDPOINT", "https://h:port", "STOA_HUB_ENDPOINT must be like https://host:443"),
        ("DISCORD_API", "discord.com", "STOA_DISCORD_API must begin with https://"),
        ("HUB_ENDPOINT", "huggingface.co", "STOA_HUB_ENDPOINT must begin with https://"),
        ("GUILD_ID", "abc", "STOA_GUILD_ID must be a valid integer, not 'abc'"),
        (
            "HOST_NAME",
            "a/b",
            "STOA_HOST_NAME must be up to 60 letters, digits, dots, dashes and underscores, not 'a/b'",
        ),
        ("GUILD_ID", "9" * 5000, "STOA_GUILD_ID must be a valid integer"),
        ("GUILD_ID", "-1", "STOA_GUILD_ID must be greater than or equal to 0"),
        ("GUILD_ID", str(2**63), "STOA_GUILD_ID must be less than"),
        ("LEASE_SECONDS", "soon", "STOA_LEASE_SECONDS must be a valid number, not 'soon'"),
        ("LEASE_SECONDS", "inf", "STOA_LEASE_SECONDS must be a finite number"),
        ("LEASE_SECONDS", "86401", "STOA_LEASE_SECONDS must be less than or equal to 86400"),
        ("MAX_ATTEMPTS", "1.5", "STOA_MAX_ATTEMPTS must be a valid integer"),
        ("WORKER_CONCURRENCY", "0", "STOA_WORKER_CONCURRENCY must be greater than or equal to 1"),
    ],
)
def test_a_wrong_setting_is_one_sentence_of_every_command(tmp_path: Path, name: str, value: str, sentence: str) -> None:
    command = {"GUILD_ID": "doctor", "LEASE_SECONDS": "scheduler", "REDIS_URL": "worker", "MAX_ATTEMPTS": "up"}
    done = stoa(tmp_path, command.get(name, "migrate"), **{f"STOA_{name}": value})
    assert done.returncode == 2
    assert done.stderr.startswith(f"A setting is wrong, here or in .env: STOA_{name} must ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert "5ec4e7" not in done.stderr


def test_a_file_of_settings_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    away = stoa(tmp_path, "doctor", STOA_ENV_FILE=str(tmp_path / "away.env"))
    assert (away.returncode, away.stderr.startswith("STOA_ENV_FILE names no file: ")) == (2, True)
    (tmp_path / "odd.env").write_bytes(b"STOA_HUB_NAMESPACE=caf\xe9\n")
    odd = stoa(tmp_path, "migrate", STOA_ENV_FILE=str(tmp_path / "odd.env"))
    assert (odd.returncode, "cannot be read" in odd.stderr, "Traceback" in odd.stderr) == (2, True, False)
    wrong = tmp_path / "wrong.env"
    wrong.write_text("# Ours\nSTOA_HUB_NAMESPACE=lab\nexport STOA_GUILD_ID=ours\n")
    said = stoa(tmp_path, "migrate", STOA_ENV_FILE=str(wrong)).stderr
    right = "must be a valid integer, not 'ours'; an id is written like 1042391021733249054.\n"
    assert said.endswith(f"STOA_GUILD_ID in line 3 of {wrong} {right}")


@pytest.mark.parametrize(
    "command", ["migrate", "policy list", "why 1", "queue", "record verify", "pool list", "up", "backup there"]
)
def test_without_a_database_every_command_says_one_sentence(tmp_path: Path, command: str) -> None:
    away = {"STOA_DATABASE_URL": "postgresql+psycopg://stoa:5ec4e7@127.0.0.1:9/stoa", "STOA_GUILD_ID": "1"}
    there = tmp_path / "there"
    done = stoa(tmp_path, *command.replace("there", str(there)).split(), STOA_DISCORD_TOKEN="t", **away)
    assert done.returncode not in (0, 1), done.stdout
    assert not there.exists(), "nothing is left of a backup of nothing"
    said = done.stderr.strip().splitlines()
    assert re.fullmatch(r"The database is not ready \(.*\): start it, or correct STOA_DATABASE_URL; .*\.", said[-1])
    assert "Traceback" not in done.stdout + done.stderr
    assert "5ec4e7" not in done.stdout + done.stderr


def test_a_database_that_is_busy_is_not_taken_for_one_without_tables(tmp_path: Path) -> None:
    bare_one = stoa(tmp_path, "policy", "list")
    assert "`stoa migrate` makes its tables" in bare_one.stderr
    assert stoa(tmp_path, "migrate").returncode == 0
    for said, advised in (
        ("database is locked", "another process is writing to it, so try again in a moment"),
        ("no such table: policies", "`stoa migrate` makes its tables"),
        ('relation "policies" does not exist', "`stoa migrate` makes its tables"),
        ('database "stoa" does not exist', "start it, or correct STOA_DATABASE_URL"),
        ("attempt to write a readonly database", "let this user write to it"),
        ("connection refused", "start it, or correct STOA_DATABASE_URL"),
    ):
        assert advised in advice(OperationalError("SELECT 1", {}, Exception(said)))
    wrong = stoa(tmp_path, "migrate", "nonsense")
    assert (wrong.returncode, "cannot be brought to 'nonsense'" in wrong.stderr, "Traceback" in wrong.stderr) == (
        2,
        True,
        False,
    )


def test_the_help_groups_the_commands() -> None:
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    run, compute, people, record = (said.index(f" {name} ") for name in ("Run it", "Compute", "People", "Record"))
    assert run < said.index(" up ") < compute < said.index(" pool ") < people < said.index(" ban ") < record


@pytest.mark.parametrize("page", ["members", "reviewers", "operating", "researchers"])
def test_a_page_is_short_and_its_contents_lead_to_its_headings(page: str) -> None:
    lines = (ROOT / "docs" / f"{page}.md").read_text().splitlines()
    assert len(lines) < 150
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    listed = [line.removeprefix("- [").partition("]")[0] for line in lines if line.startswith("- [") and "](#" in line]
    assert listed in ([], headings)
    assert listed or len(lines) < 60, "a long page has a table of contents"
