"""`stoa program …`: other people's programs: proposing one, and trying it before an admin accepts it."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from cli.admin import database, refuse, refusing, settings

app = typer.Typer(help="Other people's programs, which run on checkpoints.", no_args_is_help=True)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(help="Its description, YAML.", exists=True, dir_okay=False)],
    name: Annotated[str, typer.Option(help="Its name; the file's otherwise.")] = "",
) -> None:
    """Propose the program that FILE describes."""
    from broker import catalogue

    called = name or file.stem
    with refusing(), database().write() as session:
        body = file.read_text(encoding="utf-8", errors="replace")
        catalogue.propose_program(session, None, uuid4().hex, name=called, body=body)
    typer.echo(f"{called} is proposed; stoa program try {called} --checkpoint … comes before it is accepted")


@app.command("try")
def try_out(
    name: str,
    checkpoint: Annotated[list[Path], typer.Option(help="A step folder to try it on.", file_okay=False)] = [],  # noqa: B006
    parameters: Annotated[str, typer.Option(help="Values in place of its defaults, such as steps=10.")] = "",
    minutes: Annotated[float, typer.Option(min=0.1, max=1440, help="How long it may take.")] = 30,
) -> None:
    """Run the program NAME here, as a run would; an admin can accept it once it has ended well."""
    from broker import catalogue
    from broker.runners.base import PASSED_ON
    from broker.runs import programs

    ours = settings()
    with refusing():
        with database().read() as session:
            program = catalogue.proposed_program(session, name)
        order = programs.order(name, program, parameters)
    folder = Path(tempfile.mkdtemp(prefix=".try-", dir=ours.home))
    (folder / "order.yml").write_text(order)
    given = [word for each in checkpoint for word in ("--checkpoint", str(each.absolute()))]
    command = [sys.executable, "-m", "trainer", "program", str(folder / "order.yml"), "--out", str(folder / "out")]
    began = time.monotonic()
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    with subprocess.Popen([*command, *given, *programs.options(ours)], env=environment) as tried:
        try:
            status = tried.wait(minutes * 60)
        except subprocess.TimeoutExpired:
            tried.terminate()
            tried.wait()
            status = None
    seconds = round(time.monotonic() - began)
    shutil.rmtree(folder, ignore_errors=True)
    if status is None:
        refuse(f"{name} had not ended after {minutes:g} minutes and was stopped; give it more with --minutes.")
    if status != 0:
        refuse(f"{name} did not end well, and cannot be accepted as it is.")
    with refusing(), database().write() as session:
        catalogue.tried(session, name, program, seconds)
    typer.echo(f"{name} has ended well; stoa catalogue accept {name} --why … lets all use it")
