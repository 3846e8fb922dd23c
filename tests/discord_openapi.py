"""A judge of traffic with Discord's API: the official OpenAPI description, and the rules it is known to lack.

The description is Discord's public `openapi.json` (v10). It is looked for at STOA_DISCORD_OPENAPI, then beside the
repository in `shared/discord/`.
"""

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema_rs
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.jsonschema import DRAFT202012

Json = dict[str, Any]
DESCRIPTION_ENV = "STOA_DISCORD_OPENAPI"
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "discord" / "openapi.json"
URI = "urn:discord"

# Keys that stock discord.py sends and Discord accepts, though the description's request schemas leave them out.
EXTRA_KEYS = {"tts", "nsfw", "nonce", "enforce_nonce", "fail_if_not_exists"}
# The same for parts of a body: attachments that an edit keeps are sent back whole.
EXTRA_KEYS_IN = {
    ".attachments[": {"proxy_url", "size", "url", "spoiler", "height", "width", "content_type"},
    ".embeds[": {"flags", "type"},
}
# Answers that say a request was wrong in itself: an empty message, a form's errors, no JSON, too large a file.
MALFORMED = {50006, 50035, 50109, 40005}
COMPONENTS_V2 = 1 << 15
COMMANDS = re.compile(r"^/applications/\d+(/guilds/\d+)?/commands(/\d+)?$")
MAX_COMMANDS = {1: 100, 2: 15, 3: 15}
EDIT = re.compile(r"/messages/(\d+|@original)$")
COMMAND_NAME = re.compile(r"^[-_'\w]{1,32}$")


def find_description() -> Path | None:
    """Where Discord's description is on this machine, if it is."""
    named = os.environ.get(DESCRIPTION_ENV)
    path = Path(named) if named else BESIDE
    return path if path.is_file() else None


class DiscordJudge:
    """Judges exchanges and dispatches as the sandbox records them; each returns a list of problems, empty if none."""

    def __init__(self, path: Path | None = None) -> None:
        found = path or find_description()
        if found is None:
            raise FileNotFoundError(f"Discord's API description is neither at {DESCRIPTION_ENV} nor at {BESIDE}.")
        self.description: Json = json.loads(found.read_text(encoding="utf-8"))
        _soften(self.description)
        resource = DRAFT202012.create_resource(self.description)
        self._registry: Registry[Any] = Registry().with_resource(URI, resource)
        self._quick_registry = jsonschema_rs.Registry([(URI, self.description)])
        self._quick: dict[str, jsonschema_rs.Draft202012Validator] = {}
        self._known: dict[str, Any] = {}
        self._routes = [(_pattern(path), path) for path in sorted(self.description["paths"], key=_generality)]

    def judge(self, exchange: Json) -> list[str]:
        """Problems of one REST exchange: its path, request and answer."""
        method, path = exchange["method"].lower(), exchange["path"]
        template = next((t for pattern, t in self._routes if pattern.match(path) and method in self._path(t)), None)
        where = f"{exchange['method']} {path}"
        status = exchange["status"]
        if template is None:
            return [] if status in (404, 405) else [f"{where}: Discord has no such operation"]
        pointer = f"/paths/{_escape(template)}/{method}"
        operation = self._path(template)[method]
        problems = []
        refused = status >= 400
        if status >= 500 and not exchange.get("fault"):
            problems.append(f"{where}: the sandbox itself failed")
        request = exchange.get("request")
        # A refused request is allowed to be wrong: that is why it was refused.
        if request is not None and not refused:
            problems += [f"{where}: request {p}" for p in self._request(pointer, operation, path, request)]
        problems += [f"{where}: answer {status} {p}" for p in self._answer(pointer, operation, exchange)]
        return problems

    def judge_dispatch(self, entry: Json) -> list[str]:
        """Problems of a gateway event, for the events whose data a REST schema describes."""
        name, data = entry["t"], entry["d"]
        schema = {
            "MESSAGE_CREATE": "MessageResponse",
            "MESSAGE_UPDATE": "MessageResponse",
            "CHANNEL_CREATE": "GuildChannelResponse",
            "CHANNEL_UPDATE": "GuildChannelResponse",
            "CHANNEL_DELETE": "GuildChannelResponse",
            "THREAD_CREATE": "ThreadResponse",
            "THREAD_UPDATE": "ThreadResponse",
            "GUILD_MEMBER_ADD": "GuildMemberResponse",
            "GUILD_MEMBER_UPDATE": "GuildMemberResponse",
        }.get(name)
        if schema is None:
            return []
        return [f"{name}: {problem}" for problem in self._check(f"/components/schemas/{schema}", data)]

    def judge_recorded(self, folder: Path) -> list[str]:
        """Problems of all that a sandbox recorded in its folder, REST and gateway."""
        found = [problem for exchange in recorded(folder, "exchanges.jsonl") for problem in self.judge(exchange)]
        return found + [p for entry in recorded(folder, "dispatches.jsonl") for p in self.judge_dispatch(entry)]

    def _path(self, template: str) -> Json:
        found: Json = self.description["paths"][template]
        return found

    def _request(self, pointer: str, operation: Json, path: str, body: Any) -> Iterator[str]:
        content = operation.get("requestBody", {}).get("content", {})
        if not content:
            if body:
                yield "has a body where Discord takes none"
            return
        if "application/json" not in content:
            return
        place = f"{pointer}/requestBody/content/application~1json/schema"
        plain = _strings_for_ids(body)
        yield from self._check(place, plain)
        yield from _unknown_keys(self._keys(place), plain)
        yield from _rules(path, body)

    def _answer(self, pointer: str, operation: Json, exchange: Json) -> Iterator[str]:
        status, body = exchange["status"], exchange["response"]
        responses = operation["responses"]
        if status == 429:
            yield from self._check("/components/schemas/RatelimitedResponse", body)
        elif status >= 400:
            yield from self._check("/components/schemas/ErrorResponse", body)
            if isinstance(body, dict) and body.get("code") == 50035 and not body.get("errors"):
                yield "is 50035 without the form's errors"
        elif str(status) not in responses:
            yield f"is not among {', '.join(responses)}"
        elif content := responses[str(status)].get("content"):
            if "application/json" in content:
                yield from self._check(f"{pointer}/responses/{status}/content/application~1json/schema", body)
        elif body is not None:
            yield "has a body where Discord sends none"

    def _check(self, pointer: str, value: Any) -> Iterator[str]:
        schema = {"$ref": f"{URI}#{quote(pointer)}"}
        if pointer not in self._quick:
            self._quick[pointer] = jsonschema_rs.Draft202012Validator(schema, registry=self._quick_registry)
        if self._quick[pointer].is_valid(value):
            return
        # jsonschema takes many times as long, and knows which of several faults to name.
        error = best_match(Draft202012Validator(schema, registry=self._registry).iter_errors(value))
        assert error is not None, "the two validators disagree"
        # The message begins with the whole value; its end says what is wrong.
        message = error.message if len(error.message) < 300 else f"{error.message[:120]} … {error.message[-160:]}"
        yield f"at {error.json_path}: {message}"

    def _keys(self, pointer: str) -> Any:
        """The tree of keys a request may have: {key: tree}, or None where anything goes."""
        if pointer not in self._known:
            node: Any = self.description
            for step in pointer.strip("/").split("/"):
                node = node[step.replace("~1", "/").replace("~0", "~")]
            self._known[pointer] = self._tree(node, ())
        return self._known[pointer]

    def _tree(self, schema: Any, seen: tuple[str, ...]) -> Json | None:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name in seen:
                return None
            return self._tree(self.description["components"]["schemas"][name], (*seen, name))
        if "additionalProperties" in schema and "properties" not in schema:
            return None
        tree: Json = {}
        for key, inner in schema.get("properties", {}).items():
            tree[key] = _merged(tree.get(key, {}), self._tree(inner, seen))
        if "items" in schema:
            tree = _merged(tree, self._tree(schema["items"], seen)) or {}
        for kind in ("oneOf", "anyOf", "allOf"):
            for option in schema.get(kind, []):
                merged = _merged(tree, self._tree(option, seen))
                if merged is None:
                    return None
                tree = merged
        return tree


def recorded(folder: Path, name: str) -> list[Json]:
    """The entries of one of a sandbox's journals."""
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def malformed(folder: Path) -> list[str]:
    """The requests that a sandbox refused as wrong in themselves: no time or place would have made them right."""
    return [
        f"{exchange['method']} {exchange['path']}: was refused: {exchange['response']}"
        for exchange in recorded(folder, "exchanges.jsonl")
        if exchange["status"] >= 400 and (exchange["response"] or {}).get("code") in MALFORMED
    ]


def loose_mentions(folder: Path) -> list[str]:
    """The messages by which more could be pinged than the one person or role that the bot itself names in a post.

    Whatever carries text says so itself: Discord pings all that a message without `allowed_mentions` names.
    """
    found = []
    for exchange in recorded(folder, "exchanges.jsonl"):
        body, path = exchange["request"], exchange["path"]
        message = body.get("data") if path.startswith("/interactions/") and isinstance(body, dict) else body
        if not isinstance(message, dict) or not any(message.get(key) for key in ("content", "embeds", "components")):
            continue
        if "title" in message or "custom_id" in message:  # a form, which is no message
            continue
        allowed = message.get("allowed_mentions") or {"parse": ["everything"]}
        named = [str(one) for key in ("users", "roles") for one in allowed.get(key) or []]
        posts = exchange["method"] == "POST" and path.startswith("/channels/")
        said = json.dumps([message.get(key) for key in ("content", "components")])
        line = re.search(r"-# For <@&?(\d+)>", said) if posts else None
        if allowed.get("parse") != [] or named not in ([], [line[1]] if line else []):
            found.append(f"{exchange['method']} {path}: may ping by {allowed}: {said[:200]}")
    return found


def _merged(one: Json | None, other: Json | None) -> Json | None:
    if one is None or other is None:
        return None
    out = dict(one)
    for key, tree in other.items():
        out[key] = _merged(out[key], tree) if key in out else tree
    return out


def _unknown_keys(tree: Json | None, value: Any, place: str = "$") -> Iterator[str]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_keys(tree, item, f"{place}[{index}]")
    if tree is None or not isinstance(value, dict) or not tree:
        return
    extra = EXTRA_KEYS | next((keys for holder, keys in EXTRA_KEYS_IN.items() if holder in place), set())
    for key, inner in value.items():
        if key in tree:
            yield from _unknown_keys(tree[key], inner, f"{place}.{key}")
        elif key not in extra:
            yield f"at {place}: unknown key {key!r}"


def _soften(description: Json) -> None:
    """Where the description contradicts what Discord sends: codes of form errors are words, not numbers."""
    schemas = description["components"]["schemas"]
    inner = copy.deepcopy(schemas["Error"])
    inner["properties"]["code"] = {"type": ["integer", "string"]}
    schemas["FormError"] = inner
    schemas["InnerErrors"]["properties"]["_errors"]["items"] = {"$ref": "#/components/schemas/FormError"}


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile("^" + re.sub(r"\\\{[^/]+?\\\}", "[^/]+", re.escape(template)) + "$")


def _generality(template: str) -> int:
    """Literal paths before those with parameters, so that /users/@me is not read as a user's id."""
    return template.count("{")


def _escape(template: str) -> str:
    return template.replace("~", "~0").replace("/", "~1")


def _strings_for_ids(body: Any) -> Any:
    """A copy with the integer ids that discord.py sends in some places as the strings that the description wants."""
    body = copy.deepcopy(body)
    for holder in (body, body.get("data")) if isinstance(body, dict) else ():
        if isinstance(holder, dict):
            for item in [*(holder.get("attachments") or []), *(holder.get("permission_overwrites") or [])]:
                item["id"] = str(item["id"])
            for item in holder.get("permission_overwrites") or []:
                item.update({key: int(item[key]) for key in ("allow", "deny") if isinstance(item.get(key), str)})
            # A new role's bits; in commands and answers Discord itself names bits as text.
            if isinstance(holder.get("permissions"), str) and holder["permissions"].isdigit():
                holder["permissions"] = int(holder["permissions"])
            if isinstance(holder.get("parent_id"), int):
                holder["parent_id"] = str(holder["parent_id"])
            if isinstance(holder.get("sticker_ids"), list):
                holder["sticker_ids"] = [str(item) for item in holder["sticker_ids"]]
            mentions = holder.get("allowed_mentions") or {}
            mentions.update(
                {key: [str(item) for item in mentions[key] or []] for key in ("users", "roles") if key in mentions}
            )
            reference = holder.get("message_reference")
            if isinstance(reference, dict):
                reference.update({k: str(v) for k, v in reference.items() if k.endswith("_id") and v is not None})
    return body


def _rules(path: str, body: Any) -> Iterator[str]:
    """The rules that the description lacks."""
    if COMMANDS.match(path):
        listed = body if isinstance(body, list) else [body]
        for command in listed:
            yield from _command_rules(command, top=True)
        for kind, most in MAX_COMMANDS.items():
            if sum(command.get("type", 1) == kind for command in listed) > most:
                yield f"there are over {most} commands of type {kind}"
        return
    if not isinstance(body, dict):
        return
    message = body["data"] if path.startswith("/interactions/") and isinstance(body.get("data"), dict) else body
    if len(message.get("content") or "") > 2000:
        yield "content is over 2,000 characters"
    if sum(_embed_size(embed) for embed in message.get("embeds") or []) > 6000:
        yield "embeds are over 6,000 characters in sum"
    if len(message.get("topic") or "") > 1024:
        yield "topic is over 1,024 characters"
    if len(str(message.get("nonce") or "")) > 25:
        yield "nonce is over 25 characters"
    everything = list(_walk(message.get("components") or []))
    if len(everything) > 40:
        yield "there are over 40 components"
    custom_ids = [part["custom_id"] for part in everything if part.get("custom_id")]
    if len(set(custom_ids)) < len(custom_ids):
        yield "a custom_id is used twice"
    ids = [part["id"] for part in everything if part.get("id")]
    if len(set(ids)) < len(ids):
        yield "a component's id is used twice"
    if EDIT.search(path):
        named = {f"attachment://{entry.get('filename')}" for entry in message.get("attachments") or []}
        for url in _media(everything):
            if url.startswith("attachment://") and url not in named:
                yield f"an edit shows {url} and does not list it"
    for part in everything:
        yield from _component_rules(part, modal=message.get("title") is not None)
    if (message.get("flags") or 0) & COMPONENTS_V2:
        if message.get("content") or message.get("embeds"):
            yield "Components V2 allows neither content nor embeds"
        if sum(len(part.get("content") or "") for part in everything if part.get("type") == 10) > 4000:
            yield "Components V2 text is over 4,000 characters in sum"


def _media(parts: list[Json]) -> list[str]:
    slots = [slot for part in parts for slot in (part.get("media"), part.get("file"))]
    slots += [item.get("media") for part in parts for item in part.get("items") or []]
    return [slot["url"] for slot in slots if slot]


def _component_rules(part: Json, *, modal: bool) -> Iterator[str]:
    number, low, high = part.get("id") or 0, part.get("min_values"), part.get("max_values")
    if not isinstance(number, int) or number >= 2**31:
        yield "a component's id is no integer of 32 bits"
    if low is not None and high is not None and low > high:
        yield "min_values is over max_values"
    if modal and low == 0 and part.get("required") is not False:
        yield "min_values is 0 where an answer is required"
    if modal and part.get("disabled"):
        yield "a component of a modal is disabled"


def _walk(components: list[Json]) -> Iterator[Json]:
    for part in components:
        yield part
        inner = [part[key] for key in ("accessory", "component") if isinstance(part.get(key), dict)]
        yield from _walk([*(part.get("components") or []), *inner])


def _embed_size(embed: Json) -> int:
    rows = embed.get("fields") or []
    texts = [embed.get("title"), embed.get("description"), (embed.get("footer") or {}).get("text")]
    texts += [(embed.get("author") or {}).get("name"), *(row["name"] for row in rows), *(row["value"] for row in rows)]
    return sum(len(text) for text in texts if text)


def _command_rules(item: Json, *, top: bool = False) -> Iterator[str]:
    name = item.get("name", "")
    slash = item.get("type", 1) == 1 or not top
    if slash and (name != name.lower() or not COMMAND_NAME.match(name)):
        yield f"command or option name {name!r} is not in lower case or has characters that Discord refuses"
    if top and _command_size(item) > 8000:
        yield f"command {name!r} is over 8,000 characters"
    for option in item.get("options") or []:
        yield from _command_rules(option)


def _command_size(item: Json) -> int:
    own = len(item.get("name", "")) + len(item.get("description") or "")
    choices = sum(len(choice["name"]) + len(str(choice["value"])) for choice in item.get("choices") or [])
    return own + choices + sum(_command_size(option) for option in item.get("options") or [])
