"""``coord.attach(session)``: messages that leave when a transaction commits that the application owns and ends.

A marker is written in that transaction, then the messages are made durable at the coordinator. What became of the
transaction is never concluded from an event or from a call: its own database is asked, by the marker's key.
"""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Any, Self

from . import _aio, _answered, _savepoints, _tries
from . import outcome as outcomes
from ._block import Home, Scope
from ._db import kinds
from ._db.hands import Hand
from ._runtime import Runtime
from ._xa.branch import Stage, reason_of
from .errors import Rejected, ResourceMismatch, TxcoordError, UnknownResource
from .outcome import Outcome
from .participant import Participant
from .protocol import mariadb, marker, postgresql, reasons
from .transaction import Transaction

log = logging.getLogger("txcoord.client")
_INFO = "txcoord_attached"
_ASK_S = 10.0


class Attached:
    """``async with coord.attach(session) as tx: tx.message(target, body)``. When the block ends the messages are
    durable; they leave once the application has committed, and not at all when it has rolled back, or only the
    savepoint around the block."""

    def __init__(
        self, home: Home, scope: Scope, db: Any, resource: str, answerer: Participant | None = None
    ) -> None:
        self._home = home
        self._scope = scope
        self._db = db
        self._resource = resource
        self._answerer = answerer
        self._joined = False
        self._transaction: Transaction | None = None

    @property
    def transaction(self) -> Transaction:
        """The transaction that it is, for its ``tx_id``."""
        assert self._transaction is not None
        return self._transaction

    def message(self, target: Any, body: Any = None, **more: Any) -> str:
        """As :meth:`Transaction.message`."""
        self._check()
        return self.transaction.message(target, body, **more)

    def notify(self, target: Any, body: Any = None, **more: Any) -> str:
        """As :meth:`Transaction.notify`."""
        self._check()
        return self.transaction.notify(target, body, **more)

    def _check(self) -> None:
        if self._joined:
            # It has no marker of its own, which the rollback of a savepoint would take along.
            _savepoints.refuse(self._db)

    async def settle(self) -> Outcome:
        """Ask the database what became of the transaction: to be called after its end, where it is not a session's,
        which does so by itself. Without it they leave at the deadline. Raises Unavailable, OutcomeUnknown."""
        tx = self.transaction
        if self._joined or not tx._begun:
            raise Rejected("there is nothing to ask about: it has no messages, or ends with its transaction")
        if self._answerer is not None:
            return await _answered.settle(tx, self._answerer, _aio.now() + _ASK_S)
        out = await tx._runtime.settle(
            tx.tx_id,
            tx.gid,
            tx.deadline_us,
            (self._resource,),
            begun=True,
            until=_aio.now() + _ASK_S,
        )
        return outcomes.from_pb(out, tx_id=tx.tx_id, gid=tx.gid)

    async def __aenter__(self) -> Self:
        outer = self._home.current_or_none()
        self._joined = outer is not None
        if self._joined and self._answerer is not None:
            raise Rejected(
                "answered_by: inside a global transaction its messages leave with that one: send them by it",
                reason=reasons.NOT_SUPPORTED,
            )
        if outer is not None and not any(
            branch.held.value is self._db and branch.stage is Stage.OPEN for branch in outer._local
        ):
            raise Rejected(
                f"this session or connection is no branch of the transaction {outer.gid or outer.tx_id} in which this "
                "code runs: it would commit by itself. Give it to g.xa first; or, if that is meant, attach to it "
                "inside coord.outside()",
                reason=reasons.NOT_SUPPORTED,
            )
        self._transaction = outer if outer is not None else await self._scope._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tx = self.transaction
        if self._joined:
            if error is not None:
                # As any block inside: whoever catches it must not send half of it.
                tx.set_rollback_only(
                    reason_of(error), f"{type(error).__name__} left a block of attach: {error}"
                )
            return
        tx._close()
        if error is not None or not tx._deliveries:
            return
        if self._answerer is not None:
            self._ask_later()
            await _answered.announce(tx, self._db, self._answerer)
            return
        hand = kinds.hand_of(self._db)
        await hand.refuse_autocommit()
        await _mark(tx, hand, self._resource)
        self._ask_later()
        tx._one_phase_resource = self._resource
        await _tries.enlisted(tx, list(tx._deliveries.values()))

    def _ask_later(self) -> None:
        session = _session_of(self._db)
        if session is not None:
            _ask_at_its_end(session, self)

    def _over(self) -> None:
        """Its session has ended its transaction, one way or the other."""
        tx = self.transaction
        if tx._begun:
            tx._runtime.tasks.spawn(f"txcoord.attached:{tx.tx_id}", self._asked)

    async def _asked(self) -> None:
        try:
            await self.settle()
        except TxcoordError as error:
            # At its deadline it is asked again.
            log.warning("not known yet: the local transaction of %s: %s", self.transaction.tx_id, error)


async def _mark(tx: Transaction, hand: Hand, resource: str) -> None:
    """Write the marker in the application's transaction. Raises Rejected past the deadline, ResourceMismatch."""
    schema = await _checked(tx._runtime, hand, resource)
    limit_us = tx.deadline_us + tx._runtime.grace_us
    if hand.family == "postgresql":
        await hand.run(postgresql.FLUSHED)
        statement = postgresql.insert_marker(tx.tx_id, marker.ONE_BRANCH, marker.ONE, limit_us)
    else:
        statement = mariadb.insert_marker(
            tx.tx_id, marker.ONE_BRANCH, marker.ONE, limit_us, marker.DONE, schema
        )
    if await hand.run(statement) != 1:
        raise Rejected("the deadline has passed: its messages cannot be sent", reason=reasons.DEADLINE)


async def _checked(runtime: Runtime, hand: Hand, resource: str) -> str:
    """The schema of the marker table, of the database that the coordinator means by that name."""
    info = runtime._known.get(resource)
    if info is None or not info.identity:
        await runtime.connect_by_default(fresh=True)
        info = runtime._known.get(resource)
    if info is None:
        raise UnknownResource(
            f"the coordinator has no resource {resource!r}: nobody could be asked whether it has committed",
            facts={"resource": resource},
        )
    on_postgres = hand.family == "postgresql"
    found = await hand.row(postgresql.read_identity() if on_postgres else mariadb.READ_IDENTITY_AND_SCHEMA)
    if found is None or (info.identity and str(found[0]) != info.identity):
        raise ResourceMismatch(
            f"resource {resource!r}: this connection's database is not the one that the coordinator means",
            facts={"resource": resource},
        )
    return str(found[1]) if len(found) > 1 else ""


def _session_of(db: Any) -> Any:
    """SQLAlchemy's own session, if it is one."""
    if "sqlalchemy" not in sys.modules:
        return None
    from sqlalchemy import orm

    session = getattr(db, "sync_session", db)
    return session if isinstance(session, orm.Session) else None


def _ask_at_its_end(session: Any, attached: Attached) -> None:
    """When the outermost transaction of a session ends: whether it has committed is asked, not believed. One that has
    joined an outer connection's ends before that one; then the database answers that it is still open."""
    from sqlalchemy import event

    waiting: list[Attached] | None = session.info.get(_INFO)
    if waiting is None:
        waiting = session.info[_INFO] = []
        event.listen(session, "after_transaction_end", _ended)
    waiting.append(attached)


def _ended(session: Any, transaction: Any) -> None:
    if transaction.parent is None:
        waiting: list[Attached] = session.info[_INFO]
        over = list(waiting)
        waiting.clear()
        for attached in over:
            attached._over()
