"""REST: the bot's own account, its application, the gateway's address, the guild, its members and roles."""

from aiohttp import web

from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.permissions import ADMINISTRATOR, MANAGE_ROLES
from sandbox.discord.state import World
from sandbox.discord.wire import json_object, reply, world_of

MAX_ROLES = 250


async def own_user(request: web.Request) -> web.Response:
    world = world_of(request)
    return reply(
        world.users[world.application_id]
        | {"mfa_enabled": False, "locale": "en-US", "premium_type": 0, "email": None, "verified": True}
    )


async def own_application(request: web.Request) -> web.Response:
    world = world_of(request)
    return reply(
        {
            "id": world.application_id,
            "name": "Stoa",
            "icon": None,
            "description": "",
            "type": None,
            "bot": world.users[world.application_id],
            "bot_public": False,
            "bot_require_code_grant": False,
            "verify_key": "0" * 64,
            "flags": 0,
            "flags_new": "0",
            "tags": [],
            "redirect_uris": [],
            "interactions_endpoint_url": None,
            "role_connections_verification_url": None,
            "owner": world.users[world.owner_id],
            "approximate_guild_count": 1,
            "approximate_user_install_count": 0,
            "approximate_user_authorization_count": 0,
            "event_webhooks_status": 1,
            "explicit_content_filter": 0,
            "team": None,
            "eligible_oauth2_scopes": ["bot", "applications.commands"],
        }
    )


async def gateway_bot(request: web.Request) -> web.Response:
    url = world_of(request).base_url.replace("http://", "ws://") + "/gateway"
    limit = {"total": 1000, "remaining": 999, "reset_after": 86_400_000, "max_concurrency": 1}
    return reply({"url": url, "shards": 1, "session_start_limit": limit})


async def user(request: web.Request) -> web.Response:
    if found := world_of(request).users.get(request.match_info["user_id"]):
        return reply(found)
    raise ApiError(10013)


def in_guild(request: web.Request) -> None:
    """Raises 10004 unless the path names the sandbox's guild."""
    if request.match_info["guild_id"] != world_of(request).guild_id:
        raise ApiError(10004)


async def own_guilds(request: web.Request) -> web.Response:
    world = world_of(request)
    guild = world.guild()
    keys = ("id", "name", "icon", "banner", "features")
    mine = {"owner": False, "permissions": str(world.permissions(world.application_id))}
    return reply([{key: guild[key] for key in keys} | mine])


async def guild(request: web.Request) -> web.Response:
    in_guild(request)
    world = world_of(request)
    counts: Json = {}
    if request.query.get("with_counts") in ("true", "1", "True"):
        counts = {"approximate_member_count": len(world.members), "approximate_presence_count": 1}
    return reply(world.guild() | counts)


async def guild_roles(request: web.Request) -> web.Response:
    in_guild(request)
    return reply(list(world_of(request).roles.values()))


async def create_role(request: web.Request) -> web.Response:
    """A bot gives a role only what it may do itself."""
    in_guild(request)
    world, body, form = world_of(request), json_object(request), Form()
    world.require(None, MANAGE_ROLES)
    name = form.text(body, "name", 0, 100)
    bits = form.integer(body, "permissions", 0, 2**63 - 1)
    form.close()
    if len(world.roles) >= MAX_ROLES:
        raise ApiError(30005)
    given = int(world.roles[world.guild_id]["permissions"]) if bits is None else bits
    if given & ~world.permissions(world.application_id):
        raise ApiError(50013)
    role = world.add_role(name or "new role", given)
    # A new role is the lowest but @everyone, so that the bot may give it.
    role |= {"position": 1} | {key: body[key] for key in ("hoist", "mentionable") if key in body}
    world.dispatch("GUILD_ROLE_CREATE", {"guild_id": world.guild_id, "role": role})
    return reply(role)


async def delete_role(request: web.Request) -> web.Response:
    """A bot deletes only roles below its own."""
    in_guild(request)
    world = world_of(request)
    world.require(None, MANAGE_ROLES)
    role = _below_own(world, request.match_info["role_id"])
    if role["id"] == world.guild_id:
        raise ApiError(50028)
    world.delete_role(role["id"])
    return reply(status=204)


def _below_own(world: World, role_id: str) -> Json:
    """A role that the bot may change: one below its own; raises 10011 and 50013."""
    role = world.roles.get(role_id)
    if role is None:
        raise ApiError(10011)
    own = max(world.roles[role_id]["position"] for role_id in world.members[world.application_id]["roles"])
    if role["managed"] or role["position"] >= own:
        raise ApiError(50013)
    return role


async def member(request: web.Request) -> web.Response:
    in_guild(request)
    return reply(world_of(request).member(request.match_info["user_id"]))


async def members(request: web.Request) -> web.Response:
    in_guild(request)
    form, query = Form(), dict(request.query)
    limit = form.integer(query, "limit", 1, 1000) or 1
    after = form.integer(query, "after", 0, 2**63) or 0
    form.close()
    listed = sorted(world_of(request).members.values(), key=lambda one: int(one["user"]["id"]))
    return reply([one for one in listed if int(one["user"]["id"]) > after][:limit])


async def change_role(request: web.Request) -> web.Response:
    """PUT or DELETE of a member's role: the bot needs the bit and a role above the one it gives."""
    in_guild(request)
    world = world_of(request)
    target = world.member(request.match_info["user_id"])
    world.require(None, MANAGE_ROLES)
    role = _below_own(world, request.match_info["role_id"])
    if int(role["permissions"]) & ADMINISTRATOR:
        raise ApiError(50013)
    target["roles"] = [role_id for role_id in target["roles"] if role_id != role["id"]]
    if request.method == "PUT":
        target["roles"].append(role["id"])
    world.dispatch("GUILD_MEMBER_UPDATE", target | {"guild_id": world.guild_id})
    return reply(status=204)


ROUTES = [
    web.get("/users/@me", own_user),
    web.get("/users/@me/guilds", own_guilds),
    web.get("/users/{user_id}", user),
    web.get("/oauth2/applications/@me", own_application),
    web.get("/applications/@me", own_application),
    web.get("/gateway/bot", gateway_bot),
    web.get("/guilds/{guild_id}", guild),
    web.get("/guilds/{guild_id}/roles", guild_roles),
    web.post("/guilds/{guild_id}/roles", create_role),
    web.delete("/guilds/{guild_id}/roles/{role_id}", delete_role),
    web.get("/guilds/{guild_id}/members", members),
    web.get("/guilds/{guild_id}/members/{user_id}", member),
    web.put("/guilds/{guild_id}/members/{user_id}/roles/{role_id}", change_role),
    web.delete("/guilds/{guild_id}/members/{user_id}/roles/{role_id}", change_role),
]
