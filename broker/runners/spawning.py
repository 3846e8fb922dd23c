"""How a worker starts the supervisor of an attempt, or one that replaces another (`broker/runners/supervisor.py`)."""

import subprocess
import sys
import threading

from broker import store as stores
from broker.runners import processes, registry
from broker.runners.base import Runner
from broker.runners.processes import Process
from broker.runs import folders
from projects.settings import Settings


def spawn(settings: Settings, run_id: int, token: int, owner: str = "", after: int | None = None) -> None:
    """Start the supervisor of a claimed attempt as a session of its own, with the settings it needs and no token.

    `owner` marks the folder of a run as this database's; `after` is the generation of a supervisor to be replaced.
    """
    is_new_here = after is None or bool(owner)
    folder = folders.own(settings, run_id, owner) if is_new_here else folders.of_run(settings, run_id)
    environment = registry.environment() | {
        "STOA_ENV_FILE": "",
        "STOA_HOME": str(settings.home),
        "STOA_HOST_NAME": settings.host_name,
        "STOA_DATABASE_URL": settings.database,
        "STOA_LEASE_SECONDS": str(settings.lease_seconds),
        "STOA_STOP_GRACE_SECONDS": str(settings.stop_grace_seconds),
        "STOA_OUTAGE_SECONDS": str(settings.outage_seconds),
        "STOA_MAX_ATTEMPTS": str(settings.max_attempts),
        "STOA_HUB_ENDPOINT": settings.hub_endpoint,
        "STOA_DISK_FLOOR_GIB": str(settings.disk_floor_gib),
        **stores.environment(settings),
    }
    with (folder / f"supervisor-{token}.log").open("ab") as out:
        supervisor = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "broker.runners.supervisor",
                str(run_id),
                str(token),
                *([] if after is None else [str(after)]),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    threading.Thread(target=supervisor.wait, daemon=True).start()  # lest it stays a zombie of a worker that lives on


def may_replace(before: Process, runner: type[Runner]) -> bool:
    """Whether a supervisor of this host may take over the trainer of the supervisor `before`: one that has died here,
    or, once its lease is out, one of another host whose trainers are an engine's."""
    if processes.of_this_host(before) or before.host == processes.host():
        return processes.replaceable(before)
    return not runner.bound_to_host
