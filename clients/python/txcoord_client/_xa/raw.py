"""The drivers' own connections, in the words of a branch. asyncpg's is in ``asyncpg_``."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any, Protocol

from ..errors import NotIdle
from ..protocol import mariadb
from ..protocol.replies import Reply
from .drivers import errno_of


class Raw(Protocol):
    """A driver's connection."""

    family: str

    async def execute(self, sql: str) -> str: ...

    async def fetch_row(self, sql: str) -> tuple[Any, ...] | None: ...

    async def fetch_alone(self, sql: str) -> tuple[Any, ...] | None: ...

    async def begin(self, first: str) -> None:
        """Begin a transaction with this statement; on MySQL and MariaDB the statement itself begins one."""
        ...

    @property
    def in_transaction(self) -> bool: ...

    def cut(self) -> None:
        """Break the connection, from any thread."""
        ...

    async def close(self) -> None:
        """Break it, and let the driver know."""
        ...


class PsycopgRaw:
    """A psycopg 3 connection."""

    family = "postgresql"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def execute(self, sql: str) -> str:
        # Without parameters psycopg sends one simple-query message; the last of its results counts.
        cursor = await self._plain().execute(sql)
        while cursor.nextset():
            pass
        status: str = cursor.statusmessage or ""
        # The tag of a statement that counts rows ends with their number.
        return status

    async def fetch_row(self, sql: str) -> tuple[Any, ...] | None:
        cursor = await self._plain().execute(sql)
        row: tuple[Any, ...] | None = await cursor.fetchone()
        return row

    async def fetch_alone(self, sql: str) -> tuple[Any, ...] | None:
        try:
            return await self.fetch_row(sql)
        finally:
            if not self._connection.closed:
                await self._connection.rollback()

    async def begin(self, first: str) -> None:
        if self._connection.autocommit:
            first = f"BEGIN; {first}"
        # Else psycopg sends its own BEGIN before the first statement, with the isolation level that it was told.
        await self.execute(first)

    def _plain(self) -> Any:
        # Whatever row factory the application has set, and without a prepared statement.
        from psycopg import rows

        return self._connection.cursor(row_factory=rows.tuple_row)

    @property
    def in_transaction(self) -> bool:
        return int(self._connection.info.transaction_status) != 0

    def cut(self) -> None:
        with contextlib.suppress(Exception):
            shut_down(self._connection.fileno())

    async def close(self) -> None:
        self.cut()
        await self._connection.close()


class MySqlRaw:
    """A connection of PyMySQL, mysqlclient, aiomysql or asyncmy."""

    family = "mysql"

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def execute(self, sql: str) -> str:
        async with self._connection.cursor() as cursor:
            await cursor.execute(sql)
            return str(cursor.rowcount)

    async def fetch_row(self, sql: str) -> tuple[Any, ...] | None:
        async with self._connection.cursor() as cursor:
            await cursor.execute(sql)
            row = await cursor.fetchone()
        if isinstance(row, dict):  # The application's own class of cursors.
            return tuple(row.values())
        return tuple(row) if row is not None else None

    async def fetch_alone(self, sql: str) -> tuple[Any, ...] | None:
        try:
            # Refused inside a transaction, whose work the rollback below would undo; it is for the next one only.
            await self.execute("SET TRANSACTION READ WRITE")
        except Exception as error:
            if mariadb.meaning(errno_of(error)) is Reply.NOT_IDLE:
                raise NotIdle(f"this connection is in a transaction already: {error}") from error
            raise
        try:
            return await self.fetch_row(sql)
        finally:
            await self.execute("ROLLBACK")

    async def begin(self, first: str) -> None:
        await self.execute(first)

    @property
    def in_transaction(self) -> bool:
        return False  # The server refuses what does not fit (1399, 1400).

    def cut(self) -> None:
        connection = self._connection
        with contextlib.suppress(Exception):
            sock = getattr(connection, "_sock", None)
            if sock is not None:  # PyMySQL
                sock.shutdown(socket.SHUT_RDWR)
            elif hasattr(connection, "fileno"):  # mysqlclient
                shut_down(connection.fileno())
            else:  # aiomysql and asyncmy send nothing here
                connection.close()

    async def close(self) -> None:
        self.cut()
        with contextlib.suppress(Exception):
            self._connection.close()


def shut_down(fd: int) -> None:
    """Break the connection of a socket that somebody else may be waiting for."""
    duplicate = os.dup(fd)
    with socket.socket(fileno=duplicate) as sock:
        sock.shutdown(socket.SHUT_RDWR)
