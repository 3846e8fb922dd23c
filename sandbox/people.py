"""Acting as the people of the sandbox's guild, over its HTTP side: commands, buttons, forms, and reading channels.

guild = await Guild.open(Path("var/demo"))
ada = guild.person("Ada")
form = await ada.command("project propose", channel="general")
answer = await ada.submit(form, {"Title": "Scaling laws of small models"})
"""

# ruff: noqa: ASYNC109, ASYNC110 - waiting for someone else's server is by polling, with the caller's own timeout.

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from sandbox.patience import PATIENCE

Json = dict[str, Any]


class ActionError(Exception):
    """Something a person cannot do in a Discord client, with the reason."""


@dataclass(frozen=True)
class Button:
    label: str
    custom_id: str | None
    disabled: bool
    url: str | None


@dataclass(frozen=True)
class Attachment:
    """A file of a message; `description` is its alternative text, `path` where the sandbox keeps the bytes."""

    filename: str
    description: str | None
    path: Path
    url: str
    size: int


@dataclass(frozen=True)
class Message:
    """A message as a reader sees it. `text` is content and Components V2 text in reading order, a line each."""

    id: str
    type: int
    channel_id: str
    author: str
    author_id: str
    text: str
    content: str
    components: list[Json]
    embeds: list[Json]
    buttons: list[Button]
    edits: int
    attachments: list[Attachment]
    nonce: str | None
    flags: int
    pinned: bool
    thread_id: str | None
    ephemeral: bool
    created_at: str

    @classmethod
    def read(cls, data: Json) -> Self:
        buttons = [Button(**button) for button in data["buttons"]]
        files = [Attachment(**(item | {"path": Path(item["path"])})) for item in data["attachments"]]
        return cls(**(data | {"buttons": buttons, "attachments": files}))

    @property
    def button_labels(self) -> list[str]:
        return [button.label for button in self.buttons]


@dataclass(frozen=True)
class Field:
    """An input of a form. `options` are the labels of a select; `type` is Discord's component type."""

    custom_id: str
    label: str
    type: int
    style: int | None
    required: bool
    value: str | None
    placeholder: str | None
    min_length: int | None
    max_length: int | None
    options: list[str]


@dataclass(frozen=True)
class Answer:
    """What a person sees after an act.

    `kind` is "message", "modal", "update" (the message pressed on was changed), "deferred" (nothing came within the
    timeout) or "none" (the bot did not answer within 3 s).
    """

    interaction_id: str
    kind: str
    ephemeral: bool
    message: Message | None
    title: str
    fields: list[Field] = field(default_factory=list)
    followups: list[Message] = field(default_factory=list)
    choices: list[tuple[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.message.text if self.message else ""

    @property
    def components(self) -> list[Json]:
        return self.message.components if self.message else []

    @classmethod
    def read(cls, data: Json) -> Self:
        modal = data["modal"] or {"title": "", "fields": []}
        return cls(
            interaction_id=data["interaction_id"],
            kind=data["kind"],
            ephemeral=data["ephemeral"],
            message=Message.read(data["message"]) if data["message"] else None,
            title=modal["title"],
            fields=[Field(**item) for item in modal["fields"]],
            followups=[Message.read(item) for item in data["followups"]],
            choices=[(choice["name"], choice["value"]) for choice in data["choices"]],
        )


@dataclass(frozen=True)
class Channel:
    """A channel or thread; a thread's `parent_id` is its channel."""

    id: str
    name: str
    topic: str | None
    parent_id: str | None
    is_thread: bool
    raw: Json


class Guild:
    """The sandbox's guild. `info` is what `sandbox.json` says; close it, or use it as an async context."""

    def __init__(self, info: Json) -> None:
        self.info = info
        # How long is waited is each call's own.
        self._http = aiohttp.ClientSession(base_url=info["discord"], timeout=aiohttp.ClientTimeout(total=None))

    @classmethod
    async def open(cls, root: Path, timeout: float = PATIENCE) -> Self:
        """Waits for `root/sandbox.json`.

        Raises TimeoutError where no sandbox starts there in time.
        """
        path = root / "sandbox.json"
        async with asyncio.timeout(timeout):
            while not path.exists():
                await asyncio.sleep(0.05)
        return cls(json.loads(path.read_text(encoding="utf-8")))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.close()

    async def call(self, method: str, path: str, body: Json | None = None, **query: str) -> Any:
        """A request to the people's side.

        Raises ActionError with the server's sentence where it refuses.
        """
        async with self._http.request(method, f"/sandbox{path}", json=body, params=query) as response:
            if response.content_type != "application/json":
                raise RuntimeError(f"The sandbox answered {response.status}: {(await response.text())[:500]}")
            data = await response.json()
            if response.status >= 400:
                raise ActionError(data["error"])
            return data

    def person(self, name: str) -> "Person":
        return Person(self, name)

    async def messages(self, channel: str, *, system: bool = False) -> list[Message]:
        """The messages of a channel or thread, by name or id, oldest first; `system` adds Discord's own notes."""
        listed = [Message.read(item) for item in await self.call("GET", f"/channels/{channel}/messages")]
        return [message for message in listed if system or message.type not in (18, 21)]

    async def channels(self) -> list[Channel]:
        """All channels and threads, categories left out."""
        listed = (await self.call("GET", "/guild"))["channels"]
        return [
            Channel(c["id"], c["name"], c.get("topic"), c.get("parent_id"), "thread_metadata" in c, c)
            for c in listed
            if c["type"] != 4
        ]

    async def holders(self, role: str) -> list[str] | None:
        """The names of those who hold a role; None where the guild has no such role."""
        held: dict[str, list[str]] = (await self.call("GET", "/guild"))["holders"]
        return held.get(role)

    async def commands(self) -> list[Json]:
        """The commands that the bot has registered, as Discord returns them."""
        listed: list[Json] = await self.call("GET", "/commands")
        return listed

    async def bot_connected(self) -> bool:
        return bool((await self.call("GET", "/guild"))["bot_connected"])

    async def wait_for(
        self, channel: str, predicate: Callable[[Message], object], timeout: float = PATIENCE, every: float = 0.1
    ) -> Message:
        """The first message in a channel that fits, looking again until there is one.

        The channel itself need not exist yet. Raises TimeoutError that tells what the channel held.
        """
        seen: list[Message] = []
        reason = "it stayed empty"
        ends = time.monotonic() + timeout
        while True:
            try:
                seen = await self.messages(channel)
            except ActionError as error:
                reason = str(error)
            for message in seen:
                if predicate(message):
                    return message
            if time.monotonic() > ends:
                held = "; ".join(message.text[:80] for message in seen[-5:]) or reason
                raise TimeoutError(f"No message in #{channel} fitted within {timeout:g} s; last: {held}")
            await asyncio.sleep(every)

    async def wait_for_channel(self, predicate: Callable[[Channel], bool], timeout: float = PATIENCE) -> Channel:
        """The first channel or thread that fits.

        Raises TimeoutError with the names there are.
        """
        ends = time.monotonic() + timeout
        while True:
            listed = await self.channels()
            for channel in listed:
                if predicate(channel):
                    return channel
            if time.monotonic() > ends:
                names = ", ".join(channel.name for channel in listed)
                raise TimeoutError(f"No channel fitted within {timeout:g} s; there are: {names}")
            await asyncio.sleep(0.1)

    async def wait_for_bot(self, command: str = "", timeout: float = PATIENCE) -> None:
        """Waits until the bot is on the gateway and, where named, has registered the command."""
        async with asyncio.timeout(timeout):
            while True:
                known = {entry["name"] for entry in await self.commands()} if command else {""}
                if command in known and await self.bot_connected():
                    return
                await asyncio.sleep(0.1)

    async def answer(self, before: Answer) -> Answer:
        """An answer as it stands now, with the follow-ups that came since."""
        return Answer.read(await self.call("GET", f"/interactions/{before.interaction_id}"))

    async def wait_for_answer(
        self, before: Answer, predicate: Callable[[Answer], object], timeout: float = PATIENCE
    ) -> Answer:
        """An answer once it fits, with what came of it since.

        Raises TimeoutError that tells how it stood.
        """
        ends = time.monotonic() + timeout
        while True:
            now = await self.answer(before)
            if predicate(now):
                return now
            if time.monotonic() > ends:
                raise TimeoutError(f"The answer did not fit within {timeout:g} s: {now.kind}, {now.text[:200]}")
            await asyncio.sleep(0.1)

    async def join(self, name: str) -> "Person":
        """A new member comes in."""
        await self.call("POST", "/members", {"name": name})
        return self.person(name)

    async def set_roles(self, person: str, roles: list[str]) -> None:
        await self.call("PUT", "/members/roles", {"user": person, "roles": roles})

    async def set_permissions(self, role: str, bits: int) -> None:
        await self.call("PUT", "/roles/permissions", {"role": role, "permissions": bits})

    async def fault(
        self,
        pattern: str,
        *,
        count: int = 1,
        status: int | None = None,
        cut: bool = False,
        delay: float = 0.0,
        retry_after: float = 1.0,
    ) -> None:
        """Breaks the next `count` bot requests whose "METHOD /path" matches the regex.

        `status` answers so and does nothing; `cut` does the work and hangs up before the answer, or with a `status`
        answers so; `delay` waits first, until the faults are cleared at most.
        """
        order = {"pattern": pattern, "count": count, "status": status, "cut": cut, "delay": delay}
        await self.call("POST", "/faults", order | {"retry_after": retry_after})

    async def clear_faults(self) -> None:
        await self.call("DELETE", "/faults")

    async def limit(self, route: str, requests: int, seconds: float) -> None:
        """Sets the rate limit of a route such as "POST /channels/{channel_id}/messages".

        Four are no routes: "rename", "old edit" (of messages older than an hour), "invalid" (401, 403, 429) and
        "global".
        """
        await self.call("POST", "/limits", {"route": route, "requests": requests, "seconds": seconds})

    async def count_as_old(self, seconds: float) -> None:
        """Sets the age from which a message's edits have a limit of their own; an hour on Discord."""
        await self.call("POST", "/limits", {"old_seconds": seconds})

    async def token_lasts(self, seconds: float) -> None:
        """Sets for how long an interaction's token is good; 15 minutes on Discord."""
        await self.call("POST", "/limits", {"token_seconds": seconds})

    async def nonce_lasts(self, seconds: float) -> None:
        """Sets for how long a nonce keeps a second message away."""
        await self.call("POST", "/limits", {"nonce_seconds": seconds})

    async def enforce_limits(self, on: bool) -> None:
        await self.call("POST", "/limits", {"enforced": on})

    async def grant_intents(self, bits: int) -> None:
        """Grants the application privileged intents, as bits."""
        await self.call("POST", "/intents", {"privileged": bits})

    async def invite_bot_again(self) -> None:
        """Removes the bot from the guild and invites it again; its commands there are gone."""
        await self.call("POST", "/bot/invite")

    async def drop_gateway(self, *, forget: bool = False) -> int:
        """Cuts all gateway connections; with `forget`, a resume gets INVALID_SESSION. Returns how many were cut."""
        return int((await self.call("POST", "/gateway/drop", {"forget": forget}))["closed"])


@dataclass(frozen=True)
class Person:
    """A member of the guild, acting."""

    guild: Guild
    name: str

    async def _act(self, act: str, body: Json) -> Answer:
        return Answer.read(await self.guild.call("POST", f"/interactions/{act}", body | {"user": self.name}))

    async def command(
        self, name: str, /, channel: str = "general", *, timeout: float = PATIENCE, **options: Any
    ) -> Answer:
        """Runs a slash command such as "project propose".

        Raises ActionError where the bot registered no such command or the options do not fit it. People, channels
        and roles are given by name or id, a file as {"filename": …, "content": text}. A deferred answer is waited for
        up to `timeout` seconds.
        """
        body = {"command": name, "channel": channel, "options": options, "timeout": timeout}
        return await self._act("command", body)

    async def complete(
        self, name: str, option: str, typed: str, channel: str = "general", **options: Any
    ) -> list[tuple[str, Any]]:
        """The suggestions for an option while it is typed: (shown name, value)."""
        body = {"command": name, "option": option, "typed": typed, "channel": channel, "options": options}
        return (await self._act("autocomplete", body)).choices

    async def press(self, message: Message | str, target: str, *, timeout: float = PATIENCE) -> Answer:
        """Presses a button, by label or custom id.

        Raises ActionError where there is none, it is disabled, or the message is not visible to this person.
        """
        message_id = message if isinstance(message, str) else message.id
        return await self._act("press", {"message_id": message_id, "target": target, "timeout": timeout})

    async def agree(self, asked: Answer, *, timeout: float = PATIENCE) -> Answer:
        """Presses the first button under an answer that asks whether to go on.

        Raises ActionError where it has none.
        """
        if asked.message is None or not asked.message.buttons:
            raise ActionError(f"Nothing is asked: {asked.text}")
        return await self.press(asked.message, asked.message.buttons[0].label, timeout=timeout)

    async def menu(self, message: Message | str, name: str, *, timeout: float = PATIENCE) -> Answer:
        """Chooses an entry of a message's context menu, such as "Put on record".

        Raises ActionError where the bot registered no such entry, or the message is not visible to this person.
        """
        message_id = message if isinstance(message, str) else message.id
        return await self._act("menu", {"message_id": message_id, "name": name, "timeout": timeout})

    async def choose(self, message: Message | str, target: str, *values: str, timeout: float = PATIENCE) -> Answer:
        """Chooses in a select, given by placeholder or custom id, options by label or value."""
        message_id = message if isinstance(message, str) else message.id
        body = {"message_id": message_id, "target": target, "values": list(values), "timeout": timeout}
        return await self._act("press", body)

    async def submit(self, form: Answer, values: Json, *, force: bool = False, timeout: float = PATIENCE) -> Answer:
        """Fills in a form by field label or custom id and sends it.

        Raises ActionError for what Discord's own client refuses (a required field left empty, too long a text), but
        `force` sends that all the same.
        """
        body = {"interaction_id": form.interaction_id, "values": values, "force": force, "timeout": timeout}
        return await self._act("submit", body)

    async def say(self, channel: str, content: str) -> Message:
        body = {"user": self.name, "content": content}
        return Message.read(await self.guild.call("POST", f"/channels/{channel}/messages", body))

    async def delete(self, channel: str, message: Message | str) -> None:
        """Deletes anyone's message, as a moderator."""
        message_id = message if isinstance(message, str) else message.id
        await self.guild.call("DELETE", f"/channels/{channel}/messages/{message_id}", user=self.name)

    async def delete_channel(self, channel: str) -> None:
        await self.guild.call("DELETE", f"/channels/{channel}", user=self.name)

    async def set_thread(self, thread: str, **state: bool) -> None:
        """Closes or opens a thread, as a moderator: `archived`, `locked`."""
        await self.guild.call("PATCH", f"/channels/{thread}", {"user": self.name, **state})

    async def delete_role(self, role: str) -> None:
        await self.guild.call("DELETE", f"/roles/{role}", user=self.name)
