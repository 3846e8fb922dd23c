"""The version of the trainer's code: checkpoints carry it, and all ranks of a run must share it. Imports no torch."""

import hashlib
from pathlib import Path


def code_version() -> str:
    """The SHA-256 of the trainer's own sources: it names the code even outside a repository."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"
