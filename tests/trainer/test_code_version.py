"""The git commit of the trainer's code, in every form of a checkout."""

import os
import subprocess
from pathlib import Path

import pytest

from trainer import contract
from trainer.code_version import code_commit


def git(folder: Path, *words: str) -> str:
    who = {f"GIT_{role}_{what}": "Ada@x.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | who).stdout.strip()


def test_the_commit_of_a_checkout_is_the_one_that_git_names(tmp_path: Path) -> None:
    assert code_commit(tmp_path) == "", "outside of a checkout it is not known"
    git(tmp_path, "init", "--initial-branch", "some/branch")
    assert code_commit(tmp_path) == "", "before the first commit there is none"
    git(tmp_path, "commit", "--allow-empty", "--message", "The first")
    first = git(tmp_path, "rev-parse", "HEAD")
    assert code_commit(tmp_path) == first
    git(tmp_path, "worktree", "add", "-b", "other", str(tmp_path / "other"))
    git(tmp_path / "other", "commit", "--allow-empty", "--message", "The second")
    assert code_commit(tmp_path / "other") == git(tmp_path / "other", "rev-parse", "HEAD") != first
    git(tmp_path, "pack-refs", "--all")
    assert code_commit(tmp_path) == first
    git(tmp_path, "checkout", "--detach", "other")
    assert code_commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD") != first


def test_outside_of_a_checkout_the_commit_is_the_one_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(contract.COMMIT_VARIABLE, "c0ffee")
    assert code_commit(tmp_path) == "c0ffee"
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "--message", "The first")
    assert code_commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD")
