"""Preparing data on several hosts that share a folder: each encodes its own share of the sources' files, and host 0
joins what all have written. The bytes are those that one host would have written.

Beside the folder lies `.NAME.parts` meanwhile, with the decisions of host 0 and a folder for each part that is encoded
whole, which a host that was killed does not do again.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from trainer import files
from trainer.data import readers, tokenizer
from trainer.data.build import Advance, Build, SourceWriter
from trainer.data.config import DataConfig, SourceConfig
from trainer.data.encode import SPLITS
from trainer.data.readers import Say
from trainer.schema import ConfigError

POLL_SECONDS = 1.0
DECISIONS, DESCRIBED, FAILED = "decisions.json", "described.json", "failed."

Described = dict[str, dict[str, Any]]


class Part(NamedTuple):
    """The part of that number of a source, as `readers.parts_of` has them, None where it is read as a whole; and its
    bytes, which its host is chosen by."""

    source: SourceConfig
    number: int | None
    size: int

    @property
    def name(self) -> str:
        return f"{self.source.name}.{self.number or 0:06}"


class Hosts:
    """The preparation as host `host` of `hosts` does it."""

    def __init__(self, data: DataConfig, folder: Path, mark: str, host: int, hosts: int) -> None:
        self._data, self._mark, self._host, self._hosts = data, mark, host, hosts
        self._shared = folder.with_name(f".{folder.name}.parts")
        self._decisions = self._shared / mark / DECISIONS
        self._parts = [part for source in data.sources for part in _parts_of(source, data)]
        self._old_failures = self._failures()

    def encode(self, progress: Say, workers: int, advance: Advance, is_prepared: Callable[[], bool]) -> bool:
        """Encode this host's share. Host 0 decides first what depends on all sources, and the others wait for that.
        Returns false where the data were prepared meanwhile. Raises ConfigError, on the other hosts too."""
        with self._telling():
            return self._encode(progress, workers, advance, is_prepared)

    def _encode(self, progress: Say, workers: int, advance: Advance, is_prepared: Callable[[], bool]) -> bool:
        if self._host == 0:
            self._decide(progress, workers, advance)
        elif not self._wait_for(self._decisions.exists, is_prepared, progress, "host 0, which makes the tokenizer"):
            return False
        build = Build(self._data, self._shared / self._mark, progress, workers, advance)
        build.read_decisions(self._decisions)
        with build.encoders(tokenizer.load(self._shared / self._mark)) as pool:
            mine = self._shares()[self._host]
            whole = sum(part.size for part in mine) or 1
            for number, part in enumerate(mine):
                if not self._is_done(part):
                    writing = self._place(part).with_name(f".{part.name}.writing")
                    shutil.rmtree(writing, ignore_errors=True)
                    writing.mkdir()
                    share = sum(before.size for before in mine[:number]) / whole
                    described = build.encode(part.source, pool, writing, part.number, share)
                    (writing / DESCRIBED).write_text(json.dumps(described), encoding="utf-8")
                    for path in writing.iterdir():
                        files.sync(path)
                    writing.rename(self._place(part))
        return True

    def wait(self, is_prepared: Callable[[], bool], progress: Say) -> None:
        """Wait until host 0 has joined all parts: where hosts are started together, the first that ends may take the
        others with it. Raises ConfigError where it could not."""
        self._wait_for(is_prepared, lambda: False, progress, "host 0, which joins what the hosts have written")

    def join(self, building: Path, progress: Say) -> None:
        """Wait until all parts are encoded, and write the whole data into the folder `building`. Raises ConfigError, on
        the other hosts too."""
        with self._telling():
            self._join(building, progress)

    def _join(self, building: Path, progress: Say) -> None:
        build = Build(self._data, building, progress, 1, lambda size: None)
        build.read_decisions(self._decisions)
        for host, share in enumerate(self._shares()):
            left = [part for part in share if not self._is_done(part)]
            if left:
                progress(f"waiting for host {host}, which encodes {left[0].name}")
                self._wait_for(partial(self._are_done, left), lambda: False, progress, "")
        for path in (self._shared / self._mark).iterdir():
            if path.is_file() and path.name != DECISIONS and not path.name.startswith(FAILED):
                shutil.copyfile(path, building / path.name)
        build.complete(tokenizer.load(building), self._mark, lambda source: self._joined(source, building, progress))

    def remove(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self._shared, ignore_errors=True)

    def _decide(self, progress: Say, workers: int, advance: Advance) -> None:
        if self._decisions.exists():
            return
        # What is there is of other settings or files, or of a host that was killed before it had decided.
        self.remove()
        folder = self._shared / self._mark
        folder.mkdir(parents=True)
        build = Build(self._data, folder, progress, workers, advance)
        build.decide(None)
        build.write_decisions(self._decisions)

    def _joined(self, source: SourceConfig, building: Path, progress: Say) -> Described:
        progress(f"joining {source.name}")
        parts = [part for part in self._parts if part.source is source]
        with SourceWriter(building, source, self._data) as writer:
            for part in parts:
                place = self._place(part)
                writer.add_part(place, source, json.loads((place / DESCRIBED).read_text(encoding="utf-8")))
        described = writer.described
        if len(parts) > 1 and not any(described[split]["bytes"] for split in SPLITS):
            raise readers.empty(source)
        return described

    def _shares(self) -> list[list[Part]]:
        """The parts of each host: the largest first, each to the host that has least."""
        shares: list[list[Part]] = [[] for _ in range(self._hosts)]
        for part in sorted(self._parts, key=lambda part: -part.size):
            min(shares, key=lambda share: sum(other.size for other in share)).append(part)
        return shares

    def _place(self, part: Part) -> Path:
        return self._shared / self._mark / part.name

    def _is_done(self, part: Part) -> bool:
        return self._place(part).is_dir()

    def _failure(self, host: int) -> Path:
        """The file in which a host says why it could not do its share."""
        return self._shared / self._mark / f"{FAILED}{host}"

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tell the other hosts of an error that ends this one."""
        try:
            yield
        except ConfigError as error:
            place = self._failure(self._host)
            place.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomically(place, str(error))
            raise

    def _failures(self) -> dict[int, int]:
        """When each host that could not do its share said so, as its disk has the time."""
        found = {host: self._failure(host) for host in range(self._hosts) if host != self._host}
        return {host: path.stat().st_mtime_ns for host, path in found.items() if path.exists()}

    def _are_done(self, parts: list[Part]) -> bool:
        return all(map(self._is_done, parts))

    def _wait_for(self, what: Callable[[], bool], otherwise: Callable[[], bool], progress: Say, awaited: str) -> bool:
        """Wait until `what` is true, or return false once `otherwise` is. Raises ConfigError where another host fails
        from this host's start on."""
        if awaited and not what():
            progress(f"waiting for {awaited}")
        while not what():
            if otherwise():
                return False
            for host, at in self._failures().items():
                if self._old_failures.get(host) != at:
                    reason = self._failure(host).read_text(encoding="utf-8")
                    raise ConfigError(f"Host {host} could not do its share: {reason}")
            time.sleep(POLL_SECONDS)
        return True


def _parts_of(source: SourceConfig, data: DataConfig) -> list[Part]:
    paths = readers.parts_of(source, data)
    if paths == [None]:
        found = (path for path in readers.files_of(source, data.root_folder) if path.is_file())
        return [Part(source, None, sum(path.stat().st_size for path in found))]
    return [Part(source, number, path.stat().st_size) for number, path in enumerate(paths) if path is not None]
