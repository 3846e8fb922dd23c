"""`stoa reservation …`: GPUs, or cores, of a pool that are kept for one project over a period."""

import typer
from rich.console import Console
from rich.table import Table

from cli.admin import Number, Why, database, refusing

app = typer.Typer(help="GPUs, or cores, that are reserved for a project over a period.", no_args_is_help=True)


@app.command(context_settings={"ignore_unknown_options": True})  # so that -1 is a count, and refused as one
def add(pool: str, project: Number, gpus: str, begins: str, ends: str, why: Why) -> None:
    """Reserve GPUS (or cores) of POOL for PROJECT from BEGINS until ENDS, in UTC, such as “2030-12-31 09:00”."""
    from broker.allocations import reservations

    with refusing(), database().write() as session:
        made = reservations.add(
            session, None, pool, project_id=project, gpus=gpus, begins=begins, ends=ends, reason=why
        )
    typer.echo(f"reservation {made.id}: {made.unit.count(made.gpus)} of {pool} for project {project} {made.period}")


@app.command()
def cancel(reservation: Number, why: Why) -> None:
    """Cancel RESERVATION (a number of `stoa reservation list`); what it kept is everybody's again."""
    from broker.allocations import reservations

    with refusing(), database().write() as session:
        reservations.cancel(session, None, reservation, why)
    typer.echo(f"reservation {reservation} is cancelled")


@app.command("list")
def list_reservations() -> None:
    """List the reservations that are not over, and who made them."""
    from broker.allocations import reservations

    with refusing(), database().read() as session:
        found = reservations.every(session)
    table = Table("number", "pool", "size", "project", "period", "by")
    for one in found:
        row = (
            str(one.id),
            one.pool,
            one.unit.count(one.gpus),
            f"P{one.project_id}",
            one.period,
            one.by or "an operator",
        )
        table.add_row(*row)
    Console().print(
        table if found else "Nothing is reserved; `stoa reservation add` keeps a part of a pool for a project."
    )
