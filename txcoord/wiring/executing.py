"""Looks at the role of best-effort SQL: may it do what it is for, and nothing to the markers beyond that?"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from txcoord_client.protocol import barrier, mariadb, marker, postgresql, reasons

from ..adapters.xa.checks import Finding, error, ok, warning
from ..config import ResourceSettings
from .sql import driver_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_CHECK = "execute_url"
_MEANS = "best-effort SQL is parked, or tried in vain"
_BEYOND = (
    ("UPDATE", f"UPDATE {marker.TABLE} SET state = state WHERE 1 = 0"),
    ("DELETE", f"DELETE FROM {marker.TABLE} WHERE 1 = 0"),
)


def role_of(resource: ResourceSettings) -> str:
    """Its name; empty for none."""
    if resource.execute_url is None:
        return ""
    return make_url(resource.execute_url.get_secret_value()).username or ""


async def look(name: str, resource: ResourceSettings, identity: str) -> list[Finding]:
    """Whatever it tries is rolled back. ``identity``: that of the resource; empty where it has none."""
    url = resource.execute_url
    if url is None:
        return []
    from sqlalchemy.ext.asyncio import create_async_engine  # A node has no need of it.

    engine = create_async_engine(driver_url(url.get_secret_value()), pool_size=1)
    role = role_of(resource) or "the role of execute_url"
    found: list[Finding] = []
    try:
        async with asyncio.timeout(3 * resource.timeout.total_seconds()), engine.connect() as conn:
            found += await _needs(conn, role, identity, engine.dialect.name)
            found += await _beyond(conn, role)
    except (SQLAlchemyError, OSError, TimeoutError) as trouble:
        said = "no answer in time" if isinstance(trouble, TimeoutError) else _said(trouble)
        reason = reasons.RESOURCE_UNREACHABLE
        text = f"the database does not let in {role} of execute_url: {said}"
        return [error(reason, text, _MEANS, f"# mend TXCOORD_RESOURCES__{name}__EXECUTE_URL")]
    finally:
        await engine.dispose()
    return found or [ok(_CHECK, f"{role} may run best-effort SQL, and only write markers")]


async def _needs(conn: AsyncConnection, role: str, identity: str, family: str) -> list[Finding]:
    found: list[Finding] = []
    read = postgresql.read_identity() if family == "postgresql" else mariadb.read_identity()
    with _refused(found, role, "SELECT", marker.IDENTITY_TABLE):
        seen = (await conn.exec_driver_sql(read)).scalar()
        if identity and seen != identity:
            text = f"execute_url leads to another database than url: its identity is {seen}, not {identity}"
            found.append(error(reasons.RESOURCE_MISMATCH, text, _MEANS, "# mend one of the two URLs"))
    await conn.rollback()
    tx_id = f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"
    with _refused(found, role, "INSERT", marker.TABLE):
        await conn.exec_driver_sql(barrier.BY_FAMILY[family].enter(tx_id, "1", "sql", 0))
    await conn.rollback()
    return found


async def _beyond(conn: AsyncConnection, role: str) -> list[Finding]:
    more = []
    for right, statement in _BEYOND:
        try:
            await conn.exec_driver_sql(statement)
            more.append(right)
        except DBAPIError:
            pass
        await conn.rollback()
    if not more:
        return []
    rights = " and ".join(more)
    return [
        warning(
            reasons.NOT_PERMITTED,
            f"{role}, the role of best-effort SQL, may {rights} on {marker.TABLE}",
            "a view or function that a client's statement calls could take away the proof of what was committed",
            f"REVOKE {', '.join(more)} ON {marker.TABLE} FROM {role};",
            "# or give execute_url a role of its own, if it is that of a service or of the coordinator",
        )
    ]


@contextmanager
def _refused(found: list[Finding], role: str, right: str, table: str) -> Iterator[None]:
    try:
        yield
    except DBAPIError as trouble:
        if trouble.connection_invalidated:
            raise
        text = f"{role}, the role of best-effort SQL, cannot {right} {table}: {_said(trouble)}"
        found.append(error(reasons.NOT_PERMITTED, text, _MEANS, f"GRANT {right} ON {table} TO {role};"))


def _said(trouble: BaseException) -> str:
    own = getattr(trouble, "orig", None) or trouble
    return " ".join(str(own).split())[:300]
