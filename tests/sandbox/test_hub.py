"""The loopback Hub as the stock huggingface-hub client and transformers see it, over a real socket."""

import asyncio
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

import huggingface_hub
import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from huggingface_hub import HfApi, RepoFile, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sandbox.hub.server import make_app
from tests.patience import PATIENCE

TOKEN = "a-token-for-tests"
REPO = "lab/tiny"


class Server:
    """The Hub on a free port in a thread of its own; `seen` lists the requests as 'METHOD path'."""

    def __init__(self, root: pathlib.Path) -> None:
        self.seen: list[str] = []
        app = make_app(root, token=TOKEN)

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.seen.append(f"{request.method} {request.path}")
            return await handler(request)

        app.middlewares.insert(0, note)
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.api = HfApi(endpoint=self.url, token=TOKEN)
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def serve() -> None:
            self._stop = asyncio.Event()
            runner = web.AppRunner(app, shutdown_timeout=1)
            await runner.setup()
            await web.SockSite(runner, listener).start()
            ready.set()
            await self._stop.wait()
            await runner.cleanup()

        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[serve()])
        self._thread.start()
        assert ready.wait(PATIENCE)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        self._loop.close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """A request below the client, which would refuse to send some of these."""
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read()

    def fault(self, **fields: object) -> None:
        status, _, text = self.ask("POST", "/sandbox/faults", json.dumps(fields).encode())
        assert status == 200, text

    def count(self, text: str) -> int:
        return sum(text in line for line in self.seen)


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    server = Server(tmp_path / "hub")
    yield server
    server.close()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkpoint's shape: text, weights, something above the LFS threshold, an empty file, a folder inside."""
    path = tmp_path / "checkpoint"
    (path / "sub dir").mkdir(parents=True)
    (path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [pythia]\n---\nHow it was trained.\n")
    (path / "config.json").write_text('{"model_type": "gpt_neox"}')
    (path / "model.safetensors").write_bytes(os.urandom(70_000))
    (path / "metrics.jsonl").write_bytes(b'{"loss": 1.0}\n' * 800_000)
    (path / "empty.txt").touch()
    (path / "sub dir" / "naïve #1.txt").write_text("ünïcode")
    return path


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    paths = (p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts and p.name != ".gitattributes")
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def commit_body(*operations: tuple[str, Mapping[str, object]]) -> bytes:
    lines: list[tuple[str, Mapping[str, object]]] = [("header", {"summary": "by hand"}), *operations]
    return b"\n".join(json.dumps({"key": key, "value": value}).encode() for key, value in lines)


def test_whoami_and_a_wrong_token(hub: Server) -> None:
    assert hub.api.whoami()["name"] == "stoa"
    wrong = HfApi(endpoint=hub.url, token="not-the-token")
    for call in (wrong.whoami, lambda: wrong.create_repo(REPO)):
        with pytest.raises(HfHubHTTPError) as refused:
            call()
        assert refused.value.response.status_code == 401
    assert hub.ask("POST", "/api/repos/create", b'{"name": "x"}')[0] == 401
    with pytest.raises(RepositoryNotFoundError):
        hub.api.repo_info("stoa/x")


def test_repo_branch_and_tag_are_made_once(hub: Server) -> None:
    first = hub.api.create_repo(REPO)
    assert first.repo_id == REPO
    assert hub.api.create_repo(REPO, exist_ok=True) == first == f"{hub.url}/{REPO}"
    with pytest.raises(HfHubHTTPError) as refused:
        hub.api.create_repo(REPO)
    assert refused.value.response.status_code == 409

    for name in ("step1", "feature/x"):
        hub.api.create_branch(REPO, branch=name)
        hub.api.create_branch(REPO, branch=name, exist_ok=True)
        with pytest.raises(HfHubHTTPError) as refused:
            hub.api.create_branch(REPO, branch=name)
        assert refused.value.response.status_code == 409
    hub.api.create_tag(REPO, tag="v1", revision="feature/x")
    with pytest.raises(RevisionNotFoundError):
        hub.api.create_branch(REPO, branch="other", revision="no-such")

    refs = hub.api.list_repo_refs(REPO)
    main = hub.api.repo_info(REPO).sha
    assert {ref.ref: ref.target_commit for ref in [*refs.branches, *refs.tags]} == {
        "refs/heads/main": main,
        "refs/heads/step1": main,
        "refs/heads/feature/x": main,
        "refs/tags/v1": main,
    }


def test_upload_then_download_by_revision(hub: Server, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    hub.api.create_repo(REPO)
    hub.api.create_branch(REPO, branch="feature/x")
    made = hub.api.upload_folder(repo_id=REPO, folder_path=folder, revision="feature/x", commit_message="step 1")
    assert hub.count("PUT ") == 2

    refs = {branch.name: branch.target_commit for branch in hub.api.list_repo_refs(REPO).branches}
    assert refs["feature/x"] == made.oid != refs["main"]
    assert [c.title for c in hub.api.list_repo_commits(REPO, revision="feature/x")] == ["step 1", "initial commit"]

    tree = {item.path: item for item in hub.api.list_repo_tree(REPO, revision="feature/x", recursive=True)}
    local = contents(folder)
    assert tree.keys() == local.keys() | {".gitattributes", "sub dir"}
    in_lfs = {path: item.lfs.sha256 for path, item in tree.items() if isinstance(item, RepoFile) and item.lfs}
    assert in_lfs == {path: hashlib.sha256(local[path]).hexdigest() for path in ("model.safetensors", "metrics.jsonl")}
    info = hub.api.model_info(REPO, revision="feature/x", files_metadata=True)
    assert {s.rfilename: s.size for s in info.siblings or [] if s.rfilename in local} == {
        p: len(d) for p, d in local.items()
    }
    assert info.card_data is not None
    assert info.card_data.license == "apache-2.0"
    top = [item.path for item in hub.api.list_repo_tree(REPO, path_in_repo="sub dir", revision="feature/x")]
    assert top == ["sub dir/naïve #1.txt"]
    top = [item.path for item in hub.api.list_repo_tree(REPO, revision="feature/x")]
    assert "sub dir" in top
    assert "sub dir/naïve #1.txt" not in top
    asked = hub.api.get_paths_info(REPO, ["sub dir", "empty.txt", "absent"], revision="feature/x")
    assert [item.path for item in asked] == ["sub dir", "empty.txt"]

    by_commit = snapshot_download(REPO, revision=made.oid, endpoint=hub.url, local_dir=tmp_path / "by_commit")
    by_branch = snapshot_download(REPO, revision="feature/x", endpoint=hub.url, cache_dir=tmp_path / "cache")
    assert contents(pathlib.Path(by_commit)) == contents(pathlib.Path(by_branch)) == local


def test_same_folder_again_sends_nothing_and_commits_nothing(hub: Server, folder: pathlib.Path) -> None:
    hub.api.create_repo(REPO)
    first = hub.api.upload_folder(repo_id=REPO, folder_path=folder)
    hub.seen.clear()
    assert hub.api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert hub.count("PUT ") == hub.count("/commit/") == 0

    (folder / "config.json").write_text("{}")
    (folder / "sub dir" / "naïve #1.txt").unlink()
    hub.api.upload_folder(repo_id=REPO, folder_path=folder, delete_patterns="sub dir/*")
    assert hub.count("PUT ") == 0
    assert hub.count("/commit/") == 1
    assert "sub dir/naïve #1.txt" in hub.api.list_repo_files(REPO, revision=first.oid)
    assert "sub dir/naïve #1.txt" not in hub.api.list_repo_files(REPO)


def test_each_revision_serves_its_own_content(hub: Server, tmp_path: pathlib.Path) -> None:
    hub.api.create_repo(REPO)
    texts = {"step1": b"same size 1", "step2": b"same size 2"}
    for branch, text in texts.items():
        hub.api.create_branch(REPO, branch=branch)
        hub.api.upload_file(repo_id=REPO, path_or_fileobj=text, path_in_repo="a.bin", revision=branch)
        hub.api.upload_file(repo_id=REPO, path_or_fileobj=text, path_in_repo="a.txt", revision=branch)
    for branch, text in texts.items():
        for name in ("a.bin", "a.txt"):
            path = hf_hub_download(REPO, name, revision=branch, endpoint=hub.url, cache_dir=tmp_path / "cache")
            assert pathlib.Path(path).read_bytes() == text


def test_ranges_and_conditional_requests(hub: Server) -> None:
    hub.api.create_repo(REPO)
    hub.api.upload_file(repo_id=REPO, path_or_fileobj=b"0123456789", path_in_repo="a.bin")
    path = f"/{REPO}/resolve/main/a.bin"
    status, headers, body = hub.ask("GET", path, Range="bytes=4-6")
    assert (status, headers["Content-Range"], body) == (206, "bytes 4-6/10", b"456")
    assert hub.ask("GET", path, Range="bytes=10-")[0] == 416
    assert headers["ETag"] == f'"{hashlib.sha256(b"0123456789").hexdigest()}"'
    assert hub.ask("GET", path, None, **{"If-None-Match": headers["ETag"]})[0] == 304
    assert hub.ask("HEAD", path)[1]["Content-Length"] == "10"


def test_what_is_missing_is_told_apart(hub: Server, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    hub.api.create_repo(REPO)
    with pytest.raises(RevisionNotFoundError):
        hub.api.repo_info(REPO, revision="step64")
    with pytest.raises(RevisionNotFoundError):
        hub.api.upload_folder(repo_id=REPO, folder_path=folder, revision="step64")
    assert hub.count("PUT ") == 0
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "absent.json", endpoint=hub.url, cache_dir=tmp_path / "cache")
    with pytest.raises(EntryNotFoundError):
        list(hub.api.list_repo_tree(REPO, path_in_repo="absent"))
    with pytest.raises(RepositoryNotFoundError):
        hub.api.list_repo_refs("lab/absent")
    head = hub.api.repo_info(REPO).sha
    assert hub.ask("HEAD", f"/{REPO}/resolve/main/absent.json")[1]["X-Repo-Commit"] == head


def test_a_private_repo_looks_absent_without_the_token(hub: Server, tmp_path: pathlib.Path) -> None:
    hub.api.create_repo(REPO, private=True)
    hub.api.upload_file(repo_id=REPO, path_or_fileobj=b"secret", path_in_repo="a.txt")
    anonymous = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(RepositoryNotFoundError):
        anonymous.repo_info(REPO)
    for path in (f"/{REPO}", f"/{REPO}/resolve/main/a.txt"):
        assert hub.ask("GET", path)[0] == 401
    assert REPO.encode() not in hub.ask("GET", "/")[2]
    path = hf_hub_download(REPO, "a.txt", endpoint=hub.url, token=TOKEN, cache_dir=tmp_path / "cache")
    assert pathlib.Path(path).read_bytes() == b"secret"


def test_an_interrupted_upload_run_again_leaves_one_commit(hub: Server, folder: pathlib.Path) -> None:
    hub.api.create_repo(REPO)

    def upload() -> None:
        hub.api.upload_folder(repo_id=REPO, folder_path=folder)

    hub.fault(method="POST", path="/preupload/", status=429, retry_after=0)
    hub.fault(method="PUT", path="^/lfs/objects/", cut=True)
    hub.fault(method="POST", path="/commit/main$", status=503)
    with pytest.raises(HfHubHTTPError):
        upload()
    assert hub.count("PUT ") == 3
    assert len(hub.api.list_repo_commits(REPO)) == 1

    hub.seen.clear()
    hub.fault(method="POST", path="/commit/main$", cut=True)
    with pytest.raises(Exception, match=r"disconnected|closed|reset"):
        upload()
    upload()
    assert hub.count("PUT ") == 0
    assert hub.count("/commit/") == 1
    assert len(hub.api.list_repo_commits(REPO)) == 2
    assert hub.ask("GET", "/sandbox/faults")[2] == b"[]"


def test_a_restart_keeps_everything(hub: Server, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    hub.api.create_repo(REPO)
    hub.api.create_branch(REPO, branch="step1")
    made = hub.api.upload_folder(repo_id=REPO, folder_path=folder, revision="step1")
    refs = hub.api.list_repo_refs(REPO)
    hub.close()
    (tmp_path / "hub" / "incoming" / "half").touch()
    again = Server(tmp_path / "hub")
    try:
        assert again.api.list_repo_refs(REPO) == refs
        path = snapshot_download(REPO, revision="step1", endpoint=again.url, cache_dir=tmp_path / "cache")
        assert contents(pathlib.Path(path)) == contents(folder)
        assert again.api.upload_folder(repo_id=REPO, folder_path=folder, revision="step1").oid == made.oid
    finally:
        again.close()
    on_disk = json.loads((tmp_path / "hub" / "repos" / REPO / "refs.json").read_text())
    assert on_disk["branches"]["step1"] == made.oid
    assert not any((tmp_path / "hub" / "incoming").iterdir())


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/x", "a//x", "a/./x", ".git/config", "a\\..\\x", "a\nx", "", "x" * 300]
)
def test_paths_that_leave_the_repository_are_refused(hub: Server, tmp_path: pathlib.Path, path: str) -> None:
    hub.api.create_repo(REPO)
    before = sorted(tmp_path.rglob("*"))
    sign = {"Authorization": f"Bearer {TOKEN}"}
    body = commit_body(("file", {"path": path, "content": "x"}))
    status, _, text = hub.ask("POST", f"/api/models/{REPO}/commit/main", body, **sign)
    assert (status, list(json.loads(text))) == (400, ["error"])
    body = json.dumps({"files": [{"path": path, "size": 1, "sample": ""}]}).encode()
    assert hub.ask("POST", f"/api/models/{REPO}/preupload/main", body, **sign)[0] == 400
    assert len(hub.api.list_repo_commits(REPO)) == 1
    assert {p for p in tmp_path.rglob("*") if "blobs" not in p.parts} == {p for p in before if "blobs" not in p.parts}


def test_addresses_that_leave_the_repository_are_refused(hub: Server, tmp_path: pathlib.Path) -> None:
    (tmp_path / "hub" / "secret.txt").write_text("secret")
    hub.api.create_repo(REPO)
    for path in (
        f"/{REPO}/resolve/main/..%2F..%2F..%2F..%2Fsecret.txt",
        f"/{REPO}/resolve/main/%2e%2e/%2e%2e/secret.txt",
        f"/{REPO}/resolve/..%2F..%2Frefs/a",
        "/api/models/..%2F../x",
        "/api/models/%2e%2e/%2e%2e",
        "/lab/..%2Ftiny",
    ):
        status, _, body = hub.ask("GET", path)
        assert status in (400, 401, 404), path
        assert body != b"secret"


@pytest.mark.parametrize("name", ["a..b", "-a", "a--b", "a.git", "a/b", "", "x" * 97, "é", "a b"])
def test_names_outside_the_rules_are_refused(hub: Server, name: str) -> None:
    body = json.dumps({"name": name, "organization": "lab"}).encode()
    assert hub.ask("POST", "/api/repos/create", body, Authorization=f"Bearer {TOKEN}")[0] == 400
    assert hub.ask("POST", "/api/repos/create", b"{", Authorization=f"Bearer {TOKEN}")[0] == 400


@pytest.mark.parametrize("name", ["a..b", "refs/x", "a.lock", "-a", "a b", "0" * 40, "a//b"])
def test_branch_names_outside_the_rules_are_refused(hub: Server, name: str) -> None:
    hub.api.create_repo(REPO)
    with pytest.raises(HfHubHTTPError) as refused:
        hub.api.create_branch(REPO, branch=name)
    assert refused.value.response.status_code == 400
    assert len(hub.api.list_repo_refs(REPO).branches) == 1


def test_content_must_be_what_was_announced(hub: Server, tmp_path: pathlib.Path) -> None:
    hub.api.create_repo(REPO)
    sign = {"Authorization": f"Bearer {TOKEN}"}
    oid = hashlib.sha256(b"right").hexdigest()
    batch = json.dumps({"operation": "upload", "objects": [{"oid": oid, "size": 5}]}).encode()

    def actions() -> dict[str, dict[str, str]]:
        answer = json.loads(hub.ask("POST", f"/{REPO}.git/info/lfs/objects/batch", batch, **sign)[2])
        offered: dict[str, dict[str, str]] = answer["objects"][0].get("actions", {})
        return offered

    href = actions()["upload"]["href"].removeprefix(hub.url)
    lfs_file = commit_body(("lfsFile", {"path": "a.bin", "algo": "sha256", "oid": oid, "size": 5}))
    assert hub.ask("POST", f"/{REPO}.git/info/lfs/objects/batch", batch)[0] == 401
    assert hub.ask("PUT", href, b"wrong")[0] == 400
    assert hub.ask("PUT", href, b"right and more")[0] == 400
    assert not any((tmp_path / "hub" / "incoming").iterdir())
    assert hub.ask("PUT", href[:-1] + ("0" if href[-1] != "0" else "1"), b"right")[0] == 403
    assert hub.ask("POST", "/lfs/verify", json.dumps({"oid": oid, "size": 5}).encode(), **sign)[0] == 404
    assert hub.ask("POST", f"/api/models/{REPO}/commit/main", lfs_file, **sign)[0] == 400
    assert hub.ask("PUT", href, b"right")[0] == 200
    assert hub.ask("POST", "/lfs/verify", json.dumps({"oid": oid, "size": 5}).encode(), **sign)[0] == 200
    assert actions() == {}
    assert hub.ask("POST", f"/api/models/{REPO}/commit/main", lfs_file, **sign)[0] == 200


def test_a_refused_commit_changes_nothing(hub: Server) -> None:
    hub.api.create_repo(REPO)
    good = ("file", {"path": "a", "content": "x"})
    sign = {"Authorization": f"Bearer {TOKEN}"}
    for bad in (
        ("file", {"path": "a/b", "content": "x"}),
        ("file", {"path": "b", "content": "*", "encoding": "base64"}),
        ("deletedFile", {"path": "absent"}),
        ("deletedFolder", {"path": "absent/"}),
        ("header", {"summary": "late", "parentCommit": "0" * 40}),
        ("unknown\nkey", {}),
    ):
        assert 400 <= hub.ask("POST", f"/api/models/{REPO}/commit/main", commit_body(good, bad), **sign)[0] < 500
    assert hub.api.list_repo_files(REPO) == [".gitattributes"]


def test_datasets_stand_beside_models(hub: Server, tmp_path: pathlib.Path) -> None:
    for kind in ("model", "dataset"):
        hub.api.create_repo(REPO, repo_type=kind)
        hub.api.upload_file(repo_id=REPO, repo_type=kind, path_or_fileobj=kind.encode(), path_in_repo="a.bin")
    for kind in ("model", "dataset"):
        path = hf_hub_download(REPO, "a.bin", repo_type=kind, endpoint=hub.url, cache_dir=tmp_path / "cache")
        assert pathlib.Path(path).read_text() == kind
    assert hub.ask("GET", f"/datasets/{REPO}/tree/main")[0] == 200


def test_pages_for_a_browser(hub: Server) -> None:
    hub.api.create_repo(REPO)
    for step in (16, 2):
        hub.api.create_branch(REPO, branch=f"step{step}")
    hub.api.create_branch(REPO, branch="feature/x")
    made = hub.api.upload_file(
        repo_id=REPO,
        path_or_fileobj=b"<script>alert(1)</script>",
        path_in_repo="<b>.html",
        revision="feature/x",
        commit_message="<i>&",
    )
    assert f'href="/{REPO}"'.encode() in hub.ask("GET", "/")[2]
    assert hub.ask("GET", f"/{REPO}")[0] == 200
    for address in (f"/{REPO}/tree/feature%2Fx", f"/{REPO}/commit/{made.oid}"):
        status, headers, page = hub.ask("GET", address)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert b"&lt;b&gt;.html" in page
        assert b"&lt;i&gt;&amp;" in page
        assert b"<b>.html" not in page
        assert b"/tree/feature%2Fx" in page
        assert page.index(b">step2<") < page.index(b">step16<")
    _, headers, body = hub.ask("GET", f"/{REPO}/resolve/feature%2Fx/%3Cb%3E.html")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert body == b"<script>alert(1)</script>"


FROM_PRETRAINED = """
import json, sys, torch
from huggingface_hub import HfApi
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

torch.set_num_threads(2)
api, repo, folder = HfApi(), "lab/neox", sys.argv[1]
api.create_repo(repo)
config = GPTNeoXConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
words = {"[UNK]": 0, "a": 1, "walk": 2}
tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
ids, logits = torch.arange(12)[None], {}
for step in (0, 64):
    torch.manual_seed(step)
    model = GPTNeoXForCausalLM(config).eval()
    model.save_pretrained(f"{folder}/{step}")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(f"{folder}/{step}")
    api.create_branch(repo, branch=f"step{step}")
    api.upload_folder(repo_id=repo, folder_path=f"{folder}/{step}", revision=f"step{step}")
    with torch.no_grad():
        logits[step] = model(ids).logits
loaded = {}
for step in (0, 64):
    with torch.no_grad():
        loaded[step] = AutoModelForCausalLM.from_pretrained(repo, revision=f"step{step}").eval()(ids).logits
print(json.dumps({
    "equal": [torch.equal(loaded[step], logits[step]) for step in (0, 64)],
    "differ": not torch.equal(loaded[0], loaded[64]),
    "tokens": AutoTokenizer.from_pretrained(repo, revision="step64")("a walk")["input_ids"],
}))
"""


def test_transformers_opens_each_checkpoint(hub: Server, tmp_path: pathlib.Path) -> None:
    env = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", FROM_PRETRAINED, str(tmp_path / "made")],
        env=env,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == {"equal": [True, True], "differ": True, "tokens": [1, 2]}
