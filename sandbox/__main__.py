"""`python -m sandbox --dir DIR`: the loopback Discord and Hub, until SIGTERM or Ctrl-C."""

import argparse
import asyncio
import importlib
import json
import os
import secrets
import signal
from pathlib import Path

from aiohttp import web

from sandbox.discord import server as discord
from sandbox.discord.errors import Json
from sandbox.discord.state import CATEGORY
from sandbox.discord.wire import Server


def describe(server: Server, hub: str | None, hub_token: str) -> Json:
    """What a bot, a demo or a test needs to know to use a running sandbox; it holds the sandbox's own tokens."""
    world = server.world
    return {
        "discord": world.base_url,
        "gateway": world.base_url.replace("http://", "ws://") + "/gateway",
        "hub": hub,
        "guild_id": world.guild_id,
        "application_id": world.application_id,
        "bot_token": world.bot_token,
        "hub_token": hub_token,
        "channels": {c["name"]: c["id"] for c in world.channels.values() if c["type"] != CATEGORY},
        "categories": {c["name"]: c["id"] for c in world.channels.values() if c["type"] == CATEGORY},
        "roles": {role["name"]: role["id"] for role in world.roles.values()},
        "users": {user["global_name"]: user["id"] for user in world.users.values() if not user.get("bot")},
        "pid": os.getpid(),
    }


def write_atomically(path: Path, content: Json) -> None:
    draft = path.with_suffix(".tmp")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(content, indent=2), encoding="utf-8")
    draft.replace(path)


async def serve(root: Path, discord_port: int, hub_port: int) -> None:
    # A file left by a sandbox that was killed would send its readers to a dead port.
    (root / "sandbox.json").unlink(missing_ok=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    runner, server = await discord.start(root, discord_port)
    hub_token = f"hf_{secrets.token_hex(17)}"
    hub_app: web.Application = importlib.import_module("sandbox.hub.server").make_app(root / "hub", token=hub_token)
    hub_runner, hub_url = await discord.listen(hub_app, hub_port)
    write_atomically(root / "sandbox.json", describe(server, hub_url, hub_token))
    print(f"Discord on {server.world.base_url}, Hub on {hub_url}, files in {root}", flush=True)
    await ended.wait()
    await hub_runner.cleanup()
    await discord.stop(runner, server)
    (root / "sandbox.json").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where its files and sandbox.json go")
    parser.add_argument("--discord-port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--hub-port", type=int, default=0, help="0 takes a free one")
    args = parser.parse_args()
    asyncio.run(serve(args.dir, args.discord_port, args.hub_port))


if __name__ == "__main__":
    main()
