"""What `stoa doctor` looks at: whether all that Stoa stands on is as it must be, and what to do where it is not."""

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import discord
import httpx2
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from discord.http import Route
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from kombu import Connection
from kombu.exceptions import OperationalError
from rich.console import Console
from rich.markup import escape
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from bot import server
from bot.server import CHANNELS, IN_GUILD, IN_OTHERS, IN_PROPOSALS, TO_MENTION, Server
from broker import fence
from broker.allocations import hosts, pools
from broker.allocations.pools import Pool
from broker.runners import host_gpus, processes, registry
from broker.store import Store, StoreError
from projects.db import database as database
from projects.db.database import Database
from projects.errors import InvalidError
from projects.settings import Settings

LEAST_FREE_BYTES = 10 * 2**30
CLOCKS_APART = timedelta(seconds=5)
PATIENCE_SECONDS = 10
DATABASE_FIRST = "Fix the database first."

R = TypeVar("R")


@dataclass(frozen=True)
class Finding:
    """What a look at one thing has found; `advice` says what to do, and is empty where all is well."""

    thing: str
    found: str
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is nothing to do."""
        return not self.advice

    @property
    def follows(self) -> bool:
        """Whether it cannot be known before another thing is set right."""
        return self.advice == DATABASE_FIRST


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything, in the order in which it should be set right, each as soon as it is known."""
    yield check_settings(settings)
    yield check_disk(settings.home)
    yield check_database(settings)
    yield check_queue(settings)
    yield from check_clock(settings)
    yield from check_discord(settings)
    yield check_hub(settings)
    yield from check_store(settings)
    yield check_gpus(settings)
    yield from check_runners(settings)
    yield from check_failures(settings)


def show(console: Console, findings: Iterable[Finding]) -> bool:
    """Print each finding as it comes, and at the end what to do next; whether all is well."""
    first: Finding | None = None
    well = True
    for finding in findings:
        well &= finding.ok
        first = first or (None if finding.ok or finding.follows else finding)
        mark = "[green]✔[/]" if finding.ok else "[yellow]↳[/]" if finding.follows else "[red]✘[/]"
        console.print(f"{mark} [bold]{escape(finding.thing)}[/]: {escape(finding.found)}", highlight=False)
        if finding.advice:
            console.print(f"    {escape(finding.advice)}", highlight=False)
    if first is None:
        console.print("All is well." if well else "Look again once the database answers.")
    else:
        console.print(f"next: {escape(first.advice)}", highlight=False)
    return well


def check_settings(settings: Settings) -> Finding:
    """Whether what a server needs is set, and the home folder can be written."""
    if settings.missing:
        return Finding(
            "settings",
            f"not set: {', '.join(settings.missing)}",
            "Copy .env.example to .env; it says where each is found.",
        )
    place = next(folder for folder in (settings.home, *settings.home.parents) if folder.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        return Finding("settings", f"{place} cannot be written", "Set STOA_HOME to a folder of the user who runs Stoa.")
    return Finding("settings", f"complete; home is {settings.home}")


def check_database(settings: Settings) -> Finding:
    """Whether the database answers and has the newest tables."""
    where = "PostgreSQL" if settings.database_url else "SQLite in the home folder"
    if _is_missing(settings):
        return Finding("database", f"{where}: there is none yet", "Run `stoa migrate`, which makes it.")
    newest = ScriptDirectory(str(Path(database.__file__).parent / "migrations")).get_current_head()
    db = Database(settings.database)
    try:
        with db.read() as session:
            revision = MigrationContext.configure(session.connection()).get_current_revision()
    except SQLAlchemyError as error:
        # The error's own text may hold the address, and with it a password.
        reason = type(getattr(error, "orig", None) or error).__name__
        what = database.advice(error)
        return Finding("database", f"{where} does not answer ({reason})", f"{what[:1].upper()}{what[1:]}.")
    finally:
        db.close()
    if revision != newest:
        return Finding("database", f"{where} is at {revision}, the newest is {newest}", "Run `stoa migrate`.")
    return Finding("database", f"{where}, at {revision}")


def _is_missing(settings: Settings) -> bool:
    """Whether there is no embedded database yet: a look at it would make an empty one."""
    return not settings.database_url and not (settings.home / "stoa.db").exists()


def _read(settings: Settings, call: Callable[[Session], R]) -> R | None:
    """What a function of the domain reads; None where the database cannot be read, which `check_database` reports."""
    if _is_missing(settings):
        return None
    db = Database(settings.database)
    try:
        with db.read() as session:
            return call(session)
    except SQLAlchemyError:
        return None
    finally:
        db.close()


def check_queue(settings: Settings) -> Finding:
    """Whether the queue answers."""
    options = {"socket_connect_timeout": PATIENCE_SECONDS, "socket_timeout": PATIENCE_SECONDS}
    try:
        with Connection(settings.celery_broker_url, transport_options=options) as connection:
            connection.ensure_connection(max_retries=1, timeout=PATIENCE_SECONDS)
    except (OperationalError, OSError):
        if settings.redis_url:
            return Finding("queue", "Redis does not answer", "Start it, or correct STOA_REDIS_URL.")
        return Finding("queue", "the embedded Valkey does not answer", "Run `stoa up`, which starts it.")
    return Finding("queue", "Redis answers" if settings.redis_url else "the embedded Valkey answers")


def check_discord(settings: Settings) -> list[Finding]:
    """Whether the token, the server, its channels and roles, and the bot's permissions are as they must be."""
    if not settings.discord_token.get_secret_value():
        return [Finding("Discord", "no token", "Set STOA_DISCORD_TOKEN to the bot's, from its page Bot.")]
    try:
        return asyncio.run(asyncio.wait_for(_ask_discord(settings), 6 * PATIENCE_SECONDS))
    except discord.LoginFailure:
        return [Finding("Discord", "the token is refused", "Set STOA_DISCORD_TOKEN to the bot's, from its page Bot.")]
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return [
            Finding("Discord", f"it cannot be reached ({type(error).__name__})", "Look at the network and proxies.")
        ]
    except discord.HTTPException as error:
        return [Finding("Discord", f"it answers {error.status} {error.text}", "Try again in some minutes.")]


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[discord.Client]:
    """A client of Discord that has logged in with the settings' token; raises what discord.py does."""
    if settings.discord_api:
        Route.BASE = f"{settings.discord_api.rstrip('/')}/api/v10"
    async with discord.Client(intents=discord.Intents.none()) as client:
        await client.login(settings.discord_token.get_secret_value())
        yield client


async def _ask_discord(settings: Settings) -> list[Finding]:
    async with connected(settings) as client:
        assert client.user is not None
        findings = [Finding("Discord's token", f"it is {client.user.name}'s")]
        try:
            guild = await client.fetch_guild(settings.guild_id)
            me = await guild.fetch_member(client.user.id)
        except (discord.NotFound, discord.Forbidden):
            advice = "Invite the bot at the address that `stoa invite` prints, or correct STOA_GUILD_ID."
            return [*findings, Finding("Discord's server", f"the bot is not in {settings.guild_id}", advice)]
        findings.append(Finding("Discord's server", guild.name))
        advice = "Grant it to the bot's role in the server's settings, under Roles."
        findings.append(_permissions("the bot's role", IN_GUILD | TO_MENTION, me.guild_permissions, advice))
        known = _server(settings)
        for name in ("reviewer", "moderator", "admin"):
            role = getattr(known, f"{name}_role")
            if role and guild.get_role(role) is None:
                advice = (
                    f"Use /stoa setup in the server, or set STOA_{name.upper()}_ROLE_ID to the id of a role there is."
                )
                findings.append(Finding(f"the {name}s' role", f"the server has none with the id {role}", advice))
        if not known.reviewer_role:
            advice = "Use /stoa setup in the server, or set STOA_REVIEWER_ROLE_ID."
            findings.append(Finding("the reviewers' role", "none is chosen", advice))
        return findings + [await _channel(getattr(known, name), guild, me, name) for name in CHANNELS]


def _server(settings: Settings) -> Server:
    """The channels and roles that the admins have chosen, where the database can be asked, else those of `.env`."""
    chosen = _read(settings, lambda session: server.load(session, settings))
    return Server.of(settings) if chosen is None else chosen


async def _channel(channel_id: int, guild: discord.Guild, me: discord.Member, name: str) -> Finding:
    try:
        channel = await guild.fetch_channel(channel_id)
    except (discord.NotFound, discord.Forbidden, discord.InvalidData):
        channel = None
    if not isinstance(channel, discord.TextChannel):
        advice = (
            f"Use /stoa setup in the server, or set STOA_{name.upper()}_CHANNEL_ID to the id of a text channel that "
            "the bot sees."
        )
        return Finding(f"the {name} channel", "the bot sees no such text channel", advice)
    wanted = IN_PROPOSALS if name == "proposals" else IN_OTHERS
    advice = "Grant it to the bot's role in the channel's settings, under Permissions."
    return _permissions(f"#{channel.name}", wanted, channel.permissions_for(me), advice)


def _permissions(where: str, wanted: dict[str, str], has: discord.Permissions, advice: str) -> Finding:
    missing = [name for bit, name in wanted.items() if not getattr(has, bit)]
    if missing:
        return Finding(where, f"the bot lacks {', '.join(missing)}", advice)
    return Finding(where, "the bot may do what it must")


def check_store(settings: Settings) -> list[Finding]:
    """Whether the store takes an object and gives it back, where there is a store."""
    if not settings.store:
        return []
    name, said = f"doctor/{secrets.token_hex(8)}", secrets.token_bytes(64)
    try:
        there = Store(settings)
        there.write(name, said)
        given = there.read(name)
        there.remove(name)
    except StoreError as error:
        advice = "Correct STOA_STORE, STOA_STORE_ENDPOINT, STOA_STORE_KEY and STOA_STORE_SECRET, or see to the store."
        return [Finding("store", str(error), advice)]
    if given != said:
        return [Finding("store", "it does not give back what was put there", "Use another store.")]
    return [Finding("store", f"{settings.store} takes objects and gives them back")]


def check_hub(settings: Settings) -> Finding:
    """Whether the Hub takes the token, and the token writes to the namespace."""
    token = settings.hub_token.get_secret_value()
    if not (token and settings.hub_namespace):
        return Finding(
            "Hub",
            "no token or no namespace",
            "Set STOA_HUB_TOKEN and STOA_HUB_NAMESPACE; until then checkpoints wait unpublished.",
        )
    try:
        me = HfApi(endpoint=settings.hub_endpoint.rstrip("/"), token=token).whoami()
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            return Finding("Hub", "the token is refused", "Make one with write access, and set STOA_HUB_TOKEN to it.")
        return Finding("Hub", f"it answers {type(error).__name__}", "Try again in some minutes.")
    except (httpx2.HTTPError, OSError) as error:
        return Finding("Hub", f"it cannot be reached ({type(error).__name__})", "Look at the network and proxies.")
    if me.get("auth", {}).get("accessToken", {}).get("role") == "read":
        return Finding("Hub", "the token may only read", "Make one with write access, and set STOA_HUB_TOKEN to it.")
    names = [me["name"], *(organisation["name"] for organisation in me.get("orgs", []))]
    if settings.hub_namespace not in names:
        advice = f"Set STOA_HUB_NAMESPACE to one of: {', '.join(names)}."
        return Finding("Hub", f"{me['name']} does not write to {settings.hub_namespace}", advice)
    return Finding("Hub", f"{me['name']} writes to {settings.hub_namespace}")


def check_gpus(settings: Settings) -> Finding:
    """Whether this host has the GPUs that its local pools count on; or how many cores, where all count on these."""
    count = len(host_gpus.found().gpus)
    wanted = _counted(settings, hosts.gpu_pools)
    cores = _counted(settings, hosts.core_pools)
    if wanted is None:
        return Finding("GPUs", f"{count} here; the pools cannot be read", DATABASE_FIRST)
    if cores and not wanted and not count:
        return Finding("cores", f"{os.cpu_count()} here, and the pool {_counts(cores)}")
    counted = _counts(wanted)
    if sum(pool.gpus for pool in wanted) > count:
        advice = (
            "Look at the driver (nvidia-smi, amd-smi or rocm-smi), or run doctor and the worker on the pool's own host."
        )
        return Finding("GPUs", f"{count} here, and the pool {counted}", advice)
    return Finding("GPUs", f"{count} here" + (f", and the pool {counted}" if wanted else "; no pool here needs one"))


def _counted(settings: Settings, of: Callable[[Session, str], Sequence[Pool]]) -> Sequence[Pool] | None:
    """Some of this host's pools; None where the database cannot be read."""
    return _read(settings, lambda session: of(session, processes.host()))


def _counts(on: Sequence[Pool]) -> str:
    """What pools count on: “local counts on 2 cores”."""
    return ", ".join(f"{pool.name} counts on {pool.unit.count(pool.gpus)}" for pool in on)


def check_runners(settings: Settings) -> Iterator[Finding]:
    """What the runner of each pool has to say, such as whether its own queue answers; once of pools that are alike."""
    alike: dict[tuple[Any, ...], list[Pool]] = {}
    for pool in _read(settings, pools.every) or ():
        alike.setdefault((pool.runner, *sorted(pool.runner_options.items())), []).append(pool)
    for (name, *options), of in alike.items():
        thing = f"the runner {name} of {', '.join(pool.name for pool in of)}"
        if name not in registry.RUNNERS:
            advice = f"Change the pool to one of: {', '.join(registry.RUNNERS)}; or install the version that knows it."
            yield Finding(thing, "this version of Stoa does not know it", advice)
        elif check := registry.named(name).check(dict(options)):
            yield Finding(thing, check.found, check.advice)


def check_failures(settings: Settings) -> Iterator[Finding]:
    """The parts whose failures of the last day were reported to the admins."""
    for part, error in _read(settings, fence.told) or ():
        advice = "Look at the log of that part; this line disappears a day after the failure was reported."
        yield Finding(f"failed within a day: {part}", error, advice)


def check_disk(home: Path, least: int = LEAST_FREE_BYTES) -> Finding:
    """Whether the disk of the home folder has room."""
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    found = f"{free / 2**30:,.1f} GiB free in {place}"
    if free < least:
        return Finding("disk", found, f"Make room for {least / 2**30:,.0f} GiB at least, or set STOA_HOME elsewhere.")
    return Finding("disk", found)


def check_clock(settings: Settings) -> Iterator[Finding]:
    """Whether this host's clock agrees with the database server's, which all times are told by, and with Discord's."""
    if settings.database_url:
        db = Database(settings.database)
        try:
            with db.read() as session:
                theirs = session.scalar(text("SELECT clock_timestamp()"))
            if isinstance(theirs, datetime):
                yield _apart("clock against the database's", theirs)
        except SQLAlchemyError:
            yield Finding("clock against the database's", "not known", DATABASE_FIRST)
        finally:
            db.close()
    api = (settings.discord_api or "https://discord.com").rstrip("/")
    try:
        told = httpx2.get(f"{api}/api/v10/gateway", timeout=PATIENCE_SECONDS).headers.get("Date")
    except (httpx2.HTTPError, OSError):
        told = None
    if told is None:
        yield Finding("clock against Discord's", "not known", "Look at the network and proxies.")
    else:
        yield _apart("clock against Discord's", parsedate_to_datetime(told))


def _apart(which: str, theirs: datetime) -> Finding:
    apart = datetime.now(UTC) - theirs
    found = f"{abs(apart.total_seconds()):.0f} s {'ahead' if apart > timedelta() else 'behind'}"
    if abs(apart) > CLOCKS_APART:
        return Finding(which, found, "Let this host keep its time by NTP (timedatectl set-ntp true).")
    return Finding(which, found)


def invitation(settings: Settings) -> str:
    """The address at which an admin invites the bot; raises InvalidError where Discord does not know the token."""
    wanted = discord.Permissions(**dict.fromkeys([*IN_GUILD, *TO_MENTION, "embed_links", "pin_messages"], True))
    try:
        application = asyncio.run(asyncio.wait_for(_application(settings), 6 * PATIENCE_SECONDS))
    except discord.LoginFailure as error:
        raise InvalidError("Discord refuses STOA_DISCORD_TOKEN: copy the bot's token from its page Bot.") from error
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise InvalidError(f"Discord cannot be reached ({type(error).__name__}): look at the network.") from error
    except discord.HTTPException as error:
        raise InvalidError(f"Discord answers {error.status} {error.text}: try again in some minutes.") from error
    return discord.utils.oauth_url(
        application,
        permissions=wanted,
        guild=discord.Object(settings.guild_id) if settings.guild_id else discord.utils.MISSING,
        scopes=("bot", "applications.commands"),
    )


async def _application(settings: Settings) -> int:
    """The id of the bot's application."""
    async with connected(settings) as client:
        return client.application_id or (await client.application_info()).id
