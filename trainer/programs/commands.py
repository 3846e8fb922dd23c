"""`python -m trainer program`: prepares a program and runs it within its bounds. Imports no torch."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from trainer.contract import WORK_FOLDER, Event, Outcome, Status
from trainer.events import append_event
from trainer.exits import finish, interruptible, one_sentence, outcome_of
from trainer.folder_lock import locked
from trainer.programs import bounded, environment, written
from trainer.programs.entry import Order
from trainer.programs.environment import Base
from trainer.schema import ConfigError
from trainer.yaml_text import read_yaml

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def program(
    order: Annotated[Path, typer.Argument(metavar="ORDER.yml", help="The program and its parameters.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    environments: Annotated[Path, typer.Option(help="The folder that keeps environments.")],
    checkpoint: Annotated[list[Path], typer.Option(help="A step folder that it is given.")] = [],  # noqa: B006
    python: Annotated[str, typer.Option(help="The interpreter that programs build on.")] = sys.executable,
    provides: Annotated[str, typer.Option(help="Packages that it gives in place of the lock's.")] = "",
    hide: Annotated[list[Path], typer.Option(help="A file or folder that it does not see.")] = [],  # noqa: B006
) -> None:
    """Run somebody's program in an environment of its own, and hand on what it writes."""
    with one_sentence(interrupts=False), locked(out):
        try:
            with interruptible():
                outcome = _run(order, out.absolute(), environments, checkpoint, Base(python, provides.split()), hide)
        except (Exception, KeyboardInterrupt) as error:
            outcome = outcome_of(error)
        finish(out, outcome)


def _run(order: Path, out: Path, root: Path, checkpoints: list[Path], base: Base, hide: list[Path]) -> Outcome:
    try:
        asked = Order.model_validate(read_yaml(order.read_text(), "The order"))
    except ValidationError as error:
        raise ConfigError(f"The order is not right: {error.errors()[0]['msg']}.") from error
    given = [str(checkpoint.absolute()) for checkpoint in checkpoints]
    words = asked.program.words(asked.program.values(asked.parameters), given)
    append_event(out, Event.STARTED, step=0, program=asked.name)
    made = environment.prepare(asked.program, base, root.absolute())
    work = out / WORK_FOLDER
    (work / "tmp").mkdir(parents=True, exist_ok=True)
    if not bounded.namespaces():
        said = "this host cannot cut a program's network and disk off; it runs as the worker's user"
        append_event(out, Event.WARNING, message=said)
    command = [str(made.python), *words[1:]] if words[0] == "python" else words
    metrics = written.Metrics(work, out)
    ended = bounded.run(
        command,
        made.source,
        scrubbed(made, work, out),
        bounded.Bounds(work, int(asked.program.disk_gib * 2**30), [path.absolute() for path in hide]),
        each_round=metrics.tell,
        log=sys.stdout.buffer,
    )
    while metrics.tell():
        pass
    if ended.status == Status.DONE:
        for said in written.finish(work, out, metrics.step):
            print(f"[{said}]")
    return ended.model_copy(update={"step": metrics.step})


def scrubbed(made: environment.Environment, work: Path, out: Path) -> dict[str, str]:
    """The environment variables of a program: nothing of the host's but its language and its GPUs."""
    kept = {name: os.environ[name] for name in ("LANG", "CUDA_VISIBLE_DEVICES") if name in os.environ}
    return kept | {
        "PATH": f"{made.bin}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(work),
        "TMPDIR": str(work / "tmp"),
        "OUT": str(work),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / ".hf"),
    }
