"""The synchronous connections and pools that the barrier works on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import Rejected
from ...protocol import reasons
from . import hands, redis_, sources
from .hands import Hand
from .sources import Source

NEEDED = (
    "a SQLAlchemy Engine or sessionmaker, a psycopg ConnectionPool, the alias of a Django database, a function that "
    "opens a connection of psycopg, PyMySQL, mysqlclient or sqlite3, or a client of redis"
)
CONNECTION_NEEDED = (
    "a SQLAlchemy Connection or Session, a Django connection or its alias, or a connection of psycopg, PyMySQL, "
    "mysqlclient or sqlite3"
)


class _SqliteRaw:
    """A connection of the standard library's sqlite3."""

    family = "sqlite"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def execute(self, sql: str) -> str:
        return str(self._connection.execute(sql).rowcount)

    def fetch_row(self, sql: str) -> tuple[Any, ...] | None:
        cursor = self._connection.cursor()
        cursor.row_factory = None
        row: tuple[Any, ...] | None = cursor.execute(sql).fetchone()
        return row


def _sqlite(connection: Any) -> Hand:
    return hands.RawHand(connection, _SqliteRaw(connection))  # type: ignore[arg-type] # of Raw, two are needed


class _DjangoHand:
    """``django.db.connections[alias]``."""

    def __init__(self, connection: Any) -> None:
        self.family = str(connection.vendor)
        self._connection = connection

    def refuse_autocommit(self) -> None:
        if not self._connection.in_atomic_block and self._connection.get_autocommit():
            raise Rejected(
                "this Django connection is in autocommit: the barrier and the work need one transaction.atomic()",
                reason=reasons.NOT_SUPPORTED,
            )

    def run(self, sql: str) -> int:
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            return int(cursor.rowcount)

    def row(self, sql: str) -> tuple[Any, ...] | None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql)
            row = cursor.fetchone()
        return None if row is None else tuple(row)


class _DjangoSource(Source):
    """A database of Django's settings."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    @contextmanager
    def begin(self) -> Iterator[Any]:
        from django.db import close_old_connections, connections, transaction

        # As a request does; and durable, since what is answered must be committed when it is answered.
        close_old_connections()
        try:
            with transaction.atomic(using=self._alias, durable=True):
                yield connections[self._alias]
        finally:
            close_old_connections()


class _OpenedSource(Source):
    """Connections of its own for each transaction."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect

    @contextmanager
    def begin(self) -> Iterator[Any]:
        connection = self._connect()
        try:
            hand = hand_of(connection)
            own = getattr(connection, "transaction", None)
            if own is not None:
                with own():
                    yield connection
            elif hand.family == "sqlite":
                with _sqlite_transaction(connection):
                    yield connection
            else:
                with sources.plainly(connection):
                    yield connection
        finally:
            connection.close()


@contextmanager
def _sqlite_transaction(connection: Any) -> Iterator[Any]:
    # The lock is taken at once: a transaction that reads first cannot wait for it later.
    if not connection.in_transaction:
        connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.commit()
    except BaseException as error:
        hands.ended(connection, error)
        raise


_HANDS: dict[tuple[str, str], Callable[[Any], Hand]] = {
    ("psycopg", "Connection"): hands.psycopg,
    ("pymysql", "Connection"): hands.mysql,
    ("MySQLdb", "Connection"): hands.mysql,
    ("sqlite3", "Connection"): _sqlite,
    ("sqlalchemy", "Connection"): hands.SqlAlchemyHand,
    ("sqlalchemy", "Session"): hands.SqlAlchemyHand,
    ("sqlalchemy", "scoped_session"): hands.SqlAlchemyHand,
    ("django", "BaseDatabaseWrapper"): _DjangoHand,
}
_SOURCES: dict[tuple[str, str], Callable[[Any], Source]] = {
    ("sqlalchemy", "Engine"): sources.SqlAlchemySource,
    ("sqlalchemy", "sessionmaker"): sources.SqlAlchemySource,
    ("psycopg_pool", "ConnectionPool"): sources.PsycopgSource,
    ("psycopg_pool", "NullConnectionPool"): sources.PsycopgSource,
    ("redis.client", "Redis"): redis_.RedisSource,
}


def hand_of(db: Any) -> Hand:
    """The connection, as the barrier uses it. Raises Rejected."""
    if isinstance(db, str):
        from django.db import connections

        db = connections[db]
    return db if isinstance(db, Hand) else hands.found(db, _HANDS, CONNECTION_NEEDED)(db)


def source_of(db: Any) -> Source:
    """Where transactions come from. Raises Rejected."""
    if isinstance(db, Source):
        return db
    if isinstance(db, str):
        return _DjangoSource(db)
    if inspect.isfunction(db) or inspect.ismethod(db) or isinstance(db, functools.partial):
        return _OpenedSource(db)
    return hands.found(db, _SOURCES, NEEDED)(db)
