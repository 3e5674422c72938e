"""SQLAlchemy's synchronous classes, in the words of ``txcoord_client._xa.sa``."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from ..._scope import made_ready
from ..._xa.held import RefusedEnd
from ...errors import Rejected
from ...protocol import reasons
from .raw import MySqlRaw, PsycopgRaw, Raw

__all__ = [
    "Connection",
    "Engine",
    "Session",
    "fairy_of",
    "raw_of",
    "sync_connection",
    "sync_engine",
    "sync_session",
]

DRIVERS = "psycopg, pymysql or mysqldb (mysqlclient)"


def sync_engine(engine: Engine) -> Any:
    """The engine itself."""
    return engine


def sync_connection(connection: Connection) -> Any:
    """The connection itself."""
    return connection


def sync_session(session: Session) -> Any:
    """The session itself."""
    return session


def fairy_of(connection: Connection) -> Any:
    """The pool's proxy of the driver's connection."""
    return made_ready(connection.connection)


def raw_of(fairy: Any, driver: str, refused: RefusedEnd) -> Raw:
    """The driver's connection. Raises Rejected for a driver that cannot take part."""
    if driver == "psycopg":
        return PsycopgRaw(fairy.driver_connection)
    if driver in ("pymysql", "mysqldb"):
        return MySqlRaw(fairy.driver_connection)
    raise Rejected(
        f"the driver {driver!r} cannot take part in a global transaction: use {DRIVERS}",
        reason=reasons.NOT_SUPPORTED,
    )
