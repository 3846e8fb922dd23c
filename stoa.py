"""The one command line that puts the parts of Stoa together."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn
from uuid import uuid4

import typer

if TYPE_CHECKING:
    from projects.db import Database
    from projects.settings import Settings

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
pool_app = typer.Typer(help="Pools of GPUs.", no_args_is_help=True)
grant_app = typer.Typer(help="Grants of GPU time by sponsors.", no_args_is_help=True)
allocation_app = typer.Typer(help="GPU time of projects.", no_args_is_help=True)
catalogue_app = typer.Typer(help="The catalogue of recipes and datasets.", no_args_is_help=True)
policy_app = typer.Typer(help="The operator's policies: limits and tiers.", no_args_is_help=True)
record_app = typer.Typer(help="The public record.", no_args_is_help=True)
app.add_typer(pool_app, name="pool")
app.add_typer(grant_app, name="grant")
app.add_typer(allocation_app, name="allocation")
app.add_typer(policy_app, name="policy")
app.add_typer(catalogue_app, name="catalogue")
app.add_typer(record_app, name="record")

NEEDED = (
    "discord_token",
    "guild_id",
    "proposals_channel_id",
    "review_channel_id",
    "announcements_channel_id",
    "record_channel_id",
    "reviewer_role_id",
)


@app.command()
def up() -> None:
    """Run bot, worker, publisher and scheduler against the Discord server that the settings name, until Ctrl-C."""
    from parts import PartError, alone

    settings = _settings()
    missing = [f"STOA_{name.upper()}" for name in NEEDED if not getattr(settings, name)]
    if missing:
        _refuse(f"Not set: {', '.join(missing)}. Copy .env.example to .env; it says where each is found.")
    if not (settings.hub_token and settings.hub_namespace):
        typer.echo("STOA_HUB_TOKEN or STOA_HUB_NAMESPACE is not set: checkpoints wait unpublished until both are.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with alone(settings.home):
            _run_parts(settings)
    except PartError as error:
        _refuse(str(error))


def _run_parts(settings: "Settings") -> None:
    from parts import Parts

    _database().migrate()
    parts = Parts(settings.home / "logs")
    try:
        if not settings.redis_url:
            parts.start_valkey(settings)
        for name in ("scheduler", "worker", "publisher", "bot"):
            parts.start_stoa(settings, name)
            typer.echo(f"{name} is up")
        typer.echo("Stoa is up. Ctrl-C stops it; runs that are under way go on.")
        while True:
            parts.check()
            time.sleep(0.5)
    except KeyboardInterrupt:
        typer.echo("stopping")
    finally:
        parts.stop()


@app.command()
def bot() -> None:
    """Run the bot."""
    from bot.client import run

    run(_settings())


@app.command()
def worker(
    *, drain: Annotated[bool, typer.Option(help="When stopped, also stop this host's runs, with a checkpoint.")] = False
) -> None:
    """Run a Celery worker that starts runs. Without --drain, they go on while it is replaced."""
    from celery.signals import worker_shutting_down

    from parts import adopting_orphans, stop_supervisors

    if not drain:
        _celery("worker", queue="runs")
        return
    worker_shutting_down.connect(lambda **_: stop_supervisors(), weak=False)
    with adopting_orphans(_settings().stop_grace_seconds):
        _celery("worker", queue="runs")


@app.command()
def publisher() -> None:
    """Run a Celery worker that publishes checkpoints; apart from the other, so that uploads never delay a start."""
    _celery("publisher", queue="publish")


def _celery(name: str, *, queue: str) -> None:
    from broker.queue import app as celery
    from projects import log

    log.configure()
    concurrency = str(_settings().worker_concurrency)
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    celery.worker_main(["worker", "-Q", queue, "-c", concurrency, "-l", "INFO", "-n", f"{name}@%h", *quiet])


@app.command()
def scheduler() -> None:
    """Run the scheduler."""
    from broker.scheduler import Scheduler
    from projects import log

    log.configure()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    typer.echo("scheduler ready")
    Scheduler(_settings(), _database()).run_forever()


@app.command()
def why(run: int) -> None:
    """Say why RUN waits, its place in the queue, what decides its place, and when it is expected to start."""
    from rich.console import Console
    from rich.table import Table

    from broker.why import why

    with _refusing(), _database().read() as session:
        told = why(session, run)
    table = Table(show_header=False)
    table.add_row("run", f"{told.run_id} of {told.project}: {told.gpus} GPUs of {told.pool}, {told.state}")
    table.add_row("why", told.reason)
    if told.place is not None and told.factors is not None:
        project = told.factors.project
        table.add_row("place", f"{told.place} of {told.length}")
        table.add_row("fair-share", f"level {project.level:.3g}, rank {project.rank} of {project.of}")
        table.add_row("its project", f"share {project.share:.2%}, usage {project.used:.2%} ({project.usage:,.0f} s)")
        table.add_row("age", f"{told.factors.age / 3600:.1f} hours")
        table.add_row("expected", "not known" if told.expected is None else f"{told.expected:%Y-%m-%d %H:%M} UTC")
    Console().print(table)


@app.command()
def queue(
    pool: Annotated[str | None, typer.Argument(help="One pool; without it, all.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many of each pool.")] = 25,
) -> None:
    """Show who waits for GPUs, in order, each with the reason."""
    from rich.console import Console
    from rich.table import Table

    from broker.why import queue

    with _refusing(), _database().read() as session:
        waiting = queue(session, pool, limit=limit)
    table = Table("pool", "place", "run", "project", "GPUs", "expected", "why")
    for told in waiting:
        expected = "not known" if told.expected is None else f"{told.expected:%Y-%m-%d %H:%M}"
        about = (told.pool, f"{told.place}/{told.length}", str(told.run_id), told.project, str(told.gpus))
        table.add_row(*about, expected, told.reason)
    Console().print(table if waiting else "Nothing waits.")


@app.command()
def health(part: Annotated[str, typer.Argument(help="bot, worker, publisher or scheduler")]) -> None:
    """Say whether a part is at work on this host; status 1 where it is not."""
    from projects import health

    problem = health.problem(_settings(), part)
    typer.echo(problem or f"The {part} is at work.")
    sys.exit(0 if problem is None else 1)


@app.command()
def doctor() -> None:
    """Look at everything that Stoa stands on, and say what to do where something is wrong; status 1 then."""
    from rich.console import Console

    from doctor import examine, show

    sys.exit(0 if show(Console(), examine(_settings())) else 1)


@app.command()
def backup(folder: Path) -> None:
    """Write the database to a new FOLDER, while all parts run; the runs' own folders are not copied."""
    from keeping import KeepingError
    from keeping import backup as make

    try:
        manifest = make(_settings(), folder)
    except KeepingError as error:
        _refuse(str(error))
    for missing in manifest.missing_folders:
        typer.echo(f"not there, though a run still needs it: {missing}")
    typer.echo(f"{sum(manifest.heads.values())} entries in {len(manifest.heads)} chains are in {folder}")


@app.command()
def restore(folder: Path) -> None:
    """Bring a backup into an empty database, and verify the record's chains."""
    from keeping import KeepingError
    from keeping import restore as bring

    try:
        manifest = bring(_settings(), folder)
    except KeepingError as error:
        _refuse(str(error))
    typer.echo(f"the database is as of {manifest.made_at}, at {manifest.revision}, and its chains are whole")
    typer.echo("Posts that were made after that stay on Discord. Next: `stoa migrate`, then start the parts.")


@app.command()
def migrate(revision: Annotated[str, typer.Argument(help="head, base, or a revision")] = "head") -> None:
    """Bring the database's tables to a revision."""
    _database().migrate(revision)
    typer.echo(f"the database is at {revision}")


@app.command()
def demo(*, stay: Annotated[bool, typer.Option(help="Keep the parts up after the story.")] = True) -> None:
    """Play the main job on this machine, with no account: from a proposal to published checkpoints."""
    from demo.play import play

    sys.exit(play(stay=stay))


@pool_app.command("add")
def pool_add(
    name: str,
    gpu_type: str,
    gpus: int,
    launcher: Annotated[str, typer.Option(help="local or slurm")] = "local",
    price_weight: Annotated[float, typer.Option(help="What a GPU-second weighs in fair-share.")] = 1.0,
    partition: Annotated[str, typer.Option(help="Slurm's partition; its default when not given.")] = "",
    gres: Annotated[str, typer.Option(help="What Slurm calls these GPUs: gpu, gpu:h200; empty asks for none.")] = "gpu",
    most_submitted: Annotated[int, typer.Option(help="Jobs that Slurm is given at a time.")] = 4,
) -> None:
    """Add a pool of GPUS devices of GPU_TYPE."""
    from broker import pools

    with _refusing(), _database().write() as session:
        pools.add_pool(
            session,
            name=name,
            gpu_type=gpu_type,
            gpus=gpus,
            launcher=launcher,
            price_weight=price_weight,
            slurm_partition=partition,
            slurm_gres=gres,
            most_submitted=most_submitted,
        )
    typer.echo(f"pool {name}: {gpus} × {gpu_type}")


@grant_app.command("add")
def grant_add(pool: str, hours: str, sponsor: str, until: datetime) -> None:
    """Add a grant of HOURS GPU-hours of POOL, given by SPONSOR UNTIL a day."""
    from broker import allocations, pools

    with _refusing(), _database().write() as session:
        seconds = allocations.parse_hours(hours)
        pools.add_grant(session, pool=pool, sponsor=sponsor, seconds=seconds, until=until.replace(tzinfo=UTC))
    typer.echo(f"{sponsor} gives {hours} GPU-hours of {pool}")


@catalogue_app.command("list")
def catalogue_list() -> None:
    """List the entries, and the recipes that runs can be launched from."""
    from broker import catalogue

    with _database().read() as session:
        entries, recipes = catalogue.entries(session), catalogue.recipes(session)
    for entry in entries:
        what = f"{entry.dataset} at {entry.revision}, {entry.licence}" if entry.dataset else ""
        by = entry.proposed_by or "an operator"
        typer.echo(f"{entry.name}: {entry.kind}, {entry.state}, by {by} {what}".rstrip())
    typer.echo(f"recipes to launch: {', '.join(recipes)}")


@catalogue_app.command("propose")
def catalogue_propose(
    file: Annotated[Path, typer.Argument(help="A recipe, YAML.", exists=True, dir_okay=False)],
    name: Annotated[str, typer.Option(help="Its name; the file's otherwise.")] = "",
) -> None:
    """Propose the recipe in FILE."""
    from broker import catalogue

    with _refusing(), _database().write() as session:
        body = file.read_text(encoding="utf-8", errors="replace")
        catalogue.propose_recipe(session, None, uuid4().hex, name=name or file.stem, body=body)
    typer.echo(f"{name or file.stem} is proposed; stoa catalogue accept {name or file.stem} --why … lets all use it")


@catalogue_app.command("propose-dataset")
def catalogue_propose_dataset(name: str, dataset: str, commit: str, licence: str) -> None:
    """Propose the Hub's DATASET at COMMIT under NAME, with its LICENCE (SPDX)."""
    from broker import catalogue

    with _refusing(), _database().write() as session:
        catalogue.propose_dataset(
            session, None, uuid4().hex, name=name, dataset=dataset, revision=commit, licence=licence
        )
    typer.echo(f"{name} is proposed; stoa catalogue accept {name} --why … lets all use it")


Why = Annotated[str, typer.Option("--why", help="The reason, which everyone reads.")]


@catalogue_app.command("accept")
def catalogue_accept(name: str, why: Why) -> None:
    """Let everyone use the entry NAME."""
    from broker import catalogue

    with _refusing(), _database().write() as session:
        catalogue.accept(session, None, name, reason=why, admin_role_id=_settings().admin_role_id)
    typer.echo(f"{name} is accepted")


@catalogue_app.command("decline")
def catalogue_decline(name: str, why: Why) -> None:
    """Refuse the proposed entry NAME."""
    from broker import catalogue

    with _refusing(), _database().write() as session:
        catalogue.decline(session, None, name, reason=why, admin_role_id=_settings().admin_role_id)
    typer.echo(f"{name} is declined")


@catalogue_app.command("retire")
def catalogue_retire(name: str, why: Why) -> None:
    """Take the accepted entry NAME out; runs from it go on."""
    from broker import catalogue

    with _refusing(), _database().write() as session:
        catalogue.retire(session, None, name, reason=why, admin_role_id=_settings().admin_role_id)
    typer.echo(f"{name} is retired")


@policy_app.command("list")
def policy_list() -> None:
    """Show every policy, its value and what it is about."""
    from projects import policies

    with _database().read() as session:
        now = policies.current(session)
    for name, field in policies.Policies.model_fields.items():
        typer.echo(f"{name} {policies.said_as(getattr(now, name))}: {field.description}")


@policy_app.command("set")
def policy_set(name: str, value: str, why: Annotated[str, typer.Option(help="The reason; it is public.")]) -> None:
    """Set the policy NAME to VALUE."""
    from projects import policies

    with _refusing(), _database().write() as session:
        after = policies.change(session, None, name, value, why)
    typer.echo(f"{name} {policies.said_as(getattr(after, name))}")


@pool_app.command("list")
def pool_list() -> None:
    """List the pools, and the GPU-hours of each that no allocation holds."""
    from broker import allocations, pools

    with _database().read() as session:
        for pool in pools.every(session):
            left = allocations.in_hours(pools.available(session, pool.id))
            typer.echo(
                f"{pool.name}: {pool.gpus} × {pool.gpu_type}, {pool.launcher}, weight {pool.price_weight:g}, "
                f"{left} GPU-hours left"
            )


@grant_app.command("list")
def grant_list() -> None:
    """List the grants with what is granted to allocations, committed to second halves, and left."""
    from broker import pools
    from broker.allocations import in_hours

    with _database().read() as session:
        for grant in pools.grants(session):
            typer.echo(
                f"{grant.id}: {grant.sponsor} gives {in_hours(grant.seconds)} GPU-hours of {grant.pool} until "
                f"{grant.until:%Y-%m-%d}: {in_hours(grant.granted)} granted, {in_hours(grant.committed)} committed, "
                f"{in_hours(grant.left)} left"
            )


@allocation_app.command("adjust")
def allocation_adjust(
    allocation: int,
    seconds: Annotated[int, typer.Option(help="GPU-seconds more, or below zero.")],
    why: Annotated[str, typer.Option(help="The reason, which everyone can read.")],
) -> None:
    """Correct an allocation by GPU-seconds, out of its sponsor's grant or back to it."""
    from broker import reviews

    with _refusing(), _database().write() as session:
        reviews.adjust(session, allocation, seconds, why)
    typer.echo(f"allocation {allocation}: {seconds:+,} GPU-seconds")


@record_app.command("verify")
def record_verify() -> None:
    """Walk every chain of the record; status 1 where one is broken."""
    from projects import record

    with _database().read() as session:
        verdicts = [record.verify(session, stream) for stream in record.streams(session)]
    for verdict in verdicts:
        typer.echo(f"{verdict.stream}: {verdict.entries} entries, {verdict.problem or 'whole'}")
    sys.exit(0 if all(verdict.ok for verdict in verdicts) else 1)


@record_app.command("redact")
def record_redact(stream: str, number: int, why: Annotated[str, typer.Option(help="Why, in public.")]) -> None:
    """Blank entry NUMBER of STREAM (lab, or project:3); its posts become tombstones, and the chain still verifies."""
    from projects import redaction

    with _refusing(), _database().write() as session:
        redaction.redact(session, None, stream, number, why)
    typer.echo(f"entry {number} of {stream} is blanked")


@record_app.command("forget")
def record_forget(discord_id: int, why: Annotated[str, typer.Option(help="Why, in public.")]) -> None:
    """Blank a person's name, and every entry that names them."""
    from projects import redaction

    with _refusing(), _database().write() as session:
        count = redaction.forget(session, None, str(discord_id), why)
    typer.echo(f"{count} entries are blanked")


@app.command()
def ban(
    discord_id: int,
    why: Annotated[str, typer.Option(help="Why, in public.")],
    name: Annotated[str, typer.Option(help="What they are called, if they have done nothing here yet.")] = "somebody",
) -> None:
    """Let a person do nothing but read."""
    from projects import limits
    from projects.people import Actor

    with _refusing(), _database().write() as session:
        limits.ban(session, None, Actor(discord_id, name), why)
    typer.echo(f"{discord_id} is banned")


@app.command()
def unban(discord_id: int, why: Annotated[str, typer.Option(help="Why, in public.")]) -> None:
    """Let a banned person take part again."""
    from projects import limits

    with _refusing(), _database().write() as session:
        limits.unban(session, None, discord_id, why)
    typer.echo(f"{discord_id} can take part again")


def _settings() -> "Settings":
    from projects.settings import get_settings

    return get_settings()


def _database() -> "Database":
    from projects.db import Database

    return Database(_settings().database)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turn what the domain refuses into its sentence and status 2."""
    from projects.errors import DomainError

    try:
        yield
    except DomainError as error:
        _refuse(str(error))


def _refuse(sentence: str) -> NoReturn:
    typer.echo(sentence, err=True)
    sys.exit(2)


if __name__ == "__main__":
    app()
