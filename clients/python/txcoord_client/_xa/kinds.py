"""The classes of asynchronous drivers that may be given to ``g.xa``. ``sync/_xa/kinds.py`` has the others."""

from __future__ import annotations

from typing import Any

from .held import Held, Kind

NEEDED = (
    "a SQLAlchemy AsyncEngine, AsyncConnection or AsyncSession, a pool or connection of asyncpg, psycopg, aiomysql "
    "or asyncmy"
)

# A driver is imported by whoever uses it, and its module here with it.


def _asyncpg(target: Any) -> Held:
    from . import asyncpg_

    return asyncpg_.AsyncpgHeld(target)


def _asyncpg_pool(target: Any) -> Held:
    from . import asyncpg_

    return asyncpg_.AsyncpgPoolHeld(target)


def _asyncpg_size(pool: Any) -> int:
    return int(pool.get_max_size() if hasattr(pool, "get_max_size") else pool._maxsize)


def _psycopg(target: Any) -> Held:
    from . import direct

    return direct.psycopg(target)


def _psycopg_pool(target: Any) -> Held:
    from . import direct

    return direct.PsycopgPoolHeld(target)


def _mysql(target: Any) -> Held:
    from . import direct

    return direct.mysql(target)


def _mysql_pool(target: Any) -> Held:
    from . import pools

    return pools.MySqlPoolHeld(target)


KINDS = {
    ("asyncpg", "Pool"): Kind("postgresql", _asyncpg_pool, _asyncpg_size),
    ("asyncpg", "Connection"): Kind("postgresql", _asyncpg),
    ("asyncpg", "PoolConnectionProxy"): Kind("postgresql", _asyncpg),
    ("psycopg", "AsyncConnection"): Kind("postgresql", _psycopg),
    ("psycopg_pool", "AsyncConnectionPool"): Kind(
        "postgresql", _psycopg_pool, lambda pool: int(pool.max_size)
    ),
    ("aiomysql", "Connection"): Kind("mysql", _mysql),
    ("aiomysql", "Pool"): Kind("mysql", _mysql_pool, lambda pool: int(pool.maxsize)),
    ("asyncmy", "Connection"): Kind("mysql", _mysql),
    ("asyncmy", "Pool"): Kind("mysql", _mysql_pool, lambda pool: int(pool.maxsize)),
}
"""By package and name."""
