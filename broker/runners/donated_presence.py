"""Which donated machines there are: what each says of itself, and when it was last heard from.

The lab's API leaves both in the store, one object a machine, which it writes at most every `NOTE_SECONDS`. The times
are the database's. What a machine says of itself is a stranger's text: it is bounded, and holds plain characters only.
"""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from importlib import metadata
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from broker.runners import host_gpus
from broker.store import Store
from projects.db.columns import utcnow

FOLDER = "machines"
NOTE_SECONDS = 20.0
AWAY_AFTER_SECONDS = 60.0
MOST_GPUS = 64
MOST_NAMED = 3


def _plain(value: Any) -> Any:
    return re.sub(r"[^A-Za-z0-9 .()/+-]", "", value)[:60] if isinstance(value, str) else value


Plain = Annotated[str, BeforeValidator(_plain)]
"""A text of letters, digits and a few other characters, cut to 60 of them."""


class Gpu(BaseModel):
    """A GPU that a machine lends."""

    name: Plain
    memory_mib: int = Field(0, ge=0, le=2**24)


class About(BaseModel):
    """What a machine says of itself: the GPUs that it lends, and versions; empty where it does not say it."""

    gpus: list[Gpu] = Field([], max_length=MOST_GPUS)
    driver: Plain = ""
    stoa: Plain = ""
    torch: Plain = ""


class Presence(BaseModel):
    """A machine as the API has last heard from it. `slots` is how many GPUs, or processes, a run may have there, and
    `run` the run that it has now, 0 for none."""

    machine: str
    pool: str
    at: datetime
    about: About
    slots: int
    run: int = 0

    @property
    def is_away(self) -> bool:
        """Whether it has not been heard from for a minute."""
        return self.at < utcnow() - timedelta(seconds=AWAY_AFTER_SECONDS)


def versions() -> dict[str, str]:
    """The versions that this installation runs."""
    return {"stoa": metadata.version("stoa"), "torch": metadata.version("torch")}


def of_this_machine(devices: str) -> About:
    """What this machine says of itself as one that lends the GPUs of these numbers, such as “0,1”, or its CPUs."""
    found = host_gpus.found() if devices else host_gpus.NONE
    lent = [found.gpus[number] for number in map(int, filter(None, devices.split(","))) if number < len(found.gpus)]
    return About.model_validate({"gpus": lent[:MOST_GPUS], "driver": found.driver, **versions()})


def refusal(about: About) -> str:
    """Why a machine may not take runs: another Stoa may not read what the lab leaves for it; empty where it may."""
    ours = versions()["stoa"]
    if about.stoa == ours:
        return ""
    theirs = f"Stoa {about.stoa}" if about.stoa else "a Stoa that does not say its version"
    return f"This machine runs {theirs}, and the lab {ours}; install that version here."


def write(store: Store, presence: Presence) -> None:
    """For the API alone."""
    store.write(f"{FOLDER}/{presence.machine}", presence.model_dump_json().encode())


def read(store: Store, machine: str) -> Presence | None:
    """What is known of a machine; None where it was never heard from. Raises StoreError."""
    with suppress(ValidationError):
        return Presence.model_validate_json(store.read(f"{FOLDER}/{machine}") or b"")
    return None


def every(store: Store) -> Sequence[Presence]:
    """All machines that were ever heard from, by name. Raises StoreError."""
    return [found for name in store.names(FOLDER) if (found := read(store, name)) is not None]


def has(presence: Presence) -> str:
    """What a machine has, such as “2 × RTX 4090 (24 GiB)”."""
    if not presence.about.gpus:
        return f"{presence.slots} process{'' if presence.slots == 1 else 'es'}"
    kinds = Counter((gpu.name, round(gpu.memory_mib / 1024)) for gpu in presence.about.gpus)
    return ", ".join(f"{count} × {name}" + (f" ({gib} GiB)" if gib else "") for (name, gib), count in kinds.items())


def differing(presence: Presence) -> Sequence[str]:
    """The versions of a machine that are not the lab's, such as “torch 2.12.0”."""
    theirs = presence.about.model_dump()
    return [f"{name} {theirs[name] or 'unknown'}" for name, ours in versions().items() if theirs[name] != ours]


def why_unclaimed(store: Store, pool: str, gpus: int) -> str:
    """Why no machine of a pool has taken an order for so many GPUs yet. Raises StoreError."""
    known = [each for each in every(store) if each.pool == pool]
    there = [each for each in known if not each.is_away]
    large = [each for each in there if each.slots >= gpus and not refusal(each.about)]
    if not known:
        return f"no machine of the pool {pool} has been heard from yet"
    if not there:
        last = max(each.at for each in known)
        return f"no machine of the pool {pool} has been heard from since {last:%F %T} UTC ({_named(known)})"
    if not large:
        most = max(each.slots for each in there)
        needs = f"this run needs {gpus}, and the largest has {most}"
        return f"no machine of the pool {pool} that is there is large enough: {needs} ({_named(there)})"
    if all(each.run for each in large):
        busy = "machine" if len(large) == 1 else f"{len(large)} machines"
        verb = "is" if len(large) == 1 else "are"
        return f"the {busy} of the pool {pool} that could take it {verb} busy ({_named(large)})"
    return f"no machine of the pool {pool} has taken it yet"


def _named(machines: Sequence[Presence]) -> str:
    more = f" and {len(machines) - MOST_NAMED} more" if len(machines) > MOST_NAMED else ""
    return ", ".join(each.machine for each in machines[:MOST_NAMED]) + more
