"""What drivers' errors say, whichever driver it is."""

from __future__ import annotations

from collections.abc import Iterator

_DRIVERS = frozenset({"asyncpg", "psycopg", "sqlalchemy", "pymysql", "asyncmy", "aiomysql", "MySQLdb"})
_MYSQL = frozenset({"pymysql", "asyncmy", "aiomysql", "MySQLdb"})


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those inside it: SQLAlchemy's and Django's wrap the driver's."""
    seen = 0
    while error is not None and seen < 5:
        yield error
        error = getattr(error, "orig", None) or error.__cause__
        seen += 1


def sqlstate_of(error: BaseException | None) -> str:
    """The SQLSTATE of a PostgreSQL driver's error; empty: none."""
    for one in _chain(error):
        for name in ("sqlstate", "pgcode"):
            state = getattr(one, name, None)
            if isinstance(state, str) and state:
                return state
    return ""


def errno_of(error: BaseException | None) -> int:
    """The number of a MySQL driver's error; 0: none."""
    for one in _chain(error):
        if _package(one) in _MYSQL and one.args and isinstance(one.args[0], int):
            return one.args[0]
    return 0


def is_driver(error: BaseException) -> bool:
    """Is it an error of a database driver?"""
    return any(_package(one) in _DRIVERS for one in _chain(error))


def _package(error: BaseException) -> str:
    for kind in type(error).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _DRIVERS:
            return package
    return ""
