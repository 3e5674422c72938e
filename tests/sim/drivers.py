"""What asyncpg and asyncmy are to the code under test: connections and pools that lead into the simulation.

Their classes carry the drivers' names, so that the SDK takes them for what they stand for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncmy.errors
import asyncpg
from asyncpg.exceptions._base import PostgresMessageMeta

from .loop import Process
from .network import Broken, Link
from .postgres import Database
from .replies import Answer, SqlError

if TYPE_CHECKING:
    from .world import World


def kind_of(sql: str) -> str:
    """What sort of statement it is, for faults to be aimed at."""
    if sql.startswith("DELETE"):
        return "prune"
    if "v.op, v.state" in sql:
        return "barrier"
    if sql in ("COMMIT", "COMMIT;"):
        return "commit_work"
    if "PREPARE TRANSACTION" in sql or sql.startswith("XA PREPARE"):
        return "prepare"
    if "COMMIT PREPARED" in sql or (sql.startswith("XA COMMIT") and not sql.endswith("ONE PHASE")):
        return "commit_branch"
    if "ROLLBACK PREPARED" in sql or sql.startswith("XA ROLLBACK"):
        return "roll_back_branch"
    if sql.endswith("ONE PHASE") or "'one', 1" in sql:
        return "commit_one_phase" if "INSERT" not in sql or sql.endswith("COMMIT") else "mark"
    if "txcoord_marker" in sql:
        return "mark" if "INSERT" in sql else "read_marker"
    if "ledger" in sql:
        return "work"
    if "pg_prepared_xacts" in sql or "RECOVER" in sql:
        return "list_prepared"
    return "other"


# ---- PostgreSQL ----


class Connection:
    """asyncpg's."""

    def __init__(self, world: World, process: Process, server: Database) -> None:
        self._link = Link(world, process, server)
        self._in_transaction = False
        self._top_xact: Any = None

    async def _ask(self, sql: str, timeout: float | None) -> Answer:
        try:
            async with asyncio.timeout(timeout):
                answer: Answer = await self._link.ask(sql, kind_of(sql), sql)
        except SqlError as error:
            self._in_transaction = error.in_transaction
            raise _pg_error(error) from None
        except Broken as error:
            raise asyncpg.ConnectionDoesNotExistError(str(error)) from None
        self._in_transaction = answer.in_transaction
        return answer

    async def execute(self, sql: str, timeout: float | None = None) -> str:
        return str((await self._ask(sql, timeout)).tag)

    async def fetch(self, sql: str, *args: Any, timeout: float | None = None) -> Any:
        for n, value in enumerate(args, 1):
            sql = sql.replace(f"${n}", f"'{value}'")
        return (await self._ask(sql, timeout)).rows

    async def fetchrow(self, sql: str, *args: Any, timeout: float | None = None) -> Any:
        rows = await self.fetch(sql, *args, timeout=timeout)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *args: Any, timeout: float | None = None) -> Any:
        row = await self.fetchrow(sql, *args, timeout=timeout)
        return row[0] if row else None

    def transaction(self) -> Any:
        return _PgTransaction(self)

    def is_in_transaction(self) -> bool:
        return self._in_transaction

    def is_closed(self) -> bool:
        return self._link.broken

    def terminate(self) -> None:
        self._link.close()

    async def close(self, timeout: float | None = None) -> None:
        self._link.close()


class _PgTransaction:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def start(self) -> None:
        await self._connection.execute("BEGIN;")


class PgPool:
    """asyncpg's."""

    def __init__(self, world: World, process: Process, server: Database, size: int) -> None:
        self._make = partial(_connected_pg, world, process, server)
        self._free: deque[Any] = deque()
        self._slots = asyncio.Semaphore(size)
        self._size = size

    def get_max_size(self) -> int:
        return self._size

    async def acquire(self) -> Any:
        await self._slots.acquire()
        try:
            while self._free:
                found = self._free.popleft()
                if not found.is_closed():
                    return found
            return await self._make()
        except BaseException:
            self._slots.release()
            raise

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        self._slots.release()
        if connection.is_closed():
            return
        if connection.is_in_transaction():
            connection.terminate()
        else:
            self._free.append(connection)


async def _connected_pg(world: World, process: Process, server: Database) -> Connection:
    await reach(world, process, server)
    return Connection(world, process, server)


async def reach(world: World, process: Process, server: Any) -> None:
    """The way there and back; raises ConnectionRefusedError where nobody listens."""
    out = world.net.delay(process.name, server.name)
    await asyncio.sleep(out)
    if not server.up:
        raise ConnectionRefusedError(f"{server.name} is down")
    await asyncio.sleep(world.net.delay(server.name, process.name))
    if not server.up:
        raise ConnectionRefusedError(f"{server.name} is down")


def _pg_error(error: SqlError) -> Exception:
    kind = PostgresMessageMeta.get_message_class_for_sqlstate(str(error.code))
    made: Exception = kind(error.text)
    made.sqlstate = str(error.code)  # type: ignore[attr-defined]
    return made


# ---- MariaDB ----


class MyConnection:
    """asyncmy's."""

    def __init__(self, world: World, process: Process, server: Database) -> None:
        self._link = Link(world, process, server)

    @property
    def closed(self) -> bool:
        return self._link.broken

    def cursor(self) -> _Cursor:
        return _Cursor(self._link)

    def close(self) -> None:
        self._link.close()


class _Cursor:
    def __init__(self, link: Link) -> None:
        self._link = link
        self._rows: tuple[Any, ...] = ()
        self.rowcount = 0
        self.description: Any = None

    async def __aenter__(self) -> _Cursor:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def execute(self, sql: str) -> int:
        try:
            answer: Answer = await self._link.ask(sql, kind_of(sql), sql)
        except SqlError as error:
            raise asyncmy.errors.OperationalError(error.code, error.text) from None
        except Broken as error:
            raise asyncmy.errors.OperationalError(2013, str(error)) from None
        self._rows = answer.rows
        self.description = () if answer.rows else None
        if answer.rows:
            self.description = ("column",)
        self.rowcount = answer.tag if isinstance(answer.tag, int) else 0
        return self.rowcount

    async def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None

    async def fetchall(self) -> Any:
        return self._rows

    async def close(self) -> None:
        pass


class MyPool:
    """asyncmy's."""

    def __init__(self, world: World, process: Process, server: Database, size: int) -> None:
        self._where = (world, process, server)
        self._free: deque[MyConnection] = deque()
        self._slots = asyncio.Semaphore(size)
        self.maxsize = size

    async def acquire(self) -> Any:
        await self._slots.acquire()
        try:
            while self._free:
                found = self._free.popleft()
                if not found.closed:
                    return found
            return await connected_my(*self._where)
        except BaseException:
            self._slots.release()
            raise

    async def release(self, connection: MyConnection) -> None:
        self._slots.release()
        if not connection.closed:
            self._free.append(connection)


async def connected_my(world: World, process: Process, server: Database) -> MyConnection:
    """Connect. Raises asyncmy's error."""
    try:
        await reach(world, process, server)
    except ConnectionRefusedError as error:
        raise asyncmy.errors.OperationalError(2003, str(error)) from None
    return MyConnection(world, process, server)


# By these the SDK knows them.
PgPool.__module__, PgPool.__name__ = "asyncpg.pool", "Pool"
MyPool.__module__, MyPool.__name__ = "asyncmy.pool", "Pool"
