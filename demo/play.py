"""Sets the stage, plays the story, reports it, and leaves no process behind."""

import asyncio
import os
import shutil
import signal
import sys
import time
import webbrowser
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from rich.console import Console

from broker.allocations import pools
from cli.services import LOCK, ServiceError, Services, adopting_orphans, alone
from demo import report
from demo.stage import Stage
from demo.story import STORY
from projects.db.columns import utcnow
from projects.db.database import Database
from projects.settings import Settings, get_settings
from sandbox.people import Guild

POOL, POOL_SLOTS, GRANT_HOURS = "laptop", 2, 24
GRACE_SECONDS = 15


def play(*, stay: bool) -> int:
    """Play the demo in `var/demo` and return the exit status; with `stay`, keep its parts up until Ctrl-C."""
    console = Console(highlight=False)
    home = get_settings().home / "demo"
    try:
        with alone(home):
            for old in home.iterdir():
                if old.name != LOCK:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            with adopting_orphans(GRACE_SECONDS):
                return asyncio.run(_play(console, home, stay=stay))
    except ServiceError as error:
        console.print(str(error), soft_wrap=True)
        return 2


async def _play(console: Console, home: Path, *, stay: bool) -> int:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    parts = Services(home / "logs")
    stage: Stage | None = None
    steps: list[report.Step] = []
    started = time.monotonic()
    told = False
    console.print(f"[bold]Stoa[/]: the main job, end to end, in {home}", soft_wrap=True)
    try:
        with report.step(console, steps, "start the parts") as note:
            stage = await set_stage(home, parts)
            note(f"Valkey, sandbox (Discord {stage.guild.info['discord']}), scheduler, worker, publisher, bot")
        page = stage.guild.info["discord"]
        console.print(f"The server is at [bold]{page}[/] in a browser: watch the story, or take part.", soft_wrap=True)
        if stay:
            await _open(page)
        for name, act in STORY:
            parts.check()
            with report.step(console, steps, name) as note:
                note(await act(stage, console))
        seconds = time.monotonic() - started
        await report.write(stage, steps, seconds=seconds)
        told = True
        console.print(
            f"[bold green]The story took {seconds:.0f} s.[/] Its report is {home / 'report.json'}", soft_wrap=True
        )
        if stay:
            await _stay(console, stage, parts)
    except asyncio.CancelledError:
        console.print("stopping")
        return 0 if told else 130
    except Exception as error:  # whatever it was, the operator is told where to look
        what = "A part ended[/] after the story" if told else f"The demo failed[/] at “{steps[-1].name}”"
        console.print(f"[bold red]{what}: {error}", soft_wrap=True)
        console.print(f"The logs of all parts are in {parts.logs}, those of runs in {home / 'runs'}.", soft_wrap=True)
        if stage is not None and not told:
            await report.write(stage, steps, seconds=time.monotonic() - started)
        return 1
    finally:
        if stage is not None:
            await stage.guild.close()
            stage.database.close()
        parts.stop()
    return 0


async def set_stage(
    home: Path, parts: Services, bot: Mapping[str, object] | None = None, every: Mapping[str, object] | None = None
) -> Stage:
    """Start the parts of Stoa, and the loopback Discord and Hub they talk to.

    `bot` changes the bot's settings, `every` those of every part.
    """
    where = home / "sandbox"
    command = [sys.executable, "-m", "sandbox", "--dir", str(where)]
    environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    parts.start("sandbox", command, environment, (where / "sandbox.json").exists)
    guild = await Guild.open(where)
    settings = settings_for(home, guild.info).model_copy(update=every)
    database = Database(settings.database)
    database.migrate()
    with database.write() as session:
        pools.add_pool(session, name=POOL, gpu_type="CPU core", gpus=POOL_SLOTS)
        until = utcnow() + timedelta(days=90)
        pools.add_grant(session, pool=POOL, sponsor="this machine", seconds=GRANT_HOURS * 3600, until=until)
    parts.start_valkey(settings)
    parts.start_stoa(settings, "scheduler")
    parts.start_stoa(settings, "worker", "--drain")  # so that no run outlives a demo, however that ends
    parts.start_stoa(settings, "publisher")
    parts.start_stoa(settings.model_copy(update=bot), "bot")
    await guild.wait_for_bot("project")
    return Stage(home, settings, database, guild)


def settings_for(home: Path, sandbox: dict[str, Any]) -> Settings:
    """Settings that point at a sandbox."""
    return Settings(
        _env_file=None,
        home=home,
        database_url="",
        redis_url="",
        discord_token=SecretStr(sandbox["bot_token"]),
        discord_api=sandbox["discord"],
        discord_gateway=sandbox["gateway"],
        guild_id=int(sandbox["guild_id"]),
        proposals_channel_id=int(sandbox["channels"]["proposals"]),
        review_channel_id=int(sandbox["channels"]["compute-review"]),
        announcements_channel_id=int(sandbox["channels"]["announcements"]),
        record_channel_id=int(sandbox["channels"]["public-record"]),
        reviewer_role_id=int(sandbox["roles"]["reviewer"]),
        moderator_role_id=int(sandbox["roles"]["admin"]),
        admin_role_id=int(sandbox["roles"]["admin"]),
        hub_endpoint=sandbox["hub"],
        hub_token=SecretStr(sandbox["hub_token"]),
        hub_namespace="stoa",
        lease_seconds=60,
        stop_grace_seconds=GRACE_SECONDS,
        picture_seconds=8,
        disk_floor_gib=0.5,  # it needs less than that
    )


async def _open(page: str) -> None:
    """Open the server's page, where there is a desktop to open it on."""
    if sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        await asyncio.to_thread(webbrowser.open, page)


async def _stay(console: Console, stage: Stage, parts: Services) -> None:
    """Say what to try, and keep the parts up until Ctrl-C."""
    console.print(
        f"\nEverything is still up; Ctrl-C ends it. What to try next:\n"
        f"  the whole server:     {stage.guild.info['discord']} in a browser, as newcomer, lead, reviewer or admin\n"
        f"  the checkpoints:      {stage.guild.info['hub']}/{stage.repo} in a browser\n"
        f"  the loss curve:       the report names the picture, and holds all channels as they stand\n"
        f"  the record's chains:  STOA_HOME={stage.home} .venv/bin/stoa record verify\n"
        f"  more of the story:    demo/story.py shows how to act as Ada, with sandbox.people.Guild\n"
        f"  a real server:        copy .env.example to .env, fill it in, and run .venv/bin/stoa up",
        soft_wrap=True,
    )
    while True:
        parts.check()
        await asyncio.sleep(0.5)
