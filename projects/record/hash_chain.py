"""The hashes of the record's chains: SHA-256, in hexadecimal.

Entry n of a chain hashes to `H(hash of entry n - 1, n, kind, H(salt ‖ payload))`. The payload's own hash stands for it,
so that a payload can be blanked while its chain still verifies; the salt keeps a short blanked text from being guessed.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def genesis_hash(stream: str) -> str:
    """The hash that a chain's first entry follows: that of the chain's key, so that no chain can pass for another."""
    return _sha256(stream.encode())


def hash_entry(previous: str, number: int, kind: str, payload_hash: str) -> str:
    """`H(previous, number, kind, payload hash)` over their JSON list, in hexadecimal."""
    return _sha256(json.dumps([previous, number, kind, payload_hash], separators=(",", ":")).encode())


def hash_payload(salt: str, body: str) -> str:
    """`H(salt ‖ payload)`, in hexadecimal."""
    return _sha256(bytes.fromhex(salt) + body.encode())


def canonical(payload: Mapping[str, Any]) -> str:
    """The canonical JSON of a payload: keys sorted, no spaces, characters beyond ASCII as they are."""
    return json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
