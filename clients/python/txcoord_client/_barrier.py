"""The barrier of a participant, in the transaction of its work. What it means is in ``protocol.barrier``."""

from __future__ import annotations

from typing import Any

from . import _values
from ._answers import Call
from ._db import kinds
from ._db.hands import Hand, noticing_rollbacks, rolled_back
from ._db.redis_ import RedisWork, barrier_lost, forgotten
from .errors import Refused, Rejected
from .protocol import barrier, marker, reasons

MOST_RESULT = 256 * 1024
"""Bytes of a result."""
PRUNED_AT_ONCE = 500
"""Branches."""


class Entry:
    """What the barrier says of a call. True where its work is to be done now; else it was done before, or there is
    nothing to do."""

    def __init__(self, call: Call, first: bool, data: bytes | None) -> None:
        self.call = call
        self.first = first
        self.data = data or b""
        """What the try or action returned, as it was sent: of this call where it is a repetition, else of the one
        before it."""

    def __bool__(self) -> bool:
        return self.first

    def result(self, wanted: Any = Any) -> Any:
        """The same as a value; ``wanted`` is a dataclass or pydantic model that it is to be."""
        return _values.decode(self.data, wanted)

    async def keep(self, value: Any) -> None:
        """Keep what the try or action returns, for its confirm, cancel or compensation and for repetitions. Raises
        Rejected where it is no JSON or too large, and for a call that is none of both."""
        await self.keep_data(_values.encode(value) if value is not None else b"")

    async def keep_data(self, data: bytes) -> None:
        """The same of what is encoded already."""
        if not self.first or self.call.op not in ("try", "action"):
            raise Rejected("a result is kept by a try or an action that is made for the first time")
        if len(data) > MOST_RESULT:
            # Before anything is committed: later nobody could tell what it had returned.
            text = f"the result has {len(data)} bytes; at most {MOST_RESULT}"
            raise Rejected(text, reason=reasons.TOO_LARGE)
        self.data = data
        if data:
            await self._write(data)

    async def finish(self, value: Any = None) -> None:
        """Its work has returned: keep ``value``, and see that a COMMIT would commit. The SDK calls it. Raises Rejected
        where the transaction was rolled back and nobody has told."""
        if value is not None:
            await self.keep(value)

    async def _write(self, data: bytes) -> None:
        raise NotImplementedError


class _SqlEntry(Entry):
    def __init__(self, call: Call, first: bool, data: bytes | None, hand: Hand) -> None:
        super().__init__(call, first, data)
        self._hand = hand
        self._kept = False

    async def finish(self, value: Any = None) -> None:
        self._kept = False
        await super().finish(value)
        if not self.first or self._kept:
            return
        # What the work has swallowed is no error of the COMMIT's: PostgreSQL answers it with ROLLBACK, and after a
        # deadlock of MariaDB's it commits what came later. The row that came first is there, or nothing is.
        call = self.call
        with noticing_rollbacks():
            row = await self._hand.row(_statements(self._hand).read(call.tx_id, call.branch, call.op))
        if row is None:
            raise rolled_back()

    async def _write(self, data: bytes) -> None:
        call = self.call
        with noticing_rollbacks():
            # None: it is gone, or MySQL does not count what is there already.
            count = await self._hand.run(_statements(self._hand).keep(call.tx_id, call.branch, call.op, data))
        self._kept = count == 1


class _RedisEntry(Entry):
    def __init__(self, call: Call, first: bool, data: bytes | None, work: RedisWork) -> None:
        super().__init__(call, first, data)
        self._work = work

    async def _write(self, data: bytes) -> None:
        self._work.keep(data)


async def enter(db: Any, call: Call, keep_days: int = 0) -> Entry:
    """Say that this call is made now; ``db`` is a connection or session in a transaction. ``keep_days``: how long
    markers are kept; 0: for ever. Raises Refused for a try that comes after its cancel, or too late; Rejected for a
    connection without a transaction, and where nobody can tell any more whether the call was made before."""
    if isinstance(db, RedisWork):
        entered = await db.enter(call, keep_days)
        return _RedisEntry(call, *entered, db)
    hand = kinds.hand_of(db)
    statements = _statements(hand)
    await hand.refuse_autocommit()
    known_us = barrier.known_until_us(call.tx_id, keep_days) if keep_days else 0
    first, data = await _entered(hand, statements, call, known_us)
    return _SqlEntry(call, first, data, hand)


async def _entered(
    hand: Hand, statements: barrier.Statements, call: Call, known_us: int
) -> tuple[bool, bytes | None]:
    tx_id, branch, op, limit_us = call.tx_id, call.branch, call.op, call.not_after_us
    if op in barrier.FIRST:
        inserted = await hand.run(statements.enter(tx_id, branch, op, 0))
        if inserted == 2:  # There is nothing to undo: the other row is a tombstone.
            row = await hand.row(statements.read(tx_id, branch, op))
            if known_us and row is not None and row[2] > known_us:
                raise forgotten(call)
        if inserted != 1:
            return False, None
        row = await hand.row(statements.read(tx_id, branch, barrier.FIRST[op]))
        if row is None or row[0] != marker.DONE:
            raise barrier_lost(call)
        return True, _bytes(row[1])
    soonest_us = min(filter(None, (limit_us, known_us)), default=0)
    if await hand.run(statements.enter(tx_id, branch, op, soonest_us)):
        return True, None
    row = await hand.row(statements.read(tx_id, branch, op))
    if row is not None and row[0] == marker.TOMBSTONE:
        raise Refused(reasons.DECIDED, f"the {op} came after it was undone")
    if row is not None:
        return False, _bytes(row[1])
    if known_us and (soonest_us != limit_us or await _now_us(hand, statements) > known_us):
        # It may have been done and pruned: a no would be a lie, also where its deadline has passed as well.
        raise forgotten(call)
    raise Refused(reasons.DEADLINE, f"the {op} came after its transaction's deadline")


async def prune(db: Any, keep_days: int) -> int:
    """Delete a small batch of what is older; how many rows it was. ``db`` as above, in a transaction of its own."""
    if isinstance(db, RedisWork):
        return 0  # They have their time to live.
    hand = kinds.hand_of(db)
    statements = _statements(hand)
    await hand.refuse_autocommit()
    before_us = await _now_us(hand, statements) - keep_days * barrier.DAY_US
    return await hand.run(statements.prune(before_us, PRUNED_AT_ONCE))


async def _now_us(hand: Hand, statements: barrier.Statements) -> int:
    row = await hand.row(statements.now)
    assert row is not None
    return int(row[0])


async def make_table(db: Any) -> None:
    """Make the marker table where there is none."""
    if isinstance(db, RedisWork):
        return
    hand = kinds.hand_of(db)
    statements = _statements(hand)
    await hand.refuse_autocommit()
    for statement in statements.ddl:
        await hand.run(statement)


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _statements(hand: Hand) -> barrier.Statements:
    found = barrier.BY_FAMILY.get(hand.family)
    if found is None:
        raise Rejected(
            f"the barrier works on PostgreSQL, MariaDB, MySQL and SQLite, not on {hand.family}",
            reason=reasons.NOT_SUPPORTED,
        )
    return found
