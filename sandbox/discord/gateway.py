"""The gateway: identify, heartbeat, resume with replay, and events filtered by the session's intents."""

import asyncio
import json
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMessage, WSMsgType, web

from sandbox.discord import permissions
from sandbox.discord.errors import Json
from sandbox.discord.journal import Journal
from sandbox.discord.state import World

DISPATCH, HEARTBEAT, IDENTIFY, PRESENCE, VOICE, RESUME = 0, 1, 2, 3, 4, 6
REQUEST_MEMBERS, INVALID_SESSION, HELLO, HEARTBEAT_ACK = 8, 9, 10, 11
HEARTBEAT_MS = 41_250
MAX_PAYLOAD, MAX_EVENTS, EVENTS_SECONDS = 4096, 120, 60.0
REPLAY_EVENTS, REPLAY_SECONDS = 2000, 300.0
ROUNDS = 10
"""How often a bot's event loop goes round, at most, between an answer that arrives and the code that awaits it."""

GUILDS, MEMBERS, EXPRESSIONS, PRESENCES, GUILD_MESSAGES, CONTENT = 1 << 0, 1 << 1, 1 << 3, 1 << 8, 1 << 9, 1 << 15
PRIVILEGED = MEMBERS | PRESENCES | CONTENT
INTENT_OF = {
    "GUILD_MEMBER_ADD": MEMBERS,
    "GUILD_MEMBER_UPDATE": MEMBERS,
    "GUILD_MEMBER_REMOVE": MEMBERS,
    "GUILD_STICKERS_UPDATE": EXPRESSIONS,
    "MESSAGE_CREATE": GUILD_MESSAGES,
    "MESSAGE_UPDATE": GUILD_MESSAGES,
    "MESSAGE_DELETE": GUILD_MESSAGES,
    "CHANNEL_PINS_UPDATE": GUILDS,
    "INTERACTION_CREATE": 0,
    "GUILD_MEMBERS_CHUNK": 0,
}


@dataclass
class Session:
    """One bot session: it outlives its connection, and keeps what it sent for a resume."""

    id: str
    intents: int
    seq: int = 0
    sent: deque[Json] = field(default_factory=lambda: deque(maxlen=REPLAY_EVENTS))
    outbox: asyncio.Queue[Json] | None = None
    left: float = 0.0

    @property
    def expired(self) -> bool:
        """Whether it was left too long ago to be resumed."""
        return self.outbox is None and time.monotonic() - self.left > REPLAY_SECONDS


class Gateway:
    """All sessions of one server. `start` binds it to the world's events."""

    def __init__(self, world: World, journal: Journal) -> None:
        self.world = world
        self.journal = journal
        self.sessions: dict[str, Session] = {}
        self.connections: set[Connection] = set()
        world.listeners.append(self.broadcast)

    @property
    def connected(self) -> bool:
        return any(session.outbox is not None for session in self.sessions.values())

    def broadcast(self, name: str, data: Json) -> None:
        """Sends an event to every session whose intents ask for it; one without a connection gets it on resume.

        Of messages the bot hears in the channels alone that it sees.
        """
        self.journal.dispatch(name, data)
        if name.startswith("MESSAGE_") and not self._sees(self.world.channels[data["channel_id"]]):
            return
        for session in [s for s in self.sessions.values() if s.expired]:
            del self.sessions[session.id]
        for session in self.sessions.values():
            needed = INTENT_OF.get(name, GUILDS)
            if needed and not session.intents & needed:
                continue
            self._send(session, name, self._as_seen(session, name, data))

    def _sees(self, channel: Json) -> bool:
        return bool(self.world.permissions(self.world.application_id, channel) & permissions.VIEW_CHANNEL)

    def _as_seen(self, session: Session, name: str, data: Json) -> Json:
        """Without the message content intent, what others write is blank unless it mentions the bot."""
        if name not in ("MESSAGE_CREATE", "MESSAGE_UPDATE") or session.intents & CONTENT:
            return data
        own = self.world.application_id
        if data["author"]["id"] == own or any(user["id"] == own for user in data["mentions"]):
            return data
        return data | {"content": "", "embeds": [], "attachments": [], "components": []}

    def _send(self, session: Session, name: str, data: Json) -> None:
        session.seq += 1
        event = {"op": DISPATCH, "t": name, "s": session.seq, "d": data}
        # Serialised now: what is dispatched is the state at this moment, not at the time of a later replay.
        frozen = json.loads(json.dumps(event))
        session.sent.append(frozen)
        if session.outbox is not None:
            session.outbox.put_nowait(frozen)

    async def drop(self) -> int:
        """Closes every connection as a failing network would; sessions stay, to be resumed."""
        count = len(self.connections)
        for connection in list(self.connections):
            await connection.socket.close(code=4000, message=b"Unknown error")
        return count

    async def heard(self) -> None:
        """Waits until every bot that is connected has taken in what it was sent so far, by whatever way."""
        await asyncio.gather(*(connection.heard() for connection in list(self.connections)))

    def guild(self) -> Json:
        """The guild as GUILD_CREATE gives it."""
        world = self.world
        own = world.members[world.application_id]
        return world.guild() | {
            "joined_at": own["joined_at"],
            "large": False,
            "unavailable": False,
            "member_count": len(world.members),
            "voice_states": [],
            "members": [own],
            "channels": world.guild_channels(),
            "threads": world.threads(),
            "presences": [],
            "stage_instances": [],
            "guild_scheduled_events": [],
            "soundboard_sounds": [],
        }

    def invite_again(self) -> None:
        """Removes the bot from the guild, with which its commands there go, and lets it join anew."""
        world = self.world
        world.commands = {key: command for key, command in world.commands.items() if "guild_id" not in command}
        self.broadcast("GUILD_DELETE", {"id": world.guild_id})
        joined = self.guild()
        del joined["unavailable"]
        self.broadcast("GUILD_CREATE", joined)

    def forget(self) -> None:
        """Loses every session: a resume then gets INVALID_SESSION."""
        self.sessions.clear()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=0, compress=False, autoping=False)
        await socket.prepare(request)
        connection = Connection(self, socket)
        self.connections.add(connection)
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)
            connection.leave()
        return socket


class Connection:
    """One websocket: what the bot sends in, and the writer that drains its session's outbox."""

    def __init__(self, gateway: Gateway, socket: web.WebSocketResponse) -> None:
        self.gateway = gateway
        self.socket = socket
        self.session: Session | None = None
        self.outbox: asyncio.Queue[Json] = asyncio.Queue()
        self.received: deque[float] = deque(maxlen=MAX_EVENTS)
        self.pongs: asyncio.Queue[bool] = asyncio.Queue()

    async def run(self) -> None:
        self.outbox.put_nowait({"op": HELLO, "t": None, "s": None, "d": {"heartbeat_interval": HEARTBEAT_MS}})
        writer = asyncio.create_task(self._write())
        try:
            while True:
                try:
                    frame = await self.socket.receive(timeout=HEARTBEAT_MS / 1000 * 2)
                except TimeoutError:
                    await self.socket.close(code=4009, message=b"Session timed out")
                    return
                if frame.type == WSMsgType.PING:
                    await self.socket.pong(frame.data)
                elif frame.type == WSMsgType.PONG:
                    self.pongs.put_nowait(True)
                elif frame.type != WSMsgType.TEXT or not await self._take(frame):
                    return
        finally:
            writer.cancel()

    async def heard(self) -> None:
        """Waits for the answers to some pings, one after the other: with each, the bot's event loop has gone round."""
        for _ in range(ROUNDS):
            try:
                await self.socket.ping()
            except (ConnectionError, RuntimeError):
                return
            if not await self.pongs.get():
                self.pongs.put_nowait(False)  # for whoever else waits
                return

    def leave(self) -> None:
        self.pongs.put_nowait(False)
        if self.session is not None and self.session.outbox is self.outbox:
            self.session.outbox = None
            self.session.left = time.monotonic()

    async def _write(self) -> None:
        while True:
            payload = await self.outbox.get()
            try:
                await self.socket.send_str(json.dumps(payload))
            except (ConnectionError, RuntimeError):
                return

    async def _close(self, code: int, reason: str) -> bool:
        await self.socket.close(code=code, message=reason.encode())
        return False

    async def _take(self, frame: WSMessage) -> bool:
        """Handles one frame; False where the connection was closed over it."""
        now = time.monotonic()
        if len(self.received) == MAX_EVENTS and now - self.received[0] < EVENTS_SECONDS:
            return await self._close(4008, "Rate limited.")
        self.received.append(now)
        if len(frame.data) > MAX_PAYLOAD:
            return await self._close(4002, "Error while decoding payload.")
        try:
            payload = json.loads(frame.data)
            operation, data = payload["op"], payload.get("d")
        except (ValueError, KeyError, TypeError):
            return await self._close(4002, "Error while decoding payload.")
        if operation == HEARTBEAT:
            self.outbox.put_nowait({"op": HEARTBEAT_ACK, "t": None, "s": None, "d": None})
            return True
        if operation == IDENTIFY:
            return await self._identify(data)
        if operation == RESUME:
            return await self._resume(data)
        if self.session is None:
            return await self._close(4003, "Not authenticated.")
        if operation == REQUEST_MEMBERS:
            self._members(self.session, data)
            return True
        if operation in (PRESENCE, VOICE):
            return True
        return await self._close(4001, "Unknown opcode.")

    async def _identify(self, data: Any) -> bool:
        world, gateway = self.gateway.world, self.gateway
        if self.session is not None:
            return await self._close(4005, "Already authenticated.")
        if not isinstance(data, dict) or data.get("token", "").removeprefix("Bot ") != world.bot_token:
            return await self._close(4004, "Authentication failed.")
        intents = int(data.get("intents", 0))
        if intents & PRIVILEGED & ~world.privileged_intents:
            return await self._close(4014, "Disallowed intent(s).")
        session = self.session = Session(secrets.token_hex(16), intents, outbox=self.outbox)
        gateway.sessions[session.id] = session
        gateway_url = world.base_url.replace("http://", "ws://") + "/gateway"
        ready = {
            "v": 10,
            "user": world.users[world.application_id] | {"verified": True, "mfa_enabled": False, "email": None},
            "guilds": [{"id": world.guild_id, "unavailable": True}],
            "session_id": session.id,
            "resume_gateway_url": gateway_url,
            "shard": data.get("shard", [0, 1]),
            "application": {"id": world.application_id, "flags": 0},
            "private_channels": [],
            "relationships": [],
            "presences": [],
            "_trace": ["sandbox"],
        }
        self._own(session, "READY", ready)
        if intents & GUILDS:
            self._own(session, "GUILD_CREATE", gateway.guild())
        return True

    def _own(self, session: Session, name: str, data: Json) -> None:
        """An event for this session alone."""
        self.gateway.journal.dispatch(name, data)
        self.gateway._send(session, name, data)

    async def _resume(self, data: Any) -> bool:
        gateway = self.gateway
        if not isinstance(data, dict) or data.get("token", "").removeprefix("Bot ") != gateway.world.bot_token:
            return await self._close(4004, "Authentication failed.")
        session = gateway.sessions.get(str(data.get("session_id")))
        seen = int(data.get("seq") or 0)
        if session is not None and seen > session.seq:
            return await self._close(4007, "Invalid seq.")
        missed = [] if session is None else [event for event in session.sent if event["s"] > seen]
        if session is None or session.expired or len(missed) < session.seq - seen:
            gateway.sessions.pop(str(data.get("session_id")), None)
            self.outbox.put_nowait({"op": INVALID_SESSION, "t": None, "s": None, "d": False})
            return True
        self.session = session
        session.outbox = self.outbox
        for event in missed:
            self.outbox.put_nowait(event)
        self._own(session, "RESUMED", {"_trace": ["sandbox"]})
        return True

    def _members(self, session: Session, data: Json) -> None:
        members = list(self.gateway.world.members.values())
        if wanted := data.get("user_ids"):
            listed = {str(user_id) for user_id in (wanted if isinstance(wanted, list) else [wanted])}
            members = [member for member in members if member["user"]["id"] in listed]
        elif query := str(data.get("query") or ""):
            members = [member for member in members if member["user"]["username"].lower().startswith(query.lower())]
        chunk: Json = {
            "guild_id": data["guild_id"],
            "members": members,
            "chunk_index": 0,
            "chunk_count": 1,
            "not_found": [],
        }
        if "nonce" in data:
            chunk["nonce"] = data["nonce"]
        self._own(session, "GUILD_MEMBERS_CHUNK", chunk)
