"""The version of the trainer's code: checkpoints carry it, and all ranks of a run must share it. Imports no torch."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def code_version() -> str:
    """The SHA-256 of the trainer's own sources: it names the code even outside a repository."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def code_commit(root: Path = ROOT) -> str:
    """The git commit of the checkout `root`, by default the one that holds the trainer; empty outside of a checkout.

    The files there may have changed since; `code_version` tells.
    """
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
