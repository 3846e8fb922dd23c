"""The databases of these tests, and a lab on each."""

import pytest

from projects.db import Database
from tests.broker.lab import Lab
from tests.databases import database_url, db, postgres

__all__ = ["database_url", "db", "lab", "postgres"]


@pytest.fixture
def lab(db: Database) -> Lab:
    """A lab with a pool and nobody in it."""
    lab = Lab(db)
    lab.pool()
    return lab
