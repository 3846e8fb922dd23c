"""What operators decide at the command line: compute, policies, the catalogue, the record, and who may take part."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn
from uuid import uuid4

import typer

from broker.runners import registry
from projects.log import without_secrets

if TYPE_CHECKING:
    from projects.db.database import Database
    from projects.settings import Settings

RUN, COMPUTE, PEOPLE, RECORD = "Run it", "Compute", "People", "Record"
"""The groups of `stoa --help`."""

app = typer.Typer()
pool_app = typer.Typer(help="Pools of GPUs, or of the cores of CPUs.", no_args_is_help=True)
grant_app = typer.Typer(help="Grants of compute by sponsors.", no_args_is_help=True)
allocation_app = typer.Typer(help="Compute of projects.", no_args_is_help=True)
catalogue_app = typer.Typer(help="The catalogue of recipes and datasets.", no_args_is_help=True)
policy_app = typer.Typer(help="The operator's policies: limits and tiers.", no_args_is_help=True)
record_app = typer.Typer(help="The public record.", no_args_is_help=True)
app.add_typer(pool_app, name="pool", rich_help_panel=COMPUTE)
app.add_typer(grant_app, name="grant", rich_help_panel=COMPUTE)
app.add_typer(allocation_app, name="allocation", rich_help_panel=COMPUTE)
app.add_typer(policy_app, name="policy", rich_help_panel=PEOPLE)
app.add_typer(catalogue_app, name="catalogue", rich_help_panel=COMPUTE)
app.add_typer(record_app, name="record", rich_help_panel=RECORD)

Why = Annotated[str, typer.Option("--why", help="The reason; everyone can read it.")]
Number = Annotated[int, typer.Argument(min=1, max=2**53)]
"""The number of a row, as Discord can show it too."""
Snowflake = Annotated[int, typer.Argument(min=1, max=2**63 - 1)]
"""An id of Discord's."""


def settings() -> "Settings":
    """The settings of this installation; a wrong setting ends the command with a sentence."""
    from projects.settings import SettingsError, get_settings

    try:
        return get_settings()
    except SettingsError as error:
        refuse(str(error))


def database() -> "Database":
    """The database that the settings name; a folder that cannot be made ends the command with a sentence."""
    from projects.db.database import Database

    try:
        return Database(settings().database)
    except OSError as error:
        refuse(f"The database's folder cannot be made ({error.strerror}: {error.filename}); set STOA_HOME to another.")


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what the domain refuses, or a database that is not ready, into a sentence and status 2."""
    from sqlalchemy.exc import SQLAlchemyError

    from projects.db.database import advice
    from projects.errors import DomainError

    try:
        yield
    except DomainError as error:
        refuse(str(error))
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or type(error).__name__).partition("\n")[0]
        refuse(f"The database is not ready ({without_secrets(said)}): {advice(error)}; `stoa doctor` says more.")


def refuse(sentence: str) -> NoReturn:
    """End with a sentence and status 2."""
    typer.echo(sentence, err=True)
    sys.exit(2)


def takes_runner_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that pools of some runner have, in place of its `**options`; None by default."""
    signature = inspect.signature(command)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    for option in registry.pool_options().values():
        shown = Annotated[str | None, typer.Option(help=option.help, show_default=option.default or False)]
        own.append(Parameter(option.name, Parameter.KEYWORD_ONLY, default=None, annotation=shown))
    vars(command)["__signature__"] = signature.replace(parameters=own)
    return command


@pool_app.command("add")
@takes_runner_options
def pool_add(
    name: str,
    gpu_type: str,
    gpus: int,
    gpus_a_node: Annotated[int | None, typer.Option(help="GPUs or cores a node, if there are several nodes.")] = None,
    runner: Annotated[
        str, typer.Option(help=f"What starts the trainers: {' or '.join(registry.names())}.")
    ] = registry.DEFAULT,
    price_weight: Annotated[float, typer.Option(help="What a second of a GPU or core weighs in fair-share.")] = 1.0,
    most_submitted: Annotated[int, typer.Option(help="Jobs that a runner's own queue is given at a time.")] = 4,
    memory_gib: Annotated[float | None, typer.Option(help="GiB of a GPU, or the most for a process on a core.")] = None,
    host_memory_gib: Annotated[float | None, typer.Option(help="Memory of a host.")] = None,
    preempt_after: Annotated[
        int,
        typer.Option(
            metavar="MINUTES", help="How long a run is left alone before it can be preempted; 0: it never is."
        ),
    ] = 0,
    **options: str | None,
) -> None:
    """Add a pool of GPUS devices of GPU_TYPE; where that says CPU, of so many cores."""
    from broker.allocations import pools
    from broker.allocations.units import Unit

    with refusing(), database().write() as session:
        pools.add_pool(
            session,
            name=name,
            gpu_type=gpu_type,
            gpus=gpus,
            gpus_a_node=gpus_a_node,
            runner=runner,
            price_weight=price_weight,
            runner_options={option: value for option, value in options.items() if value is not None},
            most_submitted=most_submitted,
            memory_gib=memory_gib,
            host_memory_gib=host_memory_gib,
            preempt_after=preempt_after * 60,
        )
    on = f" on {gpus // gpus_a_node} nodes" if gpus_a_node else ""
    typer.echo(f"pool {name}: {Unit.of_type(gpu_type, gpus)}{on}")


@pool_app.command("change")
@takes_runner_options
def pool_change(
    name: str,
    why: Why,
    gpus: Annotated[str, typer.Option(help="A new number of GPUs or cores.")] = "",
    gpus_a_node: Annotated[int | None, typer.Option(help="GPUs or cores a node, if there are several nodes.")] = None,
    price_weight: Annotated[str, typer.Option(help="Another weight in fair-share.")] = "",
    memory_gib: Annotated[float | None, typer.Option(help="GiB of a GPU, or the most for a process on a core.")] = None,
    host_memory_gib: Annotated[float | None, typer.Option(help="Memory of a host.")] = None,
    preempt_after: Annotated[
        int | None,
        typer.Option(
            metavar="MINUTES", help="How long a run is left alone before it can be preempted; 0: it never is."
        ),
    ] = None,
    **options: str | None,
) -> None:
    """Change the pool NAME: its GPUs or cores, also of a node, price weight, memory, preemption, or runner options."""
    from broker.reviews import inventory

    with refusing(), database().write() as session:
        inventory.change_pool(
            session,
            None,
            name,
            gpus=gpus,
            gpus_a_node=gpus_a_node,
            price_weight=price_weight,
            memory_gib=memory_gib,
            host_memory_gib=host_memory_gib,
            preempt_after=None if preempt_after is None else preempt_after * 60,
            runner_options={option: value for option, value in options.items() if value is not None},
            reason=why,
        )
    typer.echo(f"pool {name} is changed")


@pool_app.command("list")
def pool_list() -> None:
    """List the pools, and the hours of each that no allocation holds."""
    from bot import text
    from broker.allocations import pools

    with refusing(), database().read() as session:
        available = pools.available(session)
        for pool in pools.every(session):
            left = pool.unit.hours(available.get(pool.id, 0))
            preempts = f", preempts after {pool.preempt_after // 60} minutes" if pool.preempt_after else ""
            typer.echo(
                f"{pool.name}: {pool.has}{text.nodes(pool.nodes, pool.gpus)}, {pool.runner}, "
                f"weight {pool.price_weight:g}, {left} left{preempts}"
            )


@grant_app.command("add")
def grant_add(pool: str, hours: str, sponsor: str, until: str) -> None:
    """Add a grant of HOURS GPU-hours or core-hours of POOL, by SPONSOR to the end of the day UNTIL (2030-12-31)."""
    from broker.allocations import pools
    from broker.reviews import inventory

    with refusing(), database().write() as session:
        inventory.add_grant(session, None, pool=pool, sponsor=sponsor, hours=hours, until=until)
        unit = pools.named(session, pool).unit
    typer.echo(f"{sponsor} gives {hours} {unit.in_hours} of {pool}")


@grant_app.command("change")
def grant_change(
    grant: Number,
    why: Why,
    more_hours: Annotated[str, typer.Option(help="Hours to add.")] = "",
    until: Annotated[str, typer.Option(help="Another last day.")] = "",
) -> None:
    """Add hours to GRANT (a number of `stoa grant list`), or move its end."""
    from broker.reviews import inventory

    with refusing(), database().write() as session:
        inventory.change_grant(session, None, grant, more_hours=more_hours, until=until, reason=why)
    typer.echo(f"grant {grant} is changed")


@grant_app.command("list")
def grant_list() -> None:
    """List the grants with what is granted to allocations, committed to second halves, and left."""
    from broker.allocations import pools
    from broker.allocations.units import in_hours

    with refusing(), database().read() as session:
        for grant in pools.grants(session):
            typer.echo(
                f"{grant.id}: {grant.sponsor} gives {grant.unit.hours(grant.seconds)} of {grant.pool} until "
                f"{grant.until:%Y-%m-%d}: {in_hours(grant.granted)} granted, {in_hours(grant.committed)} committed, "
                f"{in_hours(grant.left)} left"
            )


@allocation_app.command("adjust")
def allocation_adjust(
    allocation: Number,
    seconds: Annotated[int, typer.Option(help="Seconds of GPUs or cores more, or below zero.")],
    why: Annotated[str, typer.Option(help="The reason; everyone can read it.")],
) -> None:
    """Correct an allocation by seconds of GPUs or cores, out of its sponsor's grant or back to it."""
    from broker.reviews import reviews

    with refusing(), database().write() as session:
        reviews.adjust(session, allocation, seconds, why)
    typer.echo(f"allocation {allocation}: {seconds:+,} s")


@policy_app.command("list")
def policy_list() -> None:
    """Show every policy, its value and what it is about."""
    from projects import policies

    with refusing(), database().read() as session:
        now = policies.current(session)
    for name, field in policies.Policies.model_fields.items():
        typer.echo(f"{name} {policies.said_as(getattr(now, name))}: {field.description}")


@policy_app.command("set")
def policy_set(name: str, value: str, why: Why) -> None:
    """Set the policy NAME to VALUE."""
    from projects import policies

    with refusing(), database().write() as session:
        after = policies.change(session, None, name, value, why)
    typer.echo(f"{name} {policies.said_as(getattr(after, name))}")


@catalogue_app.command("list")
def catalogue_list() -> None:
    """List the entries, and the recipes that runs can be launched from."""
    from broker import catalogue

    with refusing(), database().read() as session:
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

    with refusing(), database().write() as session:
        body = file.read_text(encoding="utf-8", errors="replace")
        catalogue.propose_recipe(session, None, uuid4().hex, name=name or file.stem, body=body)
    typer.echo(f"{name or file.stem} is proposed; stoa catalogue accept {name or file.stem} --why … lets all use it")


@catalogue_app.command("propose-dataset")
def catalogue_propose_dataset(name: str, dataset: str, commit: str, licence: str) -> None:
    """Propose the Hub's DATASET at COMMIT under NAME, with its LICENCE (SPDX)."""
    from broker import catalogue

    with refusing(), database().write() as session:
        catalogue.propose_dataset(
            session, None, uuid4().hex, name=name, dataset=dataset, revision=commit, licence=licence
        )
    typer.echo(f"{name} is proposed; stoa catalogue accept {name} --why … lets all use it")


@catalogue_app.command("accept")
def catalogue_accept(name: str, why: Why) -> None:
    """Let everyone use the entry NAME."""
    from broker import catalogue

    with refusing(), database().write() as session:
        catalogue.accept(session, None, name, reason=why)
    typer.echo(f"{name} is accepted")


@catalogue_app.command("decline")
def catalogue_decline(name: str, why: Why) -> None:
    """Refuse the proposed entry NAME."""
    from broker import catalogue

    with refusing(), database().write() as session:
        catalogue.decline(session, None, name, reason=why)
    typer.echo(f"{name} is declined")


@catalogue_app.command("retire")
def catalogue_retire(name: str, why: Why) -> None:
    """Take the accepted entry NAME out; runs from it go on."""
    from broker import catalogue

    with refusing(), database().write() as session:
        catalogue.retire(session, None, name, reason=why)
    typer.echo(f"{name} is retired")


@record_app.command("verify")
def record_verify() -> None:
    """Walk every chain of the record; status 1 where one is broken."""
    from bot.text import count
    from projects.record import record, verification

    with refusing(), database().read() as session:
        verdicts = [verification.verify(session, stream) for stream in record.streams(session)]
    for verdict in verdicts:
        typer.echo(f"{verdict.stream}: {count(verdict.entries, 'entry', 'entries')}, {verdict.problem or 'whole'}")
    sys.exit(0 if all(verdict.ok for verdict in verdicts) else 1)


@record_app.command("redact")
def record_redact(stream: str, number: Number, why: Why) -> None:
    """Blank entry NUMBER of STREAM (lab, or project:3); its posts become tombstones, and the chain still verifies."""
    import broker.catalogue
    import broker.reviews.changes
    import broker.runs.runs  # noqa: F401  cards show what stands in their tables
    from broker.publishing import forgetting

    with refusing(), database().write() as session:
        repositories = forgetting.redact(session, None, stream, number, why)
    typer.echo(f"entry {number} of {stream} is blanked")
    if repositories:
        typer.echo(forgetting.told(repositories))


@record_app.command("remove")
def record_remove(project_id: Number, field: str, why: Why) -> None:
    """Take a text of a project, such as its title or question, from its card and from every entry that tells it."""
    from bot.text import count
    from broker.publishing import forgetting

    with refusing(), database().write() as session:
        done = forgetting.remove_text(session, None, project_id, field, why)
    typer.echo(f"the {field} of project {project_id} is removed, and {count(done.entries, 'entry', 'entries')} blanked")
    if done.repositories:
        typer.echo(forgetting.told(done.repositories))


@record_app.command("forget")
def record_forget(
    discord_id: Snowflake,
    why: Why,
    texts: Annotated[
        str, typer.Option(help="Which of the listed texts to change: none, all, or their keys, with commas.")
    ] = "",
) -> None:
    """Blank a person's name, and every entry that refers to them.

    Texts that may name the person are listed first, and nothing is changed until --texts says which to change.
    """
    import broker.catalogue
    import broker.reports.run_plan
    import broker.reviews.changes
    import broker.runs.runs  # noqa: F401  their tables hold names too
    from bot import kept_forms
    from bot.text import count
    from broker.publishing import forgetting

    with refusing(), database().read() as session:
        everything = forgetting.find(session, None, str(discord_id))
    found = everything.mentions
    known = [place.key for place in found.texts]
    if known and not texts:
        for place in found.texts:
            typer.echo(f"{place.key}  {place.where}: {place.said}")
        for address in everything.repositories:
            typer.echo(f"On the Hub, the model cards of {address} may name the person.")
        refuse(
            f"Nothing has changed yet: {count(found.entries, 'entry refers', 'entries refer')} to the person, and "
            f"{count(len(known), 'text')} may name them. Choose which texts to change with --texts: none, all, or "
            "their keys, with commas."
        )
    chosen = {"": [], "none": [], "all": known}.get(texts, [key.strip() for key in texts.split(",")])
    if strangers := set(chosen) - set(known):
        refuse(f"No text has the key “{min(strangers)[:60]}” now; leave --texts out for the list. Nothing was changed.")
    with refusing(), database().write() as session:
        done = kept_forms.forget(session, None, str(discord_id), why, chosen)
    typer.echo(f"{count(done.entries, 'entry is', 'entries are')} blanked")
    if done.repositories:
        typer.echo(forgetting.told(done.repositories))


@app.command(rich_help_panel=PEOPLE)
def ban(
    discord_id: Snowflake,
    why: Why,
    name: Annotated[str, typer.Option(help="Their name, if they have done nothing here yet.")] = "somebody",
) -> None:
    """Let a person do nothing but read."""
    from projects import bans
    from projects.people import Actor

    with refusing(), database().write() as session:
        bans.ban(session, None, Actor(discord_id, name), why)
    typer.echo(f"{discord_id} is banned")


@app.command(rich_help_panel=PEOPLE)
def unban(discord_id: Snowflake, why: Why) -> None:
    """Let a banned person take part again."""
    from projects import bans

    with refusing(), database().write() as session:
        bans.unban(session, None, discord_id, why)
    typer.echo(f"{discord_id} can take part again")


@app.command(rich_help_panel=PEOPLE)
def appoint(project: Number, discord_id: Snowflake, why: Why) -> None:
    """Give PROJECT, whose lead is banned or gone, another lead: one of its contributors or newcomers."""
    from projects import membership

    with refusing(), database().write() as session:
        membership.appoint_lead(session, None, project, to=str(discord_id), reason=why)
    typer.echo(f"{discord_id} now leads project {project}")
