"""The schema's revision, as this version of txcoord knows it."""

from __future__ import annotations

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select

from ...ports import SchemaMismatch

VERSION_TABLE = "txcoord_revision"
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010")
"""Oldest first, as in ``migrations/versions``: kept here too, so that opening a log need not load Alembic."""
HEAD = REVISIONS[-1]

_version = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32)))


def revision(conn: Connection) -> str | None:
    """The revision of the log in this database; None: there is no log."""
    if not inspect(conn).has_table(VERSION_TABLE):
        return None
    return conn.execute(select(_version.c.version_num)).scalar_one_or_none()


def check(conn: Connection) -> None:
    """Raises SchemaMismatch, with what to do about it."""
    found = revision(conn)
    if found == HEAD:
        return
    if found is None:
        raise absent()
    if found in REVISIONS:
        message = f"this log has the older schema {found}, {HEAD} is needed: run `txcoord migrate`"
    else:
        message = (
            f"this log was written by a newer txcoord: its schema is {found}, this version knows up to {HEAD}."
            " Use that version or a newer one"
        )
    raise SchemaMismatch(found, HEAD, message)


def absent() -> SchemaMismatch:
    """There is no log."""
    return SchemaMismatch(None, HEAD, "there is no log here yet: run `txcoord migrate`")
