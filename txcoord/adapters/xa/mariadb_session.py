"""A session on MariaDB or MySQL: one statement at a time, in autocommit, its errors by their number."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncmy
from asyncmy import errors

from txcoord_client.protocol import mariadb as my

Row = Sequence[Any]

_FIRST = (
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    # Whoever waits for a lock here wants to know that it is held, not to have it.
    "SET SESSION innodb_lock_wait_timeout = 1, time_zone = '+00:00'",
)


class StatementError(Exception):
    """The server has refused a statement; ``errno`` None: nobody knows what became of it, the session is lost."""

    def __init__(self, errno: int | None, text: str) -> None:
        super().__init__(f"{errno} {text}" if errno is not None else text)
        self.errno = errno
        self.meaning = my.meaning(errno)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a URL leads to. Its password is in no text that is printed."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    database: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, url: str) -> Address:
        """``mariadb://user:password@host:3306/database``, whatever driver is named in it. Options: ``unix_socket``,
        ``ssl=true``, ``ssl_ca``, ``ssl_cert``, ``ssl_key``. Raises ValueError for others."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(options.keys() - {"unix_socket", "ssl", "ssl_ca", "ssl_cert", "ssl_key", "charset"})
        if unknown:
            raise ValueError(f"the option {unknown[0]!r} is not known in the URL of a MariaDB or MySQL")
        return cls(
            parts.hostname or "localhost",
            parts.port or 3306,
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            unquote(parts.path.lstrip("/")),
            options,
        )

    def tls(self) -> ssl.SSLContext | None:
        """How the connection is encrypted; the server's certificate is always checked."""
        o = self.options
        wanted = o.get("ssl", "").lower() in ("true", "1", "on") or "ssl_ca" in o or "ssl_cert" in o
        if not wanted:
            return None
        context = ssl.create_default_context(cafile=o.get("ssl_ca") or None)
        if "ssl_cert" in o:
            context.load_cert_chain(o["ssl_cert"], o.get("ssl_key") or None)
        return context

    async def connect(self, timeout_s: float, **options: Any) -> Any:
        """A connection in autocommit. Raises the driver's errors, and those of sockets."""
        return await asyncmy.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            database=self.database or None,
            unix_socket=self.options.get("unix_socket") or None,
            ssl=self.tls(),
            autocommit=True,
            charset="utf8mb4",
            connect_timeout=max(1, int(timeout_s)),
            **options,
        )


class Session:
    """A connection. Whatever is not a server's answer ends it."""

    def __init__(self, conn: Any, connection_id: int, timeout_s: float) -> None:
        self.connection_id = connection_id
        self.flavour = my.Flavour.MARIADB
        self.version = ""
        self._conn = conn
        self._timeout_s = timeout_s
        self._busy = False
        self._broken = False

    @classmethod
    async def open(cls, address: Address, timeout_s: float) -> Session:
        """Connect. Raises StatementError; an unknown kind of server is errno 1235 (not supported)."""
        try:
            async with asyncio.timeout(timeout_s):
                conn = await address.connect(timeout_s)
        except errors.MySQLError as error:
            raise _translated(error) from error
        except (OSError, TimeoutError, asyncio.IncompleteReadError, RuntimeError) as error:
            # RuntimeError: the connection was broken before asyncmy had set its options.
            raise StatementError(None, f"{type(error).__name__}: {error}") from error
        session = cls(conn, 0, timeout_s)
        try:
            for statement in _FIRST:
                await session.execute(statement)
            row = (await session.rows("SELECT VERSION(), @@version_comment, CONNECTION_ID()"))[0]
        except BaseException:
            session.close()
            raise
        found = my.flavour(str(row[0]), str(row[1]))
        if found is None:
            session.close()
            raise StatementError(1235, f"this is neither MariaDB nor MySQL: {row[0]} {row[1]}")
        session.flavour, session.version, session.connection_id = found, str(row[0]), int(row[2])
        return session

    @property
    def usable(self) -> bool:
        """Can another statement be sent?"""
        return not self._broken and not self._busy

    async def execute(self, statement: str) -> int:
        """How many rows it has affected. Raises StatementError."""
        return (await self._send(statement))[0]

    async def rows(self, statement: str) -> Sequence[Row]:
        """The rows that it gives. Raises StatementError."""
        return (await self._send(statement))[1]

    async def value(self, statement: str) -> Any:
        """The first value of the first row; None when there is none."""
        rows = await self.rows(statement)
        return rows[0][0] if rows else None

    async def _send(self, statement: str) -> tuple[int, Sequence[Row]]:
        if not self.usable:
            raise StatementError(None, "the connection is closed")
        self._busy = True
        try:
            async with asyncio.timeout(self._timeout_s):
                cursor = self._conn.cursor()
                try:
                    affected = await cursor.execute(statement)
                    rows = await cursor.fetchall() if cursor.description else ()
                finally:
                    await cursor.close()
            self._busy = False
        except errors.MySQLError as error:
            translated = _translated(error)
            self._busy = translated.meaning is my.Reply.UNREACHABLE
            raise translated from error
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise StatementError(None, f"{type(error).__name__}: {error}") from error
        finally:
            if self._busy:
                # Also when it was cancelled half way: the answer of one statement must not be read as another's.
                self.close()
        return int(affected or 0), rows or ()

    def close(self) -> None:
        """End it at once."""
        self._broken = True
        with contextlib.suppress(Exception):
            self._conn.close()


def _translated(error: errors.MySQLError) -> StatementError:
    errno = error.args[0] if error.args and isinstance(error.args[0], int) else None
    text = str(error.args[1]) if len(error.args) > 1 else str(error) or type(error).__name__
    return StatementError(errno or None, text)
