"""`/cluster …`: what the pools do, what each project has used, and which runs wait; in short lines, for phones."""

from collections.abc import Mapping, Sequence

from discord import app_commands

from bot import errors, text
from bot.app import App, Interaction, acknowledge
from bot.commands import autocomplete
from bot.commands.run import answers as run_answers
from broker.allocations import hosts, shares, sponsor_shares, units
from broker.allocations.hosts import HostView
from broker.allocations.reservations import ReservationView
from broker.allocations.shares import ShareView
from broker.allocations.sponsor_shares import SponsorView
from broker.reports import cluster, donated, why
from broker.reports.cluster import PoolStatus, ProjectUse
from broker.reports.donated import Listed
from broker.reports.why import Why
from broker.runners import donated_presence, registry
from broker.runners.donated_presence import Presence

cluster_group = app_commands.Group(
    name="cluster", description="The pools of GPUs and cores: what runs on them, and what waits"
)

MOST_RUNS = 10
MOST_HOSTS = 5
MOST_HOST_RUNS = 3
MOST_RESERVATIONS = 3
MOST_SHARES = 10
MOST_SPONSORS = 5
MOST_OWN = 5


@cluster_group.command(name="status", description="Show what each pool is doing now")
async def status(interaction: Interaction) -> None:
    """Show the pools."""
    await acknowledge(interaction)
    listed = await interaction.client.read(cluster.status)
    lent = await _lent(interaction.client, listed)
    set_by_admins = await interaction.client.read(shares.listed)
    set_aside = await interaction.client.read(sponsor_shares.listed)
    end = "\n".join(filter(None, (_shares(set_by_admins), _set_aside(set_aside))))
    said = text.listed([f"{_pool(pool)}{_machines(lent, pool.name)}" for pool in listed], end=end)
    await errors.reply(interaction, said if listed else "There is no pool yet.")


@cluster_group.command(name="usage", description="Show which projects have used how much")
@app_commands.describe(pool="One pool; all by default")
@app_commands.autocomplete(pool=autocomplete.pool_names)
async def usage(interaction: Interaction, pool: str | None = None) -> None:
    """Show the projects, who used most first."""
    await acknowledge(interaction)
    listed = await interaction.client.read(cluster.usage, pool)
    await errors.reply(interaction, _usage(listed))


@cluster_group.command(name="queue", description="Show which runs wait, why, and when each is expected to start")
@app_commands.describe(pool="One pool; all by default")
@app_commands.autocomplete(pool=autocomplete.pool_names)
async def queue(interaction: Interaction, pool: str | None = None) -> None:
    """Show the queue of each pool, in order."""
    await acknowledge(interaction)
    listed = await interaction.client.read(why.queue, pool, limit=MOST_RUNS)
    await errors.reply(interaction, _queue(listed))


def _pool(pool: PoolStatus) -> str:
    busy = f"{pool.busy} of {pool.unit.count(pool.gpus)} busy"
    decides = f" · {pool.queue} decides when" if pool.queue else ""
    memory = text.memory(pool.memory_gib, pool.host_memory_gib, pool.unit)
    preempts = f" · {text.preemption(pool.preempt_after)}" if pool.preempt_after else ""
    return (
        f"{text.code(pool.name, 60)} {text.line(pool.gpu_type, 60)}{text.nodes(pool.nodes, pool.gpus)}{memory}\n"
        f"{text.bar(pool.busy, pool.gpus, 10)} {busy}{decides}{preempts}\n"
        f"-# {text.count(pool.working, 'run')} running, {pool.waiting:,} waiting · "
        f"{pool.unit.hours(pool.left)} of its grants left to allocate{_hosts(pool.hosts, pool.under_way)}"
        f"{_reservations(pool.reservations)}"
    )


def _reservations(reserved: Sequence[ReservationView]) -> str:
    """A line for each of a pool's first reservations."""
    lines = [
        f"\n-# {one.unit.count(one.gpus)} reserved for P{one.project_id} {text.period(one.begins_at, one.ends_at)}"
        for one in reserved[:MOST_RESERVATIONS]
    ]
    more = f"\n-# and {len(reserved) - MOST_RESERVATIONS} more" if len(reserved) > MOST_RESERVATIONS else ""
    return f"{''.join(lines)}{more}"


def _shares(listed: Sequence[ShareView]) -> str:
    """A line about the projects whose share in fair-share is another than the usual one."""
    if not listed:
        return ""
    shown = [f"P{share.project_id} {share.share:g}" for share in listed[:MOST_SHARES]]
    more = f" and {len(listed) - MOST_SHARES} more" if len(listed) > MOST_SHARES else ""
    return f"-# Shares of projects in fair-share: {', '.join(shown)}{more}; all others 1"


def _set_aside(listed: Sequence[SponsorView]) -> str:
    """A line about the sponsors who set a part of what they gave aside for projects of their own."""
    if not listed:
        return ""
    shown = []
    for one in listed[:MOST_SPONSORS]:
        own = [f"P{number}" for number in one.projects[:MOST_OWN]] + ["…"] * (len(one.projects) > MOST_OWN)
        shown.append(f"{one.share:.0%} of {text.line(one.sponsor, 40)}'s for {', '.join(own)}")
    more = f" and {len(listed) - MOST_SPONSORS} more" if len(listed) > MOST_SPONSORS else ""
    return f"-# Set aside by sponsors: {'; '.join(shown)}{more}"


def _hosts(serving: Sequence[HostView], under_way: Mapping[str, Sequence[str]]) -> str:
    """A line about the hosts that serve a pool: each with what it has, or since when it is away."""
    if not serving:
        return ""
    listed = [_host(host, under_way.get(host.name, ())) for host in serving[:MOST_HOSTS]]
    more = f" and {len(serving) - MOST_HOSTS} more" if len(serving) > MOST_HOSTS else ""
    differing = hosts.differing(serving)
    differ = f" · ⚠️ {text.line('; '.join(differing), 240)}" if differing else ""
    return f"\n-# on {', '.join(listed)}{more}{differ}"


def _host(host: HostView, under_way: Sequence[str]) -> str:
    if host.is_away:
        return f"⚠️ {text.line(host.name, 40)} away since {text.when(host.seen_at)}"
    has = [text.line(kind, 80) for kind in hosts.gpu_kinds(host)]
    has += [f"{host.facts['free_gib']:,.0f} GiB of disk free"] if "free_gib" in host.facts else []
    has += under_way[:MOST_HOST_RUNS]
    has += [f"{len(under_way) - MOST_HOST_RUNS} more runs"] if len(under_way) > MOST_HOST_RUNS else []
    has += ["drained, starts no run"] if host.is_drained else []
    return f"{text.line(host.name, 40)} ({', '.join(has)})" if has else text.line(host.name, 40)


async def _lent(app: App, pools: Sequence[PoolStatus]) -> Listed:
    """The machines that others lend to these pools; the store is asked only where there may be some."""
    if not any(registry.named(pool.runner).lent for pool in pools):
        return Listed([])
    async with app.dear_turn():
        return await app.read(donated.listed, app.settings)


def _machines(lent: Listed, pool: str) -> str:
    """A line about the machines that others lend to a pool: each with what it has, or since when it is away."""
    of_pool = lent.of_pool(pool)
    if not of_pool:
        return ""
    if lent.trouble:
        return f"\n-# ⚠️ which of its machines are there is not known: {text.line(lent.trouble, 160)}"
    listed = [_machine(machine.name, presence) for machine, presence in of_pool[:MOST_HOSTS]]
    more = f" and {len(of_pool) - MOST_HOSTS} more" if len(of_pool) > MOST_HOSTS else ""
    differing = {one for _, seen in of_pool if seen and not seen.is_away for one in donated_presence.differing(seen)}
    differ = f" · ⚠️ not the lab's: {text.line(', '.join(sorted(differing)), 80)}" if differing else ""
    return f"\n-# lent {', '.join(listed)}{more}{differ}"


def _machine(name: str, presence: Presence | None) -> str:
    if presence is None:
        return f"⚠️ {text.line(name, 40)} never heard from"
    if presence.is_away:
        return f"⚠️ {text.line(name, 40)} away since {text.when(presence.at)}"
    has = [text.line(donated_presence.has(presence), 80), *([f"run {presence.run}"] if presence.run else [])]
    return f"{text.line(name, 40)} ({', '.join(has)})"


def _usage(listed: Sequence[ProjectUse]) -> str:
    if not listed:
        return "No project has been granted compute yet: /allocation request asks for it."
    lines = [
        f"**P{use.project_id}** {text.line(use.title, 80)}\n"
        f"-# {units.hours(use.spent)} of {units.hours(use.granted)} spent · {use.lately:.0%} of all recent use"
        f"{'' if use.share == 1 else f', share {use.share:g}'}"
        for use in listed
    ]
    return text.listed(
        lines, end="-# Projects that have recently used less of their share go first; use counts half after seven days."
    )


def _queue(listed: Sequence[Why]) -> str:
    if not listed:
        return "Nobody waits: a run that is launched now starts at once where its pool has enough free."
    lines: list[str] = []
    for number, one in enumerate(listed):
        first = number == 0 or listed[number - 1].pool != one.pool
        head = f"{text.code(one.pool, 60)} {text.count(one.length, 'run')} waiting\n" if first else ""
        lines.append(
            f"{head}**{one.position}.** Run {one.run_id}, {one.unit.count(one.gpus)} · "
            f"{text.line(one.project, 50)}\n"
            f"-# {run_answers.starts(one.expected)} {text.line(one.reason, 200)}"
        )
    return text.listed(lines)
