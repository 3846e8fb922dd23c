"""Programs of other people on checkpoints of a run: entries of the catalogue, with the values of their parameters."""

import os
import sys
from pathlib import Path

import yaml
from sqlalchemy.orm import Session

from broker import catalogue
from broker.runs import folders, launching, on_checkpoints
from broker.runs.launching import Receipt
from broker.runs.on_checkpoints import LAST
from broker.runs.runs import Run, RunKind, load
from projects.errors import InvalidError
from projects.people import Actor
from projects.settings import Settings
from trainer.contract import PICTURES_FOLDER
from trainer.programs.entry import Order, Program
from trainer.schema import ConfigError

MOST_PICTURE_BYTES = 16 * 2**20
"""What a post takes, all its pictures together."""


def launch(
    session: Session,
    actor: Actor,
    request_id: str,
    run_id: int,
    *,
    program: str,
    parameters: str = "",
    step: str = LAST,
    time_limit: str = "",
) -> Receipt:
    """Queue an accepted program on a checkpoint of a run, or on several where it reads several; `on_checkpoints.launch`
    says the rest."""
    description = catalogue.program(session, program)
    values = _values(description, parameters)

    def ask(chosen: list[int]) -> Order:
        if len(chosen) > 1 and not description.reads_several:
            raise InvalidError(f"“{program}” reads one checkpoint; name one step, or say last.")
        return Order(name=program, program=description, parameters=values, steps=chosen)

    return on_checkpoints.launch(
        session,
        actor,
        request_id,
        run_id,
        RunKind.PROGRAM,
        ask,
        steps=step,
        time_limit=time_limit or description.time_limit,
        gpus=description.gpus,
    )


def order(name: str, program: Program, parameters: str) -> str:
    """The order for a program as YAML, with its parameters as typed; raises InvalidError."""
    made = Order(name=name, program=program, parameters=_values(program, parameters))
    return yaml.safe_dump(made.model_dump(), sort_keys=False)


def _values(program: Program, typed: str) -> dict[str, str]:
    """The values of parameters as typed, such as “steps=10, seed=7”, and the others' defaults; raises InvalidError."""
    try:
        return program.values(launching.parse_overrides(typed))
    except ConfigError as error:
        raise InvalidError(str(error)) from error


def what(run: Run) -> Order:
    """What a run runs."""
    return Order.model_validate(yaml.safe_load(run.config))


def pictures(session: Session, settings: Settings, run_id: int, token: int) -> list[bytes]:
    """The pictures that an attempt has left, as PNG; none where they are not on this host."""
    if not folders.is_own(settings, run_id, load(session, run_id).request_id):
        return []
    found, size = [], 0
    for path in sorted((folders.of_run(settings, run_id) / f"attempt-{token}" / PICTURES_FOLDER).glob("?.png")):
        size += path.lstat().st_size
        if path.is_file() and not path.is_symlink() and size <= MOST_PICTURE_BYTES:
            found.append(path.read_bytes())
    return found


def options(settings: Settings) -> list[str]:
    """The options of `python -m trainer program` that this host's settings decide."""
    python = settings.programs_python or sys.executable
    given = ["--environments", str(settings.programs_dir), "--python", python]
    given += ["--provides", settings.programs_provides] if settings.programs_provides else []
    secret = [*settings.home.glob("stoa.db*"), Path(os.environ.get("STOA_ENV_FILE", ".env")).absolute()]
    needed = [settings.home, Path(sys.prefix), Path(sys.base_prefix), Path(python).absolute()]
    if not any(path.is_relative_to(Path.home()) for path in needed):
        secret.append(Path.home())
    return given + [word for path in secret if path.exists() for word in ("--hide", str(path))]
