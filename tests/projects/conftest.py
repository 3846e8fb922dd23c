"""The databases of these tests."""

import pytest

from projects.db.database import Database
from tests.projects.school import School

__all__ = ["school"]


@pytest.fixture
def school(db: Database) -> School:
    """A school with nobody in it."""
    return School(db)
