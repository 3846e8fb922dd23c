"""What a reader of the loopback Hub asks of it, with the stock client, its file system and its command line."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi, HfFileSystem, RepoFile, hf_api
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    NotASafetensorsRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.torch import save

from sandbox.hub import listing
from tests.patience import PATIENCE
from tests.sandbox.test_hub import TOKEN, Server

CARD = """---
license: apache-2.0
language: en
tags: [stoa]
datasets: [lab/text]
base_model: lab/sharded
---
How it was trained.
"""
CONFIG = {"model_type": "gpt_neox", "architectures": ["GPTNeoXForCausalLM"]}


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A Hub with a model of one file, one of two shards, one that is none, a private one and a dataset."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    server = Server(tmp_path / "hub")
    for repo in ("lab/single", "lab/sharded", "other/plain"):
        server.api.create_repo(repo)
    server.api.create_repo("lab/hidden", private=True)
    server.api.create_repo("lab/text", repo_type="dataset")
    whole = {"a": torch.zeros(3, 4, dtype=torch.bfloat16), "b": torch.zeros(5)}
    put(server, "lab/single", {"README.md": CARD, "config.json": json.dumps(CONFIG), "model.safetensors": save(whole)})
    index = {"metadata": {"total_size": 44}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    shards = {f"{file}.safetensors": save({name: whole[name]}) for file, name in (("one", "a"), ("two", "b"))}
    put(server, "lab/sharded", {"model.safetensors.index.json": json.dumps(index)} | shards)
    put(server, "other/plain", {"model.safetensors": b"\xff" * 100, "config.json": "[1]", "README.md": "No metadata."})
    put(server, "lab/text", {"data/train.jsonl": '{"text": "a"}\n'}, repo_type="dataset")
    yield server
    server.close()


def put(hub: Server, repo: str, files: dict[str, str | bytes], repo_type: str | None = None) -> None:
    for path, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        hub.api.upload_file(repo_id=repo, repo_type=repo_type, path_or_fileobj=data, path_in_repo=path)


def ids(found: Iterable[Any]) -> list[str]:
    return [item.id for item in found]


def test_models_are_listed_by_what_is_asked(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    api, anonymous = hub.api, HfApi(endpoint=hub.url, token=False)
    assert sorted(ids(api.list_models(author="lab"))) == ["lab/hidden", "lab/sharded", "lab/single"]
    assert sorted(ids(anonymous.list_models(author="lab"))) == ["lab/sharded", "lab/single"], "not the private one"
    assert ids(api.list_models(author="nobody")) == []
    assert ids(api.list_models(search="PLAIN")) == ["other/plain"]
    assert ids(api.list_models(author="lab", pipeline_tag="text-generation")) == ["lab/single"]
    for tags in ("license:apache-2.0", ["stoa", "gpt_neox"], ["dataset:lab/text"], "transformers"):
        assert ids(api.list_models(filter=tags)) == ["lab/single"], tags
    assert ids(api.list_models(trained_dataset="lab/text")) == ["lab/single"]
    assert sorted(ids(api.list_models(num_parameters="min:17,max:1K"))) == ["lab/sharded", "lab/single"]
    assert ids(api.list_models(num_parameters="min:18")) == []
    assert ids(api.list_models(gated=True)) == ids(api.list_models(inference="warm")) == []
    assert len(ids(api.list_models(gated=False))) == 4
    assert ids(api.list_models(sort="created_at")) == ["lab/hidden", "other/plain", "lab/sharded", "lab/single"]
    assert ids(api.list_models(sort="last_modified", limit=1)) == ["other/plain"]
    [one] = api.list_models(search="single", full=True)
    assert (one.author, one.private, one.library_name) == ("lab", False, "transformers")
    assert "config.json" in [file.rfilename for file in one.siblings or []]
    [brief] = api.list_models(search="single")
    assert (brief.sha, brief.siblings, brief.pipeline_tag) == (None, None, "text-generation")
    [expanded] = api.list_models(search="single", expand=["safetensors"])
    assert expanded.safetensors is not None
    assert (expanded.safetensors.total, expanded.tags) == (17, None)
    monkeypatch.setattr(listing, "PAGE", 1)
    hub.seen.clear()
    assert len(ids(api.list_models())) == 4
    assert hub.count("GET /api/models") == 4, "a page each"
    for bad in ("sort=name", "limit=x", "limit=-1", "num_parameters=many", "num_parameters=size:6B", "expand=colour"):
        assert hub.ask("GET", f"/api/models?{bad}")[0] == 400, bad

    assert ids(api.list_datasets(author="lab")) == ["lab/text"]
    assert ids(api.list_datasets(search="absent")) == ids(api.list_spaces()) == []
    everything: Any = [*get_args(hf_api.ExpandModelProperty_T)]
    assert ids(api.list_models(search="single", expand=everything)) == ["lab/single"]


def test_a_model_tells_its_library_task_and_weights(hub: Server) -> None:
    info = hub.api.model_info("lab/single", files_metadata=True, securityStatus=True)
    assert (info.library_name, info.pipeline_tag) == ("transformers", "text-generation")
    assert info.safetensors is not None
    assert (info.safetensors.parameters, info.safetensors.total) == ({"BF16": 12, "F32": 5}, 17)
    assert info.config == CONFIG
    assert info.transformers_info is not None
    assert info.transformers_info.auto_model == "AutoModelForCausalLM"
    assert info.created_at is not None
    assert info.last_modified is not None
    assert info.created_at <= info.last_modified
    named = {"transformers", "safetensors", "gpt_neox", "text-generation", "stoa", "en", "license:apache-2.0"}
    assert named | {"dataset:lab/text", "base_model:lab/sharded"} <= set(info.tags or [])
    sizes = {file.rfilename: (file.size, file.lfs is not None) for file in info.siblings or []}
    assert sizes["config.json"] == (len(json.dumps(CONFIG)), False)
    assert sizes["model.safetensors"][1]

    sharded = hub.api.model_info("lab/sharded")
    assert sharded.safetensors == {"parameters": {"BF16": 12, "F32": 5}, "total": 17}
    assert (sharded.library_name, sharded.pipeline_tag) == (None, None)
    put(hub, "lab/sharded", {"README.md": "---\nlibrary_name: ours\npipeline_tag: fill-mask\n---\n"})
    sharded = hub.api.model_info("lab/sharded")
    assert (sharded.library_name, sharded.pipeline_tag) == ("ours", "fill-mask")
    odd = hub.api.model_info("other/plain")
    assert (odd.safetensors, odd.library_name, odd.config) == (None, None, None)
    files: dict[str, str | bytes] = {"config.json": '{"architectures": 5, "model_type": [1]}'}
    put(hub, "other/plain", files | {"README.md": "---\nlibrary_name: [1]\npipeline_tag: {a: b}\n---\n"})
    odd = hub.api.model_info("other/plain")
    assert (odd.library_name, odd.pipeline_tag) == (None, None), "what is no text tells nothing"
    only = hub.api.model_info("lab/single", expand=["pipeline_tag", "usedStorage"])
    assert (only.pipeline_tag, only.sha, (only.used_storage or 0) > 0) == ("text-generation", None, True)
    earlier = hub.api.list_repo_commits("lab/single")[-1].commit_id
    assert hub.api.model_info("lab/single", revision=earlier).safetensors is None
    assert hub.api.dataset_info("lab/text").author == "lab"
    assert hub.api.repo_info("lab/text", repo_type="dataset", files_metadata=True).id == "lab/text"


def test_what_a_reader_looks_up_in_a_repository(hub: Server) -> None:
    api = hub.api
    refs = api.list_repo_refs("lab/single", include_pull_requests=True)
    assert ([ref.name for ref in refs.branches], refs.pull_requests) == (["main"], [])
    put(hub, "lab/single", {"sub/a.txt": "one"})
    newest = api.list_repo_commits("lab/single", formatted=True)[0]
    assert newest.formatted_title == newest.title
    assert newest.authors == ["stoa"]
    assert [api.file_exists("lab/single", name) for name in ("config.json", "absent.json")] == [True, False]
    assert not api.file_exists("lab/single", "config.json", revision="absent")
    assert [api.repo_exists(name) for name in ("lab/single", "lab/absent")] == [True, False]
    assert [api.revision_exists("lab/single", name) for name in ("main", "absent")] == [True, False]
    api.auth_check("lab/single")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).auth_check("lab/hidden")
    paths = {item.path: item for item in api.get_paths_info("lab/single", ["sub", "config.json", "no"], expand=True)}
    assert paths.keys() == {"sub", "config.json"}
    assert paths["sub"].last_commit is not None
    assert paths["sub"].last_commit.oid == newest.commit_id
    config = paths["config.json"]
    assert isinstance(config, RepoFile)
    assert config.last_commit is not None
    assert config.last_commit.oid in [commit.commit_id for commit in api.list_repo_commits("lab/single")[1:]]
    assert config.security is not None
    tree = list(api.list_repo_tree("lab/single", recursive=True, expand=True))
    assert all(item.last_commit for item in tree)
    assert [*api.get_repo_discussions("lab/single"), *api.list_repo_likers("lab/single")] == []
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    assert api.get_full_repo_name("x") == "stoa/x"


def test_the_headers_of_safetensors_are_read_from_afar(hub: Server) -> None:
    single, sharded = (hub.api.get_safetensors_metadata(f"lab/{name}") for name in ("single", "sharded"))
    assert (single.sharded, sharded.sharded) == (False, True)
    for found in (single, sharded, hub.api.get_sharded_safetensors_metadata("lab/sharded")):
        assert found.parameter_count == {"BF16": 12, "F32": 5}
    assert sharded.weight_map == {"a": "one.safetensors", "b": "two.safetensors"}
    one = hub.api.parse_safetensors_file_metadata("lab/sharded", "one.safetensors")
    assert one.tensors["a"].shape == [3, 4]
    with pytest.raises(NotASafetensorsRepoError):
        hub.api.get_safetensors_metadata("lab/hidden")
    with pytest.raises(EntryNotFoundError):
        hub.api.get_sharded_safetensors_metadata("lab/single")


def test_the_file_system_of_the_client(hub: Server) -> None:
    api = hub.api
    api.create_branch("lab/single", branch="step/64")
    put(hub, "lab/single", {"sub/a.txt": "0123456789", "sub/deep/b.txt": "b"})
    files: Any = HfFileSystem(endpoint=hub.url, token=TOKEN, skip_instance_cache=True)
    assert sorted(files.ls("lab/single/sub", detail=False)) == ["lab/single/sub/a.txt", "lab/single/sub/deep"]
    assert sorted(files.glob("lab/single/**/*.txt")) == ["lab/single/sub/a.txt", "lab/single/sub/deep/b.txt"]
    assert sorted(files.find("datasets/lab/text/data")) == ["datasets/lab/text/data/train.jsonl"]
    assert files.info("lab/single/sub/a.txt")["size"] == 10
    assert files.isdir("lab/single/sub")
    assert not files.exists("lab/single@step%2F64/sub/a.txt")
    assert files.exists("lab/single@step%2F64/config.json")
    with files.open("lab/single/sub/a.txt", "rb") as file:
        file.seek(4)
        assert file.read(3) == b"456"
    assert files.cat_file("lab/single/sub/a.txt", start=2, end=4) == b"23"
    assert files.read_text("datasets/lab/text/data/train.jsonl") == '{"text": "a"}\n'
    with files.open("lab/single/sub/new.txt", "w") as file:
        file.write("new")
    files.rm("lab/single/sub/a.txt")
    assert api.file_exists("lab/single", "sub/new.txt")
    assert not api.file_exists("lab/single", "sub/a.txt")
    with pytest.raises(FileNotFoundError):
        files.ls("lab/absent")


def test_branches_tags_and_repositories_are_deleted(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    api = hub.api
    api.create_branch("lab/single", branch="a/b")
    api.create_tag("lab/single", tag="v1")
    api.delete_branch("lab/single", branch="a/b")
    api.delete_tag("lab/single", tag="v1")
    refs = api.list_repo_refs("lab/single")
    assert ([ref.name for ref in refs.branches], refs.tags) == (["main"], [])
    with pytest.raises(RevisionNotFoundError):
        api.delete_branch("lab/single", branch="a/b")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("lab/single", tag="v1")
    with pytest.raises(HfHubHTTPError) as refused:
        api.delete_branch("lab/single", branch="main")
    assert refused.value.response.status_code == 403
    anonymous = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(HfHubHTTPError):
        anonymous.delete_repo("lab/single")
    api.delete_repo("lab/single")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("lab/single")
    api.delete_repo("lab/single", missing_ok=True)
    assert "lab/single" not in ids(api.list_models())

    monkeypatch.setattr(shutil, "rmtree", lambda folder: None)
    api.delete_repo("lab/sharded")
    assert not api.repo_exists("lab/sharded"), "a kill amid the deletion leaves no half of a repository"
    status, headers, body = hub.ask("GET", "/api/no/such/thing")
    assert (status, headers["Content-Type"].partition(";")[0]) == (404, "application/json")
    assert "no GET /api/no/such/thing" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("words", "seen"),
    [
        (["models", "ls", "--author", "lab"], ["lab/single", "lab/sharded", "lab/hidden"]),
        (["models", "ls", "lab/single"], ["config.json", "model.safetensors"]),
        (["models", "info", "lab/single"], ["text-generation", "transformers"]),
        (["datasets", "ls", "--author", "lab", "--format", "json"], ["lab/text"]),
        (["auth", "whoami"], ["stoa"]),
    ],
)
def test_the_command_line(hub: Server, tmp_path: pathlib.Path, words: list[str], seen: list[str]) -> None:
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "home")}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    command = [str(pathlib.Path(sys.executable).with_name("hf")), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [word for word in seen if word not in done.stdout] == []
