"""Discord's permission bits and the algorithm that gives a member's permissions in a channel."""

from collections.abc import Mapping

from sandbox.discord.errors import Json

CREATE_INVITE = 1 << 0
ADMINISTRATOR = 1 << 3
MANAGE_CHANNELS = 1 << 4
ADD_REACTIONS = 1 << 6
VIEW_CHANNEL = 1 << 10
SEND_MESSAGES = 1 << 11
MANAGE_MESSAGES = 1 << 13
EMBED_LINKS = 1 << 14
ATTACH_FILES = 1 << 15
READ_MESSAGE_HISTORY = 1 << 16
MENTION_EVERYONE = 1 << 17
CHANGE_NICKNAME = 1 << 26
MANAGE_ROLES = 1 << 28
MANAGE_GUILD_EXPRESSIONS = 1 << 30
USE_APPLICATION_COMMANDS = 1 << 31
MANAGE_THREADS = 1 << 34
CREATE_PUBLIC_THREADS = 1 << 35
CREATE_PRIVATE_THREADS = 1 << 36
SEND_MESSAGES_IN_THREADS = 1 << 38
CREATE_GUILD_EXPRESSIONS = 1 << 43
PIN_MESSAGES = 1 << 51

ALL = (1 << 53) - 1

EVERYONE = (
    CREATE_INVITE
    | ADD_REACTIONS
    | VIEW_CHANNEL
    | SEND_MESSAGES
    | EMBED_LINKS
    | ATTACH_FILES
    | READ_MESSAGE_HISTORY
    | CHANGE_NICKNAME
    | USE_APPLICATION_COMMANDS
    | CREATE_PUBLIC_THREADS
    | SEND_MESSAGES_IN_THREADS
)
BOT = (
    EVERYONE
    | MANAGE_CHANNELS
    | MANAGE_MESSAGES
    | MANAGE_ROLES
    | MANAGE_THREADS
    | CREATE_PRIVATE_THREADS
    | MENTION_EVERYONE
    | MANAGE_GUILD_EXPRESSIONS
    | CREATE_GUILD_EXPRESSIONS
    | PIN_MESSAGES
)


def permissions_in(channel: Json | None, member: Json, roles: Mapping[str, Json], guild_id: str, owner_id: str) -> int:
    """A member's permission bits in a channel, or in the guild where channel is None. For a thread pass its parent.

    Source: Discord's documentation, "Permission Hierarchy" (base permissions, then overwrites of everyone, of roles
    and of the member).
    """
    user_id = member["user"]["id"]
    if user_id == owner_id:
        return ALL
    bits = int(roles[guild_id]["permissions"])
    for role_id in member["roles"]:
        bits |= int(roles[role_id]["permissions"])
    if bits & ADMINISTRATOR:
        return ALL
    if channel is None:
        return bits
    overwrites = {o["id"]: o for o in channel.get("permission_overwrites", [])}
    if everyone := overwrites.get(guild_id):
        bits = bits & ~int(everyone["deny"]) | int(everyone["allow"])
    own = [overwrites[role_id] for role_id in member["roles"] if role_id in overwrites]
    for overwrite in own:
        bits &= ~int(overwrite["deny"])
    for overwrite in own:
        bits |= int(overwrite["allow"])
    if mine := overwrites.get(user_id):
        bits = bits & ~int(mine["deny"]) | int(mine["allow"])
    return bits if bits & VIEW_CHANNEL else 0
