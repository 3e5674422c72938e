"""Which drivers' connections and pools may be given to ``g.xa`` as they are, synchronously."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .held import Held, Source

NEEDED = (
    "a SQLAlchemy Engine, Connection or Session, a psycopg Connection or ConnectionPool, a PyMySQL or mysqlclient "
    "connection"
)


@dataclass(frozen=True, slots=True)
class _Kind:
    family: str
    pool: bool
    make: Callable[[Any], Held]
    size: Callable[[Any], int]


def _psycopg(target: Any) -> Held:
    from . import direct

    return direct.psycopg(target)


def _psycopg_pool(target: Any) -> Held:
    from . import direct

    return direct.PsycopgPoolHeld(target)


def _mysql(target: Any) -> Held:
    from . import direct

    return direct.mysql(target)


def _none(target: Any) -> int:
    return 0


_KINDS = {
    ("psycopg", "Connection"): _Kind("postgresql", False, _psycopg, _none),
    ("psycopg_pool", "ConnectionPool"): _Kind(
        "postgresql", True, _psycopg_pool, lambda pool: int(pool.max_size)
    ),
    ("pymysql", "Connection"): _Kind("mysql", False, _mysql, _none),
    ("MySQLdb", "Connection"): _Kind("mysql", False, _mysql, _none),
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
