"""The version of the trainer's code: checkpoints carry it, and all ranks of a run must share it. Imports no torch."""

import hashlib
import os
from pathlib import Path

from trainer.contract import COMMIT_VARIABLE

ROOT = Path(__file__).parents[1]


def code_version() -> str:
    """The SHA-256 of the trainer's own sources: it names the code even outside a repository."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def code_commit(root: Path = ROOT) -> str:
    """The git commit of the checkout `root`, by default the one that holds the trainer; outside of a checkout, as in an
    image, what the environment says, or empty.

    The files there may have changed since; `code_version` tells.
    """
    return _head(root) or os.environ.get(COMMIT_VARIABLE, "")


def _head(root: Path) -> str:
    """The commit that a checkout is at; empty where there is none."""
    try:
        folder = root / ".git"
        if folder.is_file():  # of a worktree
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        branch = head.removeprefix("ref: ")
        shared = folder / "commondir"
        folder = folder / shared.read_text().strip() if shared.exists() else folder
        if (folder / branch).exists():
            return (folder / branch).read_text().strip()
        packed = (line.split() for line in (folder / "packed-refs").read_text().splitlines())
        return next((line[0] for line in packed if line[1:] == [branch]), "")
    except (OSError, UnicodeDecodeError):
        return ""
