"""REST: the guild's own stickers, and those that a message shows."""

from aiohttp import web

from sandbox.discord import permissions
from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.rest_guild import in_guild
from sandbox.discord.state import World
from sandbox.discord.wire import draft_of, json_object, reply, world_of

MAX_STICKERS, MAX_BYTES = 5, 512 * 1024
"""Of a guild without boosts; bytes of a sticker's file."""
PNG, APNG, GIF = 1, 2, 4
"""The formats that any guild may upload; Lottie is for verified ones."""
GUILD = 2


def shown(world: World, body: Json) -> Json:
    """The fields of a message that shows the stickers which a checked body names."""
    ids = dict.fromkeys(str(item) for item in body.get("sticker_ids") or [])
    items = [{key: world.stickers[item][key] for key in ("id", "name", "format_type")} for item in ids]
    return {"sticker_items": items} if items else {}


def _find(request: web.Request) -> Json:
    found = world_of(request).stickers.get(request.match_info["sticker_id"])
    if found is None:
        raise ApiError(10060)
    return found


def _may_change(world: World, sticker: Json | None = None) -> bool:
    """Whether the bot may create stickers or change this one: its own with the lesser permission."""
    own = world.permissions(world.application_id)
    mine = sticker is None or sticker["user"]["id"] == world.application_id
    return bool(own & permissions.MANAGE_GUILD_EXPRESSIONS or (mine and own & permissions.CREATE_GUILD_EXPRESSIONS))


def _told(world: World, sticker: Json) -> Json:
    """A sticker as a bot sees it: who made it is told to whoever may change stickers."""
    return sticker if _may_change(world) else {key: value for key, value in sticker.items() if key != "user"}


def _tell(world: World) -> None:
    stickers = list(world.stickers.values())
    world.dispatch("GUILD_STICKERS_UPDATE", {"guild_id": world.guild_id, "stickers": stickers})


async def every(request: web.Request) -> web.Response:
    in_guild(request)
    world = world_of(request)
    return reply([_told(world, sticker) for sticker in world.stickers.values()])


async def show(request: web.Request) -> web.Response:
    if "guild_id" in request.match_info:
        in_guild(request)
        return reply(_told(world_of(request), _find(request)))
    return reply({key: value for key, value in _find(request).items() if key != "user"})


async def create(request: web.Request) -> web.Response:
    in_guild(request)
    world, draft, form = world_of(request), draft_of(request), Form()
    if not _may_change(world):
        raise ApiError(50013)
    given = _checked(form, draft.body, required=True)
    if not draft.uploads:
        form.at("file").fault("BASE_TYPE_REQUIRED", "This field is required")
    form.close()
    if len(world.stickers) >= MAX_STICKERS:
        raise ApiError(30039)
    made: Json = {
        "id": world.ids.next(),
        "type": GUILD,
        "format_type": _format(draft.uploads[0].data),
        "description": None,
        "available": True,
        "guild_id": world.guild_id,
        "user": world.users[world.application_id],
    }
    world.stickers[made["id"]] = made | given
    _tell(world)
    return reply(made | given, 201)


async def change(request: web.Request) -> web.Response:
    in_guild(request)
    world, sticker, form = world_of(request), _find(request), Form()
    if not _may_change(world, sticker):
        raise ApiError(50013)
    given = _checked(form, json_object(request), required=False)
    form.close()
    sticker |= given
    _tell(world)
    return reply(_told(world, sticker))


async def delete(request: web.Request) -> web.Response:
    in_guild(request)
    world, sticker = world_of(request), _find(request)
    if not _may_change(world, sticker):
        raise ApiError(50013)
    del world.stickers[sticker["id"]]
    _tell(world)
    return reply(status=204)


async def packs(_: web.Request) -> web.Response:
    """Discord's own stickers: a bot cannot send them, and none is here."""
    return reply({"sticker_packs": []})


def _checked(form: Form, body: Json, *, required: bool) -> Json:
    """The name, tags and description of a body, with faults for what is too long or short."""
    given: Json = {}
    for key, low, high in (("name", 2, 30), ("tags", 1, 200)):
        value = form.text(body, key, low, high, required=required)
        if value is not None:
            given[key] = value
    description = form.text(body, "description", 0, 100)
    return given | ({"description": description or None} if "description" in body else {})


def _format(data: bytes) -> int:
    """The format of a file, by its first bytes; ApiError 50045 or 50046 where it is too large or none of them."""
    if len(data) > MAX_BYTES:
        raise ApiError(50045)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return APNG if b"acTL" in data.partition(b"IDAT")[0] else PNG
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    raise ApiError(50046)


_ALL = "/guilds/{guild_id}/stickers"
_ONE = _ALL + "/{sticker_id}"
ROUTES = [
    web.get(_ALL, every),
    web.post(_ALL, create),
    web.get(_ONE, show),
    web.patch(_ONE, change),
    web.delete(_ONE, delete),
    web.get("/stickers/{sticker_id}", show),
    web.get("/sticker-packs", packs),
]
