"""What a pull request changes: its branch `refs/pr/{num}` against `main`, with both since they parted."""

import difflib
from typing import Any

from aiohttp import web

from sandbox.hub.http import STORE
from sandbox.hub.store import Commit, Entry, HubError, Repo, Store

MAX_DIFFED = 2**20


def compared(request: web.Request, repo: Repo, found: dict[str, Any]) -> dict[str, Any]:
    """The files in conflict of a pull request, and its diff where that is asked for."""
    head = repo.find(f"refs/pr/{found['num']}")
    base = parted(repo, head)
    told: dict[str, Any] = {"filesWithConflicts": []}
    if found["status"] != "merged":
        told["filesWithConflicts"] = True if base is None else sorted(_conflicts(repo, base, head))
    if request.query.get("diff"):
        told["diff"] = "" if base is None else diff(request.app[STORE], base, head)
    return told


def parted(repo: Repo, head: Commit) -> Commit | None:
    """The newest commit that a branch shares with `main`; None where they share none, as after a squash."""
    ours = {commit.id for commit in repo.history("main")}
    return next((commit for commit in repo.history(head.id) if commit.id in ours), None)


def merge(repo: Repo, found: dict[str, Any]) -> Commit:
    """Put what a pull request changes on `main` as one commit; HubError 409 where the two are in conflict."""
    num = found["num"]
    head = repo.find(f"refs/pr/{num}")
    base = parted(repo, head)
    conflicts = None if base is None else sorted(_conflicts(repo, base, head))
    if base is None or conflicts:
        raise HubError(409, f"The pull request is in conflict with main in {', '.join(conflicts or ['its history'])}")
    changed = _changed(base, head)
    if not changed:
        raise HubError(400, "The pull request changes nothing: commit to its branch first")
    files = {path: entry for path, entry in repo.find("main").files.items() if path not in changed}
    files |= {path: entry for path in changed if (entry := head.files.get(path)) is not None}
    return repo.commit("main", files, f"{found['title']} (#{num})", found["events"][0]["data"]["latest"]["raw"])


def _changed(before: Commit, after: Commit) -> set[str]:
    paths = before.files.keys() | after.files.keys()
    return {path for path in paths if before.files.get(path) != after.files.get(path)}


def _conflicts(repo: Repo, base: Commit, head: Commit) -> set[str]:
    """The files that both sides have changed since they parted, and not alike."""
    main = repo.find("main")
    both = _changed(base, head) & _changed(base, main)
    return {path for path in both if head.files.get(path) != main.files.get(path)}


def diff(store: Store, before: Commit, after: Commit) -> str:
    """The difference of two commits as git shows it; of a file in LFS that of its pointers."""
    parts = []
    for path in sorted(_changed(before, after)):
        old, new = before.files.get(path), after.files.get(path)
        names = ("/dev/null" if old is None else f"a/{path}", "/dev/null" if new is None else f"b/{path}")
        parts.append(f"diff --git a/{path} b/{path}\n")
        lines = (_text(store, old), _text(store, new))
        if None in lines:
            parts.append(f"Binary files {names[0]} and {names[1]} differ\n")
        else:
            parts += difflib.unified_diff(lines[0] or [], lines[1] or [], *names)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in parts)


def _text(store: Store, entry: Entry | None) -> list[str] | None:
    """The lines of a file; None where it is no text, or a long one."""
    if entry is None:
        return []
    if not entry.lfs and entry.size > MAX_DIFFED:
        return None
    data = entry.pointer if entry.lfs else store.blob(entry.sha256).read_bytes()
    try:
        return data.decode().splitlines(keepends=True)
    except UnicodeDecodeError:
        return None
