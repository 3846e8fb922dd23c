"""What a worker says of itself by Celery's remote control, which may ask a worker and change nothing of it."""

from collections.abc import Sequence

from celery.signals import worker_init
from kombu.exceptions import OperationalError

from broker.scheduling.tasks import app

ALLOWED = frozenset({"ping", "active", "active_queues", "reserved", "stats"})
"""The commands of Celery's that a worker answers; none ends a task or a worker, or changes what it serves."""
ANSWER_SECONDS = 5.0
TRIES = 2


@worker_init.connect
def allow_inspection_only(**_: object) -> None:
    """Let this worker know no other remote command."""
    from celery.worker.control import Panel

    for name in set(Panel.data) - ALLOWED:
        del Panel.data[name]
        Panel.meta.pop(name, None)


def node(part: str, host: str) -> str:
    """Celery's name of the worker or publisher of a host."""
    return f"{part}@{host}"


def queues(host: str) -> Sequence[str] | None:
    """The queues that a host's worker takes messages from; None where it does not answer.

    A connection to a server of the queue that has restarted since breaks, so another one is tried.
    """
    name = node("worker", host)
    for _ in range(TRIES):
        try:
            with app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1)
                asked = app.control.inspect(destination=[name], timeout=ANSWER_SECONDS, connection=connection)
                found = asked.active_queues() or {}
        except (OperationalError, OSError):
            continue
        if name in found:
            return sorted(queue["name"] for queue in found[name])
    return None
