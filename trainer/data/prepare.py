"""Preparing data: from the sources to a folder with a tokenizer and every document as tokens, train and held out.

The folder has `manifest.json`, `tokenizer.json`, and for each source and split `SOURCE.SPLIT.bin/.idx` (the tokens,
each document followed by the end-of-document token), `SOURCE.SPLIT.names.bin/.idx` (the documents' names as UTF-8 bytes
in the same format) and, for train, `SOURCE.train.counts.npy` (how often each token occurs). Rows of packed data are
written as they are, without that token; the manifest says of what length, as `row`.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from platform import python_version
from typing import Any

from trainer import files
from trainer.checkpoint import metadata
from trainer.config import TrainConfig
from trainer.contract import DATA_FOLDER
from trainer.data import instructions, readers, tokenizer
from trainer.data.build import Advance as Advance
from trainer.data.build import Build, tokenizer_file
from trainer.data.config import PLACES, DataConfig
from trainer.data.encode import SPLITS
from trainer.data.hosts import Hosts
from trainer.data.readers import Say
from trainer.schema import ConfigError

FORMAT = 2
CHECKED_BYTES = 1 << 30
"""Larger files are not read again at each start of a run to verify them: that would take too long."""


def folder_of(config: TrainConfig, out: Path) -> Path:
    """The prepared data folder of the run in `out`: the configured one, or the run's own."""
    return Path(config.data.prepared) if config.data.prepared else out / DATA_FOLDER


def ensure(config: TrainConfig, out: Path, checkpoint: Path | None, progress: Say, is_fork: bool = False) -> Path:
    """The prepared data folder of the run in `out`, verified; the run's own is prepared where that is not done yet.

    `checkpoint` is what the run starts from, `is_fork` whether it forks it. Raises ConfigError if a source cannot be
    read, if the folder's tokenizer is not that of the configuration and of the checkpoint, or, unless the run is a
    fork, if the text is not what the checkpoint was trained on.
    """
    folder = folder_of(config, out)
    if not config.data.prepared:
        resumed = metadata.read(checkpoint) if checkpoint and not is_fork else None
        prepare(config.data, folder, checkpoint, progress, resumed=resumed)
    _check_tokenizer(config.data, folder, checkpoint)
    verify(folder)
    return folder


def prepare(
    data: DataConfig,
    folder: Path,
    checkpoint: Path | None,
    progress: Say,
    workers: int = 1,
    advance: Advance = lambda size: None,
    resumed: Mapping[str, Any] | None = None,
    host: int = 0,
    hosts: int = 1,
) -> None:
    """Prepare data in `folder`, unless it was prepared from the same settings and files. The folder appears when it is
    whole.

    Of several `hosts` that share the folder each does its share, and host 0 makes the whole of them; then there is no
    checkpoint.

    With a checkpoint its tokenizer is used, and with the metadata of a `resumed` checkpoint the data must be the same.
    The bytes written are the same for any number of workers. `progress` is told the name of each stage, `advance` the
    bytes of each batch. Raises ConfigError if a source cannot be read or has no text.
    """
    _check_found(data)
    mark = fingerprint(data)
    if is_prepared(folder, mark) and (checkpoint is None or _digest(folder) == _digest(checkpoint)):
        return
    if folder.exists() and not (folder / "manifest.json").is_file() and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds something else than prepared data; give --out another folder.")
    if hosts > 1 and data.kind != "text":
        raise ConfigError(f"Data of {data.kind} are prepared on one host; leave out --hosts.")
    shared = Hosts(data, folder, mark, host, hosts) if hosts > 1 else None
    if shared is not None:
        if not shared.encode(progress, workers, advance, lambda: is_prepared(folder, mark)):
            return
        if host > 0:
            shared.wait(lambda: is_prepared(folder, mark), progress)
            return
    building = folder.with_name(f".{folder.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        if data.kind != "text":
            instructions.build(data, building, progress, advance, checkpoint, mark)
        elif shared is None:
            Build(data, building, progress, workers, advance)(checkpoint, mark)
        else:
            shared.join(building, progress)
        if resumed:
            require_same_data(manifest_of(building), resumed, folder)
        shutil.rmtree(folder, ignore_errors=True)
        building.rename(folder)
        files.sync(folder.parent)
        if shared is not None:
            shared.remove()
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise


def manifest_of(folder: Path) -> dict[str, Any]:
    """The manifest of a prepared data folder. Raises ConfigError if the folder is not one."""
    try:
        content: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        content["fingerprint"], content["tokenizer"]["sha256"], content["tokenizer"]["vocabulary"], content["files"]
        for source in content["sources"]:
            source["name"], source["licence"], [(source[split]["tokens"], source[split]["sha256"]) for split in SPLITS]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{folder} holds no prepared data; prepare it with `python -m trainer data prepare CONFIG --out {folder}`."
        ) from None
    return content


def content_of(manifest: Mapping[str, Any]) -> list[Any]:
    """What tells prepared data from others: the hashes of their tokenizer and of each source's tokens."""
    sources = [[source["name"], *(source[split]["sha256"] for split in SPLITS)] for source in manifest["sources"]]
    return [manifest["tokenizer"]["sha256"], sources]


def verify(folder: Path, prefix: str = "", largest: float = CHECKED_BYTES) -> None:
    """Raise ConfigError unless the prepared files whose names begin with `prefix` have their checksums.

    Files of more than `largest` bytes are only looked for; `data inspect` reads them.
    """
    written = {name: hashed for name, hashed in manifest_of(folder)["files"].items() if name.startswith(prefix)}
    if found := files.find_damage(folder, written, largest):
        raise ConfigError(f"The data in {folder} are damaged: {found}; fetch that file again, or prepare them again.")


def require_same_data(manifest: Mapping[str, Any], resumed: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError unless the data in `folder` are those that a checkpoint was trained on, by its metadata
    `resumed`. A checkpoint that was imported was trained on unknown data, and fits any."""
    then = resumed.get("data") or {}
    before = {source["name"]: source for source in then.get("sources", [])}
    if not before:
        return
    if manifest["tokenizer"]["sha256"] != then["tokenizer"]["sha256"]:
        raise ConfigError(
            f"The tokenizer of the data in {folder} is not the checkpoint's; prepare the data with the checkpoint's "
            "tokenizer.json."
        )
    for source in manifest["sources"]:
        theirs = before.get(source["name"], {})
        if any(source[split]["sha256"] != theirs.get(split, {}).get("sha256") for split in SPLITS):
            fix = "give the same files"
            if "builtin" in source["place"]:
                fix = f"resume on the Python that the checkpoint was made with, {then['python']}"
            raise ConfigError(f"The text of the source {source['name']} is not the checkpoint's; {fix}.")


def _check_found(data: DataConfig) -> None:
    """Raise ConfigError where a corpus or the tokenizer is known by its name alone."""
    for source in data.sources:
        if all(getattr(source, key) is None for key in PLACES):
            raise ConfigError(
                f"The source {source.name} is the corpus {source.corpus}, and where it lies is not said; give it a "
                "path, tokens or a dataset."
            )
    if data.tokenizer.name is not None and data.tokenizer.file is None:
        raise ConfigError(
            f"Where the tokenizer {data.tokenizer.name} lies is not said; give data.tokenizer.file, or take out its "
            "name for a tokenizer that is trained on the sources."
        )


def is_prepared(folder: Path, mark: str) -> bool:
    """Whether the folder was prepared from the settings and files of the fingerprint `mark`."""
    try:
        return bool(manifest_of(folder)["fingerprint"] == mark)
    except ConfigError:
        return False


def fingerprint(data: DataConfig) -> str:
    """A SHA-256 over what the prepared data depend on: settings, names, sizes and times of files, and for builtin text
    the version of Python. Raises ConfigError if a source has no file."""
    settings = data.model_dump(mode="json", exclude={"sequence_length", "prepared", "root", "order", "corpus"})
    for named, key in [(settings["tokenizer"], "name"), *((source, "corpus") for source in settings["sources"])]:
        del named[key]
    settings["format"] = FORMAT
    if data.kind != "text":
        settings["sequence_length"] = data.sequence_length  # the examples lie in rows
    if data.packed is None:
        # Data that were prepared before there was such a key stay what they are.
        del settings["packed"]
    found = (path for source in data.sources for path in readers.files_of(source, data.root_folder))
    texts = [path for path in found if path.is_file()]
    settings["files"] = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in texts]
    if data.tokenizer.file:
        settings["tokenizer_sha256"] = tokenizer.digest(tokenizer_file(data))
    if any(source.builtin for source in data.sources):
        settings["python"] = python_version()
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _digest(folder: Path) -> str:
    return tokenizer.digest(tokenizer.load(folder))


def _check_tokenizer(data: DataConfig, folder: Path, checkpoint: Path | None) -> None:
    """Raise ConfigError unless the folder's tokenizer encoded its tokens and is that of the configuration and
    checkpoint."""
    made = manifest_of(folder)["tokenizer"]
    bpe = tokenizer.load_checked(folder / "tokenizer.json", data.tokenizer)
    if tokenizer.digest(bpe) != made["sha256"]:
        raise ConfigError(f"{folder / 'tokenizer.json'} is not the tokenizer that made the data; prepare them again.")
    if made["end_of_document"] != data.tokenizer.end_of_document:
        raise ConfigError(
            f"data.tokenizer.end_of_document is {data.tokenizer.end_of_document!r} and the data in {folder} end their "
            f"documents with {made['end_of_document']!r}; set it to that, or prepare the data again."
        )
    if data.tokenizer.file and tokenizer.digest(tokenizer_file(data)) != made["sha256"]:
        raise ConfigError(
            f"data.tokenizer.file ({data.tokenizer.file}) is not the tokenizer that made the data in {folder}; take "
            "it out, or prepare the data again."
        )
    if checkpoint and _digest(checkpoint) != made["sha256"]:
        raise ConfigError(
            f"The checkpoint's tokenizer is not the one that made the data in {folder}; prepare the data with the "
            "checkpoint's tokenizer.json."
        )
