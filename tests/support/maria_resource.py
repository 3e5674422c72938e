"""A real MariaDB or MySQL database as a resource, and what a service does in it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from urllib.parse import urlsplit

from tests.support.databases import database_of
from tests.support.resource import IDENTITY, WINDOWS, new_xid, now_us
from txcoord.adapters.xa.mariadb import MariaFinisher
from txcoord.core.model import Windows
from txcoord.testing.mariadb import MariaDBServer, MySQLServer
from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import marker
from txcoord_client.protocol.xid import Xid

COM_RESET_CONNECTION = 0x1F


class Holder:
    """A session of the service, and the branch that it has prepared."""

    def __init__(self, conn: Any, x: Xid) -> None:
        self._conn = conn
        self.x = x

    def sql(self, statement: str) -> Any:
        """The rows. Raises what PyMySQL raises."""
        with self._conn.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()

    def reset(self) -> None:
        """What a pool does when a session comes back: the branch must never see it."""
        self._conn._execute_command(COM_RESET_CONNECTION, b"")
        self._conn._read_ok_packet()

    def close(self) -> None:
        """The service dies, or lets go of it."""
        with contextlib.suppress(Exception):
            self._conn.close()


class MariaResource:
    """One database with its finisher; close() it in the end."""

    def __init__(
        self,
        server: MariaDBServer | MySQLServer,
        url: str,
        *,
        name: str = "a",
        windows: Windows = WINDOWS,
        **finisher: Any,
    ) -> None:
        self.server = server
        self.database = database_of(url)
        self.url = url
        self.name = name
        self.windows = windows
        self.mariadb = isinstance(server, MariaDBServer)
        self.holders: list[Holder] = []
        self.finisher = self.another(**finisher)

    def another(self, user: str = "root", **more: Any) -> MariaFinisher:
        """One more finisher, perhaps of another user."""
        parts = urlsplit(self.url)
        url = self.url if user == "root" else f"mariadb://{user}@127.0.0.1:{parts.port}{parts.path}"
        return MariaFinisher(self.name, url, windows=self.windows, **{"expected_identity": IDENTITY, **more})

    async def make(self) -> None:
        """The tables of txcoord, and one of the service's own."""
        assert await self.finisher.prepare_database(IDENTITY) == IDENTITY
        self.sql("CREATE TABLE IF NOT EXISTS work (i int PRIMARY KEY) ENGINE=InnoDB")

    async def close(self) -> None:
        for holder in self.holders:
            holder.close()
        await self.finisher.close()

    def session(self) -> Any:
        return self.server.connect(self.database)

    def branch(self, value: int = 1, *, branch: str = "1", begun_us: int = 0) -> Holder:
        """Do some work in a branch, and prepare it; its session stays."""
        conn = self.session()
        base = new_xid(branch)
        tx_id = f"{begun_us // 1000:012x}" + base.tx_id[12:] if begun_us else base.tx_id
        x = Xid(base.log_id, base.deadline_us, tx_id, branch, conn.thread_id() if self.mariadb else 0)
        holder = Holder(conn, x)
        self.holders.append(holder)
        holder.sql(my.xa_start(str(x)))
        holder.sql(f"INSERT INTO work VALUES ({value})")
        holder.sql(my.insert_marker(x.tx_id, branch, marker.XA, self.windows.marker_until(x.deadline_us)))
        holder.sql(my.xa_end(str(x)))
        holder.sql(my.xa_prepare(str(x)))
        return holder

    async def left(self, value: int = 1, **more: Any) -> Xid:
        """A prepared branch whose session is gone for good."""
        holder = self.branch(value, **more)
        holder.close()
        if self.mariadb:
            await self.gone(holder.x)
        return holder.x

    async def gone(self, x: Xid) -> None:
        async with asyncio.timeout(20):
            while self.sql(my.find_session(x.connection_id), database=None):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)

    def sql(self, statement: str, database: str | None = "") -> str:
        return self.server.sql(statement, self.database if database == "" else database)

    def work(self) -> list[int]:
        return [int(line) for line in self.sql("SELECT i FROM work ORDER BY i").split()]

    def listed(self) -> list[str]:
        """Every prepared branch on the server."""
        flavour = my.Flavour.MARIADB if self.mariadb else my.Flavour.MYSQL
        return self.sql(my.XA_RECOVER[flavour]).splitlines()

    def marker(self, x: Xid, op: str = marker.XA) -> int | None:
        found = self.sql(my.read_marker(x.tx_id, marker.ONE_BRANCH if op == marker.ONE else x.branch, op))
        return int(found) if found else None


__all__ = ["Holder", "MariaResource", "now_us"]
