"""Bodies with one value gone odd: each is answered as Discord would, none breaks the server."""

import copy
import random
from typing import Any

from tests.sandbox.conftest import Rest

ODD: list[Any] = [None, -1, 10**30, 1.5, "", "x" * 5000, True, [], [None], [[]], {}, {"a": 1}]
OLD = {
    "content": "x",
    "embeds": [{"title": "t", "fields": [{"name": "n", "value": "v"}], "footer": {"text": "f"}, "image": {"url": "http://a/b"}}],
    "allowed_mentions": {"parse": [], "users": ["1"]},
    "components": [{"type": 1, "components": [{"type": 2, "style": 1, "label": "x", "custom_id": "c"}]}],
    "attachments": [],
    "message_reference": {"message_id": "1", "fail_if_not_exists": False},
}  # fmt: skip
NEW = {
    "flags": 1 << 15,
    "components": [
        {"type": 17, "accent_color": 3, "components": [{"type": 10, "content": "x"}, {"type": 14, "spacing": 1}]},
        {"type": 12, "items": [{"media": {"url": "http://a/b"}, "description": "d"}]},
        {
            "type": 9,
            "components": [{"type": 10, "content": "s"}],
            "accessory": {"type": 11, "media": {"url": "http://a"}},
        },
        {"type": 1, "components": [{"type": 3, "custom_id": "s", "options": [{"label": "a", "value": "b"}]}]},
    ],
}
COMMAND = {
    "name": "a",
    "description": "d",
    "options": [{"type": 3, "name": "o", "description": "d", "choices": [{"name": "n", "value": "v"}]}],
    "contexts": [0],
    "default_member_permissions": None,
}
CHANNEL = {"name": "n", "type": 0, "parent_id": None, "permission_overwrites": [{"id": "1", "type": 0, "allow": 0}]}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (holder, key) in a body."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


async def test_odd_bodies_get_an_answer(rest: Rest, info: dict[str, Any], sandbox: Any) -> None:
    sandbox.rates.enforced = False
    general = f"/channels/{info['channels']['general']}/messages"
    commands = f"/applications/{info['application_id']}/guilds/{info['guild_id']}/commands"
    kinds = [(general, OLD), (general, NEW), (commands, COMMAND), (f"/guilds/{info['guild_id']}/channels", CHANNEL)]
    for path, whole in kinds:
        for number in range(len(places(whole))):
            for odd in random.Random(number).sample(ODD, 4):
                body = copy.deepcopy(whole)
                holder, key = places(body)[number]
                holder[key] = odd
                status, answer = await rest("POST", path, body)
                assert status < 500, (path, body)
                assert status < 400 or {"code", "message"} <= set(answer)
