"""The one command line that puts the parts of Stoa together."""

import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cli import admin, corpora, hosts, machines, programs, reservations, shares
from cli.admin import COMPUTE, PEOPLE, RECORD, RUN, Number, database, refuse, refusing, settings

if TYPE_CHECKING:
    from projects.settings import Settings


class Grouped(TyperGroup):
    """Lists the commands group by group, as a newcomer needs them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, those of a group together and else in the order of the code."""
        groups = (RUN, COMPUTE, PEOPLE, RECORD)
        panels = {name: getattr(command, "rich_help_panel", "") for name, command in self.commands.items()}
        return sorted(super().list_commands(ctx), key=lambda name: groups.index(panels[name]))


app = typer.Typer(cls=Grouped, help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(admin.app)
app.add_typer(corpora.app, name="corpus", rich_help_panel=COMPUTE)
app.add_typer(hosts.app, name="host", rich_help_panel=COMPUTE)
app.add_typer(machines.app, name="machine", rich_help_panel=COMPUTE)
app.command(rich_help_panel=RUN)(machines.donate)
app.add_typer(programs.app, name="program", rich_help_panel=COMPUTE)
app.add_typer(reservations.app, name="reservation", rich_help_panel=COMPUTE)
app.add_typer(shares.app, name="share", rich_help_panel=COMPUTE)
workers = typer.Typer(help="The worker of this host, and which hosts start runs.")
app.add_typer(workers, name="worker", rich_help_panel=RUN)
workers.command()(hosts.drain)
workers.command()(hosts.undrain)


@app.command(rich_help_panel=RUN)
def up() -> None:
    """Run bot, worker, publisher and scheduler against the Discord server that the settings name, until Ctrl-C."""
    from cli.services import ServiceError, alone

    ours = settings()
    if ours.missing:
        refuse(f"Not set: {', '.join(ours.missing)}. Copy .env.example to .env; it says where each is found.")
    if not (ours.hub_token and ours.hub_namespace):
        typer.echo("STOA_HUB_TOKEN or STOA_HUB_NAMESPACE is not set: checkpoints wait unpublished until both are.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with alone(ours.home):
            _run_services(ours)
    except ServiceError as error:
        refuse(str(error))


def _run_services(settings: "Settings") -> None:
    from cli.restarts import Restarts
    from cli.services import Services

    with refusing():
        database().migrate()
    services = Services(settings.home / "logs")
    try:
        restarts = Restarts(services, settings, typer.echo)
        while True:
            restarts.round()
            time.sleep(0.5)
    except KeyboardInterrupt:
        typer.echo("stopping")
    finally:
        services.stop()


@app.command(rich_help_panel=RUN)
def bot() -> None:
    """Run the bot."""
    from bot.client import run

    with refusing():
        run(settings())


@workers.callback(invoke_without_command=True)
def worker(
    context: typer.Context,
    *,
    pool: Annotated[
        list[str] | None, typer.Option(help="A pool whose runs start on this host alone; several may be given.")
    ] = None,
    drain: Annotated[bool, typer.Option(help="When stopped, also stop this host's runs, with a checkpoint.")] = False,
) -> None:
    """Run a Celery worker that starts the runs of its pools, by default of all that no host names. Without --drain,
    they go on while it is replaced."""
    if context.invoked_subcommand is not None:
        return
    from broker.runners import host_home, processes
    from broker.scheduling import tasks, worker_host
    from cli.services import adopting_orphans, stop_supervisors

    serves, ours = pool or [], settings()
    ours.host_name = processes.host()  # a machine that is renamed is known by its new name from its next worker on
    with refusing():
        worker_host.join(ours, serves, host_home.hold(ours.home))
    own = [tasks.pool_queue(name) for name in serves] or [tasks.ANY_POOL]
    queue = ",".join([*own, tasks.inbox(processes.host())])
    if not drain:
        sys.exit(_celery("worker", queue=queue))
    with adopting_orphans(settings().stop_grace_seconds) as orphans:
        orphans.kept = True  # a worker that a fault ends leaves its host's runs to the next one
        status = _celery("worker", queue=queue, when_asked_to_stop=stop_supervisors)
        orphans.kept = status != 0
    sys.exit(status)


@app.command(rich_help_panel=RUN)
def publisher(
    *,
    this_host: Annotated[
        bool, typer.Option("--this-host", help="Publish what lies on this host, whose worker names its pools.")
    ] = False,
) -> None:
    """Run a Celery worker that publishes checkpoints; apart from the other, so that uploads never delay a start."""
    from broker.runners import processes
    from broker.scheduling import tasks

    sys.exit(_celery("publisher", queue=tasks.publish_queue(processes.host()) if this_host else tasks.PUBLISH))


def _celery(name: str, *, queue: str, when_asked_to_stop: Callable[[], object] | None = None) -> int:
    """Run a Celery worker until a signal stops it, and return its status: that of an end by fault is never 0."""
    from celery.bin.celery import celery as command
    from celery.signals import worker_shutting_down

    from broker.runners import processes
    from broker.scheduling import inspection
    from broker.scheduling.tasks import app as celery
    from projects import log

    log.configure()
    asked = False

    def stop(**_: object) -> None:
        nonlocal asked
        asked = True
        if when_asked_to_stop is not None:
            when_asked_to_stop()

    worker_shutting_down.connect(stop, weak=False)
    concurrency = str(settings().worker_concurrency)
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    arguments = [
        "worker",
        "-Q",
        queue,
        "-c",
        concurrency,
        "-l",
        "INFO",
        "-n",
        inspection.node(name, processes.host()),
        *quiet,
    ]
    command.params[0].default = celery
    try:
        # Not `celery.worker_main`, which returns no status.
        status = command.main(args=arguments, standalone_mode=False)
    except Exception:
        traceback.print_exc()
        status = 1
    return 0 if asked and not status else status or 1


@app.command(rich_help_panel=RUN)
def scheduler() -> None:
    """Run the scheduler."""
    from broker.scheduling.scheduler import Scheduler
    from projects import log

    log.configure()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    typer.echo("scheduler ready")
    Scheduler(settings(), database()).run_forever()


@app.command(rich_help_panel=COMPUTE)
def why(
    run: Number,
    at: Annotated[str, typer.Option(help="A moment of the last month, such as '2030-12-31 18:00', in UTC.")] = "",
) -> None:
    """Say why RUN waits, its place in the queue, what decides its place, and when it is expected to start.

    With --at: what was the answer then, by the decision of the scheduler that was in force.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from broker.reports.why import moment, replayed, why

    with refusing(), database().read() as session:
        told = replayed(session, run, moment(at)) if at else why(session, run)
    table = Table(show_header=False)
    table.add_row(
        "run", escape(f"{told.run_id} of {told.project}: {told.unit.count(told.gpus)} of {told.pool}, {told.state}")
    )
    table.add_row("why", escape(told.reason))
    if told.decided_at is not None:
        table.add_row("decided", f"{told.decided_at:%Y-%m-%d %H:%M:%S} UTC")
    if told.position is not None and told.factors is not None:
        project = told.factors.project
        used = (
            f"accounts for {project.used:.1%} of recent use ({project.usage:,.0f} s); its share is {project.share:.1%}"
        )
        table.add_row("place", f"{told.position} of {told.length}")
        if (group := told.factors.group) is not None:
            whose = f"projects of {told.factors.sponsor}" if told.factors.sponsor else "projects of no sponsor"
            of = f"of the pool's recent use; their share is {group.share:.1%}"
            table.add_row("its group", escape(f"{whose} account for {group.used:.1%} {of}"))
        table.add_row("fair-share", f"level {project.level:.3g}, rank {project.rank} of {project.of}")
        table.add_row("its project", used)
        table.add_row("age", f"{told.factors.age / 3600:.1f} hours")
        table.add_row("expected", "not known" if told.expected is None else f"{told.expected:%Y-%m-%d %H:%M} UTC")
    Console().print(table)


@app.command(rich_help_panel=COMPUTE)
def queue(
    pool: Annotated[str | None, typer.Argument(help="One pool; without it, all.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many of each pool.")] = 25,
) -> None:
    """Show which runs wait, in order, each with the reason."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from broker.reports.why import queue

    with refusing(), database().read() as session:
        waiting = queue(session, pool, limit=limit)
    table = Table("pool", "place", "run", "project", "size", "expected", "why")
    for told in waiting:
        expected = "not known" if told.expected is None else f"{told.expected:%Y-%m-%d %H:%M}"
        about = (
            told.pool,
            f"{told.position}/{told.length}",
            str(told.run_id),
            told.project,
            told.unit.count(told.gpus),
        )
        table.add_row(*map(escape, about), expected, escape(told.reason))
    Console().print(table if waiting else "Nothing waits.")


@app.command(rich_help_panel=RUN)
def health(part: Annotated[str, typer.Argument(help="bot, worker, publisher, scheduler or machine")]) -> None:
    """Say whether a part is at work on this host; status 1 where it is not."""
    from projects import health

    problem = health.problem(settings(), part)
    typer.echo(problem or f"The {part} is at work.")
    sys.exit(0 if problem is None else 1)


@app.command(rich_help_panel=RUN)
def doctor() -> None:
    """Look at everything that Stoa stands on, and say what to do where something is wrong; status 1 then."""
    from rich.console import Console

    from cli.doctor import examine, show

    sys.exit(0 if show(Console(), examine(settings())) else 1)


@app.command(rich_help_panel=RUN)
def invite() -> None:
    """Print the address at which the bot is invited to a server, with the permissions that it needs."""
    from cli.doctor import invitation

    if not settings().discord_token.get_secret_value():
        refuse("Not set: STOA_DISCORD_TOKEN. It is on the page Bot of https://discord.com/developers/applications.")
    with refusing():
        typer.echo(invitation(settings()))


@app.command(rich_help_panel=COMPUTE)
def store() -> None:
    """Show how many bytes the checkpoints of each run take in the object store, the largest first."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from broker.reports import stored
    from broker.store import Store, StoreError

    ours = settings()
    if not ours.store:
        refuse("No object store is set; STOA_STORE names one.")
    try:
        with refusing():
            found = stored.of_runs(database(), Store(ours))
    except StoreError as error:
        refuse(str(error))
    table = Table("run", "state", "checkpoints", "size")
    for one in found:
        table.add_row(str(one.run_id), one.state, f"{one.checkpoints:,}", decimal(one.size))
    table.add_row("all", "", f"{sum(one.checkpoints for one in found):,}", decimal(sum(one.size for one in found)))
    Console().print(table if found else "The store holds no checkpoint.")


@app.command(rich_help_panel=RECORD)
def backup(folder: Path) -> None:
    """Write the database to a new FOLDER, while all parts run; the runs' own folders are not copied."""
    from bot.text import count
    from cli.backup import BackupError
    from cli.backup import backup as make

    try:
        with refusing():
            manifest = make(settings(), folder)
    except BackupError as error:
        refuse(str(error))
    except OSError as error:
        refuse(f"The backup cannot be written to {folder} ({error.strerror}); name another folder.")
    for missing in manifest.missing_folders:
        typer.echo(f"not there, though a run still needs it: {missing}")
    entries, chains = count(sum(manifest.heads.values()), "entry", "entries"), count(len(manifest.heads), "chain")
    typer.echo(f"{folder} holds a backup of {entries} in {chains}")


@app.command(rich_help_panel=RECORD)
def restore(folder: Path) -> None:
    """Bring a backup into an empty database, and verify the record's chains."""
    from cli.backup import BackupError
    from cli.backup import restore as bring

    try:
        with refusing():
            manifest = bring(settings(), folder)
    except BackupError as error:
        refuse(str(error))
    except OSError as error:
        refuse(f"The backup cannot be restored from {folder} ({error.strerror}: {error.filename}).")
    typer.echo(f"the database is as of {manifest.made_at}, at {manifest.revision}, and its chains are whole")
    typer.echo("Posts that were made after that stay on Discord. Next: `stoa migrate`, then start the parts.")


@app.command(rich_help_panel=RUN)
def migrate(revision: Annotated[str, typer.Argument(help="head, base, or a revision")] = "head") -> None:
    """Bring the database's tables to a revision."""
    from alembic.util import CommandError

    try:
        with refusing():
            database().migrate(revision)
    except CommandError as error:
        refuse(f"The database cannot be brought to {revision[:60]!r}: {error}.")
    typer.echo(f"the database is at {revision}")


@app.command(rich_help_panel=RUN)
def demo(*, stay: Annotated[bool, typer.Option(help="Keep the parts up after the story.")] = True) -> None:
    """Play the main job on this machine, with no account: from a proposal to published checkpoints."""
    from demo.play import play

    settings()  # a wrong one is said before anything starts
    sys.exit(play(stay=stay))


if __name__ == "__main__":
    app()
