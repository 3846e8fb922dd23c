"""The databases of these tests."""

from tests.databases import database_url, db, postgres

__all__ = ["database_url", "db", "postgres"]
