"""What the pods of an attempt are to do, as the runner leaves it for them in the store.

A pod is a machine, or a part of one, that sees no disk of the lab: a pod of Kubernetes, or a donated machine.

Places below the home folder of this host are the same places below a pod's own folder. A pod fetches from the store
what lies there on this host: the checkpoint that the run goes on from, prepared data, and corpora.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from broker import corpus_copies
from broker import store as stores
from broker.runners.base import SIGNAL_SECONDS, JobSpec
from trainer import contract

TASK_FILE = "task.json"
PLACE = "\0"
"""Begins a word of the command, or a value of the configuration, that is a place in the pod's folder; no path can hold
it."""


class Task(BaseModel):
    """What a pod does: fetch, start the command, and carry away what comes of it.

    `out` is the trainer's folder, `files` are texts to write, `folders` say which folder of the store becomes which one
    of the pod, and `results` which one of the pod goes to which one of the store once the trainer has done its work.
    """

    command: list[str]
    out: str
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    results: dict[str, str] = {}
    nodes: int
    seconds: float


def of(spec: JobSpec, command: Sequence[str], folder: Path) -> bytes:
    """The task of the attempt in `folder`, as JSON. Raises OSError where the configuration cannot be read."""
    home = folder.parents[2]
    out = folder.relative_to(home).as_posix()
    seconds = spec.seconds + SIGNAL_SECONDS / 2
    task = Task(command=["python", *command[1:]], out=out, nodes=spec.nodes, seconds=seconds)
    for number, word in enumerate(task.command):
        place, _, step = word.rpartition("@") if re.search(r"@\d+$", word) else (word, "", "")
        path = Path(place)
        if not path.is_absolute() or not path.is_relative_to(home):
            continue
        name = path.relative_to(home).as_posix()
        task.command[number] = f"{PLACE}{name}{word[len(place) :]}"
        if path.name == contract.CONFIG_FILE:
            values = yaml.safe_load(path.read_text())
            for section, key in _places(values):
                if (read := Path(section[key])).is_relative_to(home):
                    section[key] = f"{PLACE}{read.relative_to(home).as_posix()}"
                    task.folders |= _fetched(read, home)
            task.files[name] = yaml.safe_dump(values, sort_keys=False)
        elif contract.checkpoint_step(path) is not None:
            task.folders[_checkpoint(spec.store_folder, path)] = name
        elif step:
            path = contract.checkpoint_folder(path, int(step))
            task.folders[_checkpoint(spec.store_folder, path)] = path.relative_to(home).as_posix()
        elif path != folder:
            task.results[name] = f"{spec.store_folder}/{contract.DATA_FOLDER}"
    return task.model_dump_json().encode()


def in_pod(word: str, place: Path) -> str:
    """A word of the command, or a value of the configuration, as it is in a pod whose folder is `place`."""
    return str(place / word[1:]) if word.startswith(PLACE) else word


def placed(text: str, place: Path) -> str:
    """A configuration of a task, as YAML, as it is in a pod whose folder is `place`."""
    values = yaml.safe_load(text)
    for section, key in _places(values):
        section[key] = in_pod(section[key], place)
    return yaml.safe_dump(values, sort_keys=False)


def _places(values: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """The sections and keys of a configuration whose values are places."""
    data = values.get("data") or {}
    listed = [(data, "prepared"), (data.get("tokenizer") or {}, "file")]
    listed += [(source, key) for source in data.get("sources") or () for key in ("path", "tokens", "dataset")]
    return ((section, key) for section, key in listed if isinstance(section.get(key), str))


def _fetched(path: Path, home: Path) -> dict[str, str]:
    """The folder in the store of what a configuration reads below this host's home, and its folder in the pod."""
    place = path.relative_to(home)
    if place.parts[0] == corpus_copies.FOLDER:
        copy = corpus_copies.folder(place.parts[1])
        return {copy: copy}
    return {_prepared(path, home): place.as_posix()}


def _checkpoint(attempt: str, path: Path) -> str:
    """The folder in the store of a checkpoint at this path: of an earlier attempt of the run, or of another run.

    Raises OSError where another run's folder does not say whose it is.
    """
    step = contract.checkpoint_step(path)
    assert step is not None
    folder = path.parents[1]
    run, token = int(folder.parent.name), int(folder.name.rpartition("-")[2])
    owner = (folder.parent / "owner").read_text() if (folder.parent / "owner").exists() else None
    if owner is None:
        return stores.checkpoint_folder(f"{attempt.rpartition('/')[0]}/attempt-{token}", step)
    return stores.checkpoint_folder(stores.attempt_folder(run, owner, token), step)


def _prepared(path: Path, home: Path) -> str:
    """The folder in the store of prepared data at this path, which ends with the run and the attempt that made them.

    Raises OSError where that run's folder does not say whose it is.
    """
    run, token = path.name.split("-")
    owner = (home / "runs" / run / "owner").read_text()
    return f"{stores.attempt_folder(int(run), owner, int(token))}/{contract.DATA_FOLDER}"
