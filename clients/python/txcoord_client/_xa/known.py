"""Which drivers' connections and pools may be given to ``g.xa`` as they are. ``sync/_xa/known.py`` has the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .held import Held, Source

NEEDED = (
    "a SQLAlchemy AsyncEngine, AsyncConnection or AsyncSession, a pool or connection of asyncpg, psycopg, aiomysql "
    "or asyncmy"
)


@dataclass(frozen=True, slots=True)
class _Kind:
    family: str
    pool: bool
    make: Callable[[Any], Held]
    size: Callable[[Any], int]


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


def _none(target: Any) -> int:
    return 0


_KINDS = {
    ("asyncpg", "Pool"): _Kind("postgresql", True, _asyncpg_pool, _asyncpg_size),
    ("asyncpg", "Connection"): _Kind("postgresql", False, _asyncpg, _none),
    ("asyncpg", "PoolConnectionProxy"): _Kind("postgresql", False, _asyncpg, _none),
    ("psycopg", "AsyncConnection"): _Kind("postgresql", False, _psycopg, _none),
    ("psycopg_pool", "AsyncConnectionPool"): _Kind(
        "postgresql", True, _psycopg_pool, lambda pool: int(pool.max_size)
    ),
    ("aiomysql", "Connection"): _Kind("mysql", False, _mysql, _none),
    ("aiomysql", "Pool"): _Kind("mysql", True, _mysql_pool, lambda pool: int(pool.maxsize)),
    ("asyncmy", "Connection"): _Kind("mysql", False, _mysql, _none),
    ("asyncmy", "Pool"): _Kind("mysql", True, _mysql_pool, lambda pool: int(pool.maxsize)),
}


def _kind(target: Any) -> _Kind | None:
    for kind in type(target).__mro__:
        found = _KINDS.get((kind.__module__.partition(".")[0], kind.__name__))
        if found is not None:
            return found
    return None


def is_known(target: Any) -> bool:
    """Is it such a connection or pool?"""
    return _kind(target) is not None


def pool_of(target: Any) -> Any:
    """The target, where it is a pool; else None."""
    kind = _kind(target)
    return target if kind is not None and kind.pool else None


def source_of(target: Any, name: str) -> Source:
    """Where its connections come from."""
    kind = _kind(target)
    assert kind is not None
    return Source(
        key=id(target),
        resource=name,
        family=kind.family,
        make=lambda: kind.make(target),
        pool=id(target) if kind.pool else None,
        pool_size=kind.size(target) if kind.pool else 0,
        identity_of=target if kind.pool else None,
    )
