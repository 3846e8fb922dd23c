"""Celery's short tasks, sent by the scheduler. A message carries only ids; the database says what they mean."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import structlog
from celery import Celery, Task
from celery.signals import worker_ready
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from celery.worker.state import revoked
from sqlalchemy.exc import SQLAlchemyError

from broker.allocations import hosts
from broker.allocations.pools import Pool
from broker.publishing import copies, disk, prepared_data, publisher, retention
from broker.publishing.retention import Looked
from broker.runners import carrier, host_home, lost_attempts, processes, reaper, registry, spawning
from broker.runs import attempts, leases, runs
from broker.runs.attempts import Attempt
from broker.runs.kinds.kind import kind_of
from broker.scheduling import worker_host
from projects import health
from projects.db import clock
from projects.db.columns import utcnow
from projects.db.database import Database, is_away
from projects.log import Seldom
from projects.settings import Settings, get_settings

ANY_POOL = "runs"
"""The queue of the pools that no host names."""
PUBLISH = "publish"
"""The queue of the checkpoints of the pools that no host names."""
MESSAGE_EXPIRES_SECONDS = 60  # so that messages do not pile up while no worker runs
BEAT_SECONDS = 10
QUEUE_SILENCE_SECONDS = 5.0
"""Seconds after which a command that the queue's server leaves unanswered is given up."""
QUEUE_CHECK_SECONDS = 10
"""Seconds between two looks whether the server answers a worker that waits for messages; Celery drops a connection
that stays silent for longer than that. A proxy that passes nothing on closes none."""

log = structlog.get_logger()
_log_again = Seldom()


class TimedRequest(Request):
    """A message that expires by the database's clock: the sender's and the worker's own may differ."""

    def maybe_expire(self) -> Literal[True] | None:
        """Whether the message has surely expired, which Celery is then told."""
        if self.expires is None or not clock.is_known() or self.expires >= utcnow():
            return None
        revoked.add(self.id)
        return True


class TimedTask(Task[..., Any]):
    """A task whose messages expire by the database's clock."""

    Request = f"{__name__}:{TimedRequest.__name__}"


app = Celery("stoa", task_cls=TimedTask)
app.add_defaults(lambda: {"broker_url": get_settings().celery_broker_url})
app.conf.update(
    task_ignore_result=True,
    task_default_queue=ANY_POOL,
    task_routes={"stoa.publish": {"queue": PUBLISH}},
    worker_prefetch_multiplier=1,
    worker_disable_prefetch=True,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    broker_channel_error_retry=True,  # such as READONLY, while another server takes over
    broker_transport_options={
        "socket_connect_timeout": QUEUE_SILENCE_SECONDS,
        "socket_timeout": QUEUE_SILENCE_SECONDS,
        "health_check_interval": QUEUE_CHECK_SECONDS,
    },
    task_publish_retry=False,
)


@worker_ready.connect
def _beat(sender: Consumer, **_: object) -> None:
    """Let the worker's own loop beat, under the name that the worker was started with."""
    part = sender.hostname.partition("@")[0]
    sender.timer.call_repeatedly(BEAT_SECONDS, health.beat, (get_settings(), part))
    health.beat(get_settings(), part)
    threading.Thread(target=_beat_unconnected, args=(sender, part), daemon=True).start()


def _beat_unconnected(consumer: Consumer, part: str) -> None:
    """Beat while the worker has no connection to the queue: Celery's loop stands still until it has another.

    Whatever restarts what beats no more, such as Kubernetes, would end the supervisors of this host's runs.
    """
    while True:
        time.sleep(BEAT_SECONDS)
        if consumer.connection is None:
            health.beat(get_settings(), part)


@worker_ready.connect
def _free_lost_runs(sender: Consumer, **_: object) -> None:
    """Say which attempts that this host has lost are surely over, as they are after a reboot."""
    if not sender.hostname.startswith("publisher@"):
        threading.Thread(target=_end_lost, args=(get_settings(),), daemon=True).start()


@worker_ready.connect
def _tend_disk(sender: Consumer, **_: object) -> None:
    """Put into the store what this host did not get there before it was stopped, or say why not; remove here what is
    safe there or can be fetched again, and there what nobody needs."""
    if not get_settings().store or sender.hostname.startswith("publisher@"):
        return
    for work, pause in (
        (carrier.carry_left_over, 60),
        (_with_database(reaper.tell_uncarried), 60),
        (_with_database(disk.tidy), 60),
        (_with_database(partial(retention.clear, looked=Looked())), 60),
        (_with_database(partial(prepared_data.clear, looked=Looked())), 60),
        (_with_database(copies.remove_unneeded), 600),
    ):
        threading.Thread(target=_again_and_again, args=(work, pause, get_settings()), daemon=True).start()


def _with_database(work: Callable[[Settings, Database], object]) -> Callable[[Settings], None]:
    """The work on a database that is closed after each time."""

    def do(settings: Settings) -> None:
        db = Database(settings.database)
        try:
            work(settings, db)
        finally:
            db.close()

    return do


def _again_and_again(work: Callable[[Settings], None], pause: float, settings: Settings) -> None:
    again = Seldom()
    while True:
        try:
            work(settings)
        except Exception as error:
            if again.is_due():
                log.warning("the disk or the store could not be looked after; trying again", error=str(error))
        time.sleep(pause)


@worker_ready.connect
def _follow_clock(sender: Consumer, **_: object) -> None:
    """Let a publisher know the database's time, by which messages expire; a worker asks for it with each beat."""
    if sender.hostname.startswith("publisher@"):
        threading.Thread(target=_keep_asking, args=(get_settings(),), daemon=True).start()


def _keep_asking(settings: Settings) -> None:
    """Ask the database for its time now and then, for as long as the process lives."""
    db = Database(settings.database)
    while True:
        with suppress(SQLAlchemyError):
            db.answers()
        time.sleep(clock.GOOD_FOR_SECONDS)


def _end_lost(settings: Settings) -> None:
    """End what is left of this host's lost attempts, as soon as the database answers and knows the host by its name."""
    again = Seldom()
    worker_host.is_announced.wait()
    while True:
        db = Database(settings.database)
        try:
            return lost_attempts.end_lost(settings, db)
        except Exception as error:
            if again.is_due():
                log.warning("this host's lost attempts could not be looked at; trying again", error=str(error))
        finally:
            db.close()
        time.sleep(settings.lease_seconds)


def pool_queue(pool: str) -> str:
    """The queue of a pool that some host names."""
    return f"pool.{pool}"


def inbox(host: str) -> str:
    """The queue of what only this host can do."""
    return f"host.{host}"


def publish_queue(host: str) -> str:
    """The queue of the checkpoints that lie on this host alone."""
    return f"publish.{host}"


def _send(task: TimedTask, arguments: tuple[int, ...], queue: str) -> None:
    expires = utcnow() + timedelta(seconds=MESSAGE_EXPIRES_SECONDS)
    # As a header: an argument `expires` would be compared with the sender's own clock.
    task.apply_async(arguments, headers={"expires": expires.isoformat()}, queue=queue)


def notify_start(run_id: int, token: int, queue: str = ANY_POOL) -> None:
    """Ask the workers of a queue to start an admitted attempt; raises kombu's OperationalError where it is away."""
    _send(start_attempt, (run_id, token), queue)


def notify_takeover(run_id: int, token: int, queue: str) -> None:
    """Ask the worker of a host's inbox, or the workers of a pool, to look after an attempt; raises kombu's
    OperationalError."""
    _send(take_over, (run_id, token), queue)


def notify_reaper(pool_id: int, queue: str) -> None:
    """Ask the workers of a queue to end a pool's stray jobs; raises kombu's OperationalError where it is away."""
    _send(end_strays, (pool_id,), queue)


def notify_publish(run_id: int, queue: str = PUBLISH) -> None:
    """Ask the publishers of a queue to publish the checkpoints of a run that wait; raises kombu's OperationalError."""
    _send(publish, (run_id,), queue)


@app.task(name="stoa.start_attempt")
def start_attempt(run_id: int, token: int) -> None:
    """Claim an attempt and start its supervisor; a message that came twice finds it claimed and does nothing.

    A trainer that was given up on this host may still be alive, cut off from the database; it is ended first.
    """
    host = processes.host()
    with _database() as (settings, db):
        with db.write() as session:
            known_by = host_home.kept_id(settings.home) or None
            if why := hosts.why_not_start(session, host, known_by, worker_host.place(settings)):
                log.info("another host may start the run", run=run_id, why=why)
                return
            run = runs.load(session, run_id)
            bound = registry.named(session.get_one(Pool, run.pool_id).runner).bound_to_host
            waits = bound and not kind_of(run).may_overlap
            outlives = (processes.boot_id(), settings.outage_seconds) if waits else None
            lease = settings.lease_seconds
            if not leases.claim(session, run_id, token, host=host, lease_seconds=lease, outlives=outlives):
                return
            earlier = attempts.earlier(session, run_id, token)
            owner = run.request_id
        # One that was lost long ago was ended by its own supervisor or shim.
        lost_attempts.end_lost(settings, db)
        for process in filter(None, map(attempts.process_of, earlier)):
            processes.kill_group(process)
        spawning.spawn(settings, run_id, token, owner)


@app.task(name="stoa.take_over")
def take_over(run_id: int, token: int) -> None:
    """Replace the supervisor of an attempt: a dead one of this host, or one of another host whose lease is out and
    whose trainer is an engine's job. The trainer goes on."""
    with _database() as (settings, db):
        with db.read() as session:
            attempt = session.get_one(Attempt, (run_id, token))
            runner = registry.named(session.get_one(Pool, attempt.pool_id).runner)
            owner = runs.load(session, run_id).request_id
            drained = hosts.is_drained(session, processes.host())
        before = attempts.supervisor_of(attempt)
        if before is None or not spawning.may_replace(before, runner):
            return
        if attempt.host == processes.host():
            spawning.spawn(settings, run_id, token, after=attempt.generation)
            return
        reached = runner.fills_store or (settings.runs_dir / str(run_id) / f"attempt-{token}").is_dir()
        if drained or not reached or attempt.lease_until is None or attempt.lease_until > utcnow():
            log.info("another host may take the run over", run=run_id, drained=drained, folder_is_here=reached)
            return
        spawning.spawn(settings, run_id, token, owner, after=attempt.generation)


@app.task(name="stoa.end_strays")
def end_strays(pool_id: int) -> None:
    """End the jobs of a pool that nobody supervises any more."""
    with _database() as (settings, db):
        reaper.end_strays(settings, db, pool_id)


@app.task(name="stoa.publish")
def publish(run_id: int) -> None:
    """Publish the run's waiting checkpoints, in the order of their steps."""
    with _database() as (settings, db):
        publisher.publish_waiting(settings, db, run_id)


@contextmanager
def _database() -> Iterator[tuple[Settings, Database]]:
    """The database for a task. That it is away is logged once a minute: once it is back, the scheduler asks again."""
    settings = get_settings()
    db = Database(settings.database)
    try:
        yield settings, db
    except Exception as error:
        if not is_away(error):
            raise
        if _log_again.is_due():
            said = str(getattr(error, "orig", error))
            log.warning("the database could not be reached; the scheduler asks again", error=said)
    finally:
        db.close()
