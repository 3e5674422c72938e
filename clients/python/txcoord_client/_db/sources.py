"""Where a participant's transactions come from: what ``Participant(db=…)`` was given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from . import hands


class Source(ABC):
    """Makes transactions. Any of this class is taken as it is."""

    @abstractmethod
    def begin(self) -> AbstractAsyncContextManager[Any]:
        """A transaction, committed in the end; what it gives is handed to the service's code."""


class SqlAlchemySource(Source):
    """An engine or a sessionmaker."""

    def __init__(self, db: Any) -> None:
        self._db = db

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        async with self._db.begin() as db:
            yield db


class PsycopgSource(Source):
    """A pool of psycopg_pool."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        async with self._pool.connection() as connection, connection.transaction():
            yield connection


@asynccontextmanager
async def plainly(connection: Any) -> AsyncIterator[Any]:
    """A transaction on a connection of the DB-API, or of what is like it."""
    try:
        await connection.begin()
        yield connection
        await connection.commit()
    except BaseException as error:
        await hands.ended(connection, error)
        raise
