"""What the Hub holds, kept on disk where a person can read it.

    blobs/ab/abcd…                      content by its sha256
    repos/{ns}/{name}/refs.json         {"private", "created"}; "branches", "tags" and "pulls": {name: commit}
    repos/{ns}/{name}/commits/{id}.json a commit with its whole list of files

Datasets and spaces stand in folders of their own beside `repos`. Nothing is kept in memory, and every file is written
whole and then renamed, so that a restart or a kill at any moment loses no finished commit. Methods do not yield to the
event loop, which is what makes a change of refs atomic.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import IO, Any

FOLDERS = {"models": "repos", "datasets": "datasets", "spaces": "spaces"}
RESERVED_NAMESPACES = {"api", "datasets", "lfs", "sandbox", "spaces"}
LFS_SUFFIXES = (".bin", ".safetensors", ".pt", ".pth", ".npy", ".npz", ".parquet", ".gz", ".zip", ".png", ".idx")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
PULL_REQUEST = "refs/pr/"
"""What the name of a pull request's branch begins with; its number follows."""

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}")
_COMMIT_ID = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class HubError(Exception):
    """A refusal: an HTTP status, one sentence, and the `X-Error-Code` that the client turns into its exception."""

    def __init__(self, status: int, message: str, code: str | None = None, **fields: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.fields = fields


def check_repo_id(repo_id: str) -> str:
    """The id, or HubError 400 unless it is `namespace/name` by the Hub's rules for names."""
    namespace, slash, name = repo_id.partition("/")
    if not (slash and _NAME.fullmatch(namespace) and _NAME.fullmatch(name)) or len(repo_id) > 96:
        raise HubError(
            400, f"{repo_id!a} is not a repository id: write namespace/name, letters, digits, . _ -, at most 96"
        )
    if ".." in repo_id or "--" in repo_id or name.endswith(".git") or namespace in RESERVED_NAMESPACES:
        raise HubError(
            400, f"{repo_id!a} cannot be used: no '..', no '--', no '.git' at the end, no reserved namespace"
        )
    return repo_id


def check_ref(name: str) -> str:
    """The name, or HubError 400 unless it can be a branch or a tag."""
    if not _REF.fullmatch(name) or any(bad in name for bad in ("..", "//", "/.")):
        raise HubError(400, f"{name!a} is not a name for a branch or a tag")
    if name.endswith(("/", ".", ".lock")) or name.startswith("refs/") or _COMMIT_ID.fullmatch(name):
        raise HubError(400, f"{name!a} cannot be the name of a branch or a tag: git reads it as something else")
    return name


def check_path(path: str) -> str:
    """The path, or HubError 400 unless it names a file inside a repository."""
    segments = path.split("/")
    if any(segment in ("", ".", "..", ".git") or len(segment.encode()) > 255 for segment in segments):
        raise HubError(400, f"{path!a} is not a path inside the repository: no leading /, no '.', '..' or '.git' in it")
    if len(path) > 1024 or "\\" in path or not path.isprintable():
        raise HubError(400, f"{path!a} is not a path for a file: at most 1024 printable characters, no backslash")
    return path


def check_sha256(oid: str) -> str:
    """The id, or HubError 400 unless it is a sha256 in lower-case hexadecimal."""
    if not _SHA256.fullmatch(oid):
        raise HubError(400, f"{oid!a} is not a sha256 in hexadecimal")
    return oid


def git_blob_id(data: bytes) -> str:
    """The id that git gives to a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A file of a commit. `oid` is git's blob id: of the content, or of the pointer file for content in LFS."""

    size: int
    sha256: str
    oid: str
    lfs: bool

    @classmethod
    def in_lfs(cls, sha256: str, size: int) -> "Entry":
        return cls(size, sha256, git_blob_id(_pointer(sha256, size)), lfs=True)

    @property
    def etag(self) -> str:
        """What tells this content from any other: the sha256 for LFS, else git's blob id."""
        return self.sha256 if self.lfs else self.oid

    @property
    def pointer_size(self) -> int:
        return len(self.pointer)

    @property
    def pointer(self) -> bytes:
        """What git holds in place of content in LFS."""
        return _pointer(self.sha256, self.size)


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Commit:
    """A commit: its 40-digit id, its parent's, and every file it holds by path."""

    id: str
    parent: str | None
    title: str
    message: str
    date: str
    files: dict[str, Entry]

    @cached_property
    def folders(self) -> dict[str, str]:
        """Each folder's path with an id that changes when anything below it does."""
        below: dict[str, list[str]] = {}
        for path, entry in sorted(self.files.items()):
            for parent in list(pathlib.PurePosixPath(path).parents)[:-1]:
                below.setdefault(str(parent), []).append(f"{path}\0{entry.oid}")
        return {path: hashlib.sha1("\n".join(lines).encode()).hexdigest() for path, lines in below.items()}


class Repo:
    """One repository: its refs and its commits."""

    def __init__(self, folder: pathlib.Path, kind: str, repo_id: str) -> None:
        self.folder = folder
        self.kind = kind
        self.id = repo_id

    @property
    def refs(self) -> dict[str, Any]:
        refs: dict[str, Any] = json.loads((self.folder / "refs.json").read_text())
        return refs

    @property
    def created(self) -> str:
        """When the repository was made: by refs.json or, where an older one does not tell, by the first commit."""
        return self.refs.get("created") or self.history("main")[-1].date

    @property
    def path(self) -> str:
        """Where its page and its files are served, without a leading slash."""
        return self.id if self.kind == "models" else f"{self.kind}/{self.id}"

    def find(self, revision: str) -> Commit:
        """The commit of a branch, a tag, a pull request or a commit id; HubError 404 RevisionNotFound."""
        refs = self.refs
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        commit_id = refs["branches"].get(name) or refs["tags"].get(name)
        if revision.startswith(PULL_REQUEST):
            commit_id = refs.get("pulls", {}).get(revision.removeprefix(PULL_REQUEST))
        if commit_id is None and _COMMIT_ID.fullmatch(revision) and self._commit_file(revision).exists():
            commit_id = revision
        if commit_id is None:
            raise HubError(404, f"{self.id} has no revision {revision!a}", "RevisionNotFound")
        return self._read(commit_id)

    def history(self, revision: str) -> list[Commit]:
        """The commit of a revision and all before it, newest first."""
        commits = [self.find(revision)]
        while (parent := commits[-1].parent) is not None:
            commits.append(self._read(parent))
        return commits

    def add_ref(self, kind: str, name: str, revision: str) -> None:
        """Create a branch or a tag (`kind` is the key in refs.json) at a revision; HubError 409 if it exists."""
        check_ref(name)
        target = self.find(revision).id
        refs = self.refs
        if name in refs[kind]:
            raise HubError(409, f"Reference already exists: {name}")
        refs[kind][name] = target
        self._write_refs(refs)

    def delete_ref(self, kind: str, name: str) -> None:
        """Delete a branch or a tag; HubError 404 RevisionNotFound where there is none, 403 for `main`."""
        refs = self.refs
        if kind == "branches" and name == "main":
            raise HubError(403, "The main branch cannot be deleted")
        if refs[kind].pop(name, None) is None:
            raise HubError(404, f"{self.id} has no {name!a} to delete", "RevisionNotFound")
        self._write_refs(refs)

    def delete(self) -> None:
        """Delete the repository; blobs stay, as others may hold them."""
        (self.folder / "refs.json").unlink()  # without it there is no repository, even if a kill leaves commits
        shutil.rmtree(self.folder)

    def show(self, *, private: bool) -> None:
        """Let everyone read the repository, or only those with a token."""
        self._write_refs(self.refs | {"private": private})

    def point_pull_request(self, num: int, head: Commit) -> None:
        """Let the branch of a pull request be at a commit."""
        refs = self.refs
        refs.setdefault("pulls", {})[str(num)] = head.id
        self._write_refs(refs)

    def squash(self, branch: str, message: str) -> Commit:
        """Replace the history of a branch by one commit; HubError 404 RevisionNotFound, or 400 for what is a tag."""
        refs = self.refs
        if branch not in refs["branches"]:
            if branch in refs["tags"]:
                raise HubError(400, f"{branch!a} is a tag: only the history of a branch can be squashed")
            raise HubError(404, f"{self.id} has no branch {branch!a}", "RevisionNotFound")
        files = self._read(refs["branches"].pop(branch)).files
        return self._put(refs, refs["branches"], branch, files, message, "")

    def commit(self, branch: str, files: Mapping[str, Entry], title: str, message: str = "") -> Commit:
        """Put a commit that holds `files` on a branch, or on that of a pull request.

        Raises HubError 400 where a file stands in another's path.
        """
        refs = self.refs
        if branch.startswith(PULL_REQUEST):
            return self._put(refs, refs["pulls"], branch.removeprefix(PULL_REQUEST), files, title, message)
        return self._put(refs, refs["branches"], branch, files, title, message)

    def check(self, files: Mapping[str, Entry]) -> None:
        """Raise HubError 400 where a file stands in another's path."""
        clash = {str(p) for path in files for p in pathlib.PurePosixPath(path).parents} & files.keys()
        if clash:
            raise HubError(400, f"{min(clash)!a} would be both a file and a folder")

    def _put(
        self,
        refs: dict[str, Any],
        among: dict[str, str],
        name: str,
        files: Mapping[str, Entry],
        title: str,
        message: str,
    ) -> Commit:
        """Put a commit on the branch `name` `among` others in `refs`, after the one that is there."""
        self.check(files)
        body = {
            "parent": among.get(name),
            "title": title,
            "message": message,
            "date": now(),
            "files": {path: asdict(entry) for path, entry in sorted(files.items())},
        }
        text = json.dumps(body, indent=1)
        commit_id = hashlib.sha1(text.encode()).hexdigest()
        write(self._commit_file(commit_id), text.encode())
        among[name] = commit_id
        self._write_refs(refs)
        return self._read(commit_id)

    def _commit_file(self, commit_id: str) -> pathlib.Path:
        return self.folder / "commits" / f"{commit_id}.json"

    def _read(self, commit_id: str) -> Commit:
        body = json.loads(self._commit_file(commit_id).read_text())
        files = {path: Entry(**entry) for path, entry in body.pop("files").items()}
        return Commit(id=commit_id, files=files, **body)

    def _write_refs(self, refs: dict[str, Any]) -> None:
        write(self.folder / "refs.json", json.dumps(refs, indent=1).encode())


class Store:
    """All repositories and the blobs they share."""

    def __init__(self, root: pathlib.Path) -> None:
        self.root = root
        self._incoming = root / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in self._incoming.iterdir():
            left_by_a_kill.unlink()

    def create(self, kind: str, repo_id: str, *, private: bool) -> Repo:
        """A new repository with a first commit on `main`; HubError 409 if there is one of that id."""
        repo = self._at(kind, check_repo_id(repo_id))
        if (repo.folder / "refs.json").exists():
            raise HubError(409, f"You already created this {kind.removesuffix('s')} repo")
        repo._write_refs({"private": private, "created": now(), "branches": {}, "tags": {}})
        repo.commit("main", {".gitattributes": self.add(GITATTRIBUTES)}, "initial commit")
        return repo

    def find(self, kind: str, repo_id: str) -> Repo | None:
        repo = self._at(kind, check_repo_id(repo_id))
        return repo if (repo.folder / "refs.json").exists() else None

    def repos(self) -> list[Repo]:
        found = (
            (kind, path.parent) for kind, name in FOLDERS.items() for path in self.root.glob(f"{name}/*/*/refs.json")
        )
        return sorted((self._at(kind, f"{p.parent.name}/{p.name}") for kind, p in found), key=lambda repo: repo.path)

    def blob(self, sha256: str) -> pathlib.Path:
        """Where content of this sha256 is, or would be."""
        return self.root / "blobs" / check_sha256(sha256)[:2] / sha256

    def has(self, sha256: str, size: int) -> bool:
        path = self.blob(sha256)
        return path.exists() and path.stat().st_size == size

    def add(self, data: bytes) -> Entry:
        """Keep the content of a regular file."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256, len(data)):
            write(self.blob(sha256), data)
        return Entry(len(data), sha256, git_blob_id(data), lfs=False)

    @contextmanager
    def receive(self, sha256: str, size: int) -> Iterator["Upload"]:
        """Take content in pieces, under the sha256 and size announced for it; what is not finished leaves nothing."""
        target = self.blob(sha256)
        with tempfile.NamedTemporaryFile(dir=self._incoming, delete=False) as file:
            try:
                yield Upload(file, target, size)
            finally:
                pathlib.Path(file.name).unlink(missing_ok=True)

    def _at(self, kind: str, repo_id: str) -> Repo:
        return Repo(self.root / FOLDERS[kind] / repo_id, kind, repo_id)


class Upload:
    """Content that arrives in pieces: write() each, then finish()."""

    def __init__(self, file: IO[bytes], target: pathlib.Path, size: int) -> None:
        self._file = file
        self._target = target
        self._left = size
        self._hash = hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Take the next piece; HubError 400 once there is more than was announced."""
        self._left -= len(chunk)
        if self._left < 0:
            raise HubError(400, "The upload is longer than the size announced for it")
        self._hash.update(chunk)
        self._file.write(chunk)

    def finish(self) -> None:
        """Keep the content; HubError 400 unless its size and sha256 are those announced."""
        if self._left or self._hash.hexdigest() != self._target.name:
            raise HubError(400, f"The upload is not the {self._target.name} that was announced: send it again")
        self._file.flush()
        self._target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self._file.name, self._target)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write(path: pathlib.Path, data: bytes) -> None:
    """Replace a file so that a reader sees the old or the new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    os.replace(file.name, path)
