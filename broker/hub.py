"""The Hugging Face Hub: one repository a run, one branch `step{N}` a checkpoint, `main` the last one."""

import hashlib
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, RepoFile, constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError

from projects.settings import Settings

TIMEOUT_SECONDS = 60.0
NOT_PUBLISHED = ("trainer/**",)


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

    def publish(self, repo: str, branch: str, folder: Path, message: str) -> str:
        """Make branch `branch` of `repo` hold the folder's files; returns its address. Repeating it changes nothing.

        Raises HubError.
        """
        try:
            self.api.create_repo(repo, exist_ok=True)
            if branch != "main":
                self.api.create_branch(repo, branch=branch, exist_ok=True)
            self.api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                revision=branch,
                commit_message=message,
                ignore_patterns=list(NOT_PUBLISHED),
            )
            self._verify(repo, branch, folder)
        except (HfHubHTTPError, httpx2.HTTPError, RuntimeError, OSError) as error:
            raise HubError(f"{type(error).__name__}: {error}") from error
        return f"{self.endpoint}/{repo}/tree/{branch}"

    def _verify(self, repo: str, branch: str, folder: Path) -> None:
        """Raise RuntimeError unless each weight file of the folder stands on the branch with its own sha256."""
        there = {item.path: item for item in self.api.list_repo_tree(repo, revision=branch, recursive=True)}
        for path in folder.glob("*.safetensors"):
            found = there.get(path.name)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not isinstance(found, RepoFile) or found.lfs is None or found.lfs.sha256 != digest:
                raise RuntimeError(f"{path.name} does not stand whole on {branch} of {repo}")
