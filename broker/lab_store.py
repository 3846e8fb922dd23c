"""A lab's store as a donated machine or a pod sees it: the objects that the lab's API lets it read and write."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, cast
from urllib.parse import quote, urlsplit

import httpx2
from fsspec import AbstractFileSystem

BLOCK = 8 * 2**20
TIMEOUT = httpx2.Timeout(60, connect=10)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class LabFiles(AbstractFileSystem):  # type: ignore[misc]
    """The objects below an address of a lab's API, for whoever has the key; what `Store` asks of a file system.

    An object appears whole. Raises FileNotFoundError, and OSError and httpx2.HTTPError where the lab does not do it.
    """

    protocol = "https"
    cachable = False

    def __init__(self, address: str, key: str) -> None:
        super().__init__(skip_instance_cache=True, use_listings_cache=False)
        if not is_private(address):
            raise OSError("the address must begin with https://, or name this machine itself")
        self._client = httpx2.Client(
            base_url=f"{address.rstrip('/')}/", headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT
        )

    def cat_file(self, path: str, **_: Any) -> bytes:
        """The content of an object."""
        return self._ask("GET", _place("objects", path)).content

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """The size of an object."""
        size = self._ask("HEAD", _place("objects", path)).headers["Content-Length"]
        return {"name": path, "size": int(size), "type": "file"}

    def ls(self, path: str, **_: Any) -> list[str]:
        """The paths of what is directly in a folder."""
        return [f"{path}/{name}" for name in self._ask("GET", _place("names", path)).json()]

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        self._ask("DELETE", _place("objects", path))

    def open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        """A context manager for a stream that reads an object, or that writes it once the context has ended well."""
        return self._reading(path) if mode == "rb" else _Upload(self, path)

    def send(self, path: str, body: IO[bytes], size: int) -> None:
        """Write an object of `size` bytes."""
        blocks = iter(lambda: body.read(BLOCK), b"")
        self._ask("PUT", _place("objects", path), content=blocks, headers={"Content-Length": str(size)})

    @contextmanager
    def _reading(self, path: str) -> Iterator["_Download"]:
        with self._client.stream("GET", _place("objects", path)) as response:
            _checked(response)
            yield _Download(response)

    def _ask(self, method: str, place: str, **given: Any) -> httpx2.Response:
        return _checked(self._client.request(method, place, **given))


class _Download:
    """The blocks of an object as they come."""

    def __init__(self, response: httpx2.Response) -> None:
        self._blocks = response.iter_raw(BLOCK)

    def read(self, _size: int) -> bytes:
        return next(self._blocks, b"")


class _Upload:
    """An object that is sent once it is known whole."""

    def __init__(self, files: LabFiles, path: str) -> None:
        self._files, self._path = files, path
        self._body = cast(IO[bytes], tempfile.SpooledTemporaryFile(BLOCK))  # noqa: SIM115

    def __enter__(self) -> IO[bytes]:
        return self._body

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _where: TracebackType | None
    ) -> None:
        with self._body as body:
            if kind is None:
                size = body.tell()
                body.seek(0)
                self._files.send(self._path, body, size)


def is_private(address: str) -> bool:
    """Whether nobody on the way to an address can read what is sent there."""
    parts = urlsplit(address)
    return parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK)


def _place(what: str, path: str) -> str:
    return f"{what}/{quote(path.strip('/'))}"


def _checked(response: httpx2.Response) -> httpx2.Response:
    if response.status_code == 404:
        raise FileNotFoundError(str(response.url.path))
    if response.status_code >= 300:
        raise OSError(f"HTTP status {response.status_code}")
    return response
