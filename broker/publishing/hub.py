"""The Hugging Face Hub: one repository a run, one branch `step{N}` a checkpoint, `main` the newest one."""

import hashlib
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, RepoFile, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError

from projects.settings import Settings

TIMEOUT_SECONDS = 60.0
NOT_PUBLISHED = "trainer"
FAILURES = (HfHubHTTPError, httpx2.HTTPError, RuntimeError, OSError)


class HubError(Exception):
    """The Hub could not be reached, or it refused; trying again later may help."""


class Hub:
    """Publishes folders, and checks what stands there afterwards."""

    def __init__(self, settings: Settings) -> None:
        # A lost answer to a commit by Xet makes a second one. The variable of this name is read at the first import.
        constants.HF_HUB_DISABLE_XET = True
        # The client's own default is to wait for ever for a server that has stalled.
        set_client_factory(lambda: httpx2.Client(timeout=TIMEOUT_SECONDS, follow_redirects=True))
        self.endpoint = settings.hub_endpoint.rstrip("/")
        self.api = HfApi(endpoint=self.endpoint, token=settings.hub_token.get_secret_value() or False)

    def publish(self, repo: str, branch: str, folder: Path, message: str, *, private: bool = False) -> str:
        """Make branch `branch` of `repo` hold the folder's files; returns its address. Repeating it changes nothing.

        A repository that is to be private is so before the first byte of the folder goes there; one that is private
        already is opened by `show` only. Raises HubError.
        """
        try:
            self.api.create_repo(repo, private=private, exist_ok=True)
            if private and not self.api.repo_info(repo).private:
                self.show(repo, private=True)
            if branch not in {each.name for each in self.api.list_repo_refs(repo).branches}:
                # From the first commit, which holds nothing yet: `main` holds the weights of an earlier step.
                empty = self.api.list_repo_commits(repo)[-1].commit_id
                self.api.create_branch(repo, branch=branch, revision=empty, exist_ok=True)
            self.api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=branch,
                commit_message=message,
                ignore_patterns=[f"{NOT_PUBLISHED}/**"],
            )
            self._verify(repo, branch, folder)
        except FAILURES as error:
            raise HubError(f"{type(error).__name__}: {error}") from error
        return f"{self.endpoint}/{repo}/tree/{branch}"

    def show(self, repo: str, *, private: bool) -> str:
        """Open a repository to everyone, or close it; returns its address. Raises HubError."""
        try:
            self.api.update_repo_settings(repo, private=private)
            if self.api.repo_info(repo).private != private:
                raise RuntimeError(f"{repo} is still {'public' if private else 'private'}")
        except FAILURES as error:
            raise HubError(f"{type(error).__name__}: {error}") from error
        return f"{self.endpoint}/{repo}"

    def _verify(self, repo: str, branch: str, folder: Path) -> None:
        """Raise RuntimeError unless each published file of the folder stands on the branch with its own hash."""
        there = {item.path: item for item in self.api.list_repo_tree(repo, revision=branch, recursive=True)}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir() or name.startswith(f"{NOT_PUBLISHED}/"):
                continue
            found = there.get(name)
            if not isinstance(found, RepoFile) or not _same(found, path):
                raise RuntimeError(f"{name} does not stand whole on {branch} of {repo}")


def _same(found: RepoFile, path: Path) -> bool:
    """Whether the Hub's file is this one: by sha256 where it is kept in LFS, else by git's blob id."""
    with path.open("rb") as file:
        if found.lfs is not None:
            return bool(found.lfs.sha256 == hashlib.file_digest(file, "sha256").hexdigest())
        data = file.read()
    return bool(found.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())
