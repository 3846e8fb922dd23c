"""`stoa host …`: the hosts whose workers start runs."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.admin import Why, database, refusing

app = typer.Typer(help="The hosts whose workers start runs.", no_args_is_help=True)


@app.command("list")
def list_hosts() -> None:
    """List the hosts, the pools that each serves, what it has and when it was last heard of."""
    from broker.allocations import hosts

    with refusing(), database().read() as session:
        found = hosts.every(session)
    table = Table("host", "pools", "GPUs", "free disk", "torch", "last heard of")
    for host in found:
        gpus, free = host.facts.get("gpus", []), host.facts.get("free_gib")
        table.add_row(
            host.name,
            ", ".join(host.pools) or "all that no host names",
            f"{len(gpus)} × {gpus[0]['name']}" if gpus else "none",
            "" if free is None else f"{free:,} GiB",
            host.facts.get("versions", {}).get("torch", ""),
            f"{host.seen_at:%F %T} UTC" + (", away" if host.is_away else ""),
        )
    Console().print(table if found else "No host was heard of yet; `stoa worker` announces the one that it runs on.")


@app.command()
def remove(name: Annotated[str, typer.Argument(help="The host, by its name.")], why: Why) -> None:
    """Forget a host that does not come back, so that other hosts serve its pools."""
    from broker.allocations import hosts

    with refusing(), database().write() as session:
        hosts.remove(session, name, why)
    typer.echo(f"the host {name} is removed")
