"""A real S3 server for the tests: SeaweedFS on loopback, in a folder of its own."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import S3FileSystem

from broker.store import Store
from projects.settings import Settings
from tests.patience import PATIENCE, wait_for
from tests.ports import free_ports

KEY, SECRET = "stoa-key", "stoa-secret-of-the-store"
READER, READERS_SECRET = "reader-key", "reader-secret"
SERVERS = ("master", "volume", "filer", "s3")


class Seaweed:
    """The running server, and what a test does to it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.ports = free_ports(2 * len(SERVERS))
        may_read = {"accessKey": READER, "secretKey": READERS_SECRET}
        identities = [
            {"name": "stoa", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]},
            {"name": "reader", "credentials": [may_read], "actions": ["Read", "List"]},
        ]
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        self.start()
        S3FileSystem(
            access_key=KEY, secret_key=SECRET, endpoint_override=self.endpoint, allow_bucket_creation=True
        ).create_dir("lab")

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[6]}"

    @property
    def filer(self) -> str:
        """The address that the server's own client copies to: its port, and the one for gRPC."""
        return f"http://127.0.0.1:{self.ports[4]}.{self.ports[5]}"

    def start(self) -> None:
        """Start it with what it had, and wait until it answers."""
        options = [f"-{name}.port={port}" for name, port in zip(SERVERS, self.ports[::2], strict=True)]
        options += [f"-{name}.port.grpc={port}" for name, port in zip(SERVERS, self.ports[1::2], strict=True)]
        with (self.folder / "weed.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(str(weed()), "server", "-dir", str(self.folder), "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer"),
                    *("-s3", "-s3.config", str(self.folder / "s3.json"), "-s3.port.iceberg=0", "-s3.port.lance=0"),
                    *("-master.telemetry=false", "-volume.max=200", "-master.volumeSizeLimitMB=1024", *options),
                    *self.options,
                ],
                cwd=self.folder,
                env={"HOME": str(self.folder)},
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers, "the S3 server")

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "weed.log").read_text()[-2000:]
        try:
            Store(self.settings(Settings(_env_file=None), prefix="begin")).write("begun", b"")
        except Exception:
            return False
        return True

    def settings(self, settings: Settings, prefix: str, **changed: Any) -> Settings:
        """The settings, with a place of this server as the store."""
        place = {
            "store": f"s3://lab/{prefix}",
            "store_endpoint": self.endpoint,
            "store_key": KEY,
            "store_secret": SECRET,
        }
        return Settings.model_validate(settings.model_dump() | place | changed)

    def hang(self) -> None:
        """Let it answer nobody."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it answer again."""
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it; what it holds stays."""
        self.process.kill()
        self.process.wait(PATIENCE)


def weed() -> Path:
    """The program of the server and of its own client."""
    return Path(sys.executable).parent / "weed"


@contextmanager
def server(*options: str) -> Iterator[Seaweed]:
    """An S3 server with an empty bucket `lab`, which is given further options of its own."""
    folder = Path(tempfile.mkdtemp(prefix="stoa-seaweed-"))
    seaweed = Seaweed(folder, *options)
    try:
        yield seaweed
    finally:
        seaweed.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[Seaweed]:
    """An S3 server, which the tests of a process share: each has a prefix of its own."""
    with server() as running:
        yield running
