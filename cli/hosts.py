"""`stoa host …`: the hosts whose workers start runs."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from cli.admin import Why, database, refusing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.allocations.hosts import HostView
    from broker.allocations.pools import Pool

HostName = Annotated[str, typer.Argument(help="The host, by its name.")]
MAINTENANCE = "Its operator maintains it."

app = typer.Typer(help="The hosts whose workers start runs.", no_args_is_help=True)


@app.command("list")
def list_hosts() -> None:
    """List the hosts, the pools that each serves, what it has and when it was last heard from."""
    from broker.allocations import hosts

    with refusing(), database().read() as session:
        found = hosts.every(session)
        cores = {host.name: _cores(hosts.core_pools(session, host.name)) for host in found}
    table = Table("host", "pools", "GPUs or cores", "free disk", "torch", "last heard from")
    for host in found:
        gpus, free = host.facts.get("gpus", []), host.facts.get("free_gib")
        table.add_row(
            host.name,
            ", ".join(host.pools) or "all that no host names",
            f"{len(gpus)} × {gpus[0]['name']}" if gpus else cores[host.name] or "none",
            "" if free is None else f"{free:,} GiB",
            host.facts.get("versions", {}).get("torch", ""),
            _last_heard_of(host),
        )
    Console().print(
        table if found else "No host has been heard from yet; `stoa worker` announces the one that it runs on."
    )


@app.command()
def show(name: HostName) -> None:
    """Show a host: its pools, GPUs or cores, versions, runs, and the queues that its worker takes messages from."""
    from broker.allocations import hosts
    from broker.runs import attempts, runs
    from broker.runs.kinds.kind import kind_of
    from broker.scheduling import inspection

    with refusing(), database().read() as session:
        host, looked_after = hosts.named(session, name), attempts.open_on(session, name)
        cores = _cores(hosts.core_pools(session, name))
        found = [runs.load(session, each.run_id) for each in looked_after]
        names = {run.id: kind_of(run).short_name(run) for run in found}
    queues = inspection.queues(name)
    table = Table(show_header=False)
    table.add_row("host", host.name)
    table.add_row("id", host.id or "not known: an earlier version announced it")
    table.add_row("pools", ", ".join(host.pools) or "all that no host names")
    gpus = "\n".join(hosts.gpu_kinds(host))
    table.add_row(*(("cores", cores) if cores and not gpus else ("GPUs", gpus or "none")))
    versions = hosts.versions(host)
    table.add_row("versions", "\n".join(f"{name} {version}" for name, version in versions.items()) or "not known")
    table.add_row("last heard from", _last_heard_of(host))
    table.add_row("queues", "its worker does not answer" if queues is None else ", ".join(queues))
    told = [f"{names[each.run_id].removeprefix('run ')}, attempt {each.token}: {each.state}" for each in looked_after]
    table.add_row("runs", "\n".join(told) or "none")
    Console().print(table)


@app.command()
def remove(name: HostName, why: Why) -> None:
    """Forget a host that does not come back, so that other hosts serve its pools."""
    from broker.allocations import hosts

    with refusing(), database().write() as session:
        hosts.remove(session, name, why)
    typer.echo(f"the host {name} is removed")


def _last_heard_of(host: "HostView") -> str:
    return f"{host.seen_at:%F %T} UTC{', away' if host.is_away else ''}{', drained' if host.is_drained else ''}"


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
    typer.echo(f"the host {name} is drained" if changed else f"the host {name} is already drained")


def undrain(name: HostName, *, why: Why = "The maintenance is over.") -> None:
    """Let a drained host start runs again."""
    from broker.allocations import hosts

    with refusing(), database().write() as session:
        changed = hosts.undrain(session, name, why)
    typer.echo(f"the host {name} starts runs" + ("" if changed else " already"))


def _cores(counting: "Sequence[Pool]") -> str:
    """The cores that pools of CPUs count on: “2 cores of local, 64 cores of hall”."""
    return ", ".join(f"{pool.unit.count(pool.gpus)} of {pool.name}" for pool in counting)
