"""The folders of runs on a host's disk, and of their attempts and checkpoints there and in the store."""

import time
from pathlib import Path

from broker import store as stores
from projects.settings import Settings
from trainer import contract

OWNER_FILE = "owner"
HUB_COPIES = "hub_copies"


def of_run(settings: Settings, run_id: int) -> Path:
    """Where a run keeps the folders of its attempts."""
    return settings.runs_dir / str(run_id)


def is_own(settings: Settings, run_id: int, owner: str) -> bool:
    """Whether the run's folder is here, and not that of a run of the same number of another database."""
    try:
        return (of_run(settings, run_id) / OWNER_FILE).read_text() == owner
    except OSError:
        return False


def own(settings: Settings, run_id: int, owner: str) -> Path:
    """The run's folder; one that a run of another database has left under the same number is moved aside."""
    folder = of_run(settings, run_id)
    if folder.exists() and not is_own(settings, run_id, owner):
        folder.rename(folder.with_name(f"{run_id}.before-{time.time_ns()}"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OWNER_FILE).write_text(owner)
    return folder


def of_checkpoint(root: Path, run_id: int, told: str) -> Path:
    """Where a checkpoint is on this disk, below `root`, whose folder on its own host was `told`; that folder itself
    where the name is not that of a checkpoint of an attempt."""
    folder, token = Path(told), token_of(told)
    if token is None or contract.checkpoint_step(folder) is None:
        return folder
    return contract.checkpoint_folder(root / str(run_id) / f"attempt-{token}", contract.checkpoint_step(folder) or 0)


def on_disk(settings: Settings, run_id: int, told: str) -> Path:
    """Where a checkpoint is, or would be, on this disk, whose folder on its own host was `told`."""
    return Path(told) if Path(told).is_dir() else of_checkpoint(settings.runs_dir, run_id, told)


def hub_copies(settings: Settings, repo: str) -> Path:
    """Where everything is that this host has fetched from a repository on the Hub."""
    return settings.home / HUB_COPIES / repo.replace("/", "--")


def hub_copy(settings: Settings, repo: str, step: int) -> Path:
    """Where the published part of a checkpoint is, or would be, that this host has fetched from the Hub."""
    return contract.checkpoint_folder(hub_copies(settings, repo), step)


def hub_base(settings: Settings, repo: str, revision: str) -> Path:
    """Where a model of the Hub is, or would be, that this host has fetched as the base of runs."""
    return hub_copies(settings, repo) / f"{contract.BASE_PREFIX}{revision}"


def token_of(told: str) -> int | None:
    """The token of the attempt whose checkpoint lies in a folder; None where the name does not say it."""
    parts = Path(told).parts
    digits = parts[-3].removeprefix("attempt-") if len(parts) > 3 and parts[-3].startswith("attempt-") else ""
    return int(digits) if digits.isdecimal() else None


def in_store(run_id: int, owner: str, told: str) -> str | None:
    """The folder in the store of a checkpoint whose folder on its own host was `told`; None where it has none."""
    step, token = contract.checkpoint_step(Path(told)), token_of(told)
    if step is None or token is None:
        return None
    return stores.checkpoint_folder(stores.attempt_folder(run_id, owner, token), step)
