"""A PostgreSQL as far as txcoord's statements go: transactions, savepoints, prepared ones, unique keys and locks.

It lies where the real one does: PREPARE in a failed transaction raises nothing, only its tag says ROLLBACK.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from txcoord_client.protocol import marker
from txcoord_client.protocol import xid as xids

from . import barriers
from .network import Link
from .replies import Answer, SqlError

if TYPE_CHECKING:
    from .world import World

Key = tuple[str, str, str]
TOO_LATE, DUPLICATE, LOCKED = "23502", "23505", "55P03"


@dataclass(eq=False)
class Tx:
    """A transaction of a session, or one that is prepared."""

    began_us: int
    session: Any = None
    xid: str = ""
    rows: list[str] = field(default_factory=list)
    markers: dict[Key, int] = field(default_factory=dict)
    results: dict[Key, bytes] = field(default_factory=dict)
    """What tries and actions returned, kept with their markers."""
    savepoint: bool = False
    failed: bool = False
    read_only: bool = False
    lock_timeout_s: float = 10.0
    busy: bool = False
    limbo: bool = False
    """MariaDB: the server has forgotten its name."""


@dataclass(frozen=True)
class Wait:
    """A statement waits for whoever holds the key."""

    key: Key
    seconds: float


@dataclass(eq=False)
class Session:
    """A connection, on the server."""

    id: int
    link: Link | None
    tx: Tx | None = None
    inbox: list[tuple[str, Callable[[Any], None]]] = field(default_factory=list)
    running: Generator[Wait, None, Any] | None = None
    waits_for: Key | None = None
    lock_timeout_s: float = 10.0
    gone: bool = False
    closing: bool = False
    """Its client has left; what it had sent before is still done."""
    xa: str = ""
    """MariaDB: active, idle, prepared, rollback_only."""


class Database:
    """What both kinds have: committed rows and markers, locks, waiting statements, crashes."""

    kind = ""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.up = True
        self.links: dict[Link, None] = {}
        self.skew_us = 0
        self.identity = f"{len(name):x}{name.encode().hex()}".ljust(32, "0")[:32]
        self.rows: list[str] = []
        """What is committed: a text for each thing done."""
        self.markers: dict[Key, tuple[int, int]] = {}
        self.results: dict[Key, bytes] = {}
        self.prepared: dict[str, Tx] = {}
        self.limbo: list[Tx] = []
        """MariaDB: prepared, and forgotten by name."""
        self.sessions: dict[int, Session] = {}
        self._ids = 10
        self._waiters: dict[Key, list[tuple[Session, Any]]] = {}
        self.locks: dict[Key, Tx] = {}

    def now_us(self) -> int:
        return self.world.now_us() + self.skew_us

    # ---- network.Server ----

    def connected(self, link: Link) -> Session:
        self._ids += 1
        session = Session(self._ids, link)
        self.sessions[session.id] = session
        return session

    def receive(self, session: Session, request: str, reply: Callable[[Any], None]) -> None:
        session.inbox.append((request, reply))
        self._next(session)

    def closed(self, session: Session) -> None:
        session.closing = True
        if session.running is None and not session.inbox:
            self._end_session(session)

    def crash(self) -> None:
        """Open transactions are lost, prepared ones and what is committed stay."""
        self.up = False
        for link in list(self.links):
            link.server_gone()
        self.links.clear()
        for session in list(self.sessions.values()):
            session.gone = True
            session.running = None
        self.sessions.clear()
        self._waiters.clear()
        self.locks = {key: tx for tx in self.prepared.values() for key in tx.markers}

    def restart(self) -> None:
        self.up = True

    # ---- statements that wait ----

    def _next(self, session: Session) -> None:
        while session.inbox and session.running is None and not session.gone:
            request, reply = session.inbox.pop(0)
            session.running = self._work(session, request)
            self._go_on(session, reply)
        if session.closing and session.running is None and not session.gone:
            self._end_session(session)

    def _go_on(self, session: Session, reply: Callable[[Any], None], error: Exception | None = None) -> None:
        running = session.running
        if running is None:
            return
        session.waits_for = None
        try:
            wait = running.throw(error) if error is not None else next(running)
        except StopIteration as end:
            session.running = None
            reply(end.value)
            return
        except SqlError as refused:
            session.running = None
            reply(refused)
            return
        session.waits_for = wait.key
        timer = self.world.loop.outside(wait.seconds, self._late, session, reply, running, wait.key)
        self._waiters.setdefault(wait.key, []).append((session, (reply, running, timer)))

    def _late(self, session: Session, reply: Any, running: Any, key: Key) -> None:
        if session.running is running and session.waits_for == key:
            self._forget(session, key)
            self._go_on(session, reply, SqlError(self.lock_timeout_code, "lock time-out"))
            self._next(session)

    def interrupt(self, session: Session, error: SqlError) -> None:
        """End the statement that it waits in."""
        key = session.waits_for
        if key is None:
            return
        for one, (reply, _, timer) in self._waiters.get(key, []):
            if one is session:
                timer.cancel()
                self._forget(session, key)
                self._go_on(session, reply, error)
                self._next(session)
                return

    def _forget(self, session: Session, key: Key) -> None:
        self._waiters[key] = [w for w in self._waiters.get(key, []) if w[0] is not session]

    def _unlock(self, tx: Tx) -> None:
        for key in tx.markers:
            if self.locks.get(key) is tx:
                del self.locks[key]
        for key in tx.markers:
            for session, (reply, running, timer) in self._waiters.pop(key, []):
                timer.cancel()
                if session.running is running:
                    self._go_on(session, reply)
                    self._next(session)

    # ---- transactions ----

    lock_timeout_code: str | int = LOCKED

    def _work(self, session: Session, request: str) -> Generator[Wait, None, Any]:
        raise NotImplementedError

    def _end_session(self, session: Session) -> None:
        raise NotImplementedError

    def _commit(self, tx: Tx) -> None:
        now_us = self.now_us()
        self.rows.extend(tx.rows)
        self.markers.update((key, (state, now_us)) for key, state in tx.markers.items())
        self.results.update(tx.results)
        if self.prepared.pop(tx.xid, None) is not None:
            self._acted("finish", tx.xid, to="committed")
        for tx_id, _, op in tx.markers:
            if op == marker.ONE:
                done = tx.markers[tx_id, marker.ONE_BRANCH, op] == marker.DONE
                self.world.acted("local_commit" if done else "tombstone", tx_id)
        for text in tx.rows:
            self.world.note("committed", at=self.name, row=text)
            if text.startswith("fx:"):
                self.world.checker.effects.happened(text)
        self._unlock(tx)

    def _roll_back(self, tx: Tx) -> None:
        if self.prepared.pop(tx.xid, None) is not None:
            self._acted("finish", tx.xid, to="rolledback")
        self._unlock(tx)

    def _acted(self, action: str, xid: str, **facts: Any) -> None:
        x = xids.parse(xid)
        if x is not None:
            self.world.acted(action, x.tx_id, x.branch, self.name, deadline_us=x.deadline_us, **facts)

    def _undo_prepared(self, tx: Tx, session: Session) -> None:
        by = session.link.client.name if session.link is not None else ""
        self.world.checker.branch_rolled_back(tx.xid, by)
        self._roll_back(tx)

    def by_hand(self, commit: bool) -> None:
        """A person finishes a branch that is prepared here, and of which the log knows."""
        for xid, tx in self.prepared.items():
            if tx.session is None and self.world.log.select(
                "SELECT 1 FROM txcoord_branch b JOIN txcoord_tx t ON t.tx_id = b.tx_id"
                f" WHERE b.xid = '{xid}' AND t.decision IS NOT NULL"
            ):
                self.world.note("by hand", at=self.name, xid=xid, commit=commit)
                self.world.checker.by_hand.add(xid.split(".")[3])
                if commit:
                    self._commit(tx)
                else:
                    self._roll_back(tx)
                return

    def prune(self, before_us: int, limit: int) -> int:
        # Those of a participant are its own.
        old = [k for k, (_, at_us) in self.markers.items() if at_us < before_us and k[2] in marker.XA_OPS]
        old = old[:limit]
        for key in old:
            del self.markers[key]
            self.results.pop(key, None)
        return len(old)


_MARKER = re.compile(
    r"INSERT INTO \S+txcoord_marker .*? SELECT '(\w+)'::uuid, '([\d.]+)', '(\w+)', (\d), .*?<= (\d+) THEN"
)
_READ = re.compile(r"SELECT state FROM .* WHERE tx_id = '(\w+)' AND branch = '([\d.]+)' AND op = '(\w+)'")
_QUOTED = re.compile(r"'([^']*)'")
_PRUNE = re.compile(r"created_us < (\d+) ORDER BY tx_id LIMIT (\d+)")


class PostgreSQL(Database):
    """Its sessions in simple-query protocol."""

    kind = "postgresql"

    def _work(self, session: Session, request: str) -> Generator[Wait, None, Any]:
        tag: Any = ""
        rows: tuple[tuple[Any, ...], ...] = ()
        for statement in request.split("; "):
            try:
                tag, rows = yield from self._statement(session, statement.strip(" ;"))
            except SqlError as error:
                if session.tx is not None:
                    session.tx.failed = True
                error.in_transaction = session.tx is not None
                raise
        return Answer(tag, rows, session.tx is not None)

    def _end_session(self, session: Session) -> None:
        session.gone = True
        self.sessions.pop(session.id, None)
        if session.tx is not None:
            tx, session.tx = session.tx, None
            self._roll_back(tx)

    def _statement(self, session: Session, sql: str) -> Generator[Wait, None, Any]:
        tx = session.tx
        first = sql.split(" ", 1)[0]
        if first == "BEGIN":
            session.tx = tx or Tx(self.now_us(), session, lock_timeout_s=session.lock_timeout_s)
            return "BEGIN", ()
        if first == "ROLLBACK" and "PREPARED" not in sql:
            return self._end(session, commit=False), ()
        if first == "COMMIT" and "PREPARED" not in sql:
            return self._end(session, commit=True), ()
        if first == "PREPARE":
            return self._prepare(session, _QUOTED.findall(sql)[0]), ()
        if tx is not None and tx.failed:
            raise SqlError("25P02", "current transaction is aborted")
        if first == "SAVEPOINT":
            assert tx is not None
            tx.savepoint = True
            return "SAVEPOINT", ()
        if first == "RELEASE":
            if tx is None:
                raise SqlError("25P01", "no transaction")
            if not tx.savepoint:
                raise SqlError("3B001", "no such savepoint")
            tx.savepoint = False
            return "RELEASE", ()
        if first == "WITH":
            return f"INSERT 0 {yield from barriers.entered(self, session, sql)}", ()
        if first == "UPDATE":
            barriers.keep(session, sql)
            return "UPDATE 1", ()
        if first == "SELECT" and "state, result" in sql:
            return "SELECT 1", (yield from barriers.read(self, session, sql))
        if first == "INSERT":
            yield from self._insert(session, sql)
            return "INSERT 0 1", ()
        if first in ("COMMIT", "ROLLBACK"):
            return (yield from self._finish(session, first, _QUOTED.findall(sql)[0])), ()
        if first == "DELETE":
            match = _PRUNE.search(sql)
            assert match is not None
            return f"DELETE {self.prune(int(match[1]), int(match[2]))}", ()
        if first == "SELECT":
            return "SELECT 1", self._select(session, sql)
        if first == "SET":
            if tx is not None and "lock_timeout" in sql:
                tx.lock_timeout_s = 1.0
            if tx is not None and "READ ONLY" in sql:
                tx.read_only = True
            return "SET", ()
        raise AssertionError(f"not known to the simulation: {sql}")

    def lie(self, session: Session) -> None:
        """Its next PREPARE or COMMIT does what it does in a failed transaction, and nothing else tells."""
        self._lying = session

    def _lies(self, session: Session, tx: Tx | None) -> bool:
        lying, self._lying = self._lying is session, None
        return tx is None or tx.failed or lying

    _lying: Session | None = None

    def _end(self, session: Session, *, commit: bool) -> str:
        tx, session.tx = session.tx, None
        if commit and self._lies(session, tx) and tx is not None:
            tx.failed = True
        if tx is None:
            return "COMMIT" if commit else "ROLLBACK"
        if commit and not tx.failed:
            self._commit(tx)
            return "COMMIT"
        self._roll_back(tx)
        return "ROLLBACK"

    def _prepare(self, session: Session, xid: str) -> str:
        tx, session.tx = session.tx, None
        if self._lies(session, tx) or tx is None:
            if tx is not None:
                self._roll_back(tx)
            return "ROLLBACK"  # No error: the lie.
        if xid in self.prepared:
            self._roll_back(tx)
            raise SqlError("42710", "identifier is in use")
        tx.xid, tx.session = xid, None
        self.prepared[xid] = tx
        self.world.note("prepared", at=self.name, xid=xid)
        self._acted("prepare_lands", xid)
        return "PREPARE TRANSACTION"

    def _insert(self, session: Session, sql: str) -> Generator[Wait, None, None]:
        tx = session.tx
        match = _MARKER.match(sql)
        if match is None:
            if tx is None or tx.read_only:
                raise SqlError("25006", "read-only transaction")
            if "broken" in sql:
                raise SqlError("22012", "division by zero")
            tx.rows.append(_QUOTED.findall(sql)[0])
            return
        key = (match[1], match[2], match[3])
        if self.now_us() > int(match[5]):
            raise SqlError(TOO_LATE, "null value")
        assert tx is not None
        while True:
            holder = self.locks.get(key)
            if holder is None or holder is tx:
                break
            yield Wait(key, tx.lock_timeout_s)
        if key in self.markers or key in tx.markers:
            raise SqlError(DUPLICATE, "duplicate key")
        self.locks[key] = tx
        tx.markers[key] = int(match[4])

    def _finish(self, session: Session, what: str, xid: str) -> Generator[Wait, None, str]:
        if session.tx is not None:
            raise SqlError("25001", "cannot run inside a transaction block")
        tx = self.prepared.get(xid)
        if tx is None:
            raise SqlError("42704", "does not exist")
        if tx.busy:
            raise SqlError("55000", "is busy")
        yield from ()
        if what == "COMMIT":
            self._commit(tx)
        else:
            self._undo_prepared(tx, session)
        return f"{what} PREPARED"

    def _select(self, session: Session, sql: str) -> tuple[tuple[Any, ...], ...]:
        if "txcoord_identity" in sql:
            return ((self.identity,),)
        match = _READ.match(sql)
        if match is not None:
            found = self.markers.get((match[1], match[2], match[3]))
            return ((found[0],),) if found is not None else ()
        if "FROM pg_prepared_xacts" in sql:
            start = _QUOTED.findall(sql)[-1]
            return tuple((x, "app", tx.began_us) for x, tx in self.prepared.items() if x.startswith(start))
        if "pg_current_xact_id_if_assigned" in sql:
            return ((session.tx is None or not (session.tx.rows or session.tx.markers),),)
        if "set_config" in sql:
            return ()
        if sql == "SELECT 1":
            return ((1,),)
        raise AssertionError(f"not known to the simulation: {sql}")
