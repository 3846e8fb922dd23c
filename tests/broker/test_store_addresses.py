"""Stores beside S3 and folders: Google's, whose real client asks an emulator on the loopback, and the Hub's buckets,
which are only opened."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote

import pytest
from huggingface_hub import HfFileSystem
from pydantic import SecretStr

from broker import store as stores
from broker.runners import carrier
from broker.store import DamagedError, Store, StoreError
from cli.services import SECRETS, environment
from projects.settings import Settings
from tests.broker.lab import settings
from tests.patience import PATIENCE, wait_for
from tests.ports import free_ports

GOOGLE_KEYS = "GOOGLE_APPLICATION_CREDENTIALS"


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


def account(folder: Path) -> Path:
    """The file with the key of an account of Google's."""
    key = subprocess.run(
        ["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], capture_output=True, check=True
    ).stdout.decode()
    said = {"type": "service_account", "project_id": "lab", "private_key_id": "1", "private_key": key}
    said |= {"client_email": "stoa@lab.example", "client_id": "1", "token_uri": "http://127.0.0.1:9/token"}
    (folder / "account.json").write_text(json.dumps(said))
    return folder / "account.json"


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with a store of Google's that refuses all."""
    monkeypatch.setenv(GOOGLE_KEYS, str(account(tmp_path)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(Refusing, "asked", [])
    yield settings(tmp_path / "home", store="gs://lab/stoa")
    server.shutdown()
    server.server_close()


def answers(port: int) -> bool:
    """Whether somebody listens."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.fixture
def emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with a store of Google's, which an emulator has."""
    monkeypatch.setenv(GOOGLE_KEYS, "")
    [port] = free_ports(1)
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", f"http://127.0.0.1:{port}")
    program, place = Path(sys.executable).parent / "gcp-storage-emulator", ["--host", "127.0.0.1", "--port", str(port)]
    # A process of its own: pyarrow keeps the GIL while it closes what it reads.
    with (tmp_path / "emulator.log").open("wb") as log:
        process = subprocess.Popen([program, "start", *place, "--in-memory", "--default-bucket", "lab"], stderr=log)
    try:
        wait_for(lambda: process.poll() is None and answers(port), "the emulator")
        yield settings(tmp_path / "home", store="gs://lab/stoa")
    finally:
        process.kill()
        process.wait(PATIENCE)


def test_a_folder_goes_to_a_store_of_googles_and_back(
    emulated: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(GOOGLE_KEYS, str(account(tmp_path)))
    store, source = Store(emulated), tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "weights, the é").write_bytes(os.urandom(2 * stores.BLOCK + 1))
    (source / "empty").touch()
    assert (store.names("a/step1"), store.read("a/step1/whole"), store.is_whole("a/step1")) == ([], None, False)
    assert not store.pull("a/step1", tmp_path / "pulled")
    store.push(source, "a/step1")
    assert store.names("a/step1") == ["deep", "empty", "whole"]
    assert store.size("a/step1/deep/weights, the é") == 2 * stores.BLOCK + 1
    assert store.pull("a/step1", tmp_path / "pulled")
    for name in ("deep/weights, the é", "empty"):
        assert (tmp_path / "pulled" / name).read_bytes() == (source / name).read_bytes()
    store.write("a/step1/empty", b"not any more")
    with pytest.raises(DamagedError, match="other bytes as a/step1/empty"):
        store.pull("a/step1", tmp_path / "damaged")
    store.write("a/step10", b"beside")
    assert store.names("a") == ["step1", "step10"]
    store.remove("a/step1/whole")
    assert not store.discard("a/step1"), "somebody may be sending it"
    store.push(source, "a/step1")
    assert store.discard("a/step1")
    assert (store.names("a/step1"), store.read("a/step1/empty"), store.names("a")) == ([], None, ["step10"])


def test_whoever_opens_a_store_has_the_keys_that_the_shell_or_the_file_of_settings_name(
    emulated: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, file = str(account(tmp_path)), tmp_path / ".env"
    file.write_text(f"{GOOGLE_KEYS}={key}\nAWS_SECRET_ACCESS_KEY=theirs\nAWS_REGION=eu\n")
    monkeypatch.setenv("STOA_ENV_FILE", str(file))
    for part in SECRETS:
        given = environment(emulated, part)
        assert (given[GOOGLE_KEYS], "AWS_REGION" in given) == (key, False), part
    told = environment(emulated, "bot") | {
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"]
    }
    code = """
from broker.store import Store
from projects.settings import get_settings
Store(get_settings()).write("a", b"x")
"""
    subprocess.run([sys.executable, "-c", code], env=told, check=True)
    assert Store(emulated).read("a") == b"x"

    s3 = emulated.model_copy(update={"store": "s3://lab/stoa"})
    assert {"AWS_SECRET_ACCESS_KEY": "theirs", "AWS_REGION": "eu"}.items() <= stores.environment(s3).items()
    assert GOOGLE_KEYS not in environment(s3, "worker")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "lab")
    for scheme in ("abfs", "abfss", "az"):
        azure = s3.model_copy(update={"store": f"{scheme}://lab/stoa"})
        assert stores.keys(azure) == {"AZURE_STORAGE_ACCOUNT_NAME": "lab"}, scheme
    monkeypatch.setenv("AWS_REGION", "us")
    keyed = s3.model_copy(update={"store_key": SecretStr("ours")})
    assert stores.keys(keyed) == {"AWS_REGION": "us"}, "it has a key of its own, and the shell comes first"
    assert stores.keys(emulated.model_copy(update={"store": "file:///srv"})) == {}
    assert stores.keys(emulated.model_copy(update={"store": ""})) == {}


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
    environment = Path(f"/proc/{process.pid}/environ")
    wait_for(environment.read_bytes, "the carrier's environment, which is empty for a moment after its start")
    variables = environment.read_bytes().decode().split("\0")
    process.kill()
    process.wait(PATIENCE)
    assert f"{GOOGLE_KEYS}={os.environ[GOOGLE_KEYS]}" in variables


def test_a_bucket_of_the_hub_is_opened_with_its_token(tmp_path: Path) -> None:
    conf = settings(tmp_path, store="hf://buckets/lab/runs/stoa/", store_secret="hf_of_the_store")
    files, root = stores._opened(conf)
    assert isinstance(files, HfFileSystem)
    assert (root, files.token) == ("buckets/lab/runs/stoa", "hf_of_the_store")
