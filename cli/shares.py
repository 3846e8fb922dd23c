"""`stoa share`: shares of projects in fair-share, and what sponsors set aside for their own."""

from typing import Annotated

import typer

from cli.admin import Number, Why, database, refusing

app = typer.Typer(help="Shares of projects and sponsors in fair-share.", no_args_is_help=True)


@app.command("set", context_settings={"ignore_unknown_options": True})  # so that -1 is a share, and refused as one
def set_share(project: Number, share: str, why: Why) -> None:
    """Set the SHARE of PROJECT: beside a project with 1, one with 2 gets twice the compute where both wait."""
    from broker.allocations import shares

    with refusing(), database().write() as session:
        set_to = shares.set_share(session, None, project, share, why)
    typer.echo(f"the share of project {project} is {set_to:g}")


@app.command("set-aside", context_settings={"ignore_unknown_options": True})
def set_aside(
    sponsor: str,
    share: str,
    why: Why,
    project: Annotated[
        list[int] | None, typer.Option(min=1, max=2**53, help="An own project; several may be given.")
    ] = None,
) -> None:
    """Let the SHARE of what SPONSOR gives, such as 0.25, be first for its own projects; 0 ends it."""
    from broker.allocations import sponsor_shares

    with refusing(), database().write() as session:
        sponsor_shares.set_aside(session, None, sponsor, share, project or [], why)
    typer.echo(f"{share} of what {sponsor} gives is set aside")


@app.command("list")
def list_shares() -> None:
    """List the shares that differ from the usual one, and what sponsors have set aside."""
    from broker.allocations import shares, sponsor_shares

    with refusing(), database().read() as session:
        for share in shares.listed(session):
            typer.echo(f"{share.project_id}: {share.project}, share {share.share:g}")
        typer.echo(f"every other project has {shares.USUAL:g}")
        for one in sponsor_shares.listed(session):
            own = ", ".join(map(str, one.projects))
            typer.echo(f"{one.sponsor}: {one.share:.4g} of what it gives is first for {own}")
