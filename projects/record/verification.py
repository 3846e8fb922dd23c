"""Verification of the record: a chain is whole if numbers, hashes, payloads and the head all fit together."""

from dataclasses import dataclass

from sqlalchemy.orm import Session
from sqlmodel import col, select

from projects.record.hash_chain import genesis_hash, hash_entry, hash_payload
from projects.record.record import Entry, Payload, Stream


@dataclass(frozen=True)
class Verdict:
    """The result of verifying a chain: the entries that fit, and the first problem, or None."""

    stream: str
    entries: int
    problem: str | None

    @property
    def ok(self) -> bool:
        """Whether the chain is whole."""
        return self.problem is None


def verify(session: Session, stream: str) -> Verdict:
    """Verify a whole chain, from its first entry to its head; a blanked payload is no problem."""
    head = session.get(Stream, stream)
    if head is None:
        return Verdict(stream, 0, "there is no such chain")
    previous, number = genesis_hash(stream), 0
    rows = session.execute(
        select(Entry, Payload)
        .outerjoin(Payload, col(Payload.entry_id) == Entry.id)
        .where(Entry.stream == stream)
        .order_by(col(Entry.number))
    )
    for entry, payload in rows:
        if entry.number != number + 1:
            return Verdict(stream, number, f"entry {number + 1} is missing")
        number = entry.number
        if entry.hash != hash_entry(previous, number, entry.kind, entry.payload_hash):
            return Verdict(stream, number, f"entry {number} does not follow from the one before it")
        if payload is None:
            return Verdict(stream, number, f"the payload of entry {number} is missing")
        blanked = payload.body is None and payload.salt is None
        if not blanked and hash_payload(payload.salt or "", payload.body or "") != entry.payload_hash:
            return Verdict(stream, number, f"the payload of entry {number} was changed")
        previous = entry.hash
    if (head.head, head.head_hash) != (number, previous):
        return Verdict(stream, number, "the head does not fit the newest entry")
    return Verdict(stream, number, None)
