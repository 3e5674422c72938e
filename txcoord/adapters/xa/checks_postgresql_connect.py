"""Why a PostgreSQL database cannot be reached, in plain words."""

from __future__ import annotations

import getpass
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import asyncpg

from txcoord_client.protocol import reasons

from .checks import CannotConnect, Finding, error

_NETWORK = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)


@dataclass(frozen=True, slots=True)
class Door:
    """Where a URL leads to."""

    dsn: str
    user: str
    host: str
    port: int
    database: str

    @classmethod
    def of(cls, url: str) -> Door:
        """The URL as SQLAlchemy or as libpq has it."""
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query))
        # Several hosts are no valid netloc for urlsplit's properties.
        login, _, place = parts.netloc.rpartition("@")
        first = (query.get("host") or place).split(",")[0]
        host, colon, port = first.rpartition(":")
        if not colon or not port.isdigit():
            host, port = first, ""
        user = query.get("user") or unquote(login.partition(":")[0]) or getpass.getuser()
        return cls(
            urlunsplit(parts._replace(scheme=parts.scheme.split("+", 1)[0])),
            user,
            host.strip("[]") or "localhost",
            int(query.get("port", "").split(",")[0] or port or 5432),
            query.get("dbname") or query.get("database") or unquote(parts.path.lstrip("/")) or user,
        )

    @property
    def demands_tls(self) -> bool:
        """Does the URL allow nothing but TLS?"""
        mode = dict(parse_qsl(urlsplit(self.dsn).query)).get("sslmode", "")
        return mode in ("require", "verify-ca", "verify-full")

    @contextmanager
    def troubles(self, name: str) -> Iterator[None]:
        """Every trouble with the database becomes CannotConnect."""
        try:
            yield
        except (*_NETWORK, asyncpg.PostgresError, ValueError) as trouble:
            raise CannotConnect(explain(trouble, self, name)) from trouble


async def connect(door: Door, timeout_s: float) -> asyncpg.Connection:
    """A connection in autocommit. Raises what asyncpg raises."""
    conn: asyncpg.Connection = await asyncpg.connect(
        door.dsn,
        timeout=timeout_s,
        command_timeout=timeout_s,
        statement_cache_size=0,
        server_settings={"application_name": "txcoord-check"},
    )
    return conn


def explain(trouble: Exception, door: Door, name: str) -> Finding:
    """What it means that the database answered so, or not at all. Pure."""
    if isinstance(trouble, asyncpg.PostgresError) and trouble.sqlstate is not None:
        return _answered(trouble, door, name)
    said = " ".join(str(trouble).split())
    where = f"{door.host}:{door.port}"
    url = f"TXCOORD_RESOURCES__{name}__URL"
    psql = f"psql 'postgresql://{door.user}@{where}/{door.database}'"
    if "rejected SSL" in said or "SSL upgrade" in said:
        if door.demands_tls:
            return _tls(said, where, url)
        # A PostgreSQL without TLS says so, and goes on in plain text.
        return _away(
            f"what listens at {where} does not speak as PostgreSQL does",
            f"# is it another product (MariaDB, a proxy), or a wrong port in {url}?",
            psql,
        )
    if isinstance(trouble, ssl.SSLError) or "SSL" in said:
        return _tls(said, where, url)
    if isinstance(trouble, socket.gaierror):
        return _away(
            f"there is no machine named {door.host!r}",
            f"# put the host in {url} right; what does this machine's resolver say?",
            f"getent hosts {door.host}",
        )
    if isinstance(trouble, ConnectionRefusedError) or "Connect call failed" in said or "refused" in said:
        return _away(
            f"nothing listens at {where}",
            "# is the server up, does it listen on that address (listen_addresses), and is the port right?",
            psql,
        )
    if isinstance(trouble, TimeoutError):
        return _away(
            f"{where} does not answer in time",
            f"# a firewall, a wrong address in {url}, or a server that hangs?",
            psql,
        )
    if isinstance(trouble, ValueError):
        return _away(f"the URL cannot be read: {said}", f"# put {url} right")
    return _away(
        f"{where}: {type(trouble).__name__}: {said}",
        "# is the server up, and can this machine reach it?",
        psql,
    )


def _away(fact: str, *remedy: str) -> Finding:
    return error(
        reasons.RESOURCE_UNREACHABLE,
        f"it does not answer: {fact}",
        "its branches wait, prepared and with their locks, until it can be reached",
        *remedy,
    )


def _tls(said: str, where: str, url: str) -> Finding:
    if "rejected SSL" in said or "SSL upgrade" in said:
        fact = f"{where} speaks no TLS, and the URL demands it"
        remedy = ["ALTER SYSTEM SET ssl = on;", f"# or take sslmode= out of {url}"]
    elif "CERTIFICATE_VERIFY_FAILED" in said:
        reason = said.partition("certificate verify failed:")[2].partition("(_ssl")[0].strip() or said
        fact = f"the certificate of {where} is not trusted: {reason}"
        remedy = [
            f"# name the authority's certificate in {url}: ?sslmode=verify-full&sslrootcert=/path/of/ca.pem"
        ]
    else:
        fact, remedy = (
            f"TLS with {where} failed: {said}",
            [f"# look at sslmode= in {url} and at the server's log"],
        )
    return error(reasons.RESOURCE_TLS, f"cannot connect: {fact}", "nothing can be done on it", *remedy)


def _answered(trouble: asyncpg.PostgresError, door: Door, name: str) -> Finding:
    said = " ".join(str(trouble).split())
    code = trouble.sqlstate or ""
    role, database = _ident(door.user), _ident(door.database)
    url = f"TXCOORD_RESOURCES__{name}__URL"
    if code == "28P01":
        return _login(
            said,
            f"ALTER ROLE {role} PASSWORD '...';",
            f"# or put the password in {url} right",
        )
    if code.startswith("28") and "pg_hba.conf" in said:
        return _login(
            said,
            "# a line in pg_hba.conf of the server, ADDRESS being this machine's:",
            f"hostssl  {door.database}  {door.user}  ADDRESS/32  scram-sha-256",
            "SELECT pg_reload_conf();",
        )
    if code.startswith("28"):
        return _login(
            said, f"CREATE ROLE {role} LOGIN PASSWORD '...';", f"# or put user and password in {url} right"
        )
    if code == "3D000":
        return _login(said, f"CREATE DATABASE {database};", f"# or put the database in {url} right")
    if code == "42501":
        if "permission denied for database" in said:
            return _login(said, f"GRANT CONNECT ON DATABASE {database} TO {role};")
        return error(
            reasons.NOT_PERMITTED,
            f"this role may not do it: {said}",
            "",
            f"# let the tables be made by somebody who may: txcoord resource check {name} --print-sql",
            f"GRANT CREATE ON SCHEMA public TO {role};",
        )
    if code == "53300":
        return _away(
            f"it has no connection free: {said}",
            "ALTER SYSTEM SET max_connections = 400;",
            "-- then restart the server; or lower the pools of the services",
        )
    if code in ("57P03", "57P01", "57P02"):
        return _away(f"{said}; it starts or stops just now", "# look again soon")
    if code in ("25006", "57P05"):
        return _away(said, "# look again soon")
    return _away(f"{code}: {said}", "# look at the server's log")


def _login(said: str, *remedy: str) -> Finding:
    return error(
        reasons.RESOURCE_CREDENTIALS,
        f"cannot log in: {said}",
        "its branches wait, prepared and with their locks, until the coordinator gets in",
        *remedy,
    )


def _ident(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
