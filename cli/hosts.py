"""`stoa host …`: the hosts whose workers start runs."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.admin import Why, database, refusing

HostName = Annotated[str, typer.Argument(help="The host, by its name.")]
MAINTENANCE = "Its operator maintains it."

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
            f"{host.seen_at:%F %T} UTC" + (", away" if host.is_away else "") + (", drained" if host.is_drained else ""),
        )
    Console().print(table if found else "No host was heard of yet; `stoa worker` announces the one that it runs on.")


@app.command()
def remove(name: HostName, why: Why) -> None:
    """Forget a host that does not come back, so that other hosts serve its pools."""
    from broker.allocations import hosts

    with refusing(), database().write() as session:
        hosts.remove(session, name, why)
    typer.echo(f"the host {name} is removed")


def drain(
    name: HostName,
    *,
    pause: Annotated[
        bool, typer.Option("--pause", help="Ask its runs for a checkpoint; they go back to the queue.")
    ] = False,
    why: Why = MAINTENANCE,
) -> None:
    """Let a host start no run until it is undrained, also after its worker restarts. Its runs go on to their end."""
    from broker.allocations import hosts

    with refusing(), database().write() as session:
        changed = hosts.drain(session, name, why, pause=pause)
    typer.echo(f"the host {name} is drained" if changed else f"the host {name} is drained already")


def undrain(name: HostName, *, why: Why = "The maintenance is over.") -> None:
    """Let a drained host start runs again."""
    from broker.allocations import hosts

    with refusing(), database().write() as session:
        changed = hosts.undrain(session, name, why)
    typer.echo(f"the host {name} starts runs" + ("" if changed else " already"))
