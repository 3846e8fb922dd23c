"""The database: sessions, column types and migrations."""
