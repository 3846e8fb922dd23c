"""The Hugging Face Hub: a repository for each run, a branch `step{N}` for each checkpoint, the newest one on `main`."""

import hashlib
import os
import shutil
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx2
from huggingface_hub import CommitOperationAdd, HfApi, RepoFile, constants, set_client_factory
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from projects.db.columns import utcnow
from projects.log import without_secrets
from projects.settings import Settings
from trainer.contract import TRAINER_FOLDER

TIMEOUT_SECONDS = 60.0
MISSING, TOO_MANY, SERVER_ERROR, REFUSED = 404, 429, 500, (401, 403)
LONGEST_PAUSE = 3600.0
"""The most seconds that a Retry-After header is heeded for."""
MODEL_FILES = ["*.json", "*.safetensors", "*.jinja", "README.md"]
"""The files of a model that are read of others. Weights as pickles, which may run code, are not."""
MOST_CONFIG_BYTES = 2**20
CONFIG_FILE = "config.json"
FAILURES = (HfHubHTTPError, httpx2.HTTPError, RuntimeError, OSError)
"""What the client raises where the Hub refuses, is out of reach, or has not got all files."""


class HubError(Exception):
    """The Hub was out of reach or refused; another try may succeed, after `pause` seconds at the earliest.

    `refused` means that the Hub does not take the token.
    """

    def __init__(self, said: str, *, pause: float = 0.0, refused: bool = False) -> None:
        super().__init__(said)
        self.pause, self.refused = pause, refused


class NotOpenError(Exception):
    """The Hub has no such model for everybody; the text is one sentence without its end."""


def _pass_on_pressure(response: httpx2.Response) -> None:
    """Raise HubError where the Hub asks to wait: the client would sleep for as long, five times, within the task."""
    if response.status_code == TOO_MANY or (response.status_code >= SERVER_ERROR and "Retry-After" in response.headers):
        pause = min(_seconds(response.headers.get("Retry-After", "")), LONGEST_PAUSE)
        where = response.request.url.path
        raise HubError(f"the Hub answers {response.status_code} to {where} and asks to wait {pause:g} s", pause=pause)


def _seconds(retry_after: str) -> float:
    """The seconds that a Retry-After header asks for, as a number or as a date; 0 where it is neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - utcnow()).total_seconds())
    except (ValueError, TypeError):
        return 0.0


@cache
def _trusted() -> ssl.SSLContext:
    """The authorities that may have signed the Hub's certificate: reading them takes longer than a request."""
    return httpx2.create_ssl_context()


def _hub_error(error: Exception) -> HubError:
    """An error of the client as a HubError: the one that it wraps, such as of `_pass_on_pressure`, or a new one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HubError):
            return cause
        cause = cause.__cause__ or cause.__context__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    return HubError(without_secrets(f"{type(error).__name__}: {error}"), refused=status in REFUSED)


@dataclass(frozen=True)
class Branch:
    """A branch on the Hub with the files of a folder: its address and its commit."""

    url: str
    commit: str


@dataclass(frozen=True)
class Model:
    """A model on the Hub at a revision: the bytes of each of its files that are read of others, and the text of its
    `config.json`, empty where it has none."""

    files: Mapping[str, int]
    config: str


class Hub:
    """Publishes folders, and verifies what the Hub then has."""

    def __init__(self, settings: Settings) -> None:
        # With Xet, a commit whose answer is lost is made twice. The environment variable would be read at import only.
        constants.HF_HUB_DISABLE_XET = True
        # By default the client waits for ever for a server that has stalled.
        hooks = {"response": [_pass_on_pressure]}
        set_client_factory(
            lambda: httpx2.Client(verify=_trusted(), timeout=TIMEOUT_SECONDS, follow_redirects=True, event_hooks=hooks)
        )
        self.endpoint = settings.hub_endpoint.rstrip("/")
        self.api = HfApi(endpoint=self.endpoint, token=settings.hub_token.get_secret_value() or False)

    def publish(
        self, repo: str, branch: str, folder: Path, message: str, *, private: bool = False, state: bool = False
    ) -> Branch:
        """Upload the folder's files, but for the trainer's own, or with `state` those alone, to branch `branch` of
        `repo`.

        A second call changes nothing. With `private` the repository is private before the first file goes there;
        without it a private repository stays private, as only `show` opens it. Raises HubError.
        """
        own = [f"{TRAINER_FOLDER}/**"]
        try:
            self.api.create_repo(repo, private=private, exist_ok=True)
            if private and not self.api.repo_info(repo).private:
                self.show(repo, private=True)
            if branch not in {each.name for each in self.api.list_repo_refs(repo).branches}:
                # From the first commit, which has no files: `main` has the weights of an earlier step.
                empty = self.api.list_repo_commits(repo)[-1].commit_id
                self.api.create_branch(repo, branch=branch, revision=empty, exist_ok=True)
            commit = self.api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=branch,
                commit_message=message,
                allow_patterns=own if state else None,
                ignore_patterns=None if state else own,
            )
            self._verify(repo, branch, folder, state=state)
        except FAILURES as error:
            raise _hub_error(error) from error
        return Branch(f"{self.endpoint}/{repo}/tree/{branch}", commit.oid)

    def show(self, repo: str, *, private: bool) -> str:
        """Make a repository public or private; returns its address. Raises HubError."""
        try:
            self.api.update_repo_settings(repo, private=private)
            if self.api.repo_info(repo).private != private:
                raise RuntimeError(f"{repo} is still {'public' if private else 'private'}")
        except FAILURES as error:
            raise _hub_error(error) from error
        return f"{self.endpoint}/{repo}"

    def fetch(self, repo: str, revision: str, folder: Path) -> None:
        """Download all files of a branch or commit into `folder`, which is there once it is whole. Raises HubError."""
        self._fetch(self.api, repo, revision, folder, None)

    def fetch_model(self, repo: str, revision: str, folder: Path) -> None:
        """Download the files of an open model that `python -m trainer import` reads, as `fetch` does, without our
        token: whoever names the model may not see what the lab may. Raises HubError."""
        self._fetch(self._as_anybody(), repo, revision, folder, MODEL_FILES)

    def look_at_model(self, repo: str, revision: str) -> Model:
        """What `fetch_model` would download. Raises HubError, and NotOpenError where there is no such model or revision
        that everybody may read."""
        anybody, config = self._as_anybody(), ""
        try:
            told = anybody.model_info(repo, revision=revision, files_metadata=True)
            sizes = {each.rfilename: each.size or 0 for each in told.siblings or []}
            if sizes.get(CONFIG_FILE, 0) > MOST_CONFIG_BYTES:
                raise NotOpenError(
                    f"the {CONFIG_FILE} of {repo} has {sizes[CONFIG_FILE]:,} bytes, and is none of a model"
                )
            if CONFIG_FILE in sizes:
                with TemporaryDirectory() as folder:
                    path = anybody.hf_hub_download(repo, CONFIG_FILE, revision=revision, local_dir=folder)
                    config = Path(path).read_text(encoding="utf-8", errors="replace")
        except GatedRepoError as error:
            raise NotOpenError(f"{repo} is gated on the Hub: its owners let only some people read it") from error
        except RevisionNotFoundError as error:
            raise NotOpenError(f"the Hub has no revision {revision} of {repo}") from error
        except RepositoryNotFoundError as error:
            raise NotOpenError(f"the Hub has no model {repo} that everybody may read") from error
        except FAILURES as error:
            raise _hub_error(error) from error
        wanted = {name: size for name, size in sizes.items() if any(fnmatch(name, each) for each in MODEL_FILES)}
        return Model(wanted, config)

    def _as_anybody(self) -> HfApi:
        return HfApi(endpoint=self.endpoint, token=False)

    def _fetch(self, api: HfApi, repo: str, revision: str, folder: Path, patterns: list[str] | None) -> None:
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            api.snapshot_download(repo, revision=revision, local_dir=partial, allow_patterns=patterns)
            shutil.rmtree(partial / ".cache", ignore_errors=True)  # the client's own notes
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # another has fetched it meanwhile
                    raise
        except FAILURES as error:
            raise _hub_error(error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def read(self, repo: str, branch: str, name: str) -> tuple[str, str] | None:
        """The text of a file as in `read_bytes`.

        Somebody may have edited it there: bytes that are no UTF-8 are replaced by U+FFFD.
        """
        found = self.read_bytes(repo, branch, name)
        return None if found is None else (found[0].decode(errors="replace"), found[1])

    def read_bytes(self, repo: str, branch: str, name: str) -> tuple[bytes, str] | None:
        """A file on a branch, and the branch's commit; None where somebody has removed it, or all of the repository.
        Raises HubError."""
        try:
            with TemporaryDirectory() as folder:
                commit = str(self.api.repo_info(repo, revision=branch).sha)
                path = self.api.hf_hub_download(repo, name, revision=commit, local_dir=folder)
                return Path(path).read_bytes(), commit
        except FAILURES as error:
            if isinstance(error, HfHubHTTPError) and getattr(error.response, "status_code", None) == MISSING:
                return None
            raise _hub_error(error) from error

    def write(self, repo: str, branch: str, files: Mapping[str, str | bytes], message: str, *, parent: str) -> None:
        """Write files on a branch, by name, as one commit. Raises HubError, also where the branch is by now
        at another commit than `parent`."""
        try:
            self.api.create_commit(
                repo_id=repo,
                operations=[
                    CommitOperationAdd(name, said.encode() if isinstance(said, str) else said)
                    for name, said in files.items()
                ],
                revision=branch,
                commit_message=message,
                parent_commit=parent,
            )
        except FAILURES as error:
            raise _hub_error(error) from error

    def _verify(self, repo: str, branch: str, folder: Path, *, state: bool) -> None:
        """Raise RuntimeError unless the branch has every published file of the folder with the same hash."""
        there = {item.path: item for item in self.api.list_repo_tree(repo, revision=branch, recursive=True)}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir() or name.startswith(f"{TRAINER_FOLDER}/") != state:
                continue
            found = there.get(name)
            if not isinstance(found, RepoFile) or not _same(found, path):
                raise RuntimeError(f"{name} does not stand whole on {branch} of {repo}")


def _same(found: RepoFile, path: Path) -> bool:
    """Whether the Hub's file equals the file at `path`, by its SHA-256 where the Hub keeps it in LFS, else by git's
    blob id."""
    with path.open("rb") as file:
        if found.lfs is not None:
            return bool(found.lfs.sha256 == hashlib.file_digest(file, "sha256").hexdigest())
        data = file.read()
    return bool(found.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())
