"""The databases of these tests."""

import pytest

from projects.db.database import Database
from tests.databases import database_url, db, postgres
from tests.projects.school import School

__all__ = ["database_url", "db", "postgres", "school"]


@pytest.fixture
def school(db: Database) -> School:
    """A school with nobody in it."""
    return School(db)
