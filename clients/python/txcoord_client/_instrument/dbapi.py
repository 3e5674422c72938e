"""A unit's connection and cursors, as DB-API drivers have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import Rejected
from ..protocol import reasons
from .units import Unit

Control = Callable[[Sequence[str]], None]
"""Sends statements on the branch's connection, one after another."""

_MODES = frozenset({"autocommit", "isolation_level", "read_only", "readonly", "deferrable"})
MODE_METHODS = frozenset(
    {
        "set_isolation_level",
        "set_autocommit",
        "set_read_only",
        "set_deferrable",
        "set_session",
        "tpc_begin",
        "tpc_prepare",
        "tpc_commit",
        "tpc_rollback",
        "transaction",
        "pipeline",
        "select_db",
        "change_user",
    }
)
_SENDS = frozenset(
    {"execute", "executemany", "callproc", "copy", "copy_expert", "copy_from", "copy_to", "stream"}
)


class UnitConnection:
    """What the application has instead of a connection of its own. Its commit and rollback are the unit's; everything
    else is the branch's connection's."""

    __slots__ = ("__weakref__", "_control", "_is_lost", "_raw", "_threads", "_unit")

    def __init__(
        self,
        raw: Any,
        unit: Unit,
        control: Control,
        *,
        is_lost: Callable[[], bool] = lambda: False,
        threads: bool = False,
    ) -> None:
        set_own = super().__setattr__
        set_own("_raw", raw)
        set_own("_unit", unit)
        set_own("_control", control)
        set_own("_is_lost", is_lost)
        set_own("_threads", threads)

    def cursor(self, *args: Any, **options: Any) -> UnitCursor:
        return UnitCursor(self._raw.cursor(*args, **options), self)

    def execute(self, statement: Any, *args: Any, **options: Any) -> Any:
        """Some drivers have it on the connection."""
        with self._sending(statement) as sent:
            return self._raw.execute(sent, *args, **options)

    def commit(self) -> None:
        self._end(True)

    def rollback(self) -> None:
        self._end(False)

    def close(self) -> None:
        self._end(False)

    def begin(self) -> None:
        """A unit begins with its first statement."""

    def __getattr__(self, name: str) -> Any:
        if name in MODE_METHODS:
            return self._refuse(f"{name}()")
        value = getattr(self._raw, name)
        if name in _MODES and callable(value):
            return self._refuse(f"{name}()")  # PyMySQL's
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MODES:
            if getattr(self._raw, name, None) == value:
                return
            raise self._refusal(f"{name} = {value!r}")
        setattr(self._raw, name, value)

    def __enter__(self) -> UnitConnection:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()

    def work_unseen(self) -> None:
        """Something is about to be done on the connection past this object: it lies in the unit."""
        with self._turn():
            first = self._unit.begin()
            if first:
                self._send(first)

    # ---- inside ----

    def _refusal(self, what: str) -> Rejected:
        return Rejected(
            f"{what} inside a global transaction: the connection to {self._unit.units.resource!r} belongs to its "
            "branch, and keeps its mode to the end. Isolation level and mode belong to the engine's or connection's "
            "settings",
            reason=reasons.NOT_SUPPORTED,
        )

    def _refuse(self, what: str) -> Callable[..., Any]:
        def refuse(*args: object, **options: object) -> Any:
            raise self._refusal(what)

        return refuse

    def _end(self, commit: bool) -> None:
        with self._turn():
            statements, error = self._unit.end(commit)
            if statements:
                self._send(statements)
        if error is not None:
            raise error

    def _send(self, statements: Sequence[str]) -> None:
        with self._unit.units.at_work():
            try:
                self._control(statements)
            except BaseException as error:
                # What is open now nobody knows.
                told = self._unit.broken(error)
                if isinstance(error, Exception):
                    raise told from error
                raise

    @contextmanager
    def _sending(self, statement: Any) -> Iterator[Any]:
        """Around everything that the application sends."""
        with self._turn(), self._unit.units.at_work():
            text = statement_text(statement, self._raw)
            if text is None:
                first, sent = self._unit.begin(), statement
            else:
                first, changed = self._unit.before(text)
                sent = statement if changed == text else changed
            if first:
                self._send(first)
            try:
                yield sent
            except BaseException as error:
                if not isinstance(error, Exception) or self._is_lost():
                    self._unit.broken(error)
                else:
                    self._unit.on_error(error)
                raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Threads wait for each other: not every driver's connection may be used by two."""
        if not self._threads:
            yield
            return
        with self._unit.units.lock:
            yield


class AutocommitUnit(UnitConnection):
    """One that may be in autocommit: then each statement outside of a block is a unit of its own."""

    __slots__ = ("_autocommit", "_in_block")

    def __init__(self, raw: Any, unit: Unit, is_lost: Callable[[], bool], *, autocommit: bool) -> None:
        super().__init__(raw, unit, by_cursor(raw), is_lost=is_lost, threads=True)
        self._set("_autocommit", autocommit)
        self._set("_in_block", 0)

    def _set(self, name: str, value: Any) -> None:
        """An attribute of its own."""
        super(UnitConnection, self).__setattr__(name, value)

    @contextmanager
    def _sending(self, statement: Any) -> Iterator[Any]:
        alone = self._autocommit and not self._in_block
        with self._turn():
            try:
                with super()._sending(statement) as sent:
                    yield sent
            except BaseException:
                if alone:
                    self._end(False)
                raise
            if alone:
                self._end(True)


class MySqlUnit(AutocommitUnit):
    """A unit's connection, as those of PyMySQL and mysqlclient are used."""

    __slots__ = ()

    def __init__(self, raw: Any, unit: Unit, *, autocommit: bool) -> None:
        super().__init__(raw, unit, lambda: not getattr(raw, "open", True), autocommit=autocommit)

    def autocommit(self, value: bool) -> None:
        if value and not self._autocommit:
            self._end(True)  # As the server does.
        self._set("_autocommit", bool(value))

    def get_autocommit(self) -> bool:
        return bool(self._autocommit)


class UnitCursor:
    """A cursor on a unit's connection."""

    __slots__ = ("_connection", "_cursor")

    def __init__(self, cursor: Any, connection: UnitConnection) -> None:
        set_own = super().__setattr__
        set_own("_cursor", cursor)
        set_own("_connection", connection)

    def execute(self, statement: Any, *args: Any, **options: Any) -> Any:
        with self._connection._sending(statement) as sent:
            return self._own(self._cursor.execute(sent, *args, **options))

    def executemany(self, statement: Any, *args: Any, **options: Any) -> Any:
        with self._connection._sending(statement) as sent:
            return self._own(self._cursor.executemany(sent, *args, **options))

    @property
    def connection(self) -> UnitConnection:
        """The unit's, not the branch's."""
        connection: UnitConnection = self._connection
        return connection

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._cursor, name)
        if name in _SENDS and callable(value):
            return self._guarded(value)
        return value

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with self._connection._sending(None):
                return method(*args, **options)

        return call

    def _own(self, value: Any) -> Any:
        # psycopg's execute answers the cursor itself.
        return self if value is self._cursor else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._cursor, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    def __next__(self) -> Any:
        return next(self._cursor)

    def __enter__(self) -> UnitCursor:
        self._cursor.__enter__()
        return self

    def __exit__(self, *args: Any) -> Any:
        return self._cursor.__exit__(*args)


def statement_text(statement: Any, raw: Any) -> str | None:
    """The text of a statement; None: it is not known."""
    if isinstance(statement, str):
        return statement
    if isinstance(statement, bytes):
        return statement.decode("utf-8", "replace")
    as_string = getattr(statement, "as_string", None)  # psycopg's SQL objects
    return str(as_string(raw)) if as_string is not None else None


def by_cursor(raw: Any) -> Control:
    """Sends by a cursor of a driver that waits itself."""

    def control(statements: Iterable[str]) -> None:
        cursor = raw.cursor()
        try:
            for statement in statements:
                cursor.execute(statement)
        finally:
            cursor.close()

    return control
