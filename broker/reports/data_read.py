"""What a run has read: the rows of a step, and the steps that read a text.

The trainer's own commands look into the run's prepared data, as processes of their own, on the host that has them.
"""

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import structlog
from sqlalchemy.orm import Session

from broker import configs
from broker.runners import registry
from broker.runs import folders, runs
from broker.runs.attempts import Attempt
from broker.runs.kinds.kind import kind_of
from broker.runs.runs import Run
from projects import text
from projects.errors import ConflictError, InvalidError, NotFoundError
from projects.settings import Settings
from trainer.contract import CONFIG_FILE, DATA_FOLDER, DATA_MANIFEST_FILE, SeenStep, SeenText, Status

LONGEST_SECONDS = 240
FEWEST_CHARACTERS, LONGEST_TEXT = 12, 1_000

log = structlog.get_logger()


@dataclass(frozen=True)
class ReadableData:
    """Where the data of a run lie, on this host: the `folder` of the attempt that has prepared or named them, and the
    bytes that they take.

    A step reads `batch` rows, and `done` steps are done. Those up to `fork_step` were done by the run `parent_id`,
    where it is a fork.
    """

    run_id: int
    folder: Path
    size: int
    batch: int
    done: int
    parent_id: int | None
    fork_step: int


def of_step(session: Session, settings: Settings, run_id: int, step: int) -> ReadableData:
    """Where the data lie that a step of a run read, counted from 1; a fork's first steps are its parent's.

    Raises InvalidError for a step that the run has not done, and as `of_run` does.
    """
    run = _training(session, run_id)
    if not 1 <= step <= run.step:
        done = f"steps 1 to {run.step:,}" if run.step else "no step yet"
        raise InvalidError(f"Run {run_id} has done {done}; {step:,} is none of them.")
    while run.parent_id is not None and step <= (run.fork_step or 0):
        run = runs.load(session, run.parent_id)
    return of_run(session, settings, run.id)


def of_run(session: Session, settings: Settings, run_id: int) -> ReadableData:
    """Where a run's data lie. Raises NotFoundError where they are not on this host, ConflictError for a run that has
    done no step, InvalidError for one that trains nothing."""
    run = _training(session, run_id)
    attempts = sorted(
        folders.of_run(settings, run_id).glob(f"attempt-*/{CONFIG_FILE}"),
        key=lambda path: int(path.parent.name.removeprefix("attempt-")),
    )
    if not run.step:
        raise ConflictError(f"Run {run_id} has done no step yet, and so has read nothing.")
    if not attempts or not folders.is_own(settings, run_id, run.request_id):
        attempt = session.get(Attempt, (run_id, run.token))
        where = f"on the host “{attempt.host}”" if attempt is not None and attempt.host else "on another host"
        raise NotFoundError(
            f"The data of run {run_id} are {where}, where this command cannot look; `python -m trainer data` reads "
            "them there."
        )
    folder = attempts[-1].parent
    config = configs.read(attempts[-1].read_text(encoding="utf-8"))
    data = Path(config.data.prepared) if config.data.prepared else folder / DATA_FOLDER
    try:
        size = sum(path.stat().st_size for path in data.iterdir()) if (data / DATA_MANIFEST_FILE).is_file() else None
    except OSError:
        size = None  # they are just being removed
    if size is None:
        raise NotFoundError(
            f"The data of run {run_id} are not kept here: they go where nothing of the run was published, or when the "
            "disk is nearly full."
        )
    return ReadableData(run_id, folder, size, config.training.batch, run.step, run.parent_id, run.fork_step or 0)


async def rows(place: ReadableData, step: int, first: int, count: int) -> SeenStep:
    """`count` rows of a step, from row `first` on. Raises ConflictError where the data cannot be read."""
    options = [f"--step={step}", f"--row={first}", f"--count={count}"]
    return SeenStep.model_validate_json(await _ask(place, "show", options))


async def search(place: ReadableData, typed: str) -> SeenText:
    """At which steps a text was read. Raises InvalidError for one that is too short or too long, ConflictError where
    the data cannot be read."""
    wanted = text.cleaned(typed).strip()
    if not FEWEST_CHARACTERS <= len(wanted) <= LONGEST_TEXT:
        raise InvalidError(
            f"A text to search for has {FEWEST_CHARACTERS} to {LONGEST_TEXT:,} characters; this has {len(wanted):,}."
        )
    return SeenText.model_validate_json(await _ask(place, "seen", [f"--text={wanted}"]))


def _training(session: Session, run_id: int) -> Run:
    run = runs.load(session, run_id)
    if not kind_of(run).trains:
        raise InvalidError(f"{kind_of(run).what_it_is(run)}; ask about a run that trains.")
    return run


async def _ask(place: ReadableData, command: str, options: list[str]) -> str:
    """What a command of the trainer prints about a run's data as JSON; the command ends when nobody waits for it."""
    steps = [f"--since={place.fork_step}", f"--until={place.done}"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "trainer", "data", command, str(place.folder), "--json", *steps, *options),
        env=registry.environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            out, err = await process.communicate()
    except TimeoutError:
        raise ConflictError(f"Reading the data of run {place.run_id} took too long; try again later.") from None
    finally:
        if process.returncode is None:
            process.kill()
    said = err.decode(errors="replace").strip()
    if process.returncode == Status.DONE:
        return out.decode()
    if process.returncode == Status.CONFIG:
        raise ConflictError(said.replace(str(place.folder), f"run {place.run_id}"))
    log.warning("the data of a run could not be read", run=place.run_id, why=said[-500:])
    raise ConflictError(f"The data of run {place.run_id} could not be read; the bot's log says why.")
