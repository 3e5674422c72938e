# Made from txcoord_client/_db/sources.py by scripts/sync; to change it, change that.
"""Where a participant's transactions come from: what ``Participant(db=…)`` was given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from . import hands


class Source(ABC):
    """Makes transactions. Any of this class is taken as it is."""

    @abstractmethod
    def begin(self) -> AbstractContextManager[Any]:
        """A transaction, committed in the end; what it gives is handed to the service's code."""


class SqlAlchemySource(Source):
    """An engine or a sessionmaker."""

    def __init__(self, db: Any) -> None:
        self._db = db

    @contextmanager
    def begin(self) -> Iterator[Any]:
        with self._db.begin() as db:
            yield db


class PsycopgSource(Source):
    """A pool of psycopg_pool."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @contextmanager
    def begin(self) -> Iterator[Any]:
        with self._pool.connection() as connection, connection.transaction():
            yield connection


@contextmanager
def plainly(connection: Any) -> Iterator[Any]:
    """A transaction on a connection of the DB-API, or of what is like it."""
    try:
        connection.begin()
        yield connection
        connection.commit()
    except BaseException as error:
        hands.ended(connection, error)
        raise
