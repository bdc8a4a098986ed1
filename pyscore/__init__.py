"""Reputation scores that live inside PostgreSQL.

The work is done by the database (schema ``builder_score``); this package installs that schema,
reads what it keeps, and talks to people.
"""

from importlib.metadata import version

__version__ = version("pyscore")
