"""Best-effort SQL: a notification's statements, run in one local transaction of a resource's database with a marker.

The marker says that they were run: whoever comes again finds it, and does nothing. They run under rights of their own
(``execute_url``), never under those of the finisher.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from google.protobuf.message import DecodeError
from sqlalchemy import text
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from txcoord_client._pb import common_pb2 as c
from txcoord_client.protocol import barrier, mariadb, postgresql

from ...core.action import Answer, AnswerKind
from ...core.statements import PREFIX, why_not
from ...observe import logs
from ...ports import CallRequest

log = logs.get("txcoord.sql")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_AGAIN_PG = ("08", "40", "53", "55", "57", "58", "25", "28", "3D", "XX")
"""SQLSTATE classes of what passes by itself, or says nothing of the statement: connection, rollback, resources, locks,
operators, a read-only standby, a password that was changed, a database that is not there yet."""
_NO_MARIADB = frozenset(
    {
        1048,
        1054,
        1062,
        1064,
        1136,
        1142,
        1143,
        1146,
        1216,
        1217,
        1264,
        1265,
        1292,
        1364,
        1366,
        1406,
        1451,
        1452,
    }
    | {1644, 3819, 4025}
)
"""Errors of MariaDB and MySQL that say no to the statement itself, however their driver sorts them."""


@dataclass(frozen=True, slots=True)
class Executed:
    """A resource on which statements are run."""

    url: str
    """For SQLAlchemy, with its driver."""
    namespaces: frozenset[str]
    """Whose; ``*`` for all."""
    width: int = 8

    def may(self, namespace: str) -> bool:
        """Is it for this one?"""
        return "*" in self.namespaces or namespace in self.namespaces


class SqlCaller:
    """``ports.Caller`` for targets ``sql:<resource>``. ``identity_of``: which identity a database must have; empty
    while it is not known."""

    def __init__(
        self, resources: Mapping[str, Executed], identity_of: Callable[[str], Awaitable[str]]
    ) -> None:
        self._resources = dict(resources)
        self._identity_of = identity_of
        self._engines: dict[str, AsyncEngine] = {}

    async def call(
        self, target: str, requests: Sequence[CallRequest], timeout_s: float
    ) -> AsyncIterator[tuple[CallRequest, Answer]]:
        """Each in a transaction of its own."""
        name = target.removeprefix(PREFIX)
        tasks = {asyncio.ensure_future(self._answer(name, r, timeout_s)): r for r in requests}
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()

    async def _answer(self, name: str, request: CallRequest, timeout_s: float) -> tuple[CallRequest, Answer]:
        try:
            async with asyncio.timeout(timeout_s):
                return request, await self._run(name, request)
        except TimeoutError:
            why = f"TIMED_OUT: not done within {timeout_s:g} s"
        except DBAPIError as error:
            return request, answer_of(error)
        except StatementError as error:
            # It never went to the database. Its own text would tell the parameters to everybody.
            why = f"BAD_REQUEST: {' '.join(str(error.orig).split())}"
            return request, Answer(AnswerKind.REFUSED, reason=why[:500])
        except (SQLAlchemyError, OSError) as error:
            why = f"UNAVAILABLE: {' '.join(str(error).split())}"
        return request, Answer(AnswerKind.FAILED, reason=why[:500])

    async def _run(self, name: str, request: CallRequest) -> Answer:
        resource = self._resources.get(name)
        if resource is None or not resource.may(request.tx.namespace):
            # It may be allowed again: its attempts are few.
            return Answer(
                AnswerKind.FAILED, reason=f"SQL_NOT_ALLOWED: nothing is run on {name} for this namespace"
            )
        try:
            unit = c.SqlUnit.FromString(request.branch.sent)
            for s in unit.statements:  # an operator may have replaced what was looked at when it was enlisted
                if why := why_not(s.text, s.parameters):
                    raise ValueError(why)
            statements = [
                (text(s.text), {k: value_of(v) for k, v in s.parameters.items()}) for s in unit.statements
            ]
        except (DecodeError, ValueError, ArithmeticError) as error:
            return Answer(AnswerKind.REFUSED, reason=f"BAD_REQUEST: {error}"[:500])
        engine = self._engines.get(name)
        if engine is None:
            engine = self._engines[name] = create_async_engine(
                resource.url, pool_size=resource.width, max_overflow=0, pool_pre_ping=True, pool_recycle=300
            )
        family = engine.dialect.name
        known = await self._identity_of(name)
        async with engine.begin() as conn:
            read = postgresql.read_identity() if family == "postgresql" else mariadb.read_identity()
            found = (await conn.exec_driver_sql(read)).scalar()
            if not known or found != known:
                seen = (
                    f"it is {found}, {known} was expected" if known else "its database was not looked at yet"
                )
                return Answer(AnswerKind.FAILED, reason=f"RESOURCE_MISMATCH: {name}: {seen}")
            entered = barrier.BY_FAMILY[family].enter(request.tx.tx_id, request.branch.id, "sql", 0)
            if not (await conn.exec_driver_sql(entered)).rowcount:
                log.info("sql.repeated", tx_id=request.tx.tx_id, branch=request.branch.id, resource=name)
                return Answer(AnswerKind.DONE, repeated=True)
            for statement, parameters in statements:
                await conn.execute(statement, parameters)
        return Answer(AnswerKind.DONE)

    async def close(self) -> None:
        """Disconnect."""
        engines, self._engines = list(self._engines.values()), {}
        for engine in engines:
            await engine.dispose()


def value_of(value: c.SqlValue) -> Any:
    """As drivers take it. Raises ValueError, ArithmeticError for what is none of its kind."""
    match value.WhichOneof("value"):
        case None | "null_value":
            return None
        case "decimal_value":
            return Decimal(value.decimal_value)
        case "timestamp_us":
            return _EPOCH + timedelta(microseconds=value.timestamp_us)
        case "date_value":
            return date.fromisoformat(value.date_value)
        case "time_value":
            return time.fromisoformat(value.time_value)
        case "local_timestamp_value":
            return datetime.fromisoformat(value.local_timestamp_value)
        case "json_value":
            json.loads(value.json_value)
            return value.json_value
        case "uuid_value":
            return uuid.UUID(value.uuid_value)
        case name:
            return getattr(value, name)


def answer_of(error: DBAPIError) -> Answer:
    """A no to the statement itself parks at once; whatever may pass is tried again."""
    said = " ".join(str(error.orig).split())[:400]
    # SQLAlchemy puts the driver's own below the one that it raises.
    number, state = 0, ""
    for own in (
        error.orig,
        getattr(error.orig, "driver_exception", None),
        getattr(error.orig, "__cause__", None),
    ):
        # The operating system's own number is no error of a database: 111 would be no sign that it is away.
        if own is None or number or state or isinstance(own, OSError):
            continue
        arguments = getattr(own, "args", ())
        number = arguments[0] if arguments and isinstance(arguments[0], int) else 0
        state = str(getattr(own, "sqlstate", None) or "")
    if state and not number:
        no = not state.startswith(_AGAIN_PG)
        return Answer(AnswerKind.REFUSED if no else AnswerKind.FAILED, reason=f"SQLSTATE_{state}: {said}")
    no = number in _NO_MARIADB or (
        isinstance(error, IntegrityError | DataError | ProgrammingError) and not error.connection_invalidated
    )
    code = f"SQL_{number}" if number else "UNAVAILABLE"
    return Answer(AnswerKind.REFUSED if no else AnswerKind.FAILED, reason=f"{code}: {said}")
