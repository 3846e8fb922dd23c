"""`stoa share`: shares of projects in fair-share."""

import typer

from cli.admin import Number, Why, database, refusing

app = typer.Typer(help="Shares of projects in fair-share.", no_args_is_help=True)


@app.command("set", context_settings={"ignore_unknown_options": True})  # so that -1 is a share, and refused as one
def set_share(project: Number, share: str, why: Why) -> None:
    """Set the SHARE of PROJECT: beside a project with 1, one with 2 gets twice the GPU time where both wait."""
    from broker.allocations import shares

    with refusing(), database().write() as session:
        set_to = shares.set_share(session, None, project, share, why)
    typer.echo(f"the share of project {project} is {set_to:g}")


@app.command("list")
def list_shares() -> None:
    """List the shares that differ from the usual one."""
    from broker.allocations import shares

    with refusing(), database().read() as session:
        for share in shares.listed(session):
            typer.echo(f"{share.project_id}: {share.project}, share {share.share:g}")
    typer.echo(f"every other project has {shares.USUAL:g}")
