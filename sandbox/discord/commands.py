"""Application commands: what a bot may register, and how a person's words become an invocation of one."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from sandbox.discord import attachments, permissions
from sandbox.discord.attachments import Draft, Upload
from sandbox.discord.errors import ApiError, Json
from sandbox.discord.form import Form
from sandbox.discord.state import World

SUBCOMMAND, GROUP, STRING, INTEGER, BOOLEAN, USER, CHANNEL, ROLE, MENTIONABLE, NUMBER, ATTACHMENT = range(1, 12)
KINDS = {STRING: "text", INTEGER: "a whole number", BOOLEAN: "true or false", USER: "a member", CHANNEL: "a channel"}
KINDS |= {ROLE: "a role", MENTIONABLE: "a member or role", NUMBER: "a number", ATTACHMENT: "a file"}
NAME = re.compile(r"^[-_'\w]{1,32}$")
MAX_OPTIONS, MAX_CHOICES, MAX_CHARACTERS = 25, 25, 8000
CHAT_INPUT, USER_MENU, MESSAGE_MENU, ENTRY_POINT = 1, 2, 3, 4
MAX_COMMANDS = {CHAT_INPUT: 100, USER_MENU: 15, MESSAGE_MENU: 15, ENTRY_POINT: 1}
"""How many commands of each type an app has in a scope: globally, or in a guild."""
BOUND = 2**53


class InputError(Exception):
    """Something a person cannot do in a Discord client; the text says what and why."""


def check(form: Form, command: Any, *, of_guild: bool) -> None:
    """Faults of a command's definition as a bot registers it, globally or in a guild."""
    if not isinstance(command, dict):
        form.fault("MODEL_TYPE_CONVERT", "Only dictionaries may be used in a ModelType")
        return
    kind = form.choice(command, "type", {1, 2, 3, 4}) or 1
    if kind == ENTRY_POINT and of_guild:
        form.at("type").fault("APPLICATION_COMMAND_INVALID", "An entry point is a global command")
    if kind == 1:
        _check_name(form, command)
        form.text(command, "description", 1, 100, required=True)
        _check_options(form, command, {SUBCOMMAND, GROUP, *KINDS})
    else:
        form.text(command, "name", 1, 32, required=True)
        for key in ("description", "options"):
            if command.get(key):
                form.at(key).fault("APPLICATION_COMMAND_INVALID", f"Context menu commands cannot have {key}")
    form.integer(command, "default_member_permissions", 0, BOUND)
    for key, kinds in (("contexts", {0, 1, 2}), ("integration_types", {0, 1})):
        for index, item in enumerate(form.items(command, key, 1, 3)):
            form.at(key).choice({str(index): item}, str(index), kinds, required=True)
    if not form.faults and characters(command) > MAX_CHARACTERS:
        form.fault("APPLICATION_COMMAND_TOO_LARGE", f"Command exceeds maximum size ({MAX_CHARACTERS})")


def characters(item: Json) -> int:
    """The size that Discord limits: names, descriptions and choices' values of a command and all below it."""
    own = len(item.get("name", "")) + len(item.get("description") or "")
    choices = sum(len(choice["name"]) + len(str(choice["value"])) for choice in item.get("choices") or [])
    return own + choices + sum(characters(option) for option in item.get("options") or [])


def _check_name(form: Form, item: Json) -> None:
    name = form.text(item, "name", 1, 32, required=True)
    if name is not None and (not NAME.match(name) or name != name.lower()):
        form.at("name").fault("APPLICATION_COMMAND_INVALID_NAME", "Command name is invalid")


def _check_options(form: Form, parent: Json, allowed: set[int]) -> None:
    options = form.items(parent, "options", 0, MAX_OPTIONS)
    names: set[str] = set()
    optional_seen = False
    nests = [isinstance(o, dict) and o.get("type") in (SUBCOMMAND, GROUP) for o in options]
    if any(nests) and not all(nests):
        form.at("options").fault(
            "APPLICATION_COMMAND_OPTIONS_TYPE_INVALID",
            "Sub-command and sub-command group option types are mutually exclusive to all other types",
        )
    for index, option in enumerate(options):
        here = form.at("options", index)
        if not isinstance(option, dict):
            here.fault("MODEL_TYPE_CONVERT", "Only dictionaries may be used in a ModelType")
            continue
        kind = here.choice(option, "type", allowed, required=True)
        _check_name(here, option)
        here.text(option, "description", 1, 100, required=True)
        if str(option.get("name")) in names:
            here.fault("APPLICATION_COMMAND_OPTIONS_NAME_INVALID", "Option name already exists")
        names.add(str(option.get("name")))
        if kind == GROUP:
            _check_options(here, option, {SUBCOMMAND})
        elif kind == SUBCOMMAND:
            _check_options(here, option, set(KINDS))
        elif kind is not None:
            if option.get("required") and optional_seen:
                here.fault(
                    "APPLICATION_COMMAND_OPTIONS_REQUIRED_INVALID",
                    "Required options must be placed before non-required options",
                )
            optional_seen = optional_seen or not option.get("required")
            _check_value_option(here, option, kind)


def _check_value_option(form: Form, option: Json, kind: int) -> None:
    choices = form.items(option, "choices", 0, MAX_CHOICES)
    for index, choice in enumerate(choices):
        here = form.at("choices", index)
        here.text(choice, "name", 1, 100, required=True)
        if kind == STRING:
            here.text(choice, "value", 1, 100, required=True)
        elif isinstance(choice.get("value"), bool) or not isinstance(choice.get("value"), int | float):
            here.at("value").fault("NUMBER_TYPE_COERCE", f'Value "{choice.get("value")}" is not a number.')
    if choices and option.get("autocomplete"):
        form.at("autocomplete").fault(
            "APPLICATION_COMMAND_OPTIONS_AUTOCOMPLETE_INVALID", "Choices exclude autocomplete"
        )
    if kind not in (STRING, INTEGER, NUMBER) and (choices or option.get("autocomplete")):
        form.fault("APPLICATION_COMMAND_OPTIONS_TYPE_INVALID", "Only text and numbers have choices or autocomplete")
    if kind == STRING:
        form.integer(option, "min_length", 0, 6000)
        form.integer(option, "max_length", 1, 6000)
    if kind == INTEGER:
        form.integer(option, "min_value", 1 - BOUND, BOUND - 1)
        form.integer(option, "max_value", 1 - BOUND, BOUND - 1)


def check_count(kinds: Iterable[int]) -> None:
    """Raises ApiError 30032 where a scope would have more commands of a type than an app may have there."""
    for kind, count in Counter(kinds).items():
        if count > MAX_COMMANDS[kind]:
            raise ApiError(30032, message=f"Maximum number of application commands reached ({MAX_COMMANDS[kind]})")


def offered(command: Json, bits: int) -> bool:
    """Whether a command is shown to who has these permissions: "0" asks for an administrator, a number for all."""
    needed = command["default_member_permissions"]
    asked = 0 if needed is None else int(needed) or permissions.ADMINISTRATOR
    return bits & asked == asked


def named(world: World, kind: int, name: str) -> Json | None:
    """The command of a type and a name; a guild's own hides a global one."""
    found = [c for c in world.commands.values() if (c["type"], c["name"]) == (kind, name)]
    return next((c for c in found if c.get("guild_id")), found[0] if found else None)


def find(world: World, words: str) -> tuple[Json, list[Json], Json]:
    """The command that "group sub" names: the root, the steps below it, and the one that carries the options.

    Raises InputError where the bot has registered none of that name.
    """
    first, *rest = words.removeprefix("/").split()
    root = named(world, CHAT_INPUT, first)
    if root is None:
        slashed = sorted("/" + c["name"] for c in world.commands.values() if c["type"] == CHAT_INPUT)
        known = ", ".join(slashed) or "none"
        raise InputError(f"The bot has registered no command /{first}; registered: {known}.")
    steps: list[Json] = []
    here = root
    for word in rest:
        below = {o["name"]: o for o in here.get("options", []) if o["type"] in (SUBCOMMAND, GROUP)}
        if word not in below:
            raise InputError(
                f"/{words} does not exist; under {here['name']} there is: {', '.join(sorted(below)) or 'nothing'}."
            )
        here = below[word]
        steps.append(here)
    if missing := [o["name"] for o in here.get("options", []) if o["type"] in (SUBCOMMAND, GROUP)]:
        raise InputError(f"/{words} needs one of its subcommands: {', '.join(sorted(missing))}.")
    return root, steps, here


def nest(root: Json, steps: list[Json], options: list[Json]) -> Json:
    """The `data` of an interaction: filled options wrapped in the subcommands they stand in."""
    for step in reversed(steps):
        options = [{"type": step["type"], "name": step["name"], "options": options}]
    data: Json = {"id": root["id"], "name": root["name"], "type": root["type"], "options": options}
    if root.get("guild_id"):
        data["guild_id"] = root["guild_id"]
    return data


def fill(world: World, leaf: Json, given: Json, resolved: Json, *, focused: str | None = None) -> list[Json]:
    """A person's values as an interaction's options, checked as a Discord client does; `resolved` gains what they name.

    Raises InputError for unknown, missing or impossible values; while one option is `focused` none is required, and
    an impossible one goes to the bot as it was typed.
    """
    declared = {option["name"]: option for option in leaf.get("options", [])}
    for name in given:
        if name not in declared:
            raise InputError(f"/{leaf['name']} has no option {name}; it has: {', '.join(declared) or 'none'}.")
    filled = []
    for name, option in declared.items():
        if given.get(name) is None:
            if option.get("required") and focused is None:
                raise InputError(f"/{leaf['name']} needs the option {name}.")
            continue
        value = given[name]
        if name != focused:
            try:
                value = _value(world, option, value, resolved)
            except InputError:
                if focused is None:
                    raise
        entry: Json = {"name": name, "type": option["type"], "value": value}
        if name == focused:
            entry["focused"] = True
        filled.append(entry)
    return filled


def _value(world: World, option: Json, value: Any, resolved: Json) -> Any:
    kind, name = option["type"], option["name"]
    if choices := option.get("choices"):
        by_label = {choice["name"]: choice["value"] for choice in choices}
        value = by_label.get(value, value)
        if value not in by_label.values():
            raise InputError(f"{name} must be one of: {', '.join(by_label)}.")
    match kind:
        case 3:
            if not isinstance(value, str):
                raise InputError(f"{name} must be text.")
            low, high = option.get("min_length", 0), option.get("max_length", 6000)
            if not low <= len(value) <= high:
                raise InputError(f"{name} must have between {low} and {high} characters; it has {len(value)}.")
        case 4 | 10:
            wanted = int if kind == INTEGER else (int, float)
            if isinstance(value, bool) or not isinstance(value, wanted):
                raise InputError(f"{name} must be {KINDS[kind]}; it is {value!r}.")
            low, high = option.get("min_value", -BOUND), option.get("max_value", BOUND)
            if not low <= value <= high:
                raise InputError(f"{name} must be between {low} and {high}; it is {value}.")
        case 5:
            if not isinstance(value, bool):
                raise InputError(f"{name} must be true or false.")
        case 6 | 7 | 8 | 9:
            return _entity(world, option, str(value), resolved)
        case _:
            return _file(world, name, value, resolved)
    return value


def _file(world: World, option: str, value: Any, resolved: Json) -> str:
    """The id of a file that a person attaches to a command: its name and its text."""
    if not (isinstance(value, dict) and value.keys() == {"filename", "content"}):
        raise InputError(f"{option} takes a file: its filename and its content.")
    draft = Draft({}, [Upload(0, str(value["filename"]), str(value["content"]).encode())])
    (attachment,) = attachments.store(world, world.application_id, draft, ephemeral=True)
    resolved.setdefault("attachments", {})[attachment["id"]] = attachment
    return str(attachment["id"])


def _entity(world: World, option: Json, value: str, resolved: Json) -> str:
    """The id of a member, role or channel given by name or id."""
    kind = option["type"]
    if kind in (USER, MENTIONABLE) and (user := find_user(world, value)):
        resolved.setdefault("users", {})[user["id"]] = user
        member = {key: item for key, item in world.members[user["id"]].items() if key not in ("user", "deaf", "mute")}
        member["permissions"] = str(world.permissions(user["id"]))
        resolved.setdefault("members", {})[user["id"]] = member
        return str(user["id"])
    if kind in (ROLE, MENTIONABLE):
        for role in world.roles.values():
            if value in (role["id"], role["name"]):
                resolved.setdefault("roles", {})[role["id"]] = role
                return str(role["id"])
    if kind == CHANNEL:
        for channel in world.channels.values():
            if value in (channel["id"], channel["name"]):
                keys = ("id", "name", "type", "parent_id", "guild_id", "flags", "position", "topic", "thread_metadata")
                shown = {key: channel[key] for key in keys if key in channel}
                shown["permissions"] = str(world.permissions(world.application_id, channel))
                resolved.setdefault("channels", {})[channel["id"]] = shown
                return str(channel["id"])
    raise InputError(f"{option['name']} must be {KINDS[kind]}; there is no {value!r}.")


def find_user(world: World, value: str) -> Json | None:
    for user in world.users.values():
        if value in (user["id"], user["username"], user["global_name"]) and user["id"] in world.members:
            return user
    return None
