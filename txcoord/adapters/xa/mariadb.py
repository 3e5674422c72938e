"""Finishes XA branches straight on a MariaDB or MySQL database.

What a reply means is in ``txcoord_client.protocol.mariadb``. No OK is believed here: this session has not prepared
the branch, so its marker row is the only proof of commit. MariaDB has three replies that lie, and a guard for each:

- 1397 (unknown xid) also while the session that prepared still lives: it is ended first.
- OK while that session is on its way out. InnoDB then keeps the branch and its locks, and nobody can name it any more
  before the server's restart: *limbo*. So the session must be gone for a while before anything is sent; if it
  happens all the same, the marker's key is locked though nothing is listed, and that is said (IN_LIMBO).
- 1402 (rolled back): the marker tells.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from txcoord_client.protocol import mariadb as my
from txcoord_client.protocol import marker, reasons
from txcoord_client.protocol import xid as xids

from ...core.model import Windows
from ...observe import logs
from ...ports import Finished, FinishResult, PreparedBranch, Probed, ResourceTrouble
from .mariadb_holder import Holders, sessions_since_us
from .mariadb_session import Address, Session, StatementError

log = logs.get("txcoord.xa.mariadb")

_DONE = FinishResult(Finished.DONE)
_NO_RIGHT_TO_RECOVER = 1401
"""MySQL says XAER_RMERR, "check your data for consistency", where only a right is missing."""
_SETTINGS = (
    "version",
    "version_comment",
    "read_only",
    "wsrep_on",
    "xa_detach_on_prepare",
    "legacy_xa_rollback_at_disconnect",
)


class MariaFinisher:
    """One MariaDB or MySQL database as a resource; which of the two is found out by asking.

    ``width`` connections at most, opened when needed; each statement ends within ``timeout_s``. ``guard_s`` is how
    long a session must be gone before its branch is touched; 0 takes the guard out, for the test that shows what
    it is there for.
    """

    lists_server = True

    def __init__(
        self,
        name: str,
        url: str,
        *,
        windows: Windows,
        expected_identity: str | None = None,
        schema: str = "",
        width: int = 8,
        timeout_s: float = 5.0,
        guard_s: float = 0.1,
    ) -> None:
        self.name = name
        self.engine = my.Flavour.MARIADB.value
        """Which it was when it was reached last. Before that the one that needs more care: what is right on MariaDB
        is so on MySQL, too."""
        self.expected_identity = expected_identity
        self.statements = 0
        """How many statements phase two has sent, for the cost counters."""
        self._address = Address.of(url)
        self._windows = windows
        self._schema = schema
        self._timeout_s = timeout_s
        self._idle: list[tuple[Session, str | None]] = []
        """With the identity of the database that each was found to lead to."""
        self._slots = asyncio.Semaphore(width)
        self._holders = Holders(name, schema, guard_s, timeout_s, self._second)
        self._closed = False

    # ---- ports.Finisher ----

    async def identity(self) -> str:
        """The identity row of the database. Raises ResourceTrouble."""
        async with self._session(check=False) as s:
            return await self._identity_on(s)

    async def finish(self, xid: str, commit: bool) -> FinishResult:
        """XA COMMIT or ROLLBACK, with proof."""
        try:
            async with self._session() as s:
                return await self._finish_on(s, xid, commit)
        except ResourceTrouble as trouble:
            return FinishResult(Finished.RETRY, f"{trouble.reason}: {trouble.message}")

    async def list_prepared(self, log_ids: Sequence[str]) -> list[PreparedBranch]:
        """Prepared transactions of these logs on the *server*: neither engine says in which database."""
        wanted = frozenset(log_ids)
        async with self._session() as s:
            return [PreparedBranch(str(x), "", 0) for x in await self._listed(s) if x.log_id in wanted]

    async def has_ended(self, xid: str, commit: bool) -> bool:
        """Has the session that prepared it finished it? Changes nothing."""
        x = _parsed(xid)
        async with self._session() as s:
            if commit:
                return await self._state(s, x) == marker.DONE
            return x not in await self._listed(s)

    async def owns(self, xid: str) -> bool:
        """A prepared branch holds the key of its marker, which is in the database that it changed."""
        x = _parsed(xid)
        async with self._session() as s:
            try:
                await s.rows(my.try_marker(x.tx_id, x.branch, marker.XA, s.flavour, self._schema))
            except StatementError as error:
                if error.meaning is not my.Reply.LOCK_TIMEOUT:
                    raise
                return True
        return False

    async def in_limbo(self) -> int:
        """How many prepared branches nobody can name any more; 0 also where the right to see it is missing."""
        async with self._session() as s:
            if s.flavour is my.Flavour.MYSQL:
                return 0
            rows = await s.rows(my.XA_RECOVER[s.flavour])
            try:
                holders = [int(row[0]) for row in await s.rows(my.READ_HOLDERS)]
            except StatementError as error:
                if error.meaning is my.Reply.REFUSED:
                    return 0
                raise
            return my.limbo(rows, holders, await sessions_since_us(s))

    async def probe_one_phase(self, tx_id: str, not_after_us: int) -> Probed:
        """Tombstone the one-phase key."""
        async with self._session() as s:
            return await self._probe_on(s, tx_id, marker.ONE_BRANCH, marker.ONE, not_after_us)

    async def prune_markers(self, not_after_us: int, limit: int) -> int:
        """Delete a small batch of old markers."""
        async with self._session() as s:
            return await s.execute(my.delete_old_markers(not_after_us, limit, self._schema))

    def by_hand(self, xid: str, commit: bool) -> str:
        """What a person runs there; on MariaDB once the session that prepared is gone."""
        return my.xa_commit(xid) if commit else my.xa_rollback(xid)

    async def close(self) -> None:
        """Close all connections."""
        self._closed = True
        self._forget_idle()

    # ---- set-up, by `txcoord resource check --fix` ----

    async def prepare_database(self, identity: str) -> str:
        """Make the tables, give the database an identity unless it has one; answer the one that it has."""
        async with self._session(check=False) as s:
            for statement in [*my.ddl(self._schema), my.set_identity(identity, self._schema)]:
                await s.execute(statement)
            return await self._identity_on(s)

    async def missing_rights(self) -> list[str] | None:
        """What this role may not do with the marker table; None: there is no such table. Raises ResourceTrouble."""
        lacks: list[str] = []
        async with self._session(check=False) as s:
            for right, statement in my.missing_rights(self._schema).items():
                try:
                    await s.execute(statement)
                except StatementError as error:
                    if error.meaning is my.Reply.NO_TABLE:
                        return None
                    if error.meaning is not my.Reply.REFUSED:
                        raise
                    lacks.append(right)
        return lacks

    async def settings(self) -> dict[str, str]:
        """The server's settings that matter for XA; those that it does not have are left out."""
        async with self._session(check=False) as s:
            names = ", ".join(f"'{name}'" for name in _SETTINGS)
            rows = await s.rows(f"SHOW VARIABLES WHERE Variable_name IN ({names})")
            out = {str(row[0]): str(row[1]) for row in rows}
            out["server_version"], out["engine"] = s.version, s.flavour.value
            return out

    # ---- one branch ----

    async def _finish_on(self, s: Session, xid: str, commit: bool) -> FinishResult:
        x = _parsed(xid)
        if s.flavour is my.Flavour.MARIADB and x.connection_id:
            why_not = await self._holders.end(s, x)
            if why_not:
                return FinishResult(Finished.RETRY, why_not)
        self.statements += 1
        try:
            await s.execute(my.xa_commit(xid) if commit else my.xa_rollback(xid))
        except StatementError as error:
            if error.meaning is my.Reply.UNKNOWN_XID:
                return await self._unknown(s, x, commit)
            if error.meaning is not my.Reply.ROLLED_BACK:
                if error.meaning is my.Reply.UNREACHABLE:
                    raise
                return FinishResult(Finished.RETRY, f"{error.meaning.name}: {error}")
        return await (self._judge(s, x) if commit else self._rolled_back(s, x))

    async def _unknown(self, s: Session, x: xids.Xid, commit: bool) -> FinishResult:
        """1397: committed or rolled back before, attached to a session that we cannot see, or never there."""
        if x in await self._listed(s):
            why = (
                "its session lives, and is hidden from this user: GRANT PROCESS, CONNECTION ADMIN ON *.*"
                if s.flavour is my.Flavour.MARIADB
                else "its session lives and has xa_detach_on_prepare off"
            )
            return FinishResult(Finished.RETRY, f"BUSY: another session is finishing it; or {why}")
        if commit:
            return await self._judge(s, x)
        # An earlier OK may have done nothing: then it is in limbo, and no XA ROLLBACK finds it.
        if await self._is_held(s, x):
            return await self._locked(s, x)
        # A PREPARE that is still on its way is the scanner's.
        if await self._state(s, x) == marker.DONE:
            return FinishResult(
                Finished.HEURISTIC,
                f"{reasons.HEURISTIC}: its marker is committed: someone committed it, though abort was decided",
            )
        return _DONE

    async def _judge(self, s: Session, x: xids.Xid) -> FinishResult:
        """Commit was decided, and the branch is not there any more, as far as one can name it. The marker knows."""
        not_after_us = self._windows.abort_until(x.deadline_us)
        answer = await self._probe_on(s, x.tx_id, x.branch, marker.XA, not_after_us)
        if answer is Probed.COMMITTED:
            return _DONE
        if answer is Probed.OPEN or (answer is Probed.TOO_LATE and await self._is_held(s, x)):
            return await self._locked(s, x)
        if answer is Probed.TOO_LATE and await self._state(s, x) == marker.DONE:
            return _DONE  # While we waited for its lock.
        if answer is Probed.NEVER:
            return FinishResult(
                Finished.HEURISTIC,
                f"{reasons.HEURISTIC}: the prepared branch is gone and its marker is absent: "
                "someone rolled it back, though commit was decided",
            )
        return FinishResult(
            Finished.HEURISTIC, f"{reasons.HEURISTIC}: gone, and too long ago for its marker to tell"
        )

    async def _rolled_back(self, s: Session, x: xids.Xid) -> FinishResult:
        """XA ROLLBACK was answered OK. It was carried out if the marker's key is free."""
        return await self._locked(s, x) if await self._is_held(s, x) else _DONE

    async def _is_held(self, s: Session, x: xids.Xid) -> bool:
        """Does a transaction hold its marker's key?"""
        try:
            await s.rows(my.lock_marker(x.tx_id, x.branch, marker.XA, self._schema))
        except StatementError as error:
            if error.meaning is not my.Reply.LOCK_TIMEOUT:
                raise
            return True
        return False

    async def _locked(self, s: Session, x: xids.Xid) -> FinishResult:
        """Its marker's key is held by a transaction: is that one still there by name?"""
        if x in await self._listed(s):
            return FinishResult(
                Finished.RETRY, "BUSY: the marker's key is locked: still prepared or in flight"
            )
        return FinishResult(
            Finished.RETRY,
            f"{reasons.IN_LIMBO}: InnoDB still holds the branch, but the server does not know its name any more. "
            "Restart the server: it is finished then",
        )

    async def _listed(self, s: Session) -> list[xids.Xid]:
        try:
            return my.recovered(await s.rows(my.XA_RECOVER[s.flavour]))
        except StatementError as error:
            if s.flavour is my.Flavour.MYSQL and error.errno == _NO_RIGHT_TO_RECOVER:
                text = f"XA RECOVER needs a right: GRANT XA_RECOVER_ADMIN ON *.* ({error})"
                raise ResourceTrouble(self.name, reasons.NOT_PERMITTED, text) from error
            raise

    async def _state(self, s: Session, x: xids.Xid) -> int | None:
        found = await s.value(my.read_marker(x.tx_id, x.branch, marker.XA, self._schema))
        return None if found is None else int(found)

    async def _probe_on(self, s: Session, tx_id: str, branch: str, op: str, not_after_us: int) -> Probed:
        read = my.read_marker(tx_id, branch, op, self._schema)
        for _ in range(2):
            state = await s.value(read)
            if state is not None:
                return Probed.COMMITTED if state == marker.DONE else Probed.NEVER
            try:
                # In autocommit, with a short lock time-out: a transaction of its own.
                inserted = await s.execute(
                    my.insert_marker(tx_id, branch, op, not_after_us, marker.TOMBSTONE, self._schema)
                )
            except StatementError as error:
                if error.meaning is my.Reply.DUPLICATE:
                    continue
                if error.meaning in (my.Reply.LOCK_TIMEOUT, my.Reply.ROLLED_BACK):
                    return Probed.OPEN
                raise
            return Probed.NEVER if inserted else Probed.TOO_LATE
        return Probed.OPEN

    # ---- connections ----

    @asynccontextmanager
    async def _session(self, *, check: bool = True) -> AsyncIterator[Session]:
        """A session in autocommit; with ``check``, known to lead to the right database. A broken one is thrown
        away. Raises ResourceTrouble for whatever the server refuses."""
        async with self._slots:
            s, found = await self._take()
            try:
                try:
                    if check and self.expected_identity is not None and found != self.expected_identity:
                        found = await self._identity_on(s)
                        self._compare(found)
                    yield s
                except StatementError as error:
                    raise self._trouble(error) from error
            finally:
                self._give_back(s, found)

    @asynccontextmanager
    async def _second(self) -> AsyncIterator[Session]:
        """One more session, for who has one: waiting for a slot as well could wait for ever."""
        s, found = await self._take()
        try:
            yield s
        finally:
            self._give_back(s, found)

    async def _take(self) -> tuple[Session, str | None]:
        while self._idle:
            s, found = self._idle.pop()
            if s.usable:
                return s, found
        try:
            s = await Session.open(self._address, self._timeout_s)
        except StatementError as error:
            raise self._trouble(error) from error
        self.engine = s.flavour.value
        return s, None

    def _give_back(self, s: Session, found: str | None) -> None:
        if s.usable and not self._closed:
            self._idle.append((s, found))
        else:
            s.close()

    def _trouble(self, error: StatementError) -> ResourceTrouble:
        if error.meaning is my.Reply.UNREACHABLE:
            # Those beside it are most likely as dead: they must not cost an attempt each.
            self._forget_idle()
        if error.meaning is my.Reply.NO_TABLE:
            return self._not_prepared()
        if error.errno in (1044, 1045, 1049, 1698):
            return ResourceTrouble(self.name, "RESOURCE_CREDENTIALS", f"cannot log in: {error}")
        return ResourceTrouble(self.name, reasons.RESOURCE_UNREACHABLE, str(error))

    def _compare(self, found: str) -> None:
        if found != self.expected_identity:
            raise ResourceTrouble(
                self.name,
                reasons.RESOURCE_MISMATCH,
                "this URL leads to another database than before: "
                f"identity {found}, the log remembers {self.expected_identity}",
            )

    def _forget_idle(self) -> None:
        while self._idle:
            self._idle.pop()[0].close()

    def _not_prepared(self) -> ResourceTrouble:
        return ResourceTrouble(
            self.name,
            reasons.RESOURCE_NOT_PREPARED,
            f"the database has no txcoord tables: run 'txcoord resource check {self.name} --fix'",
        )

    async def _identity_on(self, s: Session) -> str:
        found = await s.value(my.read_identity(self._schema))
        if found is None:
            raise self._not_prepared()
        return str(found)


def _parsed(xid: str) -> xids.Xid:
    x = xids.parse(xid)
    if x is None:
        raise ValueError(f"not an xid of txcoord: {xid!r}")
    return x
