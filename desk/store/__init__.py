"""The database of the desk: SQLite by default, PostgreSQL by URL. See ``tables`` and ``store``."""
