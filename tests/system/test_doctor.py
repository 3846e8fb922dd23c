"""What `stoa doctor` finds: all well against a sandbox, and each thing wrong once."""

import http.server
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import discord
import pytest
from pydantic import SecretStr
from rich.console import Console

from bot import server
from broker import fence
from broker.allocations import pools
from cli import doctor
from demo.play import settings_for
from projects.db.database import Database
from projects.errors import InvalidError
from projects.people import Actor
from projects.settings import Settings
from tests.environment import bare
from tests.patience import PATIENCE
from tests.seaweed import READER, READERS_SECRET, Seaweed
from tests.system.chaos import call
from tests.system.forked_services import ForkedServices
from tests.system.test_command_line import stoa


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A sandbox, with a queue."""
    home = tmp_path_factory.mktemp("doctor")
    parts = ForkedServices(home / "logs")
    where = home / "sandbox"
    environment = bare()
    command = [sys.executable, "-m", "sandbox", "--dir", str(where)]
    parts.start("sandbox", command, environment, (where / "sandbox.json").exists)
    info = json.loads((where / "sandbox.json").read_text())
    parts.start_valkey(settings_for(home, info))
    try:
        yield info | {"home": home}
    finally:
        parts.stop()


@pytest.fixture
def well(world: dict[str, Any]) -> Settings:
    """Settings with which nothing is wrong."""
    settings = settings_for(world["home"], world)
    db = Database(settings.database)
    db.migrate()
    db.close()
    return settings


def test_the_sandboxs_admin_is_one(world: dict[str, Any], well: Settings) -> None:
    admin = int(world["roles"]["admin"])
    assert (well.admin_role_id, well.moderator_role_id) == (admin, admin)


def changed(settings: Settings, **values: object) -> Settings:
    return Settings(_env_file=None, **(settings.model_dump() | values))


def test_where_all_is_well_it_says_so(well: Settings) -> None:
    findings = list(doctor.examine(well))
    assert [finding for finding in findings if not finding.ok and finding.thing != "disk"] == []
    things = [finding.thing for finding in findings]
    assert things[:3] == ["settings", "disk", "database"]
    assert {"Hub", "GPUs", "disk", "clock against Discord's", "#proposals"} <= set(things)


def test_the_command_says_what_to_do_and_ends_with_status_1(tmp_path: Path) -> None:
    done = stoa(
        tmp_path, "doctor", COLUMNS="200", STOA_DISCORD_API="http://127.0.0.1:9", STOA_HUB_ENDPOINT="http://127.0.0.1:9"
    )
    assert done.returncode == 1
    assert ".env.example" in done.stdout
    lines = done.stdout.splitlines()
    assert lines[-1] == "next: Copy .env.example to .env; it says where each is found."
    assert any(line.startswith(("↳ ", "✘ database")) for line in lines)
    assert "stoa migrate" in done.stdout
    assert not (tmp_path / "stoa.db").exists()


def test_what_only_follows_from_another_fault_is_not_what_to_do_next() -> None:
    console = Console(record=True, width=120)
    follows = doctor.Finding("GPUs", "the pools cannot be read", doctor.DATABASE_FIRST)
    assert not doctor.show(console, [follows, doctor.Finding("disk", "full", "Make room.")])
    assert console.export_text().splitlines()[-1] == "next: Make room."
    assert doctor.show(console, [doctor.Finding("disk", "room")])


def test_each_finding_is_shown_as_it_comes() -> None:
    console = Console(record=True, width=120)

    def findings() -> Iterator[doctor.Finding]:
        yield doctor.Finding("disk", "room")
        assert "disk: room" in console.export_text(clear=False)
        yield doctor.Finding("queue", "there")

    assert doctor.show(console, findings())


def test_the_address_of_an_invitation_has_scopes_and_permissions(well: Settings) -> None:
    address = urlsplit(doctor.invitation(well))
    said = parse_qs(address.query)
    assert (address.netloc, address.path) == ("discord.com", "/oauth2/authorize")
    assert said["scope"] == ["bot applications.commands"]
    assert said["guild_id"] == [str(well.guild_id)]
    assert said["client_id"][0].isdecimal()
    granted = discord.Permissions(int(said["permissions"][0]))
    assert all(getattr(granted, name) for name in server.IN_GUILD)
    assert not granted.administrator
    with pytest.raises(InvalidError, match="refuses STOA_DISCORD_TOKEN"):
        doctor.invitation(changed(well, discord_token="wrong.token.here"))


def test_settings_that_miss(well: Settings, tmp_path: Path) -> None:
    found = doctor.check_settings(changed(well, guild_id=0))
    assert "STOA_GUILD_ID" in found.found
    assert not found.ok
    (tmp_path / "file").touch()
    assert "STOA_HOME" in doctor.check_settings(changed(well, home=tmp_path / "file")).advice


def test_a_database_that_is_old_or_away(well: Settings, tmp_path: Path, postgres: str) -> None:
    db = Database(f"sqlite:///{tmp_path / 'stoa.db'}")
    db.migrate("0001")
    db.close()
    old = doctor.check_database(changed(well, home=tmp_path))
    assert "is at 0001" in old.found
    assert "stoa migrate" in old.advice
    secret = "postgresql+psycopg://stoa:opensesame@127.0.0.1:9/stoa"
    away = doctor.check_database(changed(well, database_url=secret))
    assert "does not answer" in away.found
    assert "opensesame" not in str(away)
    assert doctor.check_database(changed(well, database_url=postgres.replace("/postgres", "/tables"))).ok


def test_a_queue_that_is_away(well: Settings, tmp_path: Path) -> None:
    assert "stoa up" in doctor.check_queue(changed(well, home=tmp_path)).advice
    assert "STOA_REDIS_URL" in doctor.check_queue(changed(well, redis_url="redis://127.0.0.1:9/0")).advice


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"discord_token": SecretStr("wrong")}, "STOA_DISCORD_TOKEN"),
        ({"discord_api": "http://127.0.0.1:9"}, "network"),
        ({"guild_id": 4242}, "STOA_GUILD_ID"),
        ({"record_channel_id": 4242}, "STOA_RECORD_CHANNEL_ID"),
        ({"reviewer_role_id": 4242}, "STOA_REVIEWER_ROLE_ID"),
        ({"admin_role_id": 4242}, "STOA_ADMIN_ROLE_ID"),
    ],
)
def test_what_is_wrong_on_discord(well: Settings, change: dict[str, object], advice: str) -> None:
    (wrong,) = [finding for finding in doctor.check_discord(changed(well, **change)) if not finding.ok]
    assert advice in wrong.advice


def test_what_the_admins_chose_in_discord_counts(well: Settings, tmp_path: Path) -> None:
    unset = changed(well, home=tmp_path, review_channel_id=0, reviewer_role_id=0)
    wrong = [finding for finding in doctor.check_discord(unset) if not finding.ok]
    assert [finding.thing for finding in wrong] == ["the reviewers' role", "the review channel"]
    assert all("/stoa setup" in finding.advice for finding in wrong)
    db = Database(unset.database)
    db.migrate()
    chosen = {"review": (well.review_channel_id, "review"), "reviewer_role": (well.reviewer_role_id, "reviewer")}
    with db.write() as session:
        server.choose(session, Actor(1, "Omar"), well.guild_id, chosen)
    db.close()
    assert all(finding.ok for finding in doctor.check_discord(unset))


def test_permissions_that_the_bot_lacks_are_named(well: Settings, world: dict[str, Any]) -> None:
    roles = {role["name"]: role["permissions"] for role in _roles(world)}
    name = next(name for name in roles if name.lower() == "stoa")
    manage_channels, manage_roles = 1 << 4, 1 << 28
    lacking = manage_channels | manage_roles
    bits = int(roles[name])
    call("PUT", f"{world['discord']}/sandbox/roles/permissions", {"role": name, "permissions": bits & ~lacking})
    try:
        wrong = [finding for finding in doctor.check_discord(well) if not finding.ok]
    finally:
        call("PUT", f"{world['discord']}/sandbox/roles/permissions", {"role": name, "permissions": bits})
    assert "the bot lacks Manage Channels, Manage Roles" in [finding.found for finding in wrong]
    assert all("Grant it" in finding.advice for finding in wrong)


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"hub_token": SecretStr("hf_wrong")}, "STOA_HUB_TOKEN"),
        ({"hub_token": SecretStr("")}, "STOA_HUB_TOKEN"),
        ({"hub_namespace": "elsewhere"}, "one of: stoa"),
        ({"hub_endpoint": "http://127.0.0.1:9"}, "network"),
    ],
)
def test_what_is_wrong_with_the_hub(well: Settings, change: dict[str, object], advice: str) -> None:
    assert advice in doctor.check_hub(changed(well, **change)).advice


def test_a_store_takes_an_object_and_gives_it_back(seaweed: Seaweed, tmp_path: Path) -> None:
    own = Settings(_env_file=None, home=tmp_path)
    assert doctor.check_store(own) == [], "there need not be one"
    (well,) = doctor.check_store(seaweed.settings(own, prefix="doctor"))
    assert (well.ok, well.found) == (True, "s3://lab/doctor takes objects and gives them back")
    reader = {"store_key": READER, "store_secret": READERS_SECRET}
    (refused,) = doctor.check_store(seaweed.settings(own, prefix="doctor", **reader))
    assert "The store refuses this with the keys that are set" in refused.found
    assert "STOA_STORE_KEY" in refused.advice
    assert READERS_SECRET not in f"{refused}"


def test_a_runner_that_a_pool_uses_is_looked_at(
    well: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = changed(well, home=tmp_path)
    assert list(doctor.check_runners(settings)) == [], "there is no database yet"
    db = Database(settings.database)
    db.migrate()
    with db.write() as session:
        pools.add_pool(session, name="here", gpu_type="cpu", gpus=1)
    assert list(doctor.check_runners(settings)) == []
    with db.write() as session:
        pools.add_pool(session, name="there", gpu_type="H200", gpus=8, runner="slurm")
    db.close()
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = doctor.check_runners(settings)
    assert (found.thing, found.ok) == ("the runner slurm of there", False)
    assert "there is no squeue on this host" in found.found


def test_a_part_that_failed_is_shown_with_what_to_do(well: Settings, tmp_path: Path) -> None:
    settings = changed(well, home=tmp_path)
    assert list(doctor.check_failures(settings)) == [], "there is no database yet"
    db = Database(settings.database)
    db.migrate()
    assert list(doctor.check_failures(settings)) == []
    fence.tell(db, "planning", "KeyError")
    db.close()
    (found,) = doctor.check_failures(settings)
    assert (found.thing, found.found, found.ok) == ("failed within a day: planning", "KeyError", False)


def test_gpus_that_a_pool_counts_on_and_this_host_lacks(well: Settings, tmp_path: Path) -> None:
    settings = changed(well, home=tmp_path)
    assert "database" in doctor.check_gpus(settings).advice
    db = Database(settings.database)
    db.migrate()
    with db.write() as session:
        pools.add_pool(session, name="slots", gpu_type="CPU core", gpus=5000)
    found = doctor.check_gpus(settings)
    assert (found.thing, found.found) == ("cores", f"{os.cpu_count()} here, and the pool slots counts on 5,000 cores")
    assert found.ok
    with db.write() as session:
        pools.add_pool(session, name="dreams", gpu_type="H200", gpus=5000)
        pools.add_pool(session, name="hopes", gpu_type="H200", gpus=5000)
    db.close()
    found = doctor.check_gpus(settings)
    assert "dreams counts on 5,000 GPUs, hopes counts on 5,000 GPUs" in found.found
    assert "nvidia-smi" in found.advice


def test_a_disk_without_room(tmp_path: Path) -> None:
    assert doctor.check_disk(tmp_path / "not" / "yet", least=1).ok
    assert "Make room" in doctor.check_disk(tmp_path, least=2**62).advice


def test_a_clock_that_goes_wrong(well: Settings, postgres: str) -> None:
    class Late(http.server.BaseHTTPRequestHandler):
        def date_time_string(self, timestamp: float | None = None) -> str:
            return "Mon, 01 Jan 2001 00:00:00 GMT"

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Late) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        late = changed(well, discord_api=f"http://127.0.0.1:{server.server_port}", database_url=postgres)
        ours, theirs = doctor.check_clock(late)
        server.shutdown()
    assert ours.ok
    assert "NTP" in theirs.advice
    (unknown,) = doctor.check_clock(changed(well, discord_api="http://127.0.0.1:9"))
    assert unknown.found == "not known"


def _roles(world: dict[str, Any]) -> list[dict[str, Any]]:
    import urllib.request

    asked = urllib.request.Request(
        f"{world['discord']}/api/v10/guilds/{world['guild_id']}/roles",
        headers={"Authorization": f"Bot {world['bot_token']}", "User-Agent": "DiscordBot (https://example.org, 1)"},
    )
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        roles: list[dict[str, Any]] = json.load(answer)
        return roles
