"""What a lab and whoever trains for it elsewhere leave for each other in the store: orders, claims and keys.

A donated machine claims an order that is on the board. Pods of Kubernetes claim nothing: their runner gives them a key
at once. Each object has one writer: `order.json`, `keys/` and the board are the runner's, `claim.json` is the API's.
Machines and pods write none of them. An order that is `over` closes its attempt's folder to all keys.
"""

import hashlib
import re
import secrets
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel, Field

from broker.runners.donated_presence import About
from broker.store import Store

BOARD = "donated"
POSTED_ORDER_FILE, CLAIM_FILE, KEYS = "order.json", "claim.json", "keys"


class Order(BaseModel):
    """An attempt that a machine or pods may run. `silence_seconds` is how long a machine may be unheard."""

    pool: str
    gpus: int
    grace_seconds: float
    silence_seconds: float = 0.0
    stop: bool = False
    over: bool = False


class Claim(BaseModel):
    """A machine's claim on an order: `beats` counts its renewals, `seconds` is how long it has had the attempt.

    `machine_token` and `key` are the SHA-256 of the secrets. `leaves` is whether the machine's owner ends the attempt,
    `status` the exit status of what ran it.
    """

    machine: str
    machine_token: str
    key: str
    began: float
    beats: int = 0
    seconds: float = 0.0
    leaves: bool = False
    status: int | None = None


class Granted(BaseModel):
    """What a machine is told of an order that it has claimed. `key` opens the folder of the attempt, and only that."""

    run: str
    attempt: str
    key: str
    grace_seconds: float
    silence_seconds: float


class Renewal(BaseModel):
    """What a machine says when it renews its claim."""

    leaves: bool = False


class Told(BaseModel):
    """What a machine is told when it renews its claim."""

    stop: bool


class Wanted(BaseModel):
    """What a machine has for an order, and what it says of itself."""

    gpus: int = Field(ge=0, le=1024)
    about: About = About()


class Settled(BaseModel):
    """How what ran an attempt has ended."""

    status: int = Field(ge=-255, le=255)


class Posted(NamedTuple):
    """An order on the board, by its attempt."""

    pool: str
    run: int
    token: int

    @property
    def name(self) -> str:
        """Its object in the store."""
        return f"{BOARD}/{self.pool}/{self.run}-{self.token}"


def posted(store: Store, pool: str = "") -> Iterator[Posted]:
    """The orders on the board that are not over, those of one pool or of all; the oldest run first."""
    for each in [pool] if pool else store.names(BOARD):
        found = [re.fullmatch(r"(\d+)-(\d+)", name) for name in store.names(f"{BOARD}/{each}")]
        for run, token in sorted((int(name[1]), int(name[2])) for name in found if name):
            yield Posted(each, run, token)


def post(store: Store, order: Posted, folder: str) -> None:
    """Put an order on the board; `folder` is the attempt's."""
    store.write(order.name, folder.encode())


def folder_of(store: Store, order: Posted) -> str:
    """The attempt's folder of an order on the board; empty where it was just taken down."""
    return (store.read(order.name) or b"").decode()


def end(store: Store, order: Posted) -> None:
    """Close the attempt's folder to its machine, and take the order off the board."""
    if folder := folder_of(store, order):
        close(store, folder)
    store.remove(order.name)


def close(store: Store, folder: str) -> None:
    """Close an attempt's folder to all keys, for good; nothing where it was never open to one."""
    order = read_order(store, folder)
    if order is not None and not order.over:
        write_order(store, folder, order.model_copy(update={"over": True}))


def read_order(store: Store, folder: str) -> Order | None:
    """The order of an attempt; None where there is none."""
    data = store.read(f"{folder}/{POSTED_ORDER_FILE}")
    return None if data is None else Order.model_validate_json(data)


def write_order(store: Store, folder: str, order: Order) -> None:
    """For the runner alone."""
    store.write(f"{folder}/{POSTED_ORDER_FILE}", order.model_dump_json().encode())


def read_claim(store: Store, folder: str) -> Claim | None:
    """The claim on an attempt; None where no machine has it."""
    data = store.read(f"{folder}/{CLAIM_FILE}")
    return None if data is None else Claim.model_validate_json(data)


def write_claim(store: Store, folder: str, claim: Claim) -> None:
    """For the API alone."""
    store.write(f"{folder}/{CLAIM_FILE}", claim.model_dump_json().encode())


def add_key(store: Store, folder: str, key: str) -> None:
    """Let a key open an attempt's folder for as long as its order is not over; for the runner alone."""
    store.write(f"{folder}/{KEYS}/{hashed(key)}", b"")


def has_key(store: Store, folder: str, key: str) -> bool:
    """Whether the runner has given this key to the pods of an attempt."""
    return store.size(f"{folder}/{KEYS}/{hashed(key)}") is not None


def new_secret() -> str:
    """A secret that nobody guesses."""
    return secrets.token_urlsafe(32)


def hashed(secret: str) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()
