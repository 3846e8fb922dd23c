"""The judge finds what is wrong: in the description's words, and by the rules that the description lacks."""

from typing import Any

import pytest

from tests.discord_openapi import DiscordJudge

PICTURE = {"type": 12, "items": [{"media": {"url": "attachment://a.png"}}]}
REFUSED = {"message": "Unknown Message", "code": 10008}


def exchange(method: str, path: str, request: Any, status: int = 404, response: Any = REFUSED) -> dict[str, Any]:
    return {"method": method, "path": path, "request": request, "status": status, "response": response}


def posted(**body: Any) -> dict[str, Any]:
    """A message that was sent, with an answer that is not looked at."""
    return exchange("POST", "/channels/1/messages", body, 204, None)


def found(judge: DiscordJudge, entry: dict[str, Any]) -> list[str]:
    return [problem for problem in judge.judge(entry) if "is not among" not in problem]


def text(content: str) -> dict[str, Any]:
    return {"type": 10, "content": content}


def test_what_is_right_passes(judge: DiscordJudge) -> None:
    card = {"type": 17, "components": [text("x"), {"type": 12, "items": [{"media": {"url": "attachment://a.png"}}]}]}
    entry = posted(flags=1 << 15, components=[card], attachments=[{"id": 0, "filename": "a.png"}], tts=False)
    assert found(judge, entry) == []
    assert judge.judge(exchange("GET", "/channels/1/messages/2", None)) == []


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (posted(content="x" * 2001), "content is over 2,000"),
        (posted(content="x" * 4001), "is too long"),
        (posted(content="x", colour=3), "unknown key 'colour'"),
        (posted(components=[{"type": 17, "components": [text("x") | {"bold": True}]}]), "unknown key 'bold'"),
        (posted(embeds=[{"description": "x" * 4000}] * 2), "embeds are over 6,000"),
        (posted(content="x", nonce="n" * 26), "nonce is over 25"),
        (posted(flags=1 << 15, content="x", components=[text("x")]), "neither content nor embeds"),
        (posted(flags=1 << 15, components=[text("x" * 2001)] * 2), "over 4,000 characters in sum"),
        (posted(flags=1 << 15, components=[{"type": 17, "components": [text("x")] * 40}]), "over 40 components"),
        (posted(components=[{"type": 1, "components": []}]), "components"),
        (posted(flags=1 << 15, components=[text("x") | {"id": 2**31}]), "no integer of 32 bits"),
        (posted(flags=1 << 15, components=[text("x") | {"id": 3}, text("y") | {"id": 3}]), "id is used twice"),
        (
            exchange("PATCH", "/channels/1/messages/2", {"flags": 1 << 15, "components": [PICTURE]}, 204),
            "shows attachment://a.png and does not list it",
        ),
        (
            exchange("PUT", "/applications/1/commands", [{"name": str(n), "type": 3} for n in range(16)], 200, []),
            "over 15 commands of type 3",
        ),
        (exchange("POST", "/guilds/1/channels", {"name": "x", "topic": "t" * 1025}, 204), "topic is over 1,024"),
        (
            exchange("PUT", "/applications/1/commands", [{"name": "Up", "description": "d"}], 200, []),
            "lower case",
        ),
        (exchange("POST", "/channels/1/letters", {}, 200, {}), "no such operation"),
        (exchange("GET", "/users/@me", None, 200, {"id": "1"}), "is a required property"),
        (exchange("GET", "/channels/1", None, 404, {"message": "no code"}), "'code' is a required property"),
        (exchange("GET", "/channels/1", None, 400, {"message": "Invalid", "code": 50035}), "without the form's errors"),
        (exchange("GET", "/channels/1", None, 500, {"message": "500: oh", "code": 0}), "the sandbox itself failed"),
        (exchange("GET", "/channels/1", None, 429, {"message": "slow", "code": 0}), "is a required property"),
    ],
)
def test_what_is_wrong_is_found(judge: DiscordJudge, entry: dict[str, Any], problem: str) -> None:
    assert any(problem in line for line in judge.judge(entry)), judge.judge(entry)


def test_a_dispatch_that_is_no_message(judge: DiscordJudge) -> None:
    assert judge.judge_dispatch({"op": 0, "t": "MESSAGE_CREATE", "d": {"id": "1"}}) != []
    assert judge.judge_dispatch({"op": 0, "t": "RESUMED", "d": {}}) == []
