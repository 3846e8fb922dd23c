"""The databases of these tests, and a lab on each."""

from tests.broker.conftest import lab
from tests.databases import database_url, db, postgres

__all__ = ["database_url", "db", "lab", "postgres"]
