"""Alembic's environment, and one module for each change of the tables."""
