"""The loopback Discord as one aiohttp application, and starting and ending it on a port."""

from pathlib import Path

from aiohttp import web

from sandbox.discord import control, rest
from sandbox.discord.attachments import MAX_REQUEST_BYTES
from sandbox.discord.gateway import Gateway
from sandbox.discord.journal import Journal
from sandbox.discord.state import World, seed
from sandbox.discord.wire import SERVER, Server, server_of, world_of
from sandbox.page import page

HOST = "127.0.0.1"


async def _gateway(request: web.Request) -> web.StreamResponse:
    return await server_of(request).gateway.handle(request)


async def _attachment(request: web.Request) -> web.StreamResponse:
    path = world_of(request).attachments.get(request.match_info["attachment_id"])
    if path is None or path.name != request.match_info["filename"]:
        raise web.HTTPNotFound
    # A file of the bot's is shown, never run: it would be a page of this server's own.
    return web.FileResponse(path, headers={"Content-Security-Policy": "sandbox", "X-Content-Type-Options": "nosniff"})


def make_app(server: Server) -> web.Application:
    app = web.Application(
        middlewares=[page.here_only, rest.discord_api, control.control_errors],
        client_max_size=MAX_REQUEST_BYTES + 2**20,
    )
    app[SERVER] = server
    rest.add_routes(app)
    control.add_routes(app)
    page.add_routes(app, server.world)
    app.router.add_get("/gateway", _gateway)
    app.router.add_get("/gateway/", _gateway)
    app.router.add_get("/attachments/{channel_id}/{attachment_id}/{filename}", _attachment)
    return app


async def listen(app: web.Application, port: int) -> tuple[web.AppRunner, str]:
    """Serves an application on loopback: its runner, to clean up, and its address."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, HOST, port)
    await site.start()
    return runner, f"http://{HOST}:{runner.addresses[0][1]}"


async def start(root: Path, port: int = 0) -> tuple[web.AppRunner, Server]:
    """A seeded loopback Discord that keeps its files below `root`."""
    world = World(root)
    seed(world)
    journal = Journal(world.root)
    server = Server(world, Gateway(world, journal), journal)
    runner, world.base_url = await listen(make_app(server), port)
    return runner, server


async def stop(runner: web.AppRunner, server: Server) -> None:
    await server.gateway.drop()
    await runner.cleanup()
    server.journal.close()
