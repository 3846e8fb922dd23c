"""REST: application commands, global and of the guild."""

from typing import Any

from aiohttp import web

from sandbox.discord import commands
from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.state import World
from sandbox.discord.wire import BODY, json_object, reply, world_of


def _scope(request: web.Request) -> str | None:
    """The guild of a path, or None for global commands."""
    world = world_of(request)
    if request.match_info["application_id"] != world.application_id:
        raise ApiError(20012, status=403, message="You are not authorized to perform this action on this application")
    guild_id = request.match_info.get("guild_id")
    if guild_id is not None and guild_id != world.guild_id:
        raise ApiError(50001)
    return guild_id


def _stored(world: World, body: Json, guild_id: str | None, command_id: str | None = None) -> Json:
    """A command as Discord keeps it."""
    permissions = body.get("default_member_permissions")
    command: Json = {
        "id": command_id or world.ids.next(),
        "application_id": world.application_id,
        "version": world.ids.next(),
        "default_member_permissions": None if permissions is None else str(permissions),
        "type": body.get("type") or 1,
        "name": body["name"],
        "name_localizations": body.get("name_localizations"),
        "description": body.get("description") or "",
        "description_localizations": body.get("description_localizations"),
        "contexts": body.get("contexts"),
        "integration_types": body.get("integration_types") or [0],
        "nsfw": bool(body.get("nsfw")),
    }
    if guild_id is None:
        command["dm_permission"] = body.get("dm_permission") is not False
    else:
        command["guild_id"] = guild_id
    if body.get("options"):
        command["options"] = [_option(option) for option in body["options"]]
    return command


def _option(option: Json) -> Json:
    out = {key: value for key, value in option.items() if value is not None and key != "options"}
    # Discord leaves out what is at its default.
    out = {key: value for key, value in out.items() if not (key in ("required", "autocomplete") and value is False)}
    if option.get("options"):
        out["options"] = [_option(inner) for inner in option["options"]]
    return out


def _of_scope(world: World, guild_id: str | None) -> dict[tuple[int, str], Json]:
    return {(c["type"], c["name"]): c for c in world.commands.values() if c.get("guild_id") == guild_id}


async def list_commands(request: web.Request) -> web.Response:
    return reply(list(_of_scope(world_of(request), _scope(request)).values()))


async def overwrite_commands(request: web.Request) -> web.Response:
    world, guild_id, form = world_of(request), _scope(request), Form()
    listed: Any = request[BODY].body
    if not isinstance(listed, list):
        form.fault("LIST_TYPE_CONVERT", "Only iterables may be used in a ListType")
        form.close()
    for index, body in enumerate(listed):
        commands.check(form.at(index), body, of_guild=guild_id is not None)
    form.close()
    names = [(body.get("type") or 1, body["name"]) for body in listed]
    for index, name in enumerate(names):
        if name in names[:index]:
            form.at(index).fault("APPLICATION_COMMANDS_DUPLICATE_NAME", "Application command names must be unique")
    form.close()
    commands.check_count(kind for kind, _ in names)
    known = _of_scope(world, guild_id)
    kept = [
        _stored(world, body, guild_id, known[name]["id"] if name in known else None)
        for name, body in zip(names, listed, strict=True)
    ]
    for command in known.values():
        del world.commands[command["id"]]
    world.commands |= {command["id"]: command for command in kept}
    return reply(kept)


async def create_command(request: web.Request) -> web.Response:
    world, guild_id, body, form = world_of(request), _scope(request), json_object(request), Form()
    commands.check(form, body, of_guild=guild_id is not None)
    form.close()
    known = _of_scope(world, guild_id)
    before = known.get((body.get("type") or 1, body["name"]))
    if before is None:
        commands.check_count([body.get("type") or 1, *(kind for kind, _ in known)])
    command = _stored(world, body, guild_id, before["id"] if before else None)
    world.commands[command["id"]] = command
    return reply(command, 200 if before else 201)


def _one(request: web.Request) -> Json:
    command = world_of(request).commands.get(request.match_info["command_id"])
    if command is None or command.get("guild_id") != _scope(request):
        raise ApiError(10063)
    return command


async def get_command(request: web.Request) -> web.Response:
    return reply(_one(request))


async def edit_command(request: web.Request) -> web.Response:
    world, before, form = world_of(request), _one(request), Form()
    body = before | json_object(request)
    commands.check(form, body, of_guild="guild_id" in before)
    form.close()
    command = _stored(world, body, before.get("guild_id"), before["id"])
    world.commands[command["id"]] = command
    return reply(command)


async def delete_command(request: web.Request) -> web.Response:
    del world_of(request).commands[_one(request)["id"]]
    return reply(status=204)


ROUTES = [
    route
    for base in ("/applications/{application_id}", "/applications/{application_id}/guilds/{guild_id}")
    for route in (
        web.get(f"{base}/commands", list_commands),
        web.put(f"{base}/commands", overwrite_commands),
        web.post(f"{base}/commands", create_command),
        web.get(f"{base}/commands/{{command_id}}", get_command),
        web.patch(f"{base}/commands/{{command_id}}", edit_command),
        web.delete(f"{base}/commands/{{command_id}}", delete_command),
    )
]
