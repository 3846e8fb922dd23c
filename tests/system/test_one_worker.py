"""One home has one worker: another is refused while it lives, and may start as soon as it is gone."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from cli.services import environment
from projects.settings import Settings
from tests import forked
from tests.system.test_queue_failover import Queue, conf, queue, start

__all__ = ["Queue", "conf", "queue", "start"]


def test_a_second_worker_of_a_home_is_refused_while_the_first_lives(
    conf: Settings, start: Callable[..., "subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    worker = start()
    second = forked.run_module("cli.main", environment(conf, "worker"), "worker")
    assert second.returncode == 2
    assert second.stderr == (
        f"Another worker is at work in {conf.home}; stop it first, or give this one a home of its own (STOA_HOME).\n"
    )
    os.kill(worker.pid, signal.SIGKILL)  # it alone: the processes that it has forked may live on for a moment
    worker.wait()
    (tmp_path / "worker.log").unlink()
    start()
