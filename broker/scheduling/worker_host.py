"""The host of a worker: announced in the database with what it has, and heard from again every few seconds."""

import platform
import shutil
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from importlib import metadata
from typing import Any

import psutil
import structlog
from celery.signals import worker_ready, worker_shutdown
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlmodel import col, select

from broker.allocations import hosts, pools
from broker.allocations.hosts import HostPool, HostView
from broker.allocations.pools import Pool
from broker.runners import host_gpus, host_home, host_speed, processes
from broker.runs import attempts
from projects.db.database import Database
from projects.errors import ConflictError
from projects.log import Seldom
from projects.settings import Settings

BEAT_SECONDS = 10.0
SILENT_SECONDS = 2.5 * BEAT_SECONDS
"""For how long a worker of another machine is not heard from before it counts as gone."""
PACKAGES = ("stoa", "torch", "deepspeed")

log = structlog.get_logger()


is_announced = threading.Event()
"""Whether the database knows this host by its present name, under which its earlier attempts are found then."""


def join(settings: Settings, serves: Collection[str], host_id: str | None = None) -> None:
    """Announce this host, which serves the named pools, or all that no host names; then say in a thread that its worker
    is still there, for as long as the process lives. A database that is away is waited for in the thread.

    `host_id` is the id that its home keeps. Raises NotFoundError for an unknown pool, and ConflictError where a worker
    of another machine is there under this host's name or id, for GPUs of another host, or where a run holds GPUs that
    would get other numbers.
    """
    ended, gpus, name = threading.Event(), _gpus(settings), processes.host()

    def beat() -> None:
        db, has = Database(settings.database), facts(settings) | gpus
        try:
            if is_announced.is_set():
                with db.write() as session:
                    if hosts.beat(session, name, has, host_id):
                        return
                is_announced.clear()
            _check_identity(db, settings, name, host_id)
            with db.write() as session:
                _check_numbers(session, name, serves, host_id)
                renamed = hosts.announce(session, name, serves, has, host_id, silent_seconds=SILENT_SECONDS)
                for before, after in renamed.items():
                    attempts.rename_host(session, before, after)
        finally:
            db.close()
        is_announced.set()

    def keep_beating() -> None:
        log_again = Seldom()
        gpus.update(_measured(settings, gpus))
        while not ended.wait(BEAT_SECONDS):
            try:
                beat()
            except Exception as error:  # the thread must not end: a host that is silent counts as away
                if log_again.is_due():
                    log.warning("the host could not be announced; trying again", error=str(error))

    def leave() -> None:
        ended.set()
        db = Database(settings.database)
        with suppress(SQLAlchemyError), db.write() as session:
            hosts.leave(session, name, host_id)
        db.close()

    is_announced.clear()
    with suppress(SQLAlchemyError):
        beat()
    # The worker has forked its processes by then, which a thread would not live through.
    thread = threading.Thread(target=keep_beating, daemon=True)
    worker_ready.connect(lambda **_: thread.start(), weak=False)
    worker_shutdown.connect(lambda **_: leave(), weak=False)


def facts(settings: Settings) -> dict[str, Any]:
    """What this host has: cores, memory and free disk in GiB, the versions that it runs, and its boot and home."""
    return place(settings) | {
        "cores": len(psutil.Process().cpu_affinity()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "free_gib": round(shutil.disk_usage(settings.home).free / 2**30, 1),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
    }


def place(settings: Settings) -> dict[str, Any]:
    """The present boot and the home folder of this host, as no other worker has both."""
    settings.home.mkdir(parents=True, exist_ok=True)
    folder = settings.home.stat()
    return {hosts.BOOT: processes.boot_id(), hosts.HOME: f"{folder.st_dev}:{folder.st_ino}"}


def _gpus(settings: Settings) -> dict[str, Any]:
    """The host's GPUs, with the speed that was measured before, and the version of their driver; empty where there is
    none."""
    gpus, driver = host_gpus.found()
    known = host_speed.kept(settings.home, gpus, metadata.version("torch")) or {}
    return {"gpus": host_speed.told(gpus, known), "driver": driver} if gpus else {}


def _measured(settings: Settings, has: Mapping[str, Any]) -> dict[str, Any]:
    """The host's GPUs with their speed, which is measured now; empty where there is none, or where it was measured."""
    gpus, torch = has.get("gpus", []), metadata.version("torch")
    if not gpus or host_speed.kept(settings.home, gpus, torch) is not None:
        return {}
    return {"gpus": host_speed.told(gpus, host_speed.measure(settings.home, gpus, torch))}


def _check_identity(db: Database, settings: Settings, name: str, host_id: str | None) -> None:
    """Raise ConflictError where a worker of another machine or container is there under this host's name or id.

    One that was there lately may have been this host before it was restarted, so it is waited for.
    """

    here = place(settings)

    def in_the_way() -> HostView | None:
        with db.read() as session:
            return next((host for host in hosts.every(session) if _is_another(host, name, host_id, here)), None)

    before = in_the_way()
    until = time.monotonic() + SILENT_SECONDS
    while before is not None and time.monotonic() < until:
        time.sleep(1)
        now = in_the_way()
        if now is None or now.seen_at <= before.seen_at:
            continue
        if now.id is None or now.id != host_id:
            raise hosts.taken(name, now.seen_at)
        raise ConflictError(
            f"Another worker is there with the id of this host, as “{now.name}”, heard from at {now.seen_at:%F %T} "
            f"UTC; give this one a home folder of its own (STOA_HOME), or, where its home is a copy, remove "
            f"{settings.home / host_home.ID_FILE}."
        )


def _is_another(host: HostView, name: str, host_id: str | None, here: Mapping[str, Any]) -> bool:
    """Whether a known host may be another one that is there under this host's name or id."""
    if host.is_away or host.boot is None:
        return False
    if host_id is not None and host.id == host_id:  # the lock of a home tells whether another worker is at work there
        same_kernel = processes.kernel_boot(host.boot) == processes.kernel_boot(here[hosts.BOOT])
        return not same_kernel or host.facts.get(hosts.HOME) != here[hosts.HOME]
    if None not in (host.id, host_id):
        return host.name == name
    return host.name == name and host.boot != here[hosts.BOOT]


def _check_numbers(session: Session, host: str, serves: Collection[str], host_id: str | None) -> None:
    """Raise ConflictError where the host's pools change while a run holds GPUs of one of them."""
    known = (host_id and hosts.known_as(session, host_id)) or host
    before = set(session.scalars(select(HostPool.pool_id).where(HostPool.host == known)))
    after = {pools.named(session, pool).id for pool in serves}
    rows = session.scalars(select(Pool).where(col(Pool.id).in_(before ^ after)).with_for_update(key_share=True))
    for pool in rows:
        if pool.shares_gpus and attempts.devices_in_use(session, pool.id):
            raise ConflictError(
                f"Runs hold GPUs of “{pool.name}”, which would get other numbers; pause them before “{host}” serves "
                "other pools."
            )
