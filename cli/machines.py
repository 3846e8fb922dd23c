"""`stoa machine …`: donated machines, as the lab sees them; `stoa donate`: a donated machine at work."""

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli.admin import Why, database, refuse, refusing, settings

if TYPE_CHECKING:
    from broker.allocations.machines import MachineView
    from broker.runners.donated_presence import Presence

MachineName = Annotated[str, typer.Argument(help="The machine, by its name.")]

app = typer.Typer(help="Machines that others lend to the lab.", no_args_is_help=True)


@app.command()
def token(name: MachineName, pool: Annotated[str, typer.Option(help="The pool whose runs it may take.")]) -> None:
    """Admit a donated machine, and print its token, which is shown only now. One that it had is no longer good."""
    from broker.allocations import machines

    with refusing(), database().write() as session:
        given = machines.admit(session, name, pool)
    typer.echo(given)


@app.command()
def revoke(name: MachineName, why: Why) -> None:
    """Let a donated machine do nothing more, at once; a run that it has is lost and goes on elsewhere."""
    from broker.allocations import machines

    with refusing(), database().write() as session:
        changed = machines.revoke(session, name, why)
    typer.echo(f"the machine {name} may do nothing" + (" more" if changed else ", as before"))


@app.command("list")
def list_machines() -> None:
    """List the donated machines: the pool of each, when it was last heard from, what it has, and its run."""
    from broker.reports import donated

    with refusing(), database().read() as session:
        found = donated.listed(session, settings())
    table = Table("machine", "pool", "token", "last heard from", "has", "differs from the lab", "run")
    for machine, presence in found.machines:
        row = [machine.name, machine.pool, _state(machine), *_about(presence)]
        table.add_row(*map(escape, row))
    Console().print(table if found.machines else "No machine has been admitted yet; `stoa machine token` admits one.")
    if found.trouble:
        Console().print(escape(f"When machines were last heard from is not known: {found.trouble}"))


def _about(presence: "Presence | None") -> tuple[str, str, str, str]:
    """When a machine was last heard from, what it has, which of its versions are not the lab's, and its run."""
    from broker.runners import donated_presence

    if presence is None:
        return "never", "", "", ""
    at = f"{presence.at:%F %T} UTC{', away' if presence.is_away else ''}"
    run = str(presence.run) if presence.run and not presence.is_away else ""
    return at, donated_presence.has(presence), ", ".join(donated_presence.differing(presence)), run


def _state(machine: "MachineView") -> str:
    if machine.revoked_at is not None:
        return f"revoked {machine.revoked_at:%F %T} UTC"
    return f"of {machine.created_at:%F %T} UTC"


@app.command()
def serve() -> None:
    """Run the API that donated machines speak to, at STOA_MACHINES_ADDRESS."""
    from broker.store import Store, StoreError
    from projects import log
    from web.machines import serve

    ours = settings()
    if not (ours.machines_address and ours.store):
        refuse("Donated machines need STOA_MACHINES_ADDRESS, where the API listens, and STOA_STORE, where they write.")
    for file in filter(None, (ours.machines_certificate, ours.machines_key)):
        if not os.access(file, os.R_OK):
            refuse(f"{file} cannot be read; set STOA_MACHINES_CERTIFICATE and STOA_MACHINES_KEY to the TLS files.")
    log.configure()
    try:
        store = Store(ours)
    except StoreError as error:
        refuse(str(error))
    typer.echo(f"ready for donated machines at {ours.machines_address}")
    serve(ours, database(), store)


def donate(
    lab: Annotated[str, typer.Option(help="The address of the lab's API, such as https://lab.example:8443.")],
    token_file: Annotated[Path, typer.Option(help="A file with the token from the lab's operator.")],
    home: Annotated[Path, typer.Option(help="A folder for the runs' files, which go when a run ends.")] = Path(
        "donated"
    ),
    gpus: Annotated[str, typer.Option(help="The numbers of the GPUs to lend, such as 0,1.")] = "",
    processes: Annotated[int, typer.Option(min=1, max=1024, help="For a pool of CPUs: processes a run may have.")] = 1,
    certificate: Annotated[
        Path | None, typer.Option(help="The lab's certificate, if no authority has signed it.")
    ] = None,
) -> None:
    """Lend this machine to a lab: run its runs, one after another, until Ctrl-C. Needs no database and no store.

    At the first Ctrl-C, a run under way writes a checkpoint, which goes to the lab; a second one ends it at once.
    """
    import re

    from broker.runners.donated_machine import DonatedMachine, LabError

    if not re.fullmatch(r"([0-9]{1,3}(,[0-9]{1,3})*)?", gpus, re.ASCII):
        refuse("The GPUs are their numbers with commas between, such as 0,1.")
    try:
        secret = token_file.read_text().strip()
    except (OSError, ValueError) as error:
        refuse(f"The token cannot be read from {token_file} ({error}); the lab's operator gives one.")
    if certificate is not None:
        if not certificate.is_file():
            refuse(f"There is no certificate {certificate}.")
        os.environ["SSL_CERT_FILE"] = str(certificate.resolve())
    try:
        machine = DonatedMachine(lab, secret, home, typer.echo, devices=gpus, processes=processes)
        signal.signal(signal.SIGTERM, machine.leave)
        signal.signal(signal.SIGINT, machine.leave)
        machine.run()
    except LabError as error:
        refuse(str(error))
    except OSError as error:
        refuse(f"The runs' files cannot be kept in {home} ({error}); name another --home.")
