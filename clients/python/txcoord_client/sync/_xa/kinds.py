"""The classes of synchronous drivers that may be given to ``g.xa``."""

from __future__ import annotations

from typing import Any

from .held import Held, Kind

NEEDED = (
    "a SQLAlchemy Engine, Connection or Session, a psycopg Connection or ConnectionPool, a PyMySQL or mysqlclient "
    "connection"
)

# A driver is imported by whoever uses it, and its module here with it.


def _psycopg(target: Any) -> Held:
    from . import direct

    return direct.psycopg(target)


def _psycopg_pool(target: Any) -> Held:
    from . import direct

    return direct.PsycopgPoolHeld(target)


def _mysql(target: Any) -> Held:
    from . import direct

    return direct.mysql(target)


KINDS = {
    ("psycopg", "Connection"): Kind("postgresql", _psycopg),
    ("psycopg_pool", "ConnectionPool"): Kind("postgresql", _psycopg_pool, lambda pool: int(pool.max_size)),
    ("pymysql", "Connection"): Kind("mysql", _mysql),
    ("MySQLdb", "Connection"): Kind("mysql", _mysql),
}
"""By package and name."""
