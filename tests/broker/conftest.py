"""The databases of these tests, a lab on each, and what most of them begin with."""

import pytest

from broker.scheduling import tasks
from projects.db.database import Database
from tests.broker.lab import Lab

__all__ = ["lab"]


@pytest.fixture
def lab(db: Database) -> Lab:
    """A lab with a pool and nobody in it."""
    lab = Lab(db)
    lab.pool()
    return lab


@pytest.fixture
def project(lab: Lab) -> int:
    """An active project."""
    return lab.project()


@pytest.fixture
def allocation(lab: Lab, project: int) -> int:
    """An hour for it."""
    return lab.allocation(project)


@pytest.fixture
def run(lab: Lab, project: int, allocation: int) -> int:
    """A queued run of ten minutes on two GPUs."""
    return lab.launch(project, gpus=2)


@pytest.fixture
def ours(lab: Lab) -> int:
    """A project with ten hours on a pool of two GPUs."""
    project = lab.project()
    lab.allocation(project, hours="10")
    return project


@pytest.fixture(scope="module")
def memory_queue() -> None:
    """A queue in memory, which nobody listens to: Celery's own, without a server."""
    tasks.app.conf.update(broker_url="memory://", broker_transport_options={})
