"""A connection to look at a MariaDB or MySQL database, and why there is none, in plain words."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from asyncmy import errors
from asyncmy.cursors import Cursor

from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import reasons
from txcoord_client.protocol.mariadb import Flavour

from .checks import Finding, error
from .mariadb_session import Address


class Refused(Exception):
    """The server has refused a statement; ``errno`` None: it does not answer."""

    def __init__(self, errno: int | None, text: str) -> None:
        super().__init__(text)
        self.errno = errno


class _Quiet(Cursor):
    """What a statement remarks (a table is there already) would come as a line of the driver's log."""

    async def _show_warnings(self, conn: Any) -> None:
        pass


class Connection:
    """A session in autocommit that takes the answers with their columns' names."""

    def __init__(self, conn: Any, timeout_s: float) -> None:
        self._conn = conn
        self._timeout_s = timeout_s
        self.version = ""
        self.flavour: Flavour | None = None

    @classmethod
    async def open(cls, address: Address, timeout_s: float) -> Connection:
        """Connect. Raises Refused."""
        try:
            async with asyncio.timeout(timeout_s):
                conn = await address.connect(timeout_s, program_name="txcoord-check")
        except errors.MySQLError as trouble:
            raise _refused(trouble) from trouble
        except (OSError, TimeoutError, EOFError, RuntimeError) as trouble:
            raise Refused(None, f"{type(trouble).__name__}: {trouble}") from trouble
        out = cls(conn, timeout_s)
        try:
            version, comment = (await out.rows(my.READ_SERVER))[0]
        except BaseException:
            out.close()
            raise
        out.version, out.flavour = str(version), my.flavour(str(version), str(comment))
        return out

    async def rows(self, statement: str) -> Sequence[Sequence[Any]]:
        """Its rows; none for a statement without. Raises Refused."""
        return (await self._send(statement))[1]

    async def records(self, statement: str) -> list[dict[str, Any]]:
        """Its rows, by column."""
        names, rows = await self._send(statement)
        return [dict(zip(names, row, strict=True)) for row in rows]

    async def value(self, statement: str) -> Any:
        """The first value of the first row; None when there is none."""
        rows = await self.rows(statement)
        return rows[0][0] if rows else None

    async def _send(self, statement: str) -> tuple[list[str], Sequence[Sequence[Any]]]:
        try:
            async with asyncio.timeout(self._timeout_s), self._conn.cursor(_Quiet) as cursor:
                await cursor.execute(statement)
                names = [str(column[0]) for column in cursor.description or ()]
                return names, await cursor.fetchall() if names else ()
        except errors.MySQLError as trouble:
            raise _refused(trouble) from trouble
        except (OSError, TimeoutError, EOFError) as trouble:
            raise Refused(None, f"{type(trouble).__name__}: {trouble}") from trouble

    def close(self) -> None:
        """End it at once."""
        self._conn.close()


def _refused(trouble: errors.MySQLError) -> Refused:
    errno = trouble.args[0] if trouble.args and isinstance(trouble.args[0], int) else None
    return Refused(errno or None, str(trouble.args[-1] if trouble.args else trouble))


def explain(trouble: Refused, address: Address, name: str) -> Finding:
    """What it means that the database answered so, or not at all. Pure."""
    said = " ".join(str(trouble).split())
    causes = list(_causes(trouble))
    user, database, url = address.user, address.database, f"TXCOORD_RESOURCES__{name}__URL"
    where = f"{address.host}:{address.port}"
    client = f"mariadb --host={address.host} --port={address.port} --user={user} --password {database}"
    if any(isinstance(cause, ssl.SSLError) for cause in causes) or trouble.errno in (2026, 3159):
        return _tls(said, where, url, trouble.errno)
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return _away(
            f"there is no machine named {address.host!r}",
            f"# put the host in {url} right; what does this machine's resolver say?",
            f"getent hosts {address.host}",
        )
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return _away(
            f"nothing listens at {where}",
            "# is the server up, does it listen on that address (bind-address), and is the port right?",
            client,
        )
    if any(isinstance(cause, TimeoutError) for cause in causes) and trouble.errno in (None, 2003, 2013):
        return _away(
            f"{where} does not answer in time",
            f"# a firewall, a wrong address in {url}, or a server that hangs?",
            client,
        )
    match trouble.errno:
        case 1045 | 1698:
            return _login(
                said,
                f"CREATE USER IF NOT EXISTS '{user}'@'%' IDENTIFIED BY '...';",
                f"ALTER USER '{user}'@'%' IDENTIFIED BY '...';",
                f"# or put user and password in {url} right",
            )
        case 1049:
            return _login(said, f"CREATE DATABASE `{database}`;", f"# or put the database in {url} right")
        case 1044:
            return _login(
                said,
                f"# once the tables are there, run what this prints: txcoord resource check {name} --print-grants",
            )
        case 1130 | 1129:
            return _login(
                said,
                "# the server lets this machine not in; make the account for its address:",
                f"CREATE USER '{user}'@'ADDRESS' IDENTIFIED BY '...';",
                *(["FLUSH HOSTS;"] if trouble.errno == 1129 else []),
            )
        case 1142 | 1143 | 1227:
            return error(
                reasons.NOT_PERMITTED,
                f"this role may not do it: {said}",
                "",
                f"# let the tables be made by somebody who may: txcoord resource check {name} --print-sql",
                f"GRANT CREATE ON `{database}`.* TO '{user}'@'%';",
            )
        case 1047 if "WSREP" in said:
            return error(
                reasons.GALERA,
                f"this server is a node of a Galera cluster, and just now takes no statements: {said}",
                "Galera does not support XA",
                "# use a MariaDB primary without Galera (wsrep_on = OFF)",
                refused=True,
            )
        case 1040 | 1203 | 1226:
            return _away(
                f"it has no connection free: {said}",
                "SET GLOBAL max_connections = 400;",
                "# and in the server's file; or lower the pools of the services",
            )
        case 1053 | 1152:
            return _away(f"{said}; it stops just now", "# look again soon")
    return _away(f"{where}: {said}", "# is the server up, and can this machine reach it?", client)


def _causes(trouble: BaseException | None) -> list[BaseException]:
    out: list[BaseException] = []
    while trouble is not None and trouble not in out:
        out.append(trouble)
        # A driver raises its own error while it handles the system's.
        trouble = trouble.__cause__ or trouble.__context__
    return out


def _away(fact: str, *remedy: str) -> Finding:
    return error(
        reasons.RESOURCE_UNREACHABLE,
        f"it does not answer: {fact}",
        "its branches wait, prepared and with their locks, until it can be reached",
        *remedy,
    )


def _login(said: str, *remedy: str) -> Finding:
    return error(
        reasons.RESOURCE_CREDENTIALS,
        f"cannot log in: {said}",
        "its branches wait, prepared and with their locks, until the coordinator gets in",
        *remedy,
    )


def _tls(said: str, where: str, url: str, errno: int | None) -> Finding:
    if errno == 3159:
        fact, remedy = f"{where} wants TLS, and the URL has none", [f"# add ?ssl_ca=/path/of/ca.pem to {url}"]
    elif "CERTIFICATE_VERIFY_FAILED" in said:
        reason = said.partition("certificate verify failed:")[2].partition("(_ssl")[0].strip() or said
        fact = f"the certificate of {where} is not trusted: {reason}"
        remedy = [f"# name the authority's certificate in {url}: ?ssl_ca=/path/of/ca.pem"]
    elif "WRONG_VERSION_NUMBER" in said:
        # The server went on in plain text: the driver does not ask whether it can do TLS.
        fact = f"{where} speaks no TLS, and the URL demands it"
        remedy = [
            "# give the server ssl_cert and ssl_key in its file, and restart it",
            f"# or take ssl= out of {url}",
        ]
    else:
        fact, remedy = (
            f"TLS with {where} failed: {said}",
            [f"# look at ssl= in {url} and at the server's log"],
        )
    return error(reasons.RESOURCE_TLS, f"cannot connect: {fact}", "nothing can be done on it", *remedy)
