"""The objects of the cluster, their versions, and what watchers are told of them."""

import asyncio
import copy
import itertools
import secrets
import string
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sandbox.kubernetes import errors
from sandbox.kubernetes.errors import Json

MOST_CHANGES = 1000
"""How many changes are kept for watchers; who asks for an older one is told that it has expired."""


@dataclass(frozen=True)
class ResourceType:
    """A type of object by its name in addresses; `group` is empty for the core group."""

    plural: str
    kind: str
    group: str = ""
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"


JOBS = ResourceType("jobs", "Job", "batch")
PODS = ResourceType("pods", "Pod")
SERVICES = ResourceType("services", "Service")
SECRETS = ResourceType("secrets", "Secret")
EVENTS = ResourceType("events", "Event")
NAMESPACES = ResourceType("namespaces", "Namespace", namespaced=False)
NODES = ResourceType("nodes", "Node", namespaced=False)
KINDS = {(kind.group, kind.plural): kind for kind in (JOBS, PODS, SERVICES, SECRETS, EVENTS, NAMESPACES, NODES)}

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Change:
    """One write: the object before it and after it, either of which may be missing."""

    version: int
    kind: ResourceType
    before: Json | None
    after: Json | None


def now() -> str:
    """The time as Kubernetes writes it, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def suffix(length: int = 5) -> str:
    """The random end of a generated name."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(length))


class Objects:
    """All objects. Reads give the stored object itself to the controllers; the server copies what it sends."""

    def __init__(self) -> None:
        self.version = 1
        self.changes: deque[Change] = deque(maxlen=MOST_CHANGES)
        self._all: dict[Key, Json] = {}
        self._changed = asyncio.Event()
        self._uids = itertools.count(1)

    def all(self, kind: ResourceType, namespace: str = "") -> list[Json]:
        """All objects of a kind, in the order of their names; those of one namespace where it is given."""
        found = [one for (plural, space, _), one in sorted(self._all.items(), key=_by_key) if plural == kind.plural]
        return [one for one in found if not namespace or one["metadata"].get("namespace") == namespace]

    def find(self, kind: ResourceType, namespace: str, name: str) -> Json | None:
        return self._all.get((kind.plural, namespace, name))

    def get(self, kind: ResourceType, namespace: str, name: str) -> Json:
        """The object; raises ApiError 404."""
        one = self.find(kind, namespace, name)
        if one is None:
            raise errors.not_found(kind.plural, kind.group, name)
        return one

    def create(self, kind: ResourceType, namespace: str, body: Json) -> Json:
        """Store a new object; raises ApiError 409 where there is one of its name."""
        one = copy.deepcopy(body)
        metadata = one.setdefault("metadata", {})
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + suffix()
        if self.find(kind, namespace, metadata["name"]) is not None:
            raise errors.already_exists(kind.plural, kind.group, metadata["name"])
        one |= {"kind": kind.kind, "apiVersion": kind.api_version}
        metadata |= {"uid": _uid(next(self._uids)), "creationTimestamp": now(), "generation": 1}
        if kind.namespaced:
            metadata["namespace"] = namespace
        self._all[(kind.plural, namespace, metadata["name"])] = one
        self._tell(kind, None, one)
        return one

    @contextmanager
    def edit(self, kind: ResourceType, one: Json) -> Iterator[Json]:
        """Change an object in place; watchers are told if it is another afterwards."""
        before = copy.deepcopy(one)
        yield one
        if one != before:
            self._tell(kind, before, one)

    def remove(self, kind: ResourceType, one: Json) -> None:
        """Forget an object; nothing where another has taken its name since."""
        key = (kind.plural, one["metadata"].get("namespace", ""), one["metadata"]["name"])
        if self._all.get(key) is one:
            del self._all[key]
            self._tell(kind, copy.deepcopy(one), None, one)

    def owned_by(self, uid: str) -> Iterator[tuple[ResourceType, Json]]:
        """The objects that name an owner of this uid."""
        for kind in KINDS.values():
            for one in self.all(kind):
                if any(owner["uid"] == uid for owner in one["metadata"].get("ownerReferences") or []):
                    yield kind, one

    def since(self, version: int) -> list[Change]:
        """The changes after a version; raises ApiError 410 where they are no longer kept."""
        if self.changes and version < self.changes[0].version - 1:
            raise errors.expired(f"too old resource version: {version} ({self.changes[0].version})")
        if not self.changes and version < self.version:
            raise errors.expired(f"too old resource version: {version} ({self.version})")
        return [change for change in self.changes if change.version > version]

    def compact(self) -> None:
        """Forget all changes, as etcd does after some minutes."""
        self.changes.clear()
        self._wake()

    async def wait(self, seconds: float) -> None:
        """Wait for the next change, at most so long."""
        try:
            await asyncio.wait_for(self._changed.wait(), seconds)
        except TimeoutError:
            return

    def _tell(self, kind: ResourceType, before: Json | None, after: Json | None, gone: Json | None = None) -> None:
        self.version += 1
        written = after if after is not None else gone
        assert written is not None
        written["metadata"]["resourceVersion"] = str(self.version)
        last = before if gone is None else copy.deepcopy(gone)
        self.changes.append(Change(self.version, kind, last, copy.deepcopy(after)))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _by_key(item: tuple[Key, Json]) -> Key:
    return item[0]


def _uid(number: int) -> str:
    return f"{secrets.token_hex(4)}-0000-4000-8000-{number:012x}"
