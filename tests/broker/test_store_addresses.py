"""Stores beside S3 and folders: Google's, whose real client asks the loopback, and the Hub's buckets, which are only
opened."""

import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import pytest
from huggingface_hub import HfFileSystem

from broker import store as stores
from broker.runners import carrier
from broker.store import Store, StoreError
from projects.settings import Settings
from tests.broker.lab import settings
from tests.patience import PATIENCE
from tests.ports import free_ports


class Refusing(BaseHTTPRequestHandler):
    """Google Cloud Storage, of which it has the addresses alone: it refuses all."""

    asked: ClassVar[list[tuple[str, str, str]]] = []

    def do_GET(self) -> None:
        """Note who asked for what, and refuse it."""
        self.asked.append((self.command, unquote(self.path), self.headers["Authorization"].split()[0]))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        said = json.dumps({"error": {"code": 403, "message": "Forbidden"}}).encode()
        self.send_response(403)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def do_POST(self) -> None:
        """The same."""
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with a store of Google's, whose client asks the loopback with the key of an account of its own."""
    key = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], capture_output=True, check=True
    ).stdout.decode()
    account = {"type": "service_account", "project_id": "lab", "private_key_id": "1", "private_key": key}
    account |= {"client_email": "stoa@lab.example", "client_id": "1", "token_uri": "http://127.0.0.1:9/token"}
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(Refusing, "asked", [])
    yield settings(tmp_path / "home", store="gs://lab/stoa")
    server.shutdown()
    server.server_close()


def test_a_store_of_googles_that_refuses_or_is_away_says_so(google: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="refuses this with the keys that are set: could not write a"):
        Store(google).write("a", b"x")
    with pytest.raises(StoreError, match="refuses this with the keys that are set: could not read a"):
        Store(google).read("a")
    assert [(command, *re.findall(r"/b/(lab)/o.*(stoa/a)", path), by) for command, path, by in Refusing.asked] == [
        ("POST", ("lab", "stoa/a"), "Bearer"),
        ("GET", ("lab", "stoa/a"), "Bearer"),
    ]
    monkeypatch.setattr(stores, "REQUEST_SECONDS", 1)
    [nobody] = free_ports(1)
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{nobody}")
    with pytest.raises(StoreError, match="does not answer: could not write a"):
        Store(google).write("a", b"x")


def test_a_carrier_has_the_keys_of_a_store_of_googles(google: Settings) -> None:
    folder = google.runs_dir / "7" / "attempt-1"
    folder.mkdir(parents=True)
    (folder / carrier.PLAN_FILE).write_text(carrier.Plan(attempt="runs/7-a/attempt-1").model_dump_json())
    process = carrier.spawn(google, folder)
    variables = Path(f"/proc/{process.pid}/environ").read_bytes().decode().split("\0")
    process.kill()
    process.wait(PATIENCE)
    named = f"GOOGLE_APPLICATION_CREDENTIALS={os.environ['GOOGLE_APPLICATION_CREDENTIALS']}"
    assert named in variables
    assert named.split("=")[0] not in stores.environment(google.model_copy(update={"store": "s3://lab/stoa"}))


def test_a_bucket_of_the_hub_is_opened_with_its_token(tmp_path: Path) -> None:
    conf = settings(tmp_path, store="hf://buckets/lab/runs/stoa/", store_secret="hf_of_the_store")
    files, root = stores._opened(conf)
    assert isinstance(files, HfFileSystem)
    assert (root, files.token) == ("buckets/lab/runs/stoa", "hf_of_the_store")
