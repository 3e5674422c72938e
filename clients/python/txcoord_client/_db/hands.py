"""A connection in a transaction that the service owns: the three things that the barrier asks of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from .. import _aio
from .._xa.drivers import sqlstate_of
from .._xa.raw import MySqlRaw, PsycopgRaw, Raw
from ..errors import Rejected
from ..protocol import reasons

T = TypeVar("T")

NO_TRANSACTION = (
    "this connection is in autocommit and in no transaction: the barrier and the work need one transaction"
)


@runtime_checkable
class Hand(Protocol):
    """A connection, whatever it is. One that has these by itself is taken as it is."""

    family: str
    """Of its database, as in ``protocol.barrier.BY_FAMILY``."""

    async def refuse_autocommit(self) -> None:
        """Each statement for itself would be a barrier that says *done* of work that was never done. Raises Rejected,
        before anything is written."""
        ...

    async def run(self, sql: str) -> int:
        """Send a statement; how many rows it wrote."""
        ...

    async def row(self, sql: str) -> tuple[Any, ...] | None:
        """The first row, or None."""
        ...


class RawHand:
    """A driver's own connection."""

    def __init__(self, connection: Any, raw: Raw) -> None:
        self.family = raw.family
        self._connection = connection
        self._raw = raw

    async def refuse_autocommit(self) -> None:
        if commits_by_itself(self._connection):
            raise Rejected(NO_TRANSACTION, reason=reasons.NOT_SUPPORTED)

    async def run(self, sql: str) -> int:
        # A command tag of PostgreSQL ends with the number of rows.
        count = (await self._raw.execute(sql)).rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def row(self, sql: str) -> tuple[Any, ...] | None:
        return await self._raw.fetch_row(sql)


def psycopg(connection: Any) -> Hand:
    """A psycopg connection."""
    return RawHand(connection, PsycopgRaw(connection))


class _MySqlHand(RawHand):
    async def run(self, sql: str) -> int:
        if _package(self._connection) == "aiomysql":
            # Its cursors warn the application of each row that an INSERT IGNORE has left out.
            return int(await self._connection.query(sql))
        return await super().run(sql)


def mysql(connection: Any) -> Hand:
    """A connection of a driver for MySQL and MariaDB."""
    return _MySqlHand(connection, MySqlRaw(connection))


class SqlAlchemyHand:
    """A connection or session of SQLAlchemy."""

    def __init__(self, db: Any) -> None:
        self._db = db
        bind = db.get_bind() if hasattr(db, "get_bind") else db
        self.family = str(bind.dialect.name)
        self._connection: Any = None

    async def refuse_autocommit(self) -> None:
        # A session has no driver's SQL of its own.
        self._connection = self._db if hasattr(self._db, "exec_driver_sql") else await self._db.connection()
        if not self._connection.in_transaction():
            await self._connection.begin()  # As its first statement would.
        connection = getattr(self._connection, "sync_connection", None) or self._connection
        level = connection.get_execution_options().get("isolation_level")
        if level is None:
            level = getattr(connection.dialect, "_on_connect_isolation_level", None)
        # Set behind SQLAlchemy's back: by an event of the pool, or on the driver's connection.
        pooled = connection.connection
        if getattr(pooled.dbapi_connection, "isolation_level", "") == "autocommit":
            level = "AUTOCOMMIT"
        driver = getattr(pooled, "driver_connection", None)
        # asyncpg's begins with the first statement.
        if level == "AUTOCOMMIT" or (_package(driver) != "asyncpg" and commits_by_itself(driver)):
            raise Rejected(
                "the engine is in AUTOCOMMIT: the barrier and the work need one transaction",
                reason=reasons.NOT_SUPPORTED,
            )

    async def run(self, sql: str) -> int:
        return int((await self._connection.exec_driver_sql(sql)).rowcount)

    async def row(self, sql: str) -> tuple[Any, ...] | None:
        row = (await self._connection.exec_driver_sql(sql)).first()
        return None if row is None else tuple(row)


def commits_by_itself(connection: Any) -> bool:
    """Would this driver's connection commit the next statement alone? False where it does not tell."""
    package = _package(connection)
    if package == "psycopg":
        return bool(connection.autocommit) and int(connection.info.transaction_status) == 0
    if package == "asyncpg":
        return not connection.is_in_transaction()
    if package in ("pymysql", "aiomysql", "asyncmy", "MySQLdb"):
        return bool(connection.get_autocommit()) and not _in_mysql_transaction(connection)
    if package in ("sqlite3", "aiosqlite"):
        # The attribute of Python 3.12; before it no isolation level says the same.
        own = getattr(connection, "autocommit", -1)
        by_itself = connection.isolation_level is None if own == -1 else own is True
        return by_itself and not connection.in_transaction
    return False


def _in_mysql_transaction(connection: Any) -> bool:
    told = getattr(connection, "get_transaction_status", None)
    if told is not None:
        return bool(told())
    return bool((getattr(connection, "server_status", 0) or 0) & 1)


def _package(connection: Any) -> str:
    for kind in type(connection).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in _PACKAGES:
            return package
    return ""


_PACKAGES = frozenset(
    {"psycopg", "asyncpg", "pymysql", "aiomysql", "asyncmy", "MySQLdb", "sqlite3", "aiosqlite"}
)


def found(db: Any, table: Mapping[tuple[str, str], T], needed: str) -> T:
    """What a table by package and class has for it. Raises Rejected."""
    for kind in type(db).__mro__:
        for (package, name), made in table.items():
            if kind.__name__ == name and f"{kind.__module__}.".startswith(f"{package}."):
                return made
    raise Rejected(f"{needed} is needed here, not {type(db).__name__}", reason=reasons.NOT_SUPPORTED)


@contextlib.contextmanager
def noticing_rollbacks() -> Iterator[None]:
    """Around the statement that looks for the row that was written before the work. Its error may say that the
    transaction is none any more, and so may :func:`rolled_back`."""
    try:
        yield
    except Exception as error:
        if sqlstate_of(error) == _FAILED_TRANSACTION or _is_over(error):
            raise rolled_back() from error
        raise


def rolled_back() -> Rejected:
    """A COMMIT would succeed, and nothing would be there."""
    return Rejected(
        "nothing of this would be committed: the work has caught a database error and gone on, without a savepoint "
        "around it, or has ended the transaction itself",
        reason=reasons.SILENT_ROLLBACK,
    )


_FAILED_TRANSACTION = "25P02"


def _is_over(error: BaseException) -> bool:
    """SQLAlchemy's and Django's own: the transaction was ended inside of their block."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return not names.isdisjoint({"InvalidRequestError", "TransactionManagementError"})


async def ended(connection: Any, error: BaseException) -> None:
    """Roll back what has failed: whatever the driver says of that, ``error`` is what counts."""
    with contextlib.suppress(Exception):
        if isinstance(error, _aio.Cancelled):
            connection.close()  # In the middle of a reply.
        else:
            await connection.rollback()
