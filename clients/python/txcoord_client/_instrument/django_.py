"""An instrumented Django database.

Inside a global transaction ``django.db.connections[alias]`` gives another ``DatabaseWrapper``, one for each transaction
and thread, whose connection is a unit's. So ``atomic``, savepoints, autocommit and ``on_commit`` are Django's own,
and what was open on the thread's usual wrapper stays as it is.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from django.db import connections
from django.db.utils import DatabaseErrorWrapper

from .. import _scope as scope
from .._xa.drivers import errno_of, sqlstate_of
from ..errors import Rejected
from ..protocol import reasons
from ..sync._xa.direct import DriverHeld
from ..sync._xa.held import Source
from ..sync._xa.raw import MySqlRaw, PsycopgRaw
from .dbapi import MySqlUnit, by_cursor
from .home import Home
from .psycopg_ import PsycopgUnit

_FAMILIES = {"psycopg": "postgresql", "MySQLdb": "mysql", "pymysql": "mysql"}
"""By the name of the driver; PyMySQL may stand in for MySQLdb."""
_READ_ONLY = "25006"
_READ_ONLY_MYSQL = 1792


class InstrumentedAlias:
    """A Django database after ``instrument``."""

    def __init__(self, home: Home, alias: str) -> None:
        self.home = home
        self.alias = alias
        self._spare = _Spare(alias)

    def install(self) -> str:
        """Raises Rejected for an alias that cannot take part, or does already."""
        handler: Any = connections
        usual = type(handler.create_connection(self.alias))
        self._family = {"psycopg": "postgresql", "MySQLdb": "mysql", "pymysql": "mysql"}.get(
            usual.Database.__name__, ""
        )
        if not self._family:
            raise Rejected(
                f"the Django database {self.alias!r} is {usual.display_name} over {usual.Database.__name__}: only "
                "PostgreSQL over psycopg 3 and MariaDB or MySQL can take part",
                reason=reasons.NOT_SUPPORTED,
            )
        raw = PsycopgRaw if self._family == "postgresql" else MySqlRaw
        if not isinstance(handler, _Handler):
            handler.__class__ = type("ConnectionHandler", (_Handler, type(handler)), {})
            handler.txcoord = {}
        if self.alias in handler.txcoord:
            raise Rejected(f"the Django database {self.alias!r} is instrumented already")
        if hasattr(handler._connections, self.alias):
            # One that is not watched.
            handler[self.alias].close()
            del handler[self.alias]
        self._inside = type("DatabaseWrapper", (_Inside, usual), {})
        self.outside_class = type("DatabaseWrapper", (_Outside, usual), {})
        self.home.add(
            self,
            Source(
                key=id(self),
                resource=self.home.resource,
                family=self._family,
                make=lambda: _AliasHeld(self._spare, raw),
                identity_of=self,
            ),
            self.alias,
        )
        handler.txcoord[self.alias] = self
        return self.alias

    def wrapper(self) -> Any:
        """That of the current transaction and this thread; None: there is no transaction."""
        tx = None if scope.is_opening_a_branch() else self.home.current()
        if tx is None:
            return None
        of_threads = self.home.kept(tx)
        wrapper = of_threads.get(threading.get_ident())
        if wrapper is None:
            handler: Any = connections
            wrapper = self._inside(handler.settings[self.alias], self.alias)
            wrapper.txcoord = self
            of_threads[threading.get_ident()] = wrapper
        return wrapper

    def unit(self) -> PsycopgUnit | MySqlUnit:
        """A connection for a wrapper of the current transaction."""
        units = self.home.units(self, self._family)
        if units is None:
            raise Rejected(
                f"there is no transaction any more for {self.alias!r}", reason=reasons.NO_TRANSACTION
            )
        raw = units.branch.held.value
        if self._family == "mysql":
            return MySqlUnit(raw, units.unit(), autocommit=True)
        return PsycopgUnit(raw, units.unit(), autocommit=True, pooled=True)


class _Handler:
    """Of ``django.db.connections``."""

    txcoord: dict[str, InstrumentedAlias]

    def __getitem__(self, alias: str) -> Any:
        instrumented = self.txcoord.get(alias)
        wrapper = instrumented.wrapper() if instrumented is not None else None
        return super().__getitem__(alias) if wrapper is None else wrapper  # type: ignore[misc]

    def create_connection(self, alias: str) -> Any:
        made = super().create_connection(alias)  # type: ignore[misc]
        instrumented = self.txcoord.get(alias)
        if instrumented is not None and instrumented.home.refuses and not scope.is_opening_a_branch():
            made.__class__ = instrumented.outside_class
            made.txcoord = instrumented
        return made


class _Inside:
    """A wrapper of one thread in one transaction."""

    txcoord: InstrumentedAlias
    connection: Any
    settings_dict: dict[str, Any]

    def get_new_connection(self, conn_params: Any) -> Any:
        unit = self.txcoord.unit()
        if isinstance(unit, PsycopgUnit):
            self.isolation_level = unit.isolation_level
        return unit

    def init_connection_state(self) -> None:
        pass  # Of the branch's connection, and done.

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()

    def close_if_unusable_or_obsolete(self) -> None:
        pass  # It lasts as long as the transaction.

    def close_if_health_check_failed(self) -> None:
        pass

    def is_usable(self) -> bool:
        return True

    def chunked_cursor(self) -> Any:
        # Django's own would be WITH HOLD outside of atomic: a transaction with such a cursor cannot be prepared.
        return self.cursor()  # type: ignore[attr-defined]


class _Outside:
    """A thread's usual wrapper, where writes outside of a transaction are refused."""

    txcoord: InstrumentedAlias
    connection: Any
    autocommit: bool
    vendor: str
    _mode: Any = None

    def ensure_connection(self) -> None:
        super().ensure_connection()  # type: ignore[misc]
        connection = self.connection
        if connection is None or not self.autocommit:
            return  # Not between its statements: a transaction keeps its mode.
        known = self._mode[1] if self._mode is not None and self._mode[0] is connection else ""
        wanted = "rw" if scope.is_outside_on_purpose() else "ro"
        if known == wanted:
            return
        if self.vendor == "postgresql":
            by_cursor(connection)(
                [f"SET default_transaction_read_only TO {'on' if wanted == 'ro' else 'off'}"]
            )
        else:
            by_cursor(connection)([f"SET SESSION TRANSACTION READ {'ONLY' if wanted == 'ro' else 'WRITE'}"])
        self._mode = (connection, wanted)

    def _close(self) -> None:
        # It may go to a pool that others use.
        connection, self._mode = self.connection, None
        if connection is not None and getattr(self, "pool", None) and not connection.closed:
            connection.rollback()
            connection.autocommit = True
            by_cursor(connection)(["SET default_transaction_read_only TO DEFAULT"])
        super()._close()  # type: ignore[misc]

    @property
    def wrap_database_errors(self) -> Any:
        return _Telling(self)


class _Telling(DatabaseErrorWrapper):  # type: ignore[misc]
    """A refused write is NoTransaction."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        if error is not None and (sqlstate_of(error) == _READ_ONLY or errno_of(error) == _READ_ONLY_MYSQL):
            raise self.wrapper.txcoord.home.no_transaction(error) from error
        return super().__exit__(kind, error, trace)


class _Spare:
    """Connections between branches, kept as long as Django keeps a thread's."""

    def __init__(self, alias: str) -> None:
        self._alias = alias
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def take(self) -> Any:
        while True:
            with self._lock:
                wrapper = self._idle.pop() if self._idle else None
            if wrapper is None:
                break
            if not self._is_old(wrapper) and wrapper.is_usable():
                return wrapper
            wrapper.close()
        handler: Any = connections
        wrapper = handler.create_connection(self._alias)
        wrapper.inc_thread_sharing()
        wrapper.connect()
        return wrapper

    def give(self, wrapper: Any) -> None:
        if wrapper.settings_dict["CONN_MAX_AGE"] == 0 or self._is_old(wrapper):
            wrapper.close()
            return
        with self._lock:
            self._idle.append(wrapper)

    @staticmethod
    def _is_old(wrapper: Any) -> bool:
        return wrapper.close_at is not None and time.monotonic() >= wrapper.close_at


class _AliasHeld(DriverHeld):
    """A connection made as Django makes them, with its settings."""

    def __init__(self, spare: _Spare, raw: type[PsycopgRaw] | type[MySqlRaw]) -> None:
        super().__init__(None, raw)
        self._spare = spare
        self._wrapper: Any = None

    def open(self) -> None:
        self._wrapper = self._spare.take()
        self.value = self._wrapper.connection
        if self._wrapper.vendor == "postgresql":
            self.value.autocommit = False  # psycopg's own BEGIN knows the isolation level.
        super().open()

    def release(self, committed: bool) -> None:
        super().release(committed)
        if self._wrapper.vendor == "postgresql":
            self.value.autocommit = True
        self._spare.give(self._wrapper)

    def discard(self) -> None:
        super().discard()
        if self._wrapper is not None:
            self._wrapper.close()
