"""A MariaDB as far as txcoord's statements go. It lies where the real one does:

- XA COMMIT is answered 1397 (unknown) while the session that prepared is alive.
- It is answered OK, and nothing is done, while that session is on its way out: the branch is in *limbo* then, prepared
  in InnoDB with all its locks and unknown by name, until the server is started again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import marker

from . import barriers
from .postgres import Database, Session, Tx, Wait
from .replies import Answer, SqlError

if TYPE_CHECKING:
    from .network import Link
    from .world import World

_MARKER = re.compile(
    r".*INSERT.* INTO \S*txcoord_marker .*? SELECT X'(\w+)', '([\d.]+)', '(\w+)', (\d), .*?<= (\d+)$"
)
_READ = re.compile(
    r"SELECT state FROM .* WHERE tx_id = X'(\w+)' AND branch = '([\d.]+)' AND op = '(\w+)'(.*)"
)
_NAME = re.compile(r"'([^']*)', '([^']*)', (\d+)")
_QUOTED = re.compile(r"'([^']*)'")
_PRUNE = re.compile(r"created_us < (\d+) ORDER BY tx_id LIMIT (\d+)")
_HOLDER_S = 10


class MariaDB(Database):
    """Its sessions in autocommit, but for XA."""

    kind = "mariadb"
    lock_timeout_code = 1205

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._rng = world.rng(f"mariadb:{name}")
        self.detach_s = 0.06
        """How long at most a session takes to let go of what it has prepared, once it is gone by name."""
        self._ids = self._rng.randint(10, 40)
        self._detaching: dict[str, float] = {}
        self._started_us = self.now_us() - 3_600_000_000

    def crash(self) -> None:
        super().crash()
        for tx in self.limbo:
            self.prepared[tx.xid] = tx
            self.locks.update(dict.fromkeys(tx.markers, tx))
            tx.limbo = False
        self.limbo.clear()
        self._detaching.clear()
        for tx in self.prepared.values():
            tx.session = None
        self._started_us = self.now_us()
        # Ids begin anew: one of before may be somebody else's now.
        self._ids = self._rng.randint(10, 40)

    def connected(self, link: Link) -> Session:
        session = super().connected(link)
        session.lock_timeout_s = 5.0
        return session

    def _end_session(self, session: Session) -> None:
        session.gone = True
        self.sessions.pop(session.id, None)
        tx, session.tx = session.tx, None
        if tx is None:
            return
        if session.xa != "prepared":
            self._roll_back(tx)
            return
        # Forgotten by name a little before InnoDB has let go.
        delay = self._rng.uniform(0.2, 1.0) * self.detach_s
        self._detaching[tx.xid] = self.world.loop.now + delay
        tx.session = None

    def _work(self, session: Session, request: str) -> Generator[Wait, None, Any]:
        sql = request
        words = sql.split(" ", 3)
        if words[0] == "XA":
            return self._xa(session, sql, words[1])
        if barriers.enters(sql):
            return Answer((yield from barriers.entered(self, session, sql)))
        if words[0] == "UPDATE":
            barriers.keep(session, sql)
            return Answer(1)
        if sql.startswith("SELECT state, result"):
            return Answer(0, (yield from barriers.read(self, session, sql)))
        if "INSERT" in words or " INSERT" in sql[:80] or sql.startswith("INSERT"):
            return Answer((yield from self._insert(session, sql)))
        if sql == my.READ_NOW_US:
            return Answer(0, ((self.now_us(),),))
        if words[0] == "SELECT":
            return Answer(0, (yield from self._select(session, sql)))
        if words[0] == "DELETE":
            match = _PRUNE.search(sql)
            assert match is not None
            return Answer(self.prune(int(match[1]), int(match[2])))
        if words[0] == "KILL":
            return self._kill(session, words[1], int(words[2]))
        if words[0] == "SHOW" and "Uptime" in sql:
            return Answer(0, (("Uptime", (self.now_us() - self._started_us) // 1_000_000),))
        if words[0] == "SHOW":
            return Answer(0, (("legacy_xa_rollback_at_disconnect", "OFF"),) if "legacy" in sql else ())
        if words[0] == "SET":
            if "innodb_lock_wait_timeout = 1" in sql:
                session.lock_timeout_s = 1.0
            return Answer(0)
        if words[0] in ("ROLLBACK", "COMMIT"):
            if session.xa:
                raise SqlError(1399, "wrong state")
            tx, session.tx = session.tx, None
            if tx is not None:
                (self._commit if words[0] == "COMMIT" else self._roll_back)(tx)
            return Answer(0)
        if words[0] == "BEGIN":
            session.tx = Tx(self.now_us(), session)
            return Answer(0)
        raise AssertionError(f"not known to the simulation: {sql}")

    # ---- XA ----

    def _xa(self, session: Session, sql: str, verb: str) -> Answer:
        if verb == "RECOVER":
            return Answer(0, tuple(_recovered(tx.xid) for tx in self.prepared.values()))
        match = _NAME.search(sql)
        assert match is not None
        xid = f"{match[1]}.{match[2]}"
        if verb == "START":
            if session.xa:
                raise SqlError(1399, "wrong state")
            if xid in self.prepared or any(s.tx and s.tx.xid == xid for s in self.sessions.values()):
                raise SqlError(1440, "duplicate")
            session.tx, session.xa = Tx(self.now_us(), session, xid), "active"
            return Answer(0)
        tx = session.tx
        own = tx is not None and tx.xid == xid
        if verb == "END":
            if session.xa == "rollback_only":
                raise SqlError(1614, "deadlock")
            self._must(session, own, "active")
            session.xa = "idle"
        elif verb == "PREPARE":
            self._must(session, own, "idle")
            assert tx is not None
            session.xa = "prepared"
            self.prepared[xid] = tx
            self.world.note("prepared", at=self.name, xid=xid)
            self._acted("prepare_lands", xid)
        elif verb in ("COMMIT", "ROLLBACK"):
            if not own:
                self._finish_for_another(session, xid, commit=verb == "COMMIT")
                return Answer(0)
            assert tx is not None
            if verb == "COMMIT":
                self._must(session, own, "idle" if "ONE PHASE" in sql else "prepared")
                self._commit(tx)
            else:
                if session.xa == "active":
                    raise SqlError(1399, "wrong state")
                if self.prepared.pop(xid, None) is not None:
                    self._acted("session_rolls_back", xid)
                self._roll_back(tx)
            session.tx, session.xa = None, ""
        return Answer(0)

    @staticmethod
    def _must(session: Session, own: bool, state: str) -> None:
        if not own:
            raise SqlError(1397, "unknown xid")
        if session.xa != state:
            raise SqlError(1399, f"wrong state: {session.xa}")

    def _finish_for_another(self, session: Session, xid: str, *, commit: bool) -> None:
        if session.xa:
            raise SqlError(1399, "wrong state")
        tx = self.prepared.get(xid)
        if tx is None or tx.session is not None:
            raise SqlError(1397, "unknown xid")  # Also of one that is there, and attached: the first lie.
        if self._detaching.get(xid, 0.0) > self.world.loop.now:
            if self._rng.random() < 0.5:
                raise SqlError(1397, "unknown xid")
            # The second lie: OK, and nothing is done.
            del self.prepared[xid]
            tx.limbo = True
            self.limbo.append(tx)
            self.world.note("limbo", at=self.name, xid=xid)
            self.world.loop.outside(1.0, self.world.limbo, self)
            return
        if commit:
            self._commit(tx)
        else:
            self._undo_prepared(tx, session)

    def _kill(self, session: Session, what: str, number: int) -> Answer:
        other = self.sessions.get(number)
        if other is None:
            raise SqlError(1094, "unknown thread id")
        if what == "QUERY":
            self.interrupt(other, SqlError(1317, "interrupted"))
        else:
            self.world.loop.outside(self._rng.uniform(0.0, 0.05), self._killed, other)
        return Answer(0)

    def _killed(self, session: Session) -> None:
        if session.gone:
            return
        self.interrupt(session, SqlError(1317, "interrupted"))
        self.world.note("session killed", at=self.name)
        session.inbox.clear()
        self._end_session(session)
        link = session.link
        if link is not None and self.links.pop(link, 0) is None:
            link.server_gone()

    # ---- rows ----

    def _insert(self, session: Session, sql: str) -> Generator[Wait, None, int]:
        match = _MARKER.match(sql)
        if match is None:
            if "deadlock" in sql:
                assert session.tx is not None
                self._roll_back(session.tx)
                session.tx.rows.clear()
                session.tx.markers.clear()
                session.xa = "rollback_only"
                raise SqlError(1213, "Deadlock found")
            if session.xa not in ("", "active") or session.tx is None:
                raise SqlError(1399, "wrong state")
            session.tx.rows.append(_QUOTED.findall(sql)[0])
            return 1
        key = (match[1], match[2], match[3])
        if self.now_us() > int(match[5]):
            return 0
        while True:
            holder = self.locks.get(key)
            if holder is None or holder is session.tx:
                break
            yield Wait(key, session.lock_timeout_s)
        tx = session.tx if session.xa else None
        if session.xa and session.xa != "active":
            raise SqlError(1399, f"wrong state: {session.xa}")
        if key in self.markers or (tx is not None and key in tx.markers):
            raise SqlError(1062, "Duplicate entry")
        if tx is None:
            self.markers[key] = (int(match[4]), self.now_us())
            if key[2] == marker.ONE:
                self.world.acted("tombstone", key[0])
        else:
            self.locks[key] = tx
            tx.markers[key] = int(match[4])
        return 1

    def _select(self, session: Session, sql: str) -> Generator[Wait, None, tuple[tuple[Any, ...], ...]]:
        match = _READ.match(sql)
        if match is not None:
            key = (match[1], match[2], match[3])
            if "LOCK IN SHARE MODE" in match[4]:
                while key in self.locks:
                    if "NOWAIT" in match[4]:
                        raise SqlError(1205, "lock time-out")
                    yield Wait(key, session.lock_timeout_s)
            found = self.markers.get(key)
            return ((found[0],),) if found is not None else ()
        if "txcoord_identity" in sql:
            return ((self.identity,),)
        if sql == "SELECT 1":
            return ((1,),)
        if sql in (my.TAKE_TURN, my.END_TURN):
            return ((1,),)  # What is read in turns is never old here.
        if "VERSION()" in sql:
            return (("10.11.19-MariaDB", "MariaDB Server", session.id),)
        if "CONNECTION_ID()" in sql:
            return ((session.id,),)
        if "PROCESSLIST" in sql:
            number = int(sql.rsplit(" ", 1)[1])
            return (("app", "host", "Sleep", 1),) if number in self.sessions else ()
        if "INNODB_LOCK_WAITS" in sql:
            waiter = self.sessions.get(int(sql.rsplit(" ", 1)[1]))
            holder = self.locks.get(waiter.waits_for) if waiter is not None and waiter.waits_for else None
            return ((self._thread(holder),),) if holder is not None else ()
        if "INNODB_TRX" in sql:
            old_us = self.now_us() - _HOLDER_S * 1_000_000
            held = [*self.prepared.values(), *self.limbo]
            return tuple((self._thread(tx),) for tx in held if tx.began_us < old_us)
        raise AssertionError(f"not known to the simulation: {sql}")

    @staticmethod
    def _thread(tx: Tx) -> int:
        return tx.session.id if tx.session is not None else 0


def _recovered(xid: str) -> tuple[Any, ...]:
    gtrid, _, bqual = xid.rpartition(".")
    if "@" in xid:
        head = xid.split(".", 4)
        gtrid, bqual = ".".join(head[:4]), head[4]
    foreign = not xid.startswith("txc1.")
    return (99 if foreign else my.FORMAT_ID, len(gtrid), len(bqual), f"'{gtrid}','{bqual}'")


Reply = Callable[[Any], None]
