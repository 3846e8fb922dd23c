"""Rate limits: fixed windows per route and major parameter, and 50 requests a second over all, as Discord keeps them.

Beside these: two changes of a channel's name in ten minutes, few edits of messages older than an hour, and the network
in front of Discord, which shuts out an address with 10,000 invalid requests (401, 403, 429) within ten minutes.
Discord publishes no numbers for its buckets; these are close to what bots observe, and tests may set others.
"""

import hashlib
import math
import time
from dataclasses import dataclass, field

from sandbox.discord.errors import Json

# (requests, seconds) by "METHOD route"; anything else has DEFAULT.
DEFAULT = (50, 1.0)
LIMITS: dict[str, tuple[int, float]] = {
    "POST /channels/{channel_id}/messages": (5, 5.0),
    "PATCH /channels/{channel_id}/messages/{message_id}": (5, 5.0),
    "DELETE /channels/{channel_id}/messages/{message_id}": (5, 1.0),
    "GET /channels/{channel_id}/messages": (5, 5.0),
    "GET /channels/{channel_id}/messages/{message_id}": (5, 5.0),
    "POST /channels/{channel_id}/messages/{message_id}/threads": (5, 5.0),
    "POST /channels/{channel_id}/threads": (5, 5.0),
    "PATCH /channels/{channel_id}": (10, 10.0),
    "POST /guilds/{guild_id}/channels": (10, 10.0),
    "POST /webhooks/{webhook_id}/{webhook_token}": (5, 2.0),
    "PATCH /webhooks/{webhook_id}/{webhook_token}/messages/{message_id}": (5, 2.0),
    "PUT /applications/{application_id}/guilds/{guild_id}/commands": (5, 20.0),
    "PUT /applications/{application_id}/commands": (5, 20.0),
}
# `limits` knows these as "rename", "old edit", "invalid" and "global".
RENAME = (2, 600.0)
OLD_EDIT = (3, 300.0)
INVALID = (10_000, 600.0)
GLOBAL = (50, 1.0)
# How old a message is old, and for how long an interaction's token and a nonce are good.
OLD_SECONDS, TOKEN_SECONDS, NONCE_SECONDS = 3600.0, 900.0, 180.0
REFUSED = frozenset({401, 403, 429})


@dataclass
class Window:
    """Requests counted since the first one; a new window starts `seconds` after it."""

    limit: int
    seconds: float
    started: float = 0.0
    used: int = 0

    def take(self) -> bool:
        now = time.monotonic()
        if now - self.started >= self.seconds:
            self.started, self.used = now, 0
        self.used += 1
        return self.used <= self.limit

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)

    @property
    def reset_after(self) -> float:
        return max(0.0, self.started + self.seconds - time.monotonic())


@dataclass
class Rates:
    """All windows of one server. `limits` may be changed while it runs; `enforced` False answers no 429."""

    limits: dict[str, tuple[int, float]] = field(default_factory=lambda: dict(LIMITS))
    enforced: bool = True
    old_seconds: float = OLD_SECONDS
    token_seconds: float = TOKEN_SECONDS
    nonce_seconds: float = NONCE_SECONDS
    _windows: dict[tuple[str, str], Window] = field(default_factory=dict)

    def take(self, route: str, major: str, *, counts_globally: bool) -> tuple[dict[str, str], Json | None]:
        """Counts one request: its X-RateLimit headers and, where it is refused, the body of the 429."""
        if counts_globally and not self._global.take() and self.enforced:
            return self._refusal({}, self._global.reset_after, scope="global")
        window = self._window(route, major, self.limits.get(route, DEFAULT))
        allowed = window.take()
        headers = {
            "X-RateLimit-Limit": str(window.limit),
            "X-RateLimit-Remaining": str(window.remaining),
            "X-RateLimit-Reset": f"{time.time() + window.reset_after:.3f}",
            "X-RateLimit-Reset-After": f"{window.reset_after:.3f}",
            "X-RateLimit-Bucket": hashlib.md5(route.encode(), usedforsecurity=False).hexdigest(),
        }
        if allowed or not self.enforced:
            return headers, None
        return self._refusal(headers, window.reset_after, scope="user")

    def rename(self, channel_id: str) -> float | None:
        """Counts a change of a channel's name or topic: the seconds to wait where it is refused."""
        window = self._window("rename", channel_id, self.limits.get("rename", RENAME))
        return None if window.take() or not self.enforced else window.reset_after

    def edit(self, channel_id: str, age: float) -> float | None:
        """Counts an edit of a message `age` seconds old: the seconds to wait where it is refused with 30046."""
        if age < self.old_seconds:
            return None
        window = self._window("old edit", channel_id, self.limits.get("old edit", OLD_EDIT))
        return None if window.take() or not self.enforced else window.reset_after

    def answered(self, status: int, *, shared: bool) -> None:
        """Counts an answer that makes a request invalid; one refused for others' sake, a shared limit, is not."""
        if status in REFUSED and not shared:
            self._invalid.take()

    def shut_out(self) -> float | None:
        """The seconds for which the address is shut out, if it is."""
        window = self._invalid
        return window.reset_after or None if self.enforced and window.used >= window.limit else None

    @property
    def _invalid(self) -> Window:
        return self._window("invalid", "", self.limits.get("invalid", INVALID))

    @property
    def _global(self) -> Window:
        return self._window("global", "", self.limits.get("global", GLOBAL))

    def _window(self, route: str, major: str, limit: tuple[int, float]) -> Window:
        window = self._windows.get((route, major))
        if window is None or (window.limit, window.seconds) != limit:
            window = self._windows[route, major] = Window(*limit)
        return window

    @staticmethod
    def _refusal(headers: dict[str, str], wait: float, *, scope: str) -> tuple[dict[str, str], Json]:
        wait = round(wait + 0.001, 3)
        headers |= {"Retry-After": str(math.ceil(wait)), "X-RateLimit-Scope": scope}
        if scope == "global":
            headers["X-RateLimit-Global"] = "true"
        return headers, {
            "message": "You are being rate limited.",
            "retry_after": wait,
            "global": scope == "global",
            "code": 0,
        }
