"""Discussions, pull requests, squashed histories and accounts of the loopback Hub, with the stock client."""

import pathlib
from collections.abc import Iterator
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    DiscussionComment,
    DiscussionCommit,
    DiscussionStatusChange,
    DiscussionTitleChange,
    HfApi,
)
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from sandbox.hub import discussions
from tests.sandbox.test_hub import Server

REPO = "lab/tiny"


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    server = Server(tmp_path / "hub")
    server.api.create_repo(REPO)
    add(server.api, {"README.md": "one\ntwo\n", "old.txt": "old\n"})
    yield server
    server.close()


def add(api: HfApi, files: dict[str, str], **options: Any) -> huggingface_hub.CommitInfo:
    operations = [CommitOperationAdd(path, content.encode()) for path, content in files.items()]
    message = options.pop("commit_message", "Some files")
    made: huggingface_hub.CommitInfo = api.create_commit(REPO, operations, commit_message=message, **options)
    return made


def content(api: HfApi, path: str, revision: str = "main") -> str:
    return pathlib.Path(api.hf_hub_download(REPO, path, revision=revision)).read_text()


def test_a_discussion_is_opened_commented_renamed_closed_and_listed(
    hub: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = hub.api
    opened = api.create_discussion(REPO, "Why so small?", description="I *ask*.")
    assert (opened.num, opened.status, opened.is_pull_request, opened.author) == (1, "open", False, "stoa")
    assert opened.url == f"{hub.url}/{REPO}/discussions/1"
    comment = api.comment_discussion(REPO, 1, comment="Because <b>.")
    assert isinstance(comment, DiscussionComment)
    assert "<b>" not in comment.rendered
    edited = api.edit_discussion_comment(REPO, 1, comment.id, new_content="Because.")
    assert isinstance(edited, DiscussionComment)
    assert (edited.content, edited.edited, edited.number_of_edits) == ("Because.", True, 2)
    assert isinstance(api.rename_discussion(REPO, 1, new_title="Why this small?"), DiscussionTitleChange)
    assert isinstance(api.change_discussion_status(REPO, 1, "closed", comment="Done."), DiscussionStatusChange)
    with pytest.warns(UserWarning, match="irreversible"):
        hidden = api.hide_discussion_comment(REPO, 1, comment.id)
    assert isinstance(hidden, DiscussionComment)
    assert (hidden.hidden, hidden.content) == (True, "This comment has been hidden")
    shown = api.get_discussion_details(REPO, 1)
    assert (shown.title, shown.status, shown.diff, shown.target_branch) == ("Why this small?", "closed", None, None)
    assert [event.type for event in shown.events] == ["comment", "comment", "title-change", "comment", "status-change"]

    api.create_discussion(REPO, "Another one")
    api.create_pull_request(REPO, "A draft of it")
    monkeypatch.setattr(discussions, "PAGE", 2)

    def listed(**asked: Any) -> list[int]:
        return [each.num for each in api.get_repo_discussions(REPO, **asked)]

    assert listed() == [3, 2, 1]
    assert (listed(discussion_type="pull_request"), listed(discussion_type="discussion")) == ([3], [2, 1])
    assert (listed(discussion_status="open"), listed(discussion_status="closed")) == ([3, 2], [1])
    assert (listed(author="stoa"), listed(author="somebody")) == ([3, 2, 1], [])
    api.create_repo("lab/text", repo_type="dataset")
    assert api.create_discussion("lab/text", "Of a dataset", repo_type="dataset").num == 1
    assert listed() == [3, 2, 1]


def test_a_pull_request_is_committed_to_compared_and_merged(hub: Server) -> None:
    api = hub.api
    made = add(api, {"README.md": "one\n2\n", "new.txt": "new\n"}, create_pr=True, commit_message="Better words")
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert made.pr_url == f"{hub.url}/{REPO}/discussions/1"
    assert content(api, "README.md") == "one\ntwo\n"
    assert content(api, "README.md", "refs/pr/1") == "one\n2\n"
    api.create_commit(REPO, [CommitOperationDelete("old.txt")], commit_message="Gone", revision="refs/pr/1")
    (found,) = api.list_repo_refs(REPO, include_pull_requests=True).pull_requests or []
    assert found.ref == "refs/pr/1"
    assert found.target_commit == api.model_info(REPO, revision="refs/pr/1").sha
    add(api, {"beside.txt": "beside\n"})
    shown = api.get_discussion_details(REPO, 1)
    assert (shown.status, shown.target_branch, shown.conflicting_files) == ("open", "refs/heads/main", [])
    assert [event.summary for event in shown.events if isinstance(event, DiscussionCommit)] == ["Better words", "Gone"]
    assert "-two\n+2\n" in (shown.diff or "")
    assert "--- a/old.txt\n+++ /dev/null\n" in (shown.diff or "")
    assert "beside" not in (shown.diff or "")
    api.merge_pull_request(REPO, 1, comment="Thank you.")
    assert content(api, "README.md") == "one\n2\n"
    assert set(api.list_repo_files(REPO)) == {".gitattributes", "README.md", "new.txt", "beside.txt"}
    shown = api.get_discussion_details(REPO, 1)
    assert (shown.status, shown.merge_commit_oid) == ("merged", api.model_info(REPO).sha)
    assert api.list_repo_commits(REPO)[0].title == "Better words (#1)"
    for refused in (
        lambda: api.merge_pull_request(REPO, 1),
        lambda: api.change_discussion_status(REPO, 1, "open"),
    ):
        with pytest.raises(BadRequestError):
            refused()


def test_a_draft_is_made_ready_first_and_a_conflict_is_told(hub: Server) -> None:
    api = hub.api
    base = api.model_info(REPO).sha
    draft = api.create_pull_request(REPO, "A rewrite")
    assert (draft.status, draft.git_reference) == ("draft", "refs/pr/1")
    add(api, {"README.md": "mine\n"}, revision="refs/pr/1")
    with pytest.raises(BadRequestError, match="draft"):
        api.merge_pull_request(REPO, 1)
    api.change_discussion_status(REPO, 1, "open")
    add(api, {"README.md": "theirs\n"})
    assert api.get_discussion_details(REPO, 1).conflicting_files == ["README.md"]
    with pytest.raises(HfHubHTTPError, match=r"conflict with main in README\.md"):
        api.merge_pull_request(REPO, 1)
    assert content(api, "README.md") == "theirs\n"
    assert api.get_discussion_details(REPO, 1).status == "open"
    older = add(api, {"old.txt": "newer\n"}, create_pr=True, parent_commit=base)
    assert content(api, "README.md", older.pr_revision or "") == "one\ntwo\n"
    api.super_squash_history(REPO)
    assert api.get_discussion_details(REPO, 1).conflicting_files is True
    with pytest.raises(HfHubHTTPError, match="conflict with main in its history"):
        api.merge_pull_request(REPO, 2)


def test_what_cannot_be_done_to_a_discussion_is_refused(hub: Server) -> None:
    api, anonymous = hub.api, HfApi(endpoint=hub.url, token=False)
    api.create_discussion(REPO, "A question")
    for refused in (
        lambda: api.create_discussion(REPO, "ab"),
        lambda: api.comment_discussion(REPO, 2, comment="Nobody asked"),
        lambda: api.edit_discussion_comment(REPO, 1, "abcdef", new_content="Not mine"),
        lambda: api.merge_pull_request(REPO, 1),
        lambda: api.change_discussion_status(REPO, 1, "open"),
        lambda: add(api, {"a.txt": "a"}, revision="refs/pr/9"),
        lambda: anonymous.create_discussion(REPO, "By a stranger"),
        lambda: anonymous.comment_discussion(REPO, 1, comment="By a stranger"),
    ):
        with pytest.raises(HfHubHTTPError):
            refused()
    assert [each.num for each in anonymous.get_repo_discussions(REPO)] == [1]
    assert len(api.get_discussion_details(REPO, 1).events) == 1
    api.update_repo_settings(REPO, private=True)
    with pytest.raises(RepositoryNotFoundError):
        list(anonymous.get_repo_discussions(REPO))


def test_a_branch_is_squashed_to_one_commit_with_the_same_files(hub: Server) -> None:
    api = hub.api
    api.create_tag(REPO, tag="before")
    api.create_branch(REPO, branch="step/1")
    files = set(api.list_repo_files(REPO))
    api.super_squash_history(REPO, commit_message="All of it")
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["All of it"]
    assert set(api.list_repo_files(REPO)) == files
    assert (
        len(api.list_repo_commits(REPO, revision="step/1")) == len(api.list_repo_commits(REPO, revision="before")) == 2
    )
    api.super_squash_history(REPO, branch="step/1")
    assert [commit.title for commit in api.list_repo_commits(REPO, revision="step/1")] == [
        "Super-squash branch 'step/1' using huggingface_hub"
    ]
    with pytest.raises(BadRequestError, match="is a tag"):
        api.super_squash_history(REPO, branch="before")
    with pytest.raises(RevisionNotFoundError):
        api.super_squash_history(REPO, branch="nowhere")
    add(api, {"more.txt": "more"})
    assert len(api.list_repo_commits(REPO)) == 2


def test_accounts_tell_what_they_have(hub: Server) -> None:
    api, anonymous = hub.api, HfApi(endpoint=hub.url, token=False)
    api.create_repo("own")
    api.create_repo("lab/hidden", private=True)
    api.create_repo("lab/text", repo_type="dataset")
    api.create_discussion(REPO, "A question")
    user, lab = api.get_user_overview("stoa"), api.get_organization_overview("lab")
    assert (user.username, user.num_models, user.num_datasets, user.num_discussions) == ("stoa", 1, 0, 1)
    assert (lab.name, lab.num_models, lab.num_datasets, lab.num_spaces) == ("lab", 2, 1, 0)
    assert anonymous.get_organization_overview("lab").num_models == 1, "not the private one"
    assert [member.username for member in api.list_organization_members("lab")] == ["stoa"]
    assert [*api.list_organization_followers("lab"), *api.list_user_followers("stoa")] == []
    assert [repo.id for repo in api.list_user_repos()] == ["stoa/own"]
    repos = {repo.id: repo for repo in api.list_user_repos(namespace="lab")}
    assert {name: (repo.type, repo.visibility) for name, repo in repos.items()} == {
        "lab/tiny": ("model", "public"),
        "lab/hidden": ("model", "private"),
        "lab/text": ("dataset", "public"),
    }
    assert all(repo.storage > 0 for repo in repos.values())
    assert sum(repo.storage_percent for repo in repos.values()) == pytest.approx(1)
    for refused in (
        lambda: api.get_user_overview("nobody"),
        lambda: api.get_organization_overview("nobody"),
        lambda: list(api.list_user_repos(namespace="nobody")),
        lambda: list(anonymous.list_user_repos()),
    ):
        with pytest.raises(HfHubHTTPError):
            refused()
