"""The object store: what one host leaves there, every other host reads.

An object is written whole or not at all. A folder is whole once its object `whole` is there, which is put last and
names each file with its size and SHA-256; no store has to rename anything, and none has to list the newest objects.
"""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from projects.log import without_secrets
from projects.settings import Settings
from trainer.contract import CHECKPOINTS_FOLDER

if TYPE_CHECKING:  # fsspec takes a while to import: it is, once a store is opened
    from fsspec import AbstractFileSystem

WHOLE = "whole"
"""The object that makes a folder whole: its files, each with `size` and `sha256`."""
SENT = "sent"
"""The object with the files that are there already of a folder that is not whole yet."""
LEAVING = "leaving"
"""The object with the files that are being removed of a folder."""
PULLING = ".pulling"
"""The end of the name of a folder here that is not fetched whole yet."""
BLOCK = 8 * 2**20
AT_ONCE = 4
"""Files that are sent or fetched side by side."""
CONNECT_SECONDS, REQUEST_SECONDS, TRIES = 10, 60, 3
LONGEST_NAME = 1024
"""Bytes of the name of an object, which is what S3 takes."""
MOST_SAID = 300
S = TypeVar("S")
T = TypeVar("T")
CLOSED = "HTTP status 410"
REGION = ("AWS_REGION", "AWS_DEFAULT_REGION")
KEYS: Mapping[str, tuple[str, ...]] = {
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS",),
    "s3": ("AWS_",),
    "abfs": ("AZURE_",),
    "abfss": ("AZURE_",),
    "az": ("AZURE_",),
}
"""How the environment variables begin by which the client of a store finds its keys, by the scheme of the address."""
Manifest = dict[str, dict[str, Any]]
"""The files of a folder by name, each with `size` and `sha256`."""
Advance = Callable[[int], None]
REFUSALS: Mapping[str, str] = {
    r"ACCESS_DENIED|Access ?Denied|Permission denied|PERMISSION_DENIED|HTTP status 403": (
        "refuses this with the keys that are set"
    ),
    CLOSED: "takes nothing of this attempt any more",
    r"INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH": "does not take STOA_STORE_KEY and STOA_STORE_SECRET",
    r"NO_SUCH_BUCKET|NoSuchBucket": "has no such bucket",
    r"Quota|StorageFull|InsufficientStorage|HTTP status 507|No space left": "is full",
    r"INTERNAL_FAILURE|HTTP status 50[023]": "has a fault of its own, or is full",
    r"NETWORK_CONNECTION|timed? ?out|Timeout|REQUEST_TIMEOUT|Connection|UNAVAILABLE|Could not conn": "does not answer",
}
"""What the store is told to do, by what its client's errors say."""


def ignored(_size: int) -> None:
    """Is told the bytes of a block where nobody asks for them."""


class StoreError(Exception):
    """The store did not do what was asked; another try may succeed. The text is one sentence."""


class DamagedError(StoreError):
    """Something in the store is not what was put there."""


class ClosedError(StoreError):
    """The lab has given the attempt up, and takes nothing of it any more; no other try succeeds."""


class ChangedError(StoreError):
    """A file here is not what it was when it was read before."""


class Store:
    """The store that the settings name. Names of objects and folders are relative to its address, with slashes.

    All calls raise StoreError where the store refuses, is full or does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        with _telling("open", settings.store):
            self._fs, self._root = _opened(settings)
        self._is_local = settings.store.startswith(("file://", "local://"))
        self._is_google = settings.store.startswith("gs://")
        # A file of Google's that can be sought in calls itself closed where a request fails, and does not say why.
        self._reading = {"seekable": False} if self._is_google else {}

    def write(self, name: str, data: bytes) -> None:
        """Put an object there, in the place of an earlier one of that name."""
        with self.writing(name) as out:
            out.write(data)

    def read(self, name: str) -> bytes | None:
        """The content of an object; None where there is none."""
        with suppress(FileNotFoundError), _telling("read", name):
            return bytes(self._fs.cat_file(self._path(name)))
        return None

    def size(self, name: str) -> int | None:
        """The bytes of an object; None where there is none."""
        with suppress(FileNotFoundError), _telling("look at", name):
            self._fs.invalidate_cache()
            found = self._fs.info(self._path(name))
            return int(found["size"] or 0) if found["type"] == "file" else None
        return None

    def names(self, folder: str) -> Sequence[str]:
        """The names of what is directly in a folder, in order; a store may answer with what was there a while ago."""
        with suppress(FileNotFoundError), _telling("list", folder):
            self._fs.invalidate_cache()
            if self._is_google:  # of which pyarrow lists the objects of a folder, and not its folders
                first = len(self._path(folder)) + 1
                return sorted({path[first:].partition("/")[0] for path in self._below(folder)} - {""})
            found = self._fs.ls(self._path(folder), detail=False)
            return sorted({str(path).rstrip("/").rpartition("/")[2] for path in found})
        return []

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError), _telling("remove", name):
            self._fs.rm_file(self._path(name))

    def push(self, source: Path, folder: str) -> None:
        """Put a folder's files there and then say that it is whole. What an earlier call has sent is not sent again.

        What the store has lost of a whole folder is sent again. Raises OSError where a file cannot be read here.
        """
        whole = self.manifest(folder)
        if whole is None or not self._has(folder, whole):
            paths = sorted(path for path in source.rglob("*") if path.is_file() and not path.name.startswith("."))
            self.push_files({path.relative_to(source).as_posix(): path for path in paths}, folder)

    def push_files(
        self,
        files: Mapping[str, Path],
        folder: str,
        known: Manifest | None = None,
        *,
        again: bool = False,
        advance: Advance = ignored,
    ) -> None:
        """Put files there by their names in the folder, as `push` does; all of them `again`, if asked.

        With `known`, which the folder has its name from, a file that is there of its size is what it should be, and
        ChangedError is raised where one here is not. `advance` is told the bytes of each block that is sent, or need
        not be sent.
        """
        sent = known or self.manifest(folder) or self._manifest(f"{folder}/{SENT}") or {}
        sent = {} if again else dict(sent)
        lock = threading.Lock()

        def send(name: str) -> tuple[str, Mapping[str, Any]]:
            path, there = files[name], sent.get(name)
            is_there = there is not None and self.size(f"{folder}/{name}") == there["size"]
            if there is not None and is_there and there == (known[name] if known else described(path)):
                advance(there["size"])
                return name, there
            new = self._send(path, f"{folder}/{name}", advance)
            if known is None:
                with lock:
                    sent[name] = new
                    self.write(f"{folder}/{SENT}", json.dumps(sent).encode())
            elif new != known[name]:
                self.remove(f"{folder}/{name}")
                raise ChangedError(f"{path} has changed while it was sent.")
            return name, new

        there = dict(_side_by_side(send, files))
        if not self._has(folder, there):
            raise DamagedError(f"The store has lost a file of {folder} that was just put there.")
        self.write(f"{folder}/{WHOLE}", json.dumps(there).encode())
        self.remove(f"{folder}/{SENT}")

    def discard(self, folder: str, *, partial: bool = False) -> bool:
        """Remove a whole folder, and with `partial` one of which only a part was sent; False where something stays.

        That it is whole goes first, so that nobody takes what is left for it. A call that was cut short is finished by
        the next.
        """
        files = self._manifest(f"{folder}/{LEAVING}") or self._manifest(f"{folder}/{WHOLE}")
        if files is None and partial:
            files = self._manifest(f"{folder}/{SENT}")
        if files is None:
            with suppress(FileNotFoundError), _telling("list", folder):
                return not self._below(folder)
            return True
        self.write(f"{folder}/{LEAVING}", json.dumps(files).encode())
        self.remove(f"{folder}/{WHOLE}")
        _side_by_side(self.remove, [f"{folder}/{name}" for name in (*files, SENT)])
        with suppress(FileNotFoundError), _telling("remove", folder):
            self._fs.rm(self._path(folder), recursive=True)  # also what stands for empty folders
        return True

    def is_whole(self, folder: str) -> bool:
        """Whether a folder is there to its last file, each of the size that it had."""
        files = self.manifest(folder)
        return files is not None and self._has(folder, files)

    def manifest(self, folder: str) -> Manifest | None:
        """The files of a whole folder; None where there is none that is whole."""
        return self._manifest(f"{folder}/{WHOLE}")

    def whole_size(self, folder: str) -> int | None:
        """The bytes of a whole folder's files; None where there is none."""
        files = self.manifest(folder)
        return None if files is None else sum(int(each["size"]) for each in files.values())

    def pull(self, folder: str, target: Path, advance: Advance = ignored) -> bool:
        """Fetch a whole folder and give it its name `target` at the end; False where there is none that is whole.

        What an earlier call has fetched is not fetched again. `advance` is told the bytes of each block that is here.
        Raises DamagedError where a file is not what was put there, and OSError where one cannot be written here.
        """
        files = self.manifest(folder)
        if files is None:
            return False
        if target.exists():
            return True
        staging = staging_of(target)
        staging.mkdir(parents=True, exist_ok=True)

        def fetch(name: str) -> None:
            path = staging / name
            if path.is_file() and described(path) == files[name]:
                advance(files[name]["size"])
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(f"{folder}/{name}", path, files[name]["sha256"], advance)

        _side_by_side(fetch, files)
        for path in [*staging.rglob("*"), staging]:
            _sync(path)
        try:
            staging.rename(target)
        except OSError:
            if not target.exists():
                raise
            shutil.rmtree(staging, ignore_errors=True)  # another process has fetched it meanwhile
        _sync(target.parent)
        return True

    def _below(self, folder: str) -> Sequence[str]:
        """The paths of all objects in a folder and its folders."""
        if not self._is_google:
            return [str(path) for path in self._fs.find(self._path(folder))]
        from pyarrow.fs import FileSelector

        every = FileSelector(self._path(folder), allow_not_found=True, recursive=True)
        return [str(info.path) for info in self._fs.fs.get_file_info(every)]

    def _send(self, path: Path, name: str, advance: Advance) -> dict[str, Any]:
        """Put a file there; its description."""
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as file, self.writing(name) as out:
            while block := file.read(BLOCK):
                digest.update(block)
                out.write(block)
                size += len(block)
                advance(len(block))
        return {"size": size, "sha256": digest.hexdigest()}

    def _fetch(self, name: str, path: Path, sha256: str, advance: Advance) -> None:
        digest = hashlib.sha256()
        short = hashlib.sha256(path.name.encode()).hexdigest()[:16]  # the name may be as long as one can be
        partial = path.with_name(f".{short}.{os.getpid()}")
        with partial.open("wb") as out:
            for block in self.blocks(name):
                digest.update(block)
                out.write(block)
                advance(len(block))
        if digest.hexdigest() != sha256:
            partial.unlink()
            raise DamagedError(f"The store has other bytes as {name} than were put there.")
        partial.replace(path)

    def blocks(self, name: str) -> Iterator[bytes]:
        """The content of an object, block by block; raises DamagedError where there is none."""
        try:
            with _telling("read", name), self._fs.open(self._path(name), "rb", **self._reading) as stream:
                while block := stream.read(BLOCK):
                    yield block
        except FileNotFoundError as error:
            raise DamagedError(f"The store has lost {name}.") from error

    def _has(self, folder: str, files: Mapping[str, Any]) -> bool:
        """Whether each of these files is there, of its size."""
        return all(self.size(f"{folder}/{name}") == described["size"] for name, described in files.items())

    def _manifest(self, name: str) -> Manifest | None:
        """The files that a manifest names; None where there is no manifest that can be read."""
        data = self.read(name)
        with suppress(ValueError):
            files = json.loads(data or b"null")
            if isinstance(files, dict) and all(_is_safe(each) for each in files):
                return files
        return None

    @contextmanager
    def writing(self, name: str) -> Iterator[Any]:
        """A stream for the content of an object, which is there once the context has ended well."""
        with _telling("write", name), self._stream(name) as out:
            yield out

    @contextmanager
    def _stream(self, name: str) -> Iterator[Any]:
        if not self._is_local:
            with self._fs.open(self._path(name), "wb") as out:
                yield out
            return
        out = self._fs.open(self._path(name), "wb", autocommit=False)
        try:
            with out:
                yield out
        except BaseException:
            out.discard()
            raise
        out.commit()

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def of(settings: Settings) -> Store | None:
    """The store that the settings name; None where they name none. Raises StoreError."""
    return Store(settings) if settings.store else None


def environment(settings: Settings) -> dict[str, str]:
    """The store's settings, and where its keys lie, as environment variables for a process that is to use it."""
    values = {
        "STOA_STORE": settings.store,
        "STOA_STORE_ENDPOINT": settings.store_endpoint,
        "STOA_STORE_KEY": settings.store_key.get_secret_value(),
        "STOA_STORE_SECRET": settings.store_secret.get_secret_value(),
    }
    return {name: value for name, value in values.items() if value} | keys(settings)


def keys(settings: Settings) -> dict[str, str]:
    """The environment variables by which the store's client finds its keys, from the environment or else the file of
    settings; where the settings have keys of S3, only the region."""
    scheme = settings.store.partition("://")[0]
    names = REGION if scheme == "s3" and settings.store_key.get_secret_value() else KEYS.get(scheme, ())
    if not names:
        return {}
    from dotenv import dotenv_values

    file = os.environ.get("STOA_ENV_FILE", ".env")
    known = (dotenv_values(file) if file else {}, os.environ)
    return {name: value for each in known for name, value in each.items() if value and name.startswith(names)}


def attempt_folder(run_id: int, owner: str, token: int) -> str:
    """The folder of an attempt in the store. `owner` is the run's request, as runs of two databases share numbers."""
    return f"runs/{run_id}-{hashlib.sha256(owner.encode()).hexdigest()[:12]}/attempt-{token}"


def checkpoint_folder(attempt: str, step: int) -> str:
    """The folder of a checkpoint in an attempt's folder of the store."""
    return f"{attempt}/{CHECKPOINTS_FOLDER}/step{step}"


def _opened(settings: Settings) -> "tuple[AbstractFileSystem, str]":
    """The file system of a store, and the path in it that the store's names begin with."""
    key, secret = settings.store_key.get_secret_value(), settings.store_secret.get_secret_value()
    for name, value in keys(settings).items():
        if not os.environ.get(name):
            os.environ[name] = value
    scheme, _, place = settings.store.partition("://")
    if scheme == "s3":
        if bool(key) != bool(secret):
            raise StoreError("STOA_STORE_KEY and STOA_STORE_SECRET go together: set both, or neither.")
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        endpoint = urlsplit(settings.store_endpoint)
        files = S3FileSystem(
            access_key=key or None,
            secret_key=secret or None,
            endpoint_override=settings.store_endpoint.rstrip("/") or None,
            scheme=endpoint.scheme or None,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=REQUEST_SECONDS,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=TRIES),
        )
        return ArrowFSWrapper(files, skip_instance_cache=True), place
    if scheme == "gs":
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow.fs import GcsFileSystem

        files = GcsFileSystem(retry_time_limit=timedelta(seconds=REQUEST_SECONDS))  # by itself it tries for 15 minutes
        return ArrowFSWrapper(files, skip_instance_cache=True), place
    if scheme in ("https", "http"):
        from broker.lab_store import LabFiles

        return LabFiles(settings.store, secret), ""
    import fsspec

    known: dict[str, dict[str, Any]] = {"file": {"auto_mkdir": True}, "hf": {"token": secret or None}}
    try:
        files, root = fsspec.url_to_fs(
            settings.store, use_listings_cache=False, skip_instance_cache=True, **known.get(scheme, {})
        )
    except ImportError as error:
        raise StoreError(f"STOA_STORE begins with {scheme}://, for which a package is missing here: {error}.") from None
    return files, str(root)


@contextmanager
def _telling(what: str, name: str) -> Iterator[None]:
    """Raise StoreError, with a sentence, in the place of what the client of a store raises."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and "AWS Error" not in f"{error}":
            raise  # fsspec takes "the bucket does not exist" and "the key does not exist" for a missing object
        said = without_secrets(" ".join(f"{error}".split()))[:MOST_SAID]
        clause = next((clause for mark, clause in REFUSALS.items() if re.search(mark, said)), "does not do it")
        kind = ClosedError if CLOSED in said else StoreError
        raise kind(f"The store {clause}: could not {what} {name} ({said}).") from error


def _side_by_side(work: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """The results of work on some items, some at once; all are worked on, also where one fails."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        started = [pool.submit(work, item) for item in items]
    return [each.result() for each in started]


def staging_of(target: Path) -> Path:
    """The folder in which `target` lies until it is whole."""
    return target.with_name(f".{target.name}{PULLING}")


def described(path: Path) -> dict[str, Any]:
    """The `size` and `sha256` of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def is_plain(name: str) -> bool:
    """Whether an object of this name, which leads nowhere else, can be had everywhere: the lab's API takes no other."""
    if not name.isprintable() or "\\" in name or {"", ".", ".."} & set(name.split("/")):
        return False
    return len(name.encode()) <= LONGEST_NAME


def _is_safe(name: object) -> bool:
    """Whether a file's name in a manifest leads nowhere but into the folder."""
    return isinstance(name, str) and not Path(name).is_absolute() and ".." not in Path(name).parts and "\0" not in name


def _sync(path: Path) -> None:
    """Wait until a file or a folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
