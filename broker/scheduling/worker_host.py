"""The host of a worker: announced in the database with what it has, and heard of again every few seconds."""

import platform
import shutil
import threading
import time
from collections.abc import Collection
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
from broker.runners import host_gpus, processes
from broker.runs import attempts
from projects.db.database import Database
from projects.errors import ConflictError, NotFoundError
from projects.log import Seldom
from projects.settings import Settings

BEAT_SECONDS = 10.0
SILENT_SECONDS = 2.5 * BEAT_SECONDS
"""For how long a worker of another machine is not heard of before it counts as gone."""
PACKAGES = ("stoa", "torch", "deepspeed")

log = structlog.get_logger()


def join(settings: Settings, serves: Collection[str]) -> None:
    """Announce this host, which serves the named pools, or all that no host names; then say in a thread that its worker
    is still there, for as long as the process lives. A database that is away is waited for in the thread.

    Raises NotFoundError for an unknown pool, and ConflictError where a worker of another machine is there under this
    host's name, for GPUs of another host, or where a run holds GPUs that would get other numbers.
    """
    announced, ended, gpus = False, threading.Event(), _gpus()

    def beat() -> None:
        nonlocal announced
        db, has = Database(settings.database), facts(settings) | gpus
        try:
            if not announced:
                _check_name(db, processes.host())
            with db.write() as session:
                if not announced or not hosts.beat(session, processes.host(), has):
                    _check_numbers(session, processes.host(), serves)
                    hosts.announce(session, processes.host(), serves, has)
        finally:
            db.close()
        announced = True

    def keep_beating() -> None:
        log_again = Seldom()
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
            hosts.leave(session, processes.host())
        db.close()

    with suppress(SQLAlchemyError):
        beat()
    # The worker has forked its processes by then, which a thread would not live through.
    thread = threading.Thread(target=keep_beating, daemon=True)
    worker_ready.connect(lambda **_: thread.start(), weak=False)
    worker_shutdown.connect(lambda **_: leave(), weak=False)


def facts(settings: Settings) -> dict[str, Any]:
    """What this host has: cores, memory and free disk in GiB, the versions that it runs, and the present boot."""
    settings.home.mkdir(parents=True, exist_ok=True)
    return {
        hosts.BOOT: processes.boot_id(),
        "cores": len(psutil.Process().cpu_affinity()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "free_gib": round(shutil.disk_usage(settings.home).free / 2**30, 1),
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES},
    }


def _gpus() -> dict[str, Any]:
    """The host's GPUs and the version of their driver; empty where there is none."""
    gpus, driver = host_gpus.found()
    return {"gpus": gpus, "driver": driver} if gpus else {}


def _check_name(db: Database, name: str) -> None:
    """Raise ConflictError where a worker of another machine or container is there under this host's name.

    One that was there lately may have been this host before it was restarted, so it is waited for.
    """

    def found() -> HostView | None:
        with suppress(NotFoundError), db.read() as session:
            return hosts.named(session, name)
        return None

    before = found()
    if before is None or before.is_away or before.facts.get(hosts.BOOT, processes.boot_id()) == processes.boot_id():
        return
    until = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < until:
        time.sleep(1)
        now = found()
        if now is not None and now.seen_at > before.seen_at:
            raise ConflictError(
                f"Another machine or container is there as “{name}”, heard of at {now.seen_at:%F %T} UTC; give this "
                "one a name of its own (STOA_HOST_NAME), or stop the worker there."
            )


def _check_numbers(session: Session, host: str, serves: Collection[str]) -> None:
    """Raise ConflictError where the host's pools change while a run holds GPUs of one of them."""
    before = set(session.scalars(select(HostPool.pool_id).where(HostPool.host == host)))
    after = {pools.named(session, pool).id for pool in serves}
    rows = session.scalars(select(Pool).where(col(Pool.id).in_(before ^ after)).with_for_update(key_share=True))
    for pool in rows:
        if pool.shares_gpus and attempts.devices_in_use(session, pool.id):
            raise ConflictError(
                f"Runs hold GPUs of “{pool.name}”, which would get other numbers; pause them before “{host}” serves "
                "other pools."
            )
